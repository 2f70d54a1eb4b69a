import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hapre_jax import boxes, estimators, losses, operations, policy
from hapre_jax.config import PolicyConfig

GRID = 8
KEY_AREA = operations.KeyArea(alpha=1.25, min_side=0.2)
SETTINGS = PolicyConfig(
    image_size=GRID,
    grid=GRID,
    sigma=0.4,
    final_sigma=0.1,
    warmup_steps=10,
    random_share=0.0,
    train_crops=1,
)
STEPS = 110
KEY = jax.random.key(0)
# Whole cells of the grid, so that its mask is read back exactly.
DETECTED = (0.25, 0.25, 0.75, 0.75)
EXPANDED = (0.1875, 0.1875, 0.8125, 0.8125)  # sides 0.5 * 1.25
SHRUNK = (0.3, 0.3, 0.7, 0.7)  # sides 0.5 / 1.25


def policy_settings(**changes):
    return dataclasses.replace(SETTINGS, **changes)


def logits_of(box):
    return 40.0 * (boxes.mask(jnp.array(box), GRID) - 0.5)


def _recorder(loss):
    """An `evaluate` that remembers what it was asked."""
    calls = []

    def evaluate(actions):
        calls.append(actions)
        return jax.vmap(loss)(actions)

    return evaluate, calls


def _given(values):
    """An `evaluate` whose losses do not depend on the actions."""
    calls = []

    def evaluate(actions):
        calls.append(actions)
        return jnp.array(values)

    return evaluate, calls


# Each line worked by hand from Eq. 5-8 with balance 0.5.
@pytest.mark.parametrize(
    ("task_losses", "optimal", "reward", "d1"),
    [
        # D1 = 0.5 - 1.0 < 0: the detected box, though both neighbors are better.
        ((1.0, 0.5, 0.4, 0.3), DETECTED, np.exp(-0.5), -0.5),
        # D1 = 0.5, D2 = 0.5 (1.2 - 1.5) + 0.5 * 0.5 = 0.1 > 0: R = D2.
        ((1.0, 1.5, 1.2, 1.4), EXPANDED, 0.1, 0.5),
        # D1 = 0.5, D2 = 0.5 (0.5 - 1.5) + 0.25 = -0.25: R = exp(D2).
        ((1.0, 1.5, 1.4, 0.5), SHRUNK, np.exp(-0.25), 0.5),
    ],
)
def test_paper_tries_four_boxes_once_and_imitates_the_optimal_one(
    task_losses, optimal, reward, d1
):
    evaluate, calls = _given(task_losses)
    logits = logits_of(DETECTED)
    trial = estimators.paper(
        KEY_AREA, policy_settings(explore=False), evaluate, logits, KEY, 0.4
    )
    (tried,) = calls
    expected = [boxes.WHOLE, DETECTED, EXPANDED, SHRUNK]
    np.testing.assert_allclose(tried, expected, atol=1e-4)
    np.testing.assert_allclose(trial.optimal, [optimal], atol=1e-4)
    assert trial.reward == pytest.approx(reward, rel=1e-5)
    assert trial.d1 == pytest.approx(d1, rel=1e-5)
    assert trial.choice == [DETECTED, EXPANDED, SHRUNK].index(optimal)
    target = boxes.mask(trial.optimal[0], GRID)
    expected = losses.focal_loss(logits, target, gamma=2.0) * reward
    assert trial.policy_loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("task_losses", "inverted"),
    [
        ((1.0, 0.5, 0.4, 0.3), np.exp(0.5)),  # D1 = -0.5
        ((1.0, 1.5, 1.2, 1.4), np.exp(-0.1)),  # D2 = 0.1
        ((6.0, 1.0, 0.4, 0.3), np.exp(1)),  # D1 = -5, bounded
        ((1.0, 6.0, 6.0, 6.0), np.exp(-1)),  # D2 = 0.5 * 5, bounded
    ],
)
def test_paper_may_weigh_its_loss_otherwise(task_losses, inverted):
    logits, trials = logits_of(DETECTED), {}
    for weight in ("published", "constant", "inverted"):
        evaluate, _ = _given(task_losses)
        settings = policy_settings(explore=False, reward_weight=weight)
        trials[weight] = estimators.paper(
            KEY_AREA, settings, evaluate, logits, KEY, 0.4
        )
    published = trials["published"]
    target = boxes.mask(published.optimal[0], GRID)
    unweighted = float(losses.focal_loss(logits, target, gamma=2.0))
    for weight, expected in {"constant": 1.0, "inverted": inverted}.items():
        loss = trials[weight].policy_loss
        assert loss == pytest.approx(unweighted * expected, rel=1e-5)
        assert trials[weight].reward == published.reward  # what is logged


