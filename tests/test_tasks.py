import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from hapre_jax import tasks
from hapre_jax.nets import Output


class _Net:
    """Mean of the image, times a weight for each class; its state remembers `train`."""

    def init(self, key, image, *, train):
        assert not train
        return {"params": {"w": jax.random.normal(key, (3,)) + jnp.mean(image)}}

    def apply(self, variables, image, *, train, mutable):
        assert mutable == ["batch_stats"]
        means = jnp.mean(image, axis=(1, 2, 3))
        logits = means[:, None] * variables["params"]["w"][None]
        return Output(logits, {}), {"batch_stats": {"train": train}} if train else {}


def test_normalize_image_by_hand():
    image = np.array([[0.2, 0.4], [0.4, 0.6]], np.float32)[:, :, None]
    # Mean 0.4, deviation sqrt(0.02) = 0.141421, plus 0.05.
    expected = np.array([[-0.2, 0.0], [0.0, 0.2]])[:, :, None] / 0.191421
    found = tasks.normalize(jnp.array(image), "image")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_normalize_image_treats_each_image_alone():
    images = np.random.default_rng(0).uniform(size=(2, 3, 4, 4, 2)).astype(np.float32)
    found = tasks.normalize(jnp.array(images), "image")
    for index in np.ndindex(2, 3):
        alone = tasks.normalize(jnp.array(images[index]), "image")
        np.testing.assert_allclose(found[index], alone, atol=1e-5)


def test_exposure_hardly_matters_after_normalize_image():
    image = np.random.default_rng(0).uniform(size=(8, 8, 1)).astype(np.float32)
    dark = 0.1 + 0.8 * image
    found, expected = (tasks.normalize(jnp.array(i), "image") for i in (dark, image))
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert np.abs(dark - image).max() > 0.09


def test_noise_of_an_empty_image_is_not_blown_up():
    rng = np.random.default_rng(0)
    image = 0.5 + 1e-3 * rng.standard_normal((8, 8, 1)).astype(np.float32)
    assert np.abs(tasks.normalize(jnp.array(image), "image")).max() < 0.1
    constant = tasks.normalize(jnp.full((8, 8, 1), 0.3), "image")
    np.testing.assert_allclose(constant, 0.0, atol=1e-5)


def test_normalize_of_a_flat_crop_has_a_gradient():
    # Of black pixels only, (x - mean) / (0 + 0.05): a pixel's own change counts, less
    # its share of the mean, times 20.
    gradient = jax.grad(lambda x: tasks.normalize(x, "image")[0, 0, 0])
    expected = np.full((2, 2, 1), -5.0)
    expected[0, 0] = 15.0
    np.testing.assert_allclose(gradient(jnp.zeros((2, 2, 1))), expected, rtol=1e-6)


def test_normalize_fixed_is_torchvision_s():
    image = jnp.full((1, 2, 2, 3), 0.5)
    # (0.5 - mean) / deviation of each channel.
    expected = [0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225]
    found = tasks.normalize(image, "fixed")
    np.testing.assert_allclose(found[0, 1, 1], expected, rtol=1e-5)


def test_normalize_fixed_of_one_channel_uses_the_average():
    # Mean of the three means 0.449, of the three deviations 0.226.
    found = tasks.normalize(jnp.full((2, 2, 1), 0.5), "fixed")
    np.testing.assert_allclose(found, np.full((2, 2, 1), 0.051 / 0.226), rtol=1e-4)


def test_apply_network_gives_an_empty_state_where_there_is_none():
    net = _Net()
    image = jnp.ones((2, 4, 4, 1))
    variables = net.init(jax.random.key(0), image, train=False)
    output, state = tasks.apply_network(net, variables, image, train=False)
    assert output.logits.shape == (2, 3) and state == {}
    _, state = tasks.apply_network(net, variables, image, train=True)
    assert state == {"batch_stats": {"train": True}}


def test_classification_normalizes_what_its_network_sees():
    task = tasks.Classification(_Net(), image_size=4, normalize="fixed")
    image = jnp.full((2, 4, 4, 1), 0.449)  # becomes 0
    key = jax.random.key(3)
    variables = task.init(key, image)
    expected = jax.random.normal(key, (3,))
    np.testing.assert_allclose(variables["params"]["w"], expected, atol=1e-5)
    outputs, _ = task.apply(variables, image, train=False)
    np.testing.assert_allclose(outputs.logits, np.zeros((2, 3)), atol=1e-5)


def test_classification_loss_is_cross_entropy():
    logits = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]], np.float32)
    task = tasks.Classification(_Net(), image_size=4)
    outputs = Output(jnp.array(logits), {})
    labels = jnp.array([1, 2])
    found = task.loss(outputs, labels)
    probabilities = task.probabilities(outputs)
    np.testing.assert_allclose(np.sum(probabilities, axis=1), [1, 1], rtol=1e-6)
    assert found.shape == (2,)
    assert found[1] == pytest.approx(np.log(3), rel=1e-6)
    expected = log_loss(labels, np.asarray(probabilities), labels=[0, 1, 2])
    assert np.mean(found) == pytest.approx(expected, rel=1e-5)
