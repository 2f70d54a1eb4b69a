import functools
import math

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import sklearn.metrics

from hapre_jax import losses

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_cross_entropy_of_equal_logits_is_log_of_classes(classes):
    loss = jax.jit(losses.cross_entropy)(jnp.full(classes, 3.0), jnp.int32(1))
    assert loss == pytest.approx(math.log(classes), abs=1e-6)


@pytest.mark.parametrize(
    ("label", "expected"), [(0, math.log(8)), (1, math.log(4)), (2, math.log(1.6))]
)
def test_cross_entropy_by_hand(label, expected, variant):
    # Probabilities 1/8, 2/8 and 5/8.
    logits = jnp.log(jnp.array([1.0, 2.0, 5.0])) + 7
    loss = variant(losses.cross_entropy)(logits, jnp.int32(label))
    assert loss == pytest.approx(expected, abs=1e-6)


def test_cross_entropy_is_finite_for_large_logits():
    value_and_grad = jax.jit(jax.value_and_grad(losses.cross_entropy))
    loss, gradient = value_and_grad(jnp.array([50.0, -50.0]), jnp.int32(1))
    assert loss == pytest.approx(100)
    np.testing.assert_allclose(gradient, [1, -1], atol=1e-6)


def test_cross_entropy_takes_one_example():
    with pytest.raises(AssertionError):
        losses.cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # p = 3/4: (1 - p)^2 log(1 / p)
        (1.0, 0.0625 * math.log(4 / 3)),
        # p^2 log(1 / (1 - p))
        (0.0, 0.5625 * math.log(4)),
        # e = 1/2 whatever p; the mean of both cross-entropies
        (0.5, 0.25 * (math.log(4 / 3) + math.log(4)) / 2),
        # e = 0.8 / 4 + 0.2 * 3 / 4 = 0.35
        (0.8, 0.1225 * (0.8 * math.log(4 / 3) + 0.2 * math.log(4))),
    ],
)
def test_focal_loss_by_hand(target, expected, variant):
    logits = jnp.full((2, 2), math.log(3))
    loss = variant(losses.focal_loss)(logits, jnp.full((2, 2), target))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_focal_loss_is_the_mean_over_cells():
    logits = jnp.array([[math.log(3), 0.0]])
    loss = jax.jit(losses.focal_loss)(logits, jnp.array([[1.0, 1.0]]))
    assert loss == pytest.approx((0.0179801 + 0.25 * math.log(2)) / 2, abs=1e-6)


def test_focal_loss_with_gamma_0_is_binary_cross_entropy():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (8, 8)).astype(np.float32)
    target = rng.integers(0, 2, (8, 8)).astype(np.float32)
    loss = jax.jit(functools.partial(losses.focal_loss, gamma=0.0))(logits, target)
    probability = 1 / (1 + np.exp(-logits.astype(float)))
    expected = sklearn.metrics.log_loss(target.ravel(), probability.ravel())
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_finite_for_large_logits(gamma):
    logit, target = np.meshgrid([-50.0, 0.0, 50.0], [0.0, 0.3, 1.0])
    loss = functools.partial(losses.focal_loss, gamma=gamma)
    value_and_grad = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    values, gradients = value_and_grad(
        jnp.array(logit.ravel(), jnp.float32), jnp.array(target.ravel(), jnp.float32)
    )
    assert jnp.all(jnp.isfinite(values)) and jnp.all(values >= 0)
    assert jnp.all(jnp.isfinite(gradients))
    # Surely wrong: 50 nats and, as e is 1 there, the slope of cross-entropy.
    assert values[2] == pytest.approx(50) and gradients[2] == pytest.approx(1)
    assert values[6] == pytest.approx(50) and gradients[6] == pytest.approx(-1)
    # Surely right: nothing to learn.
    np.testing.assert_allclose(values[jnp.array([0, 8])], 0, atol=1e-6)
    np.testing.assert_allclose(gradients[jnp.array([0, 8])], 0, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_gradient_agrees_with_finite_differences(gamma, float64):
    rng = np.random.default_rng(1)
    logits, target = jnp.array(rng.normal(0, 2, 9)), jnp.array(rng.uniform(0, 1, 9))

    @jax.jit
    def loss(x):
        return losses.focal_loss(x, target, gamma=gamma)

    jax.test_util.check_grads(loss, (logits,), order=1, modes=["rev"], rtol=1e-5)


def test_focal_loss_needs_equal_shapes():
    with pytest.raises(AssertionError):
        losses.focal_loss(jnp.zeros((2, 2)), jnp.zeros((1, 2)))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 1, 1], 7 / 3), ([1, 0, 1], 2.5), ([0, 0, 1], 4.0), ([0, 0, 0], 0.0)],
)
def test_weighted_mean_by_hand(weights, expected):
    values = jnp.array([1.0, 2.0, 4.0])
    found = losses.weighted_mean(values, jnp.array(weights, jnp.float32))
    assert found == pytest.approx(expected, rel=1e-6)
