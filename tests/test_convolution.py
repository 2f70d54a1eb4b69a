import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import nets
from hapre_jax.nets import convolution, layers


def _arrays(shape, kernel):
    rng = np.random.default_rng(0)
    return (jnp.array(rng.normal(size=of), jnp.float32) for of in (shape, kernel))


def _usual(image, kernel, stride):
    padding = ((kernel.shape[0] // 2,) * 2,) * 2
    return jax.lax.conv_general_dilated(
        image,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _gradients(of, stride):
    """Of a sum of squares, so that each number of the result has its own weight."""

    def loss(image, kernel):
        return jnp.sum(of(image, kernel, stride) ** 2)

    return jax.jit(jax.grad(loss, (0, 1)))


def test_products_with_the_hessian_have_both_modes():
    for shape, size, stride in (
        ((5, 9, 8, 2), (3, 3, 2, 4), 2),
        ((2, 5, 4, 6), (1, 1, 6, 3), 2),
    ):
        image, kernel = _arrays(shape, size)

        def loss(kernel, image=image, stride=stride):
            return jnp.sum(jnp.sin(convolution.convolve(image, kernel, stride)))

        along = jnp.ones_like(kernel)
        _, forward = jax.jvp(jax.grad(loss), (kernel,), (along,))
        _, pull_back = jax.vjp(jax.grad(loss), kernel)
        np.testing.assert_allclose(forward, pull_back(along)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [
        ((2, 5, 4, 6), (3, 3, 6, 16), 1),  # a kernel larger than what it is applied to
        ((2, 5, 4, 6), (3, 3, 6, 16), 2),
        ((1, 6, 7, 3), (7, 7, 3, 8), 2),
        ((1, 1, 1, 2), (3, 3, 2, 2), 1),
        ((2, 5, 4, 6), (1, 1, 6, 16), 1),  # products
        ((2, 5, 4, 6), (1, 1, 6, 16), 2),
        ((5, 9, 9, 2), (3, 3, 2, 4), 1),  # smaller
        ((5, 9, 8, 2), (3, 3, 2, 4), 2),
        ((2, 5, 6, 3), (4, 4, 3, 2), 2),  # even
    ],
)
@pytest.mark.parametrize("cached", [10**9, 1300])  # all images at once, one or two
@pytest.mark.parametrize("many_outputs", [1, 10**9])  # by rows and products, or not
def test_results_and_gradients_are_those_of_a_convolution(
    shape, kernel, stride, cached, many_outputs, monkeypatch
):
    monkeypatch.setattr(convolution, "_CACHED_BYTES", cached)
    monkeypatch.setattr(convolution, "_MANY_OUTPUTS", many_outputs)
    arrays = tuple(_arrays(shape, kernel))
    found, expected = (of(*arrays, stride) for of in (convolution.convolve, _usual))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    mine, usual = (_gradients(of, stride) for of in (convolution.convolve, _usual))
    for found, expected in zip(mine(*arrays), usual(*arrays), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
    # A branch of XLA's would be several times slower than what is saved.
    assert "conditional" not in mine.lower(*arrays).compile().as_text()


def test_gradients_of_a_batch_of_batches_and_of_bfloat16():
    image, kernel = _arrays((3, 2, 4, 4, 8), (3, 3, 8, 16))
    mine, usual = (_gradients(of, 1) for of in (convolution.convolve, _usual))
    together = jax.vmap(mine, (0, None))(image, kernel)
    each = [usual(one, kernel) for one in image]
    for found, expected in zip(together, zip(*each, strict=True), strict=True):
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-3, atol=1e-3)
    half = [x.astype(jnp.bfloat16) for x in (image[0], kernel)]
    for found, expected in zip(mine(*half), each[0], strict=True):
        assert found.dtype == jnp.bfloat16
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.float32(found), expected, atol=0.03 * scale)


def test_gradients_of_no_images_are_zero():
    image, kernel = _arrays((0, 4, 4, 2), (3, 3, 2, 4))
    of_image, of_kernel = _gradients(convolution.convolve, 1)(image, kernel)
    assert of_image.shape == image.shape and not of_kernel.any()


@pytest.fixture
def elsewhere(monkeypatch):
    """Computes on this CPU what other devices are given."""

    def take_default(*arguments, cpu, default):
        del cpu
        return default(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", take_default)


@pytest.mark.parametrize(
    ("shape", "kernel", "is_by_blocks"),
    [
        ((2, 16, 16, 1), (7, 7, 1, 8), True),  # a stem
        ((2, 17, 14, 3), (7, 7, 3, 8), True),  # no whole blocks
        ((1, 3, 1, 1), (7, 7, 1, 2), True),  # smaller than the kernel
        ((1, 9, 8, 4), (5, 5, 4, 2), True),
        ((1, 8, 8, 5), (7, 7, 5, 2), False),  # channels enough
        ((1, 8, 8, 1), (4, 4, 1, 2), False),  # an even kernel gives more outputs
        ((2, 9, 8, 6), (1, 1, 6, 3), False),
    ],
)
def test_other_devices_compute_the_same(
    elsewhere, monkeypatch, shape, kernel, is_by_blocks
):
    used, by_blocks = [], convolution._by_blocks

    def spy(*arguments):
        used.append(True)
        return by_blocks(*arguments)

    monkeypatch.setattr(convolution, "_by_blocks", spy)
    image, weights = _arrays(shape, kernel)
    found, expected = (of(image, weights, 2) for of in (convolution.convolve, _usual))
    assert found.shape == expected.shape and bool(used) == is_by_blocks
    np.testing.assert_allclose(found, expected, atol=1e-4)
    mine, usual = (
        _gradients(of, 2)(image, weights) for of in (convolution.convolve, _usual)
    )
    for one, other in zip(mine, usual, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_fixed_statistics_may_be_a_part_of_the_convolution(
    request, size, stride, dtype, is_elsewhere
):
    if is_elsewhere:
        request.getfixturevalue("elsewhere")

    class Both(nn.Module):
        joined: bool

        @nn.compact
        def __call__(self, x, *, train=False):
            conv = layers.conv(5, size, stride, dtype=dtype, name="conv")
            norm = layers.Norm("batch", dtype, name="norm")
            if self.joined:
                return layers.normalized(conv, norm, x, train=train)
            return norm(conv(x), train=train)

    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 3))
    variables = Both(joined=True).init(jax.random.key(1), x)
    # Numbers that a network in use may have.
    random = functools.partial(jax.random.uniform, minval=0.5, maxval=2.0)
    variables = jax.tree.map(
        lambda v: random(jax.random.key(v.size), v.shape), variables
    )
    found, expected = (Both(joined).apply(variables, x) for joined in (True, False))
    assert found.dtype == expected.dtype == dtype
    scale = np.abs(expected).max()
    error = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(
        np.float32(found), np.float32(expected), atol=error * scale
    )
    # In training nothing is joined: both see the batch.
    found, expected = (
        Both(joined).apply(variables, x, train=True, mutable=["batch_stats"])
        for joined in (True, False)
    )
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize(
    "net",
    ["resnet18", "resnet50", pytest.param("densenet121", marks=pytest.mark.slow)],
)
def test_a_gpu_is_given_nothing_that_xla_fails_at(net):
    """No stem of one channel, and no product with every second pixel."""
    network = nets.NETS[net](num_classes=2, norm="batch")
    image = jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(network.init, train=False), jax.random.key(0), image
    )

    def loss(params, statistics, image, train):
        variables = {"params": params, "batch_stats": statistics}
        output, _ = network.apply(
            variables, image, train=train, mutable=["batch_stats"]
        )
        return output.logits.sum()

    for train in (True, False):
        gradient = jax.jit(jax.grad(functools.partial(loss, train=train)))
        traced = gradient.trace(variables["params"], variables["batch_stats"], image)
        texts = {
            platform: traced.lower(lowering_platforms=(platform,)).as_text()
            for platform in ("cpu", "cuda")
        }
        of_gray = {
            platform: [
                line
                for line in text.splitlines()
                if "stablehlo.convolution" in line and "<1x64x64x1x" in line
            ]
            for platform, text in texts.items()
        }
        assert of_gray["cpu"] and not of_gray["cuda"]
        strided = re.compile(r"stablehlo.slice .*\[0:1, 0:(\d+):2, 0:\1:2, ")
        is_residual = net.startswith("resnet")
        assert bool(strided.search(texts["cpu"])) == is_residual
        assert not strided.search(texts["cuda"])


def test_deep_layers_are_products_unless_images_are_large_or_many():
    def has_product(shape, features, stride=1):
        image, kernel = _arrays(shape, (3, 3, shape[-1], features))
        jaxpr = jax.make_jaxpr(convolution.convolve, static_argnums=2)
        return "dot_general" in str(jaxpr(image, kernel, stride))

    assert has_product((1, 8, 8, 128), 128)
    assert has_product((2, 14, 14, 64), 128, stride=2)
    assert not has_product((1, 8, 9, 128), 128)  # 72 pixels
    assert not has_product((1, 8, 8, 128), 127)
    assert not has_product((16, 8, 8, 128), 128)  # as many numbers as the kernel