# DETECTED moved by a quarter of its sides.
UP, DOWN = (0.125, 0.25, 0.625, 0.75), (0.375, 0.25, 0.875, 0.75)
LEFT, RIGHT = (0.25, 0.125, 0.75, 0.625), (0.25, 0.375, 0.75, 0.875)
SHIFTING = dataclasses.replace(KEY_AREA, moves="shift")


def test_paper_may_choose_among_six_neighbors():
    # D1 = 0.5, D2 = 0.5 (0.7 - 1.5) + 0.5 * 0.5 = -0.15: the box to the left is best.
    evaluate, calls = _given((1.0, 1.5, 1.2, 1.4, 1.3, 1.1, 0.7, 0.9))
    logits = logits_of(DETECTED)
    trial = estimators.paper(
        SHIFTING, policy_settings(explore=False), evaluate, logits, KEY, 0.4
    )
    (tried,) = calls
    expected = [boxes.WHOLE, DETECTED, EXPANDED, SHRUNK, UP, DOWN, LEFT, RIGHT]
    np.testing.assert_allclose(tried, expected, atol=1e-4)
    np.testing.assert_allclose(trial.optimal, [LEFT], atol=1e-4)
    assert trial.choice == 5
    assert trial.reward == pytest.approx(np.exp(-0.15), rel=1e-5)
    target = boxes.mask(jnp.array(LEFT), GRID)
    expected = losses.focal_loss(logits, target, gamma=2.0) * np.exp(-0.15)
    assert trial.policy_loss == pytest.approx(float(expected), rel=1e-3)


def test_paper_explores_around_the_mean_box():
    evaluate, calls = _given((1.0, 0.5, 0.4, 0.3))
    logits = logits_of(DETECTED)
    trial = estimators.paper(KEY_AREA, SETTINGS, evaluate, logits, KEY, 0.3)
    drawn = policy.sample(KEY, policy.mean_box(logits), sigma=0.3, num_samples=2)
    expected = boxes.clip(drawn[0], min_side=0.2)
    assert np.abs(expected - jnp.array(DETECTED)).max() > 0.02
    np.testing.assert_array_equal(calls[0][1], expected)
    np.testing.assert_array_equal(trial.optimal, [expected])


def test_paper_gives_no_gradient_through_the_box_it_detected():
    """Only the focal loss moves the logits: neither its target nor R does."""
    logits = logits_of(DETECTED) / 20

    def total(logits):
        evaluate, _ = _recorder(lambda box: jnp.sum((box - 0.4) ** 2))
        settings = policy_settings(explore=False)
        return estimators.paper(KEY_AREA, settings, evaluate, logits, KEY, 0.4)

    trial = total(logits)
    target = boxes.mask(trial.optimal[0], GRID)
    expected = jax.grad(lambda z: losses.focal_loss(z, target, gamma=2.0))(logits)
    gradient = jax.grad(lambda z: total(z).policy_loss)(logits)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(gradient, expected * trial.reward, rtol=1e-5)


