"""Convolutions written so that XLA computes them in less time, on CPUs and on GPUs."""

import functools
import itertools

import jax
import jax.numpy as jnp

# On CPUs, as measured with a ResNet-8 and a ResNet-18 (docs/performance.md). Images
# that a kernel's gradient is summed over at once: a half of a core's second cache, or
# one.
_CACHED_BYTES = 800_000
_MOST_GROUPS = 32  # or compiling takes long
# Numbers of the kernel for one of the result from which on it counts as the larger.
_LARGER = 2
# Outputs from which on it pays to arrange an image anew, and pixels of a result up to
# which XLA's convolution is slow.
_MANY_OUTPUTS, _FEW_PIXELS = 128, 64
# Pixels of a block's side where `convolve` reads blocks, and outputs of one.
_BLOCK, _OUTPUTS = 4, 2
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """A square convolution, padded by k // 2 on all sides, in less time than XLA's.

    XLA's CPU backend reads all images for each place of the kernel's gradient, turns
    the kernel for the image's, which costs more than the convolution itself where a
    kernel is larger than its result, and is slow there where that has few pixels. A
    GPU's matrix units want eight channels or more, so that elsewhere a stem reads
    blocks of pixels as channels. All compute the same but for the order of sums.

    A kernel of one pixel is a matrix product: XLA's gradient of the convolution takes
    up to 6 times as long on a CPU. With a stride it is a convolution on a GPU, where
    XLA aborts the process as it joins products with every second pixel (jax 0.11.2).
    There is no forward mode (`jax.jvp`) but for those of stride 1; over a gradient
    there is, as for products with the Hessian.

    Args:
      x: `f32[B, H, W, C]`.
      kernel: `f32[k, k, C, C']`.
      stride: of both sides.
    """
    size = kernel.shape[0]
    if size == stride == 1:
        return x @ kernel[0, 0]

    def usual(x, kernel):
        padding = ((size // 2, size // 2),) * 2
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT
        )

    def product(x, kernel):
        return x[:, ::stride, ::stride] @ kernel[0, 0]

    def product_of_columns(x, kernel):
        columns = _columns(x, size, stride)
        return columns @ kernel.reshape(columns.shape[-1], -1)

    def gradient_by_parts(x, kernel, cotangent):
        if kernel.size < _LARGER * cotangent.size:
            (of_x,) = jax.vjp(lambda x: usual(x, kernel), x)[1](cotangent)
        else:
            of_x = _by_products(cotangent, kernel, x.shape, stride)
        groups = -(-x.size * x.dtype.itemsize // _CACHED_BYTES)
        count = -(-len(x) // max(min(groups, _MOST_GROUPS), 1))  # images of one
        of_kernel = jnp.zeros(kernel.shape, _sums_of(kernel))
        for at in range(0, len(x), max(count, 1)):
            part, of_part = x[at : at + count], cotangent[at : at + count]
            if kernel.shape[-1] >= _MANY_OUTPUTS:
                of_kernel += _kernel_by_rows(part, of_part, size, stride)
            else:
                _, gradient = jax.vjp(functools.partial(usual, part), kernel)
                of_kernel += gradient(of_part)[0]
        return of_x, of_kernel.astype(kernel.dtype)

    def gradient_of(function):
        return lambda x, kernel, cotangent: jax.vjp(function, x, kernel)[1](cotangent)

    on_cpu, elsewhere, gradient_on_cpu = usual, usual, gradient_by_parts
    if size == 1:
        on_cpu, gradient_on_cpu = product, gradient_of(product)
    elif _is_deep(x.shape, kernel.shape, stride):
        on_cpu = product_of_columns
    if _is_stem(kernel.shape, stride):
        elsewhere = _by_blocks

    def forward(x, kernel):
        if on_cpu is elsewhere:
            return usual(x, kernel)
        return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)

    differentiable = jax.custom_vjp(forward)
    differentiable.defvjp(
        lambda x, kernel: (forward(x, kernel), (x, kernel)),
        lambda saved, cotangent: jax.lax.platform_dependent(
            *saved, cotangent, cpu=gradient_on_cpu, default=gradient_of(elsewhere)
        ),
    )
    return differentiable(x, kernel)


def _is_stem(shape, stride):
    """Whether `_by_blocks` computes it: an odd kernel that fits, of a few channels."""
    size, _, channels, _ = shape
    return (
        size % 2 == 1
        and size <= 2 * _BLOCK - 1
        and stride == _OUTPUTS
        and channels <= _BLOCK
    )


def _by_blocks(x, kernel):
    """A stem's convolution with stride 2, reading blocks of 4 x 4 pixels as channels.

    Each block has the outputs of its even pixels, 2 x 2, as channels, which depend on
    the block and on those around it: a convolution of 3 x 3 blocks.
    """
    batch, height, width, channels = x.shape
    size, features = kernel.shape[0], kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0)))
    rows, columns = x.shape[1] // _BLOCK, x.shape[2] // _BLOCK
    x = x.reshape(batch, rows, _BLOCK, columns, _BLOCK, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
    for axis in (0, 1):  # for each output, where the kernel lies in the three blocks
        places = []
        for output in range(_OUTPUTS):
            before = _BLOCK - size // 2 + _OUTPUTS * output
            edges = [(0, 0)] * kernel.ndim
            edges[axis] = before, 3 * _BLOCK - size - before
            places.append(jnp.pad(kernel, edges))
        kernel = jnp.stack(places, axis=-1)
    kernel = kernel.reshape(
        3, _BLOCK, 3, _BLOCK, channels, features, _OUTPUTS, _OUTPUTS
    )
    kernel = kernel.transpose(0, 2, 1, 3, 4, 6, 7, 5)
    kernel = kernel.reshape(3, 3, x.shape[-1], -1)
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT
    )
    # Or XLA adds a later bias to the blocks, for which it writes it for each pixel.
    y = jax.lax.optimization_barrier(y)
    y = y.reshape(batch, rows, columns, _OUTPUTS, _OUTPUTS, features)
    y = y.transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, _OUTPUTS * rows, _OUTPUTS * columns, features)
    return y[:, : -(-height // 2), : -(-width // 2)]


def _is_deep(shape, kernel_shape, stride):
    """Whether the kernel is larger than a result of few pixels and many channels."""
    batch, height, width, _ = shape
    size, _, channels, features = kernel_shape
    pixels = -(-height // stride) * -(-width // stride)
    return (
        size % 2 == 1
        and pixels <= _FEW_PIXELS
        and features >= _MANY_OUTPUTS
        and isinstance(batch, int)  # not one that an exported function leaves open
        and size**2 * channels >= _LARGER * batch * pixels
    )


def _columns(x, size, stride):
    """What an odd kernel reads for each output, `[B, h, w, k * k * C]`."""
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    rows, columns = (
        [slice(at, at + side, stride) for at in range(size)] for side in x.shape[1:3]
    )
    return jnp.concatenate([padded[:, r, c] for r in rows for c in columns], axis=-1)


def _kernel_by_rows(x, cotangent, size, stride):
    """The kernel's gradient, `[k, k, C, C']`, as a convolution along the first side.

    Its features are a row of all images, so that XLA reads them one after the other,
    and its batch the channels, once for each column of the kernel.
    """
    batch, height, _, channels = x.shape
    _, rows, columns, features = cotangent.shape
    half = size // 2
    turned = jnp.pad(x, ((0, 0), (0, 0), (half, half), (0, 0))).transpose(3, 1, 2, 0)
    reach = stride * (columns - 1) + 1
    moved = [turned[:, :, at : at + reach : stride] for at in range(size)]
    after = size + stride * (rows - 1) - height - half
    gradient = jax.lax.conv_general_dilated(
        jnp.stack(moved).reshape(size * channels, height, columns * batch),
        cotangent.transpose(1, 2, 0, 3).reshape(rows, columns * batch, features),
        window_strides=(1,),
        padding=((half, after),),
        rhs_dilation=(stride,),
        dimension_numbers=("NHC", "HIO", "NHC"),
        preferred_element_type=_sums_of(x),
    )
    gradient = gradient.reshape(size, channels, size, features)
    return gradient.transpose(2, 0, 1, 3)


def _by_products(cotangent, kernel, shape, stride):
    """The image's gradient as one product of matrices, then moved and summed."""
    size, _, channels, features = kernel.shape
    products = jax.lax.dot_general(
        cotangent,
        kernel.reshape(-1, features),
        (((3,), (1,)), ((), ())),
        preferred_element_type=_sums_of(cotangent),
    )
    total = jnp.zeros(shape, products.dtype)
    for index, place in enumerate(itertools.product(range(size), repeat=2)):
        first = index * channels
        product = products[..., first : first + channels]
        edges = [(0, 0, 0)]
        for axis, at in enumerate(place, 1):
            low = at - size // 2  # negative: outside of the image
            covered = stride * (cotangent.shape[axis] - 1) + 1
            edges.append((low, shape[axis] - low - covered, stride - 1))
        total += jax.lax.pad(product, jnp.zeros((), product.dtype), [*edges, (0, 0, 0)])
    return total.astype(cotangent.dtype)


def _sums_of(x):
    """The type that sums are kept in."""
    return jnp.promote_types(x.dtype, jnp.float32)
