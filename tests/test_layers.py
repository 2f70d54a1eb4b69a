import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax.nets import layers

SETTINGS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def _arrays(shape, kernel):
    rng = np.random.default_rng(0)
    return (jnp.array(rng.normal(size=of), jnp.float32) for of in (shape, kernel))


def _gradients(convolve, image, kernel, stride, padding):
    """Of a sum of squares, so that each number of the result has its own weight."""

    def loss(image, kernel):
        window = ((stride, stride), [(padding, padding)] * 2)
        return jnp.sum(convolve(image, kernel, *window, **SETTINGS) ** 2)

    return jax.jit(jax.grad(loss, (0, 1)))


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [
        ((2, 5, 4, 6), (3, 3, 6, 16), 1),  # a kernel larger than what it is applied to
        ((2, 5, 4, 6), (3, 3, 6, 16), 2),
        ((1, 6, 7, 3), (7, 7, 3, 8), 2),
        ((1, 1, 1, 2), (3, 3, 2, 2), 1),
        ((5, 9, 9, 2), (3, 3, 2, 4), 1),  # smaller
        ((5, 9, 8, 2), (3, 3, 2, 4), 2),
    ],
)
@pytest.mark.parametrize("cached", [10**9, 1300])  # all images at once, one or two
def test_gradients_are_those_of_a_convolution(
    shape, kernel, stride, cached, monkeypatch
):
    monkeypatch.setattr(layers, "_CACHED_BYTES", cached)
    arrays = tuple(_arrays(shape, kernel))
    padding = kernel[0] // 2
    mine, usual = (
        _gradients(of, *arrays, stride, padding)
        for of in (layers.convolve, jax.lax.conv_general_dilated)
    )
    for found, expected in zip(mine(*arrays), usual(*arrays), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
    # A branch of XLA's would be several times slower than what is saved.
    assert "conditional" not in mine.lower(*arrays).compile().as_text()


def test_gradients_of_a_batch_of_batches_and_of_bfloat16():
    image, kernel = _arrays((3, 2, 4, 4, 8), (3, 3, 8, 16))
    mine, usual = (
        _gradients(of, image, kernel, 1, 1)
        for of in (layers.convolve, jax.lax.conv_general_dilated)
    )
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
    of_image, of_kernel = _gradients(layers.convolve, image, kernel, 1, 1)(
        image, kernel
    )
    assert of_image.shape == image.shape and not of_kernel.any()


@pytest.mark.parametrize(
    "setting", [{"rhs_dilation": (2, 2)}, {"feature_group_count": 2}]
)
def test_convolve_refuses_what_its_gradient_does_not_know(setting):
    image, kernel = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 2))
    (name,) = setting
    with pytest.raises(ValueError, match=f"^{name} is .* but must be 1$"):
        layers.convolve(image, kernel, (1, 1), ((1, 1), (1, 1)), **SETTINGS | setting)