def test_reinforce_by_hand():
    task_losses = np.array([2.0, 1.5, 1.0, 2.0, 4.0, 1.0])
    evaluate, calls = _given(task_losses)
    logits, sigma = logits_of(DETECTED), 0.3
    trial = estimators.reinforce(KEY_AREA, SETTINGS, evaluate, logits, KEY, sigma)
    mean = policy.mean_box(logits)
    samples = policy.sample(KEY, mean, sigma=sigma, num_samples=4)
    valid = [boxes.clip(box, min_side=0.2) for box in samples]
    (tried,) = calls
    expected = [jnp.array(boxes.WHOLE), mean, *valid]
    np.testing.assert_allclose(tried, expected, atol=1e-6)
    assert trial.reward == -1.5 and trial.d1 == -0.5
    np.testing.assert_array_equal(trial.optimal, valid[:1])
    log_probs = [float(policy.log_prob(box, mean, sigma=sigma)) for box in samples]
    # The four samples have loss 2 on average.
    expected = -sigma * np.mean(np.array(log_probs) * [1.0, 0.0, -2.0, 1.0])
    assert trial.policy_loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["reinforce", "pathwise", "elite"])
def test_boxes_are_valid_where_the_mean_is_not(name):
    # One cell: sides of 1/8 are below 0.2.
    logits = logits_of((0.5, 0.5, 0.625, 0.625))
    evaluate, calls = _recorder(lambda box: box[0])
    estimators.ESTIMATORS[name](KEY_AREA, SETTINGS, evaluate, logits, KEY, 0.3)
    (tried,) = calls
    expected = (0.4625, 0.4625, 0.6625, 0.6625)
    np.testing.assert_allclose(tried[1], expected, atol=1e-4)
    for box in tried:
        np.testing.assert_allclose(boxes.clip(box, min_side=0.2), box, atol=1e-6)


def test_pathwise_follows_the_mean_loss_of_the_samples(float64):
    """Its gradient is that of the losses themselves, by finite differences."""
    logits = jnp.asarray(logits_of(DETECTED) / 40, jnp.float64)

    def loss(logits):
        evaluate, _ = _recorder(lambda box: jnp.sum(jnp.sin(7 * box)))
        trial = estimators.pathwise(KEY_AREA, SETTINGS, evaluate, logits, KEY, 0.2)
        return trial.policy_loss

    drawn = policy.sample(KEY, policy.mean_box(logits), sigma=0.2, num_samples=4)
    valid = [boxes.clip(box, min_side=0.2) for box in drawn]
    expected = np.mean([np.sin(7 * box).sum() for box in valid])
    assert loss(logits) == pytest.approx(float(expected), rel=1e-6)
    gradient = jax.grad(loss)(logits)
    direction = jax.random.normal(KEY, logits.shape, jnp.float64)
    step = 1e-6 * direction
    slope = (loss(logits + step) - loss(logits - step)) / 2e-6
    assert abs(slope) > 1e-3
    assert jnp.sum(gradient * direction) == pytest.approx(float(slope), rel=1e-5)


def test_reinforce_pulls_back_a_mean_that_is_out_of_bounds():
    def loss(logits):
        evaluate, _ = _given([1.0] * 6)  # no advantage
        trial = estimators.reinforce(KEY_AREA, SETTINGS, evaluate, logits, KEY, 0.3)
        return trial.policy_loss

    # Each edge of the box of one cell is 0.0375 out of bounds.
    outside = logits_of((0.5, 0.5, 0.625, 0.625))
    assert loss(outside) == pytest.approx(3.0 * 4 * 0.0375**2, rel=1e-3)
    assert loss(logits_of(DETECTED)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("task_losses", "best", "weight"),
    [
        ((2.0, 1.5, 3.0, 0.5, 3.0, 3.0, 1.0, 1.0), 3, 1.0),  # the second sample
        ((2.0, 1.5, 3.0, 3.0, 3.0, 3.0, 1.4, 1.2), 7, 0.3),  # the shrunk box
        ((2.0, 1.5, 3.0, 3.0, 3.0, 3.0, 1.6, 1.7), 6, 0.0),  # none beats the mean
    ],
)
def test_elite_imitates_the_best_candidate_that_beats_the_mean(
    task_losses, best, weight
):
    evaluate, calls = _given(task_losses)
    logits = logits_of(DETECTED)
    trial = estimators.elite(KEY_AREA, SETTINGS, evaluate, logits, KEY, 0.3)
    (tried,) = calls
    np.testing.assert_allclose(tried[:2], [boxes.WHOLE, DETECTED], atol=1e-4)
    np.testing.assert_allclose(tried[6:], [EXPANDED, SHRUNK], atol=1e-4)
    np.testing.assert_array_equal(trial.optimal, tried[2:3])
    assert trial.reward == -1.5 and trial.d1 == -0.5
    expected = losses.focal_loss(logits, boxes.mask(tried[best], GRID), gamma=2.0)
    assert trial.policy_loss == pytest.approx(float(expected) * weight, abs=1e-6)


