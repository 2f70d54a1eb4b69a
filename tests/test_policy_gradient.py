import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import boxes, policy, policy_gradient

SIGMA = 0.25
GRID = 8
TARGET = (0.25, 0.5, 0.75, 0.875)  # rows 2 to 5 and columns 4 to 6


def focal_loss(logits, target, gamma=2.0):
    """Eq. 4 in double precision, the mean over cells."""
    p = 1 / (1 + np.exp(-np.asarray(logits, float)))
    cross_entropy = -target * np.log(p) - (1 - target) * np.log(1 - p)
    wrong = target * (1 - p) + (1 - target) * p
    return np.mean(wrong**gamma * cross_entropy)


def target_mask():
    mask = np.zeros((GRID, GRID), np.float32)
    mask[2:6, 4:7] = 1
    return mask


def random_logits():
    return np.random.default_rng(0).normal(0, 2, (GRID, GRID)).astype(np.float32)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_paper_loss_is_reward_times_focal_loss(gamma, variant):
    loss = variant(functools.partial(policy_gradient.paper_loss, gamma=gamma))
    got = loss(random_logits(), target_mask(), jnp.float32(0.6))
    expected = 0.6 * focal_loss(random_logits(), target_mask(), gamma)
    assert got == pytest.approx(expected, rel=1e-5)


def test_paper_loss_of_a_uniform_map():
    # Every cell: half wrong, so a quarter of log 2.
    loss = jax.jit(policy_gradient.paper_loss)(
        jnp.zeros((GRID, GRID)), target_mask(), jnp.float32(1.0)
    )
    assert loss == pytest.approx(math.log(2) / 4, rel=1e-5)


def test_paper_loss_passes_gradient_to_the_logits_only():
    gradients = jax.jit(jax.grad(policy_gradient.paper_loss, argnums=(0, 1, 2)))(
        random_logits(), 0.2 + 0.5 * target_mask(), jnp.float32(0.6)
    )
    assert jnp.all(gradients[0] != 0)
    assert not jnp.any(gradients[1]) and not jnp.any(gradients[2])


def test_paper_loss_raises_the_map_inside_the_target_and_lowers_it_outside():
    gradient = jax.jit(jax.grad(policy_gradient.paper_loss))(
        jnp.zeros((GRID, GRID)), target_mask(), jnp.float32(1.0)
    )
    np.testing.assert_array_equal(gradient < 0, target_mask() == 1)
    np.testing.assert_array_equal(gradient > 0, target_mask() == 0)


# Focusing slows the last steps: with gamma 2 a background of probability p fades as
# p^4, and what is left of it widens the box.
@pytest.mark.parametrize(("gamma", "expected"), [(0.0, 0.8), (2.0, 0.35)])
def test_descending_the_paper_loss_pulls_the_box_to_the_target(gamma, expected):
    target = jnp.array(TARGET)
    loss = functools.partial(policy_gradient.paper_loss, gamma=gamma)

    @jax.jit
    def descend(logits):
        def update(_, z):
            mask = boxes.mask(target, GRID)
            return z - 200 * jax.grad(loss)(z, mask, jnp.float32(0.5))

        return jax.lax.fori_loop(0, 300, update, logits)

    uniform = jnp.zeros((GRID, GRID))
    iou = jax.jit(lambda logits: boxes.iou(policy.mean_box(logits), target))
    before, after = iou(uniform), iou(descend(uniform))
    assert before == pytest.approx(3 / 16, abs=1e-5)
    assert after > expected


def test_paper_loss_without_reward_teaches_nothing():
    value, gradient = jax.jit(jax.value_and_grad(policy_gradient.paper_loss))(
        random_logits(), target_mask(), jnp.float32(0.0)
    )
    assert value == 0 and not jnp.any(gradient)


def test_reinforce_loss_by_hand(variant):
    log_probs = jnp.array([-1.0, -2.0, -3.0, -4.0])
    task_losses = jnp.array([1.0, 2.0, 3.0, 6.0])
    # Advantages 2, 1, 0, -3: minus the mean of (-2, -2, 0, 12).
    value_and_grad = variant(jax.value_and_grad(policy_gradient.reinforce_loss, (0, 1)))
    loss, (to_log_probs, to_losses) = value_and_grad(log_probs, task_losses)
    assert loss == pytest.approx(-2)
    np.testing.assert_allclose(to_log_probs, [-0.5, -0.25, 0, 0.75], atol=1e-6)
    np.testing.assert_array_equal(to_losses, np.zeros(4))


def test_reinforce_loss_ignores_a_constant():
    rng = np.random.default_rng(1)
    log_probs, task_losses = rng.normal(size=(2, 6)).astype(np.float32)
    loss = policy_gradient.reinforce_loss(log_probs, task_losses)
    moved = policy_gradient.reinforce_loss(log_probs, task_losses + 5)
    assert jnp.abs(moved - loss) < 1e-4


