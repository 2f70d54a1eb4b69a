"""Convolutions written so that XLA computes them in less time, on CPUs and on GPUs."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of the gradients on CPUs, measured with those of a ResNet-8 and a ResNet-18
# (docs/performance.md). Images that a kernel's gradient is summed over at once: a half
# of a core's second cache, or one.
_CACHED_BYTES = 800_000
_MOST_GROUPS = 32  # or compiling takes long
# Numbers of the kernel for one of the cotangent, above which it is not turned.
_TURNED = 2
# Pixels of a block's side where `convolve` reads blocks, and outputs of one.
_BLOCK, _OUTPUTS = 4, 2


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    dimension_numbers: Any = ("NHWC", "HWIO", "NHWC"),
    **settings: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` in less time, the same but for the order of sums.

    XLA's CPU backend reads all images for each place of the kernel's gradient, and
    turns the kernel for the image's, which costs more than the convolution itself where
    a kernel is larger than what it is applied to. A GPU's matrix units want eight
    channels or more, so that elsewhere a stem reads blocks of pixels as channels. There
    is no forward mode (`jax.jvp`).

    Args:
      x: `f32[B, H, W, C]`.
      kernel: `f32[k, k, C, C']`.
      strides, padding: of both sides.
      settings: as `nn.Conv` gives them.

    Raises:
      ValueError: a dilation or groups, of which the gradient knows nothing.
    """
    for name in ("lhs_dilation", "rhs_dilation", "feature_group_count"):
        if any(n != 1 for n in np.ravel(settings.get(name, 1))):
            raise ValueError(f"{name} is {settings[name]}, but must be 1")

    settings["dimension_numbers"] = dimension_numbers

    def usual(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)

    def product(x, kernel):
        return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]

    def gradient_by_parts(x, kernel, cotangent):
        if kernel.size < _TURNED * cotangent.size:
            (of_x,) = jax.vjp(lambda x: usual(x, kernel), x)[1](cotangent)
        else:
            of_x = _by_products(cotangent, kernel, x.shape, strides, padding)
        groups = -(-x.size * x.dtype.itemsize // _CACHED_BYTES)
        count = -(-len(x) // max(min(groups, _MOST_GROUPS), 1))  # images of one
        of_kernel = jnp.zeros(kernel.shape, jnp.float32)
        for at in range(0, len(x), max(count, 1)):
            _, gradient = jax.vjp(functools.partial(usual, x[at : at + count]), kernel)
            of_kernel += gradient(cotangent[at : at + count])[0]
        return of_x, of_kernel.astype(kernel.dtype)

    def gradient_of(function):
        return lambda x, kernel, cotangent: jax.vjp(function, x, kernel)[1](cotangent)

    on_cpu, elsewhere, gradient_on_cpu = usual, usual, gradient_by_parts
    if kernel.shape[:2] == (1, 1):
        on_cpu, gradient_on_cpu = product, gradient_of(product)
    elif _is_stem(kernel.shape, strides, padding):
        elsewhere = functools.partial(_by_blocks, precision=settings.get("precision"))

    @jax.custom_vjp
    def differentiable(x, kernel):
        if on_cpu is elsewhere:
            return usual(x, kernel)
        return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)

    differentiable.defvjp(
        lambda x, kernel: (differentiable(x, kernel), (x, kernel)),
        lambda saved, cotangent: jax.lax.platform_dependent(
            *saved, cotangent, cpu=gradient_on_cpu, default=gradient_of(elsewhere)
        ),
    )
    return differentiable(x, kernel)


def _is_stem(shape, strides, padding):
    """Whether `_by_blocks` computes it: an odd kernel that fits, of a few channels."""
    height, width, channels, _ = shape
    is_square = height == width <= 2 * _BLOCK - 1 and height % 2 == 1
    pads = {height // 2, *itertools.chain(*padding)}
    has_pads = len(pads) == 1
    return is_square and has_pads and set(strides) == {_OUTPUTS} and channels <= _BLOCK


def _by_blocks(x, kernel, *, precision):
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
        x,
        kernel,
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    # Or XLA adds a later bias to the blocks, for which it writes it for each pixel.
    y = jax.lax.optimization_barrier(y)
    y = y.reshape(batch, rows, columns, _OUTPUTS, _OUTPUTS, features)
    y = y.transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, _OUTPUTS * rows, _OUTPUTS * columns, features)
    return y[:, : -(-height // 2), : -(-width // 2)]


def _by_products(cotangent, kernel, shape, strides, padding):
    """The image's gradient as one product of matrices, then moved and summed."""
    height, width, channels, features = kernel.shape
    products = jax.lax.dot_general(
        cotangent,
        kernel.reshape(-1, features),
        (((3,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    total = jnp.zeros(shape, jnp.float32)
    for index, place in enumerate(itertools.product(range(height), range(width))):
        first = index * channels
        product = products[..., first : first + channels]
        edges = [(0, 0, 0)]
        for axis, (at, stride, (before, _)) in enumerate(
            zip(place, strides, padding, strict=True), 1
        ):
            low = at - before  # negative: outside of the image
            covered = stride * (cotangent.shape[axis] - 1) + 1
            edges.append((low, shape[axis] - low - covered, stride - 1))
        total += jax.lax.pad(product, jnp.float32(0), [*edges, (0, 0, 0)])
    return total.astype(cotangent.dtype)