def test_elite_may_imitate_a_shifted_box():
    evaluate, calls = _given((2.0, 1.5, *[3.0] * 4, 1.4, 1.3, 1.6, 1.1, 1.2, 1.3))
    logits = logits_of(DETECTED)
    trial = estimators.elite(SHIFTING, SETTINGS, evaluate, logits, KEY, 0.3)
    (tried,) = calls
    expected = [EXPANDED, SHRUNK, UP, DOWN, LEFT, RIGHT]
    np.testing.assert_allclose(tried[6:], expected, atol=1e-4)
    target = boxes.mask(jnp.array(DOWN), GRID)
    expected = losses.focal_loss(logits, target, gamma=2.0) * (1.5 - 1.1)
    assert trial.policy_loss == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("name", ["paper", "elite"])
def test_imitation_needs_no_gradient_of_the_box_that_is_read(name):
    operation = dataclasses.replace(KEY_AREA, readout="max_sum")
    # So faint a map that its moments are nearly those of the whole image.
    logits = logits_of(DETECTED) / 40

    def trial(logits):
        evaluate, calls = _recorder(_distance)
        estimator = estimators.ESTIMATORS[name]
        settings = policy_settings(explore=False)
        found = estimator(operation, settings, evaluate, logits, KEY, 0.3)
        return found.policy_loss, calls[0]

    gradient, tried = jax.grad(trial, has_aux=True)(logits)
    np.testing.assert_allclose(tried[1], DETECTED, atol=1e-6)
    # Raised somewhere, lowered elsewhere.
    assert gradient.min() < -1e-5 and gradient.max() > 1e-5


@pytest.mark.parametrize("name", ["reinforce", "pathwise", "elite"])
def test_train_on_mean_gives_the_clipped_mean_alone(name):
    # One cell: sides of 1/8 become 0.2.
    logits = logits_of((0.5, 0.5, 0.625, 0.625))
    optimal = {}
    for train_on in ("samples", "mean"):
        evaluate, _ = _recorder(_distance)
        settings = policy_settings(train_on=train_on, train_crops=3)
        estimator = estimators.ESTIMATORS[name]
        trial = estimator(KEY_AREA, settings, evaluate, logits, KEY, 0.3)
        optimal[train_on] = trial.optimal
    expected = [(0.4625, 0.4625, 0.6625, 0.6625)]
    np.testing.assert_allclose(optimal["mean"], expected, atol=1e-4)
    assert optimal["samples"].shape == (3, 4)


TARGET = jnp.array([0.2, 0.3, 0.7, 0.9])


def _distance(box):
    return 10 * jnp.sum((box - TARGET) ** 2)


@pytest.mark.parametrize(
    ("name", "readout", "rate", "gamma", "overlap"),
    # What a map says weakly of cells far off widens its box: imitation needs long to
    # be sure of them, so elite gets close more slowly.
    [
        ("reinforce", "moments", 0.1, 2.0, 0.8),
        ("pathwise", "moments", 0.1, 2.0, 0.9),
        ("elite", "moments", 0.3, 0.0, 0.7),
        ("reinforce", "anchors", 0.1, 2.0, 0.8),
        ("pathwise", "anchors", 0.1, 2.0, 0.9),
        ("elite", "anchors", 0.1, 2.0, 0.8),
    ],
)
def test_gradient_steps_on_the_logits_find_the_box_of_lowest_loss(
    name, readout, rate, gamma, overlap
):
    """From the whole image, with nothing but losses of boxes."""
    optimizer, settings = optax.adam(rate), policy_settings(gamma=gamma)
    operation = dataclasses.replace(KEY_AREA, readout=readout)
    start = jnp.zeros(operation.logits_shape(GRID))
    estimator, evaluate = estimators.ESTIMATORS[name], jax.vmap(_distance)

    def update(carry, inputs):
        logits, state = carry
        key, sigma = inputs

        def loss(logits):
            trials = jax.vmap(
                lambda k: estimator(operation, settings, evaluate, logits, k, sigma)
            )(jax.random.split(key, 16))
            return jnp.mean(trials.policy_loss)

        updates, state = optimizer.update(jax.grad(loss)(logits), state)
        return (optax.apply_updates(logits, updates), state), None

    keys, sigmas = jax.random.split(KEY, 300), jnp.geomspace(0.3, 0.1, 300)
    carry = (start, optimizer.init(start))
    (logits, _), _ = jax.lax.scan(update, carry, (keys, sigmas))
    assert boxes.iou(operation.mean(start), TARGET) < 0.31
    assert boxes.iou(operation.mean(logits), TARGET) > overlap