def test_equal_losses_have_no_gradient():
    gradient = jax.jit(jax.grad(policy_gradient.reinforce_loss))(
        jnp.array([-1.0, -5.0, 2.0, 0.0]), jnp.full(4, 0.75)
    )
    np.testing.assert_array_equal(gradient, np.zeros(4))


def estimate(task_loss, mean_center, *, num_samples, images):
    """Mean gradient of `reinforce_loss` over many images, for (y, x, h, w)."""

    def loss(center, key):
        mean = boxes.center_to_yxyx(center)
        sampled = policy.sample(key, mean, sigma=SIGMA, num_samples=num_samples)
        log_prob = functools.partial(policy.log_prob, mean=mean, sigma=SIGMA)
        task_losses = jax.vmap(task_loss)(jax.vmap(boxes.yxyx_to_center)(sampled))
        return policy_gradient.reinforce_loss(jax.vmap(log_prob)(sampled), task_losses)

    keys = jax.random.split(jax.random.key(0), images)
    gradient = jax.vmap(jax.grad(loss), (None, 0))
    return jax.jit(lambda center: jnp.mean(gradient(center, keys), 0))(mean_center)


MEAN_CENTER = (0.4, 0.6, 0.5, 0.8)


def test_reinforce_estimates_the_gradient_of_the_expected_loss():
    # E[(y - 0.7)^2 + 2 (x - 0.1)^2] with y ~ N(0.4, 0.25 h), x ~ N(0.6, 0.25 w) has the
    # gradients 2 (0.4 - 0.7), 4 (0.6 - 0.1), 2 * 0.25^2 h and 4 * 0.25^2 w.
    def task_loss(center):
        return (center[0] - 0.7) ** 2 + 2 * (center[1] - 0.1) ** 2

    got = estimate(task_loss, jnp.array(MEAN_CENTER), num_samples=1000, images=500)
    np.testing.assert_allclose(got, [-0.6, 2.0, 0.0625, 0.2], atol=0.02)


def test_reinforce_is_unbiased_for_the_center_with_four_samples():
    # A baseline of independent samples would shrink it by 3/4; antithetic pairs do not.
    def task_loss(center):
        return (center[0] - 0.7) ** 2 + 2 * (center[1] - 0.1) ** 2

    got = estimate(task_loss, jnp.array(MEAN_CENTER), num_samples=4, images=50_000)
    np.testing.assert_allclose(got[:2], [-0.6, 2.0], atol=0.04)


def test_reinforce_is_unbiased_for_a_loss_of_the_log_size_with_four_samples():
    # E[(log h - log 0.3)^2] = (log(0.5 / 0.3))^2 + sigma^2: 2 log(0.5 / 0.3) / 0.5.
    def task_loss(center):
        return jnp.log(center[2] / 0.3) ** 2

    got = estimate(task_loss, jnp.array(MEAN_CENTER), num_samples=4, images=50_000)
    expected = [0, 0, 4 * math.log(5 / 3), 0]
    np.testing.assert_allclose(got, expected, atol=0.06)


def test_a_step_of_reinforce_moves_the_map_towards_the_better_boxes():
    logits = jnp.array(random_logits() / 4)

    @jax.jit
    def descend(logits, key):
        def loss(z):
            mean = policy.mean_box(z)
            sampled = policy.sample(key, mean, sigma=SIGMA, num_samples=64)
            log_prob = functools.partial(policy.log_prob, mean=mean, sigma=SIGMA)
            centers = jax.vmap(boxes.yxyx_to_center)(sampled)
            task_losses = centers[:, 0]  # better the higher up
            return policy_gradient.reinforce_loss(
                jax.vmap(log_prob)(sampled), task_losses
            )

        return logits - 100 * jax.grad(loss)(logits)

    mean_box = jax.jit(policy.mean_box)
    top, _, bottom, _ = mean_box(logits)
    new_top, _, new_bottom, _ = mean_box(descend(logits, jax.random.key(0)))
    assert new_top + new_bottom < top + bottom - 0.02


def test_elite_names_the_best_candidate_and_what_it_gains(variant):
    best, gain = variant(policy_gradient.elite)(
        jnp.array([0.5, 0.2, 0.9]), jnp.float32(0.6)
    )
    assert best == 1 and gain == pytest.approx(0.4, rel=1e-6)


@pytest.mark.parametrize("mean_loss", [0.2, 0.1])
def test_elite_without_improvement_teaches_nothing(mean_loss):
    losses = jnp.array([0.5, 0.2, 0.9])
    assert policy_gradient.elite(losses, jnp.float32(mean_loss))[1] == 0


def test_elite_passes_no_gradient():
    gradients = jax.grad(lambda *a: policy_gradient.elite(*a)[1], argnums=(0, 1))(
        jnp.array([0.5, 0.2, 0.9]), jnp.float32(0.6)
    )
    assert not any(jnp.any(gradient) for gradient in gradients)