def _annealed(step, steps=STEPS):
    warmup_steps = SETTINGS.warmup_steps
    return estimators.annealed(jnp.array(step), warmup_steps=warmup_steps, steps=steps)


@pytest.mark.parametrize(
    ("step", "expected"),
    # Updates of the policy: 100. Annealed in the first 90 of them, by a factor of 4.
    [(0, 0.4), (10, 0.4), (55, 0.2), (100, 0.1), (109, 0.1)],
)
def test_sigma_is_annealed_after_the_warmup(step, expected):
    sigma = estimators.sigma_at(_annealed(step), SETTINGS)
    assert sigma == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "expected"),
    # At the steps of sigma above, but linearly.
    [(0, 0.5), (10, 0.5), (55, 0.3), (100, 0.1), (109, 0.1)],
)
def test_cost_changes_with_sigma(step, expected):
    settings = policy_settings(area_cost=0.5, final_area_cost=0.1)
    cost = estimators.cost_at(_annealed(step), settings)
    assert cost == pytest.approx(expected, rel=1e-5)


def test_sigma_of_a_run_that_ends_in_its_warmup():
    annealed = _annealed(4, steps=5)
    assert estimators.sigma_at(annealed, SETTINGS) == pytest.approx(0.4)


def test_summary_of_trials_by_hand():
    rewards = np.array([3, 7, 0, 10, 5, 1, 9, 2, 8, 4, 6], np.float32)
    trials = estimators.Trial(
        policy_loss=jnp.zeros(11),
        optimal=jnp.zeros((11, 1, 4)),
        reward=jnp.array(rewards),
        # Zero is no help: four of eleven are below it.
        d1=jnp.array([-1.0, 0.0, 0.5, -0.5, 0.0, 1.0, -2.0, 3.0, 0.0, -0.5, 0.0]),
    )
    expected = {
        "reward": 5.0,
        "reward_std": 10.0**0.5,
        "reward_p10": 1.0,
        "reward_p50": 5.0,
        "reward_p90": 9.0,
        "d1": 0.5 / 11,
        "helped": 4 / 11,
    }
    names = ("expanded", "shrunk")
    found = estimators.summarize(trials, names)
    assert found == {k: pytest.approx(v, rel=1e-5) for k, v in expected.items()}
    # Four times the detected box, five times the expanded one, twice the shrunk one.
    choice = jnp.array([0, 1, 1, 0, 2, 1, 0, 1, 2, 0, 1])
    trials = trials._replace(choice=choice)
    assert set(estimators.summarize(trials, ())) == set(expected)
    found = estimators.summarize(trials, names)
    expected |= {"expanded": 5 / 11, "shrunk": 2 / 11}
    assert found == {k: pytest.approx(v, rel=1e-5) for k, v in expected.items()}


def test_summary_of_a_single_trial_has_no_spread():
    one = jnp.array([-0.7])
    found = estimators.summarize(
        estimators.Trial(one, jnp.zeros((1, 1, 4)), one, one), ()
    )
    assert found["reward_std"] == 0 and found["helped"] == 1
    for name in ("reward", "reward_p10", "reward_p50", "reward_p90"):
        assert found[name] == pytest.approx(-0.7)
