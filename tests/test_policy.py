import functools
import itertools
import math

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import scipy.stats

from hapre_jax import boxes, policy

MEAN = (0.2, 0.1, 0.6, 0.9)  # center (0.4, 0.5), sides 0.4 and 0.8
SIGMA = 0.25

mean_box = jax.jit(policy.mean_box)


def rectangle(top, left, bottom, right, *, grid=16, logit=30.0):
    """Logits of a map that is 1 inside a rectangle of cells and 0 outside."""
    logits = np.full((grid, grid), -logit, np.float32)
    logits[top:bottom, left:right] = logit
    return logits


def counted_moments(logits):
    """The box with the moments of the map, counted on a finely sampled picture."""
    fine = 64
    picture = np.kron(1 / (1 + np.exp(-logits.astype(float))), np.ones((fine, fine)))
    place = (np.arange(len(picture)) + 0.5) / len(picture)
    edges = []
    for axis in (0, 1):
        marginal = picture.sum(1 - axis)
        mean = np.average(place, weights=marginal)
        half = math.sqrt(3 * np.average((place - mean) ** 2, weights=marginal))
        edges.append((mean - half, mean + half))
    (top, bottom), (left, right) = edges
    return top, left, bottom, right


def test_functions_take_one_image():
    maps, many = jnp.zeros((2, 4, 4)), jnp.array([MEAN, MEAN])
    for call in (
        lambda: policy.mean_box(maps),
        lambda: policy.max_sum_box(maps),
        lambda: policy.anchor_box(maps),
        lambda: policy.action(many[:, 0], many[0], sigma=SIGMA),
        lambda: policy.entropy(many, sigma=SIGMA),
    ):
        with pytest.raises(AssertionError):
            call()


@pytest.mark.parametrize("value", [-80.0, 0.0, 3.0, 80.0])
def test_uniform_map_is_the_whole_image(value, variant):
    box = variant(policy.mean_box)(jnp.full((16, 16), value))
    np.testing.assert_allclose(box, boxes.WHOLE, atol=1e-5)


@pytest.mark.parametrize(
    "cells",
    [
        (4, 2, 12, 9),
        (0, 0, 5, 16),  # touches three edges
        (15, 0, 16, 3),  # one row, in a corner
        (7, 11, 8, 12),  # one cell
        (0, 15, 1, 16),  # one cell, in a corner
        (1, 1, 15, 15),
    ],
)
def test_rectangular_mask_is_read_back(cells):
    box = mean_box(rectangle(*cells))
    np.testing.assert_allclose(box, np.array(cells) / 16, atol=1e-5)


def test_mask_of_which_the_network_is_very_sure_is_read_back():
    # Beside its largest value, e^600 is no number in float32.
    box = mean_box(rectangle(4, 2, 12, 9, logit=300.0))
    np.testing.assert_allclose(box, np.array([4, 2, 12, 9]) / 16, atol=1e-5)


def test_mask_of_a_box_of_whole_cells_is_a_fixed_point():
    box = jnp.array([0.25, 0.125, 0.875, 0.5])
    covered = boxes.mask(box, 16)
    read = mean_box(jnp.log(covered + 1e-12) - jnp.log(1 - covered + 1e-12))
    np.testing.assert_allclose(read, box, atol=1e-5)


def test_shifting_the_mask_shifts_the_box():
    noise = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    logits = np.full((16, 16), -40, np.float32)
    logits[2:8, 3:9] = noise
    box = mean_box(logits)
    shifted = mean_box(np.roll(logits, (5, -2), (0, 1)))
    shift = np.array([5, -2, 5, -2]) / 16
    np.testing.assert_allclose(shifted - box, shift, atol=1e-5)


@pytest.mark.parametrize("grid", [4, 16])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_box_has_the_moments_of_the_map(grid, spread):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, spread, (grid, grid)).astype(np.float32)
    expected = counted_moments(logits)
    np.testing.assert_allclose(mean_box(logits), expected, atol=1e-4)


def test_noise_on_a_mask_moves_the_box_little():
    cells = (3, 4, 10, 14)
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, (16, 16)).astype(np.float32)
    box = mean_box(rectangle(*cells, logit=6.0) + noise)
    assert boxes.iou(box, jnp.array(cells) / 16) > 0.85


def test_map_too_faint_to_exponentiate_keeps_its_box():
    # Both probabilities underflow to 0 in float32; their ratio is e^-20.
    logits = rectangle(4, 4, 8, 12, logit=10.0) - 200
    gradient = jax.jit(jax.jacobian(mean_box))(logits)
    np.testing.assert_allclose(mean_box(logits), [0.25, 0.25, 0.5, 0.75], atol=1e-5)
    assert jnp.all(jnp.isfinite(gradient))


def test_mean_box_gradient_agrees_with_finite_differences(float64):
    rng = np.random.default_rng(3)
    logits, weights = jnp.array(rng.normal(0, 2, (6, 6))), jnp.array(rng.normal(size=4))

    @jax.jit
    def score(z):
        return jnp.sum(weights * mean_box(z))

    assert jnp.all(jax.grad(score)(logits) != 0)
    jax.test_util.check_grads(score, (logits,), order=1, modes=["rev"], rtol=1e-6)


def test_mean_box_keeps_its_gradient_at_the_border():
    # A uniform map is the whole image: where a clipped box would not move.
    gradient = jax.jit(jax.grad(lambda z: mean_box(z)[0]))(jnp.zeros((8, 8)))
    assert jnp.all(gradient[0] < 0) and jnp.all(gradient[4] > 0)


def all_sums(logits):
    """Sum of the logits in each box of whole cells, by its cells, in float64."""
    grid, logits = len(logits), logits.astype(float)
    spans = list(itertools.combinations(range(grid + 1), 2))
    return {
        (top, left, bottom, right): logits[top:bottom, left:right].sum()
        for top, bottom in spans
        for left, right in spans
    }


@pytest.mark.parametrize("grid", [1, 2, 5, 11])
def test_max_sum_box_is_the_best_of_all_boxes(grid, variant):
    find = variant(policy.max_sum_box)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        # Of a mean below 0, or most boxes would be nearly the whole image.
        logits = rng.normal(-0.2, 1.0, (grid, grid)).astype(np.float32)
        sums = all_sums(logits)
        best = max(sums, key=sums.get)
        rest = [total for box, total in sums.items() if box != best]
        assert all(total < sums[best] - 1e-3 for total in rest)  # no near tie
        np.testing.assert_allclose(find(logits), np.array(best) / grid, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_max_sum_of_a_uniform_map_is_the_whole_image(value, variant):
    box = variant(policy.max_sum_box)(jnp.full((16, 16), value))
    np.testing.assert_array_equal(box, boxes.WHOLE)


@pytest.mark.parametrize(
    "cells", [(4, 2, 12, 9), (0, 0, 5, 16), (7, 11, 8, 12), (0, 15, 1, 16)]
)
@pytest.mark.parametrize("logit", [0.02, 30.0])  # however faint
def test_max_sum_box_reads_a_rectangle_back(cells, logit, variant):
    box = variant(policy.max_sum_box)(rectangle(*cells, logit=logit))
    np.testing.assert_allclose(box, np.array(cells) / 16, atol=1e-6)


def test_max_sum_box_is_not_moved_by_faint_cells_far_off():
    """Which widen the box of the moments: here at probabilities of 0.62 and 0.38."""
    logits = rectangle(2, 3, 6, 9, logit=0.5)
    expected = np.array([2, 3, 6, 9]) / 16
    np.testing.assert_allclose(policy.max_sum_box(logits), expected, atol=1e-6)
    assert boxes.iou(mean_box(logits), jnp.array(expected, jnp.float32)) < 0.3


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ([2, 0, 0, -1], (1, 0, 2, 3)),  # cells of 0 are taken along
        ([2, -2, 2, -1], (1, 0, 2, 3)),  # so is what sums to 0
        ([1, -3, 0, 1], (1, 2, 2, 4)),  # of two places the larger
        # 0.7 - 0.1 + 0.1 is 0.69999998 in float32, which is 0.7.
        ([0.7, -0.1, 0.1, -1], (1, 0, 2, 3)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 3333.3])  # larger sums are rounded more
def test_of_boxes_with_the_same_sum_the_largest(line, cells, scale, variant):
    logits = np.full((4, 4), -9.0 * scale, np.float32)
    logits[1] = np.array(line, np.float32) * np.float32(scale)
    box = variant(policy.max_sum_box)(logits)
    np.testing.assert_array_equal(box, np.array(cells) / 4)


def test_max_sum_box_passes_no_gradient():
    logits = rectangle(4, 2, 12, 9, logit=1.0)
    gradient = jax.grad(lambda z: jnp.sum(policy.max_sum_box(z)))(logits)
    np.testing.assert_array_equal(gradient, np.zeros((16, 16)))


def test_anchors_that_say_nothing_are_the_whole_image(variant):
    box = variant(policy.anchor_box)(jnp.zeros((16, 16, 3)))
    np.testing.assert_allclose(box, boxes.WHOLE, atol=1e-6)


def test_of_anchors_the_one_that_is_sure_says_center_and_size(variant):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 8, 3)).astype(np.float32)
    logits[2, 5] = 40, np.log(0.5), np.log(0.25)
    box = variant(policy.anchor_box)(jnp.array(logits))
    # Its middle lies at 2.5 / 8, 5.5 / 8.
    expected = [0.3125 - 0.25, 0.6875 - 0.125, 0.3125 + 0.25, 0.6875 + 0.125]
    np.testing.assert_allclose(box, expected, atol=1e-5)


def test_anchors_are_averaged_by_how_sure_they_are():
    # Of weights 3/4 and 1/4, at x = 1/4 and 3/4: x = 3/8. Log heights 0 and log 1/16,
    # so the height is 1/2; log widths 0.
    logits = jnp.array([[[np.log(3), 0, 0], [0, np.log(1 / 16), 0]]])
    box = policy.anchor_box(logits)
    np.testing.assert_allclose(box, [0.25, -0.125, 0.75, 0.875], atol=1e-6)


def test_standardize_by_hand():
    # Moved by half a height and a quarter of a width, twice as high, half as wide.
    moved = boxes.center_to_yxyx(jnp.array([0.6, 0.7, 0.8, 0.4]))
    noise = policy.standardize(moved, jnp.array(MEAN), sigma=0.5)
    expected = [1.0, 0.5, math.log(2) / 0.5, -math.log(2) / 0.5]
    np.testing.assert_allclose(noise, expected, atol=1e-5)


def test_action_is_the_inverse_of_standardize():
    noise = jnp.array(np.random.default_rng(4).normal(size=(20, 4)), jnp.float32)

    @jax.jit
    @jax.vmap
    def there_and_back(noise):
        action = policy.action(noise, jnp.array(MEAN), sigma=SIGMA)
        return policy.standardize(action, jnp.array(MEAN), sigma=SIGMA)

    np.testing.assert_allclose(there_and_back(noise), noise, atol=1e-4)


@pytest.fixture(scope="module")
def samples():
    draw = functools.partial(policy.sample, sigma=SIGMA, num_samples=20_000)
    return jax.jit(draw)(jax.random.key(0), jnp.array(MEAN))


def test_samples_are_normal_around_the_mean(samples):
    centers = np.asarray(jax.vmap(boxes.yxyx_to_center)(samples))[:10_000]
    drawn = np.column_stack([centers[:, :2], np.log(centers[:, 2:])])
    loc = np.array([0.4, 0.5, math.log(0.4), math.log(0.8)])
    spread = SIGMA * np.array([0.4, 0.8, 1.0, 1.0])
    standardized = (drawn - loc) / spread
    # The second half is the mirror image; 10,000 draws err by 0.01 and 0.007.
    np.testing.assert_allclose(standardized.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(standardized.std(0), 1, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(standardized.T), np.eye(4), atol=0.04)
    for column in standardized.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 0.01


def test_samples_are_antithetic_pairs(samples):
    centers = np.asarray(jax.vmap(boxes.yxyx_to_center)(samples), float)
    first, second = centers[:10_000], centers[10_000:]
    middle = (first[:, :2] + second[:, :2]) / 2
    np.testing.assert_allclose(middle, np.tile([0.4, 0.5], (10_000, 1)), atol=1e-6)
    product = first[:, 2:] * second[:, 2:]  # opposite in log size
    np.testing.assert_allclose(product, np.tile([0.16, 0.64], (10_000, 1)), rtol=1e-5)


def test_samples_depend_on_the_key_alone():
    draw = functools.partial(policy.sample, sigma=SIGMA, num_samples=4)
    draw = functools.partial(jax.jit(draw), mean=jnp.array(MEAN))
    first, second = draw(jax.random.key(1)), draw(jax.random.key(2))
    np.testing.assert_array_equal(first, draw(jax.random.key(1)))
    assert jnp.all(first != second)


def test_samples_pass_no_gradient():
    def total(mean):
        drawn = policy.sample(jax.random.key(0), mean, sigma=SIGMA, num_samples=2)
        return jnp.sum(drawn)

    gradient = jax.jit(jax.grad(total))(jnp.array(MEAN))
    np.testing.assert_array_equal(gradient, np.zeros(4))


def test_pathwise_samples_move_with_their_mean():
    def moved(mean):
        key, options = jax.random.key(0), {"sigma": SIGMA, "num_samples": 2}
        return policy.sample_pathwise(key, mean, **options)

    jacobian = jax.jit(jax.jacobian(moved))(jnp.array(MEAN))
    shift = jnp.array([1.0, 0.0, 1.0, 0.0])
    # A mean that is moved down moves all samples by as much.
    np.testing.assert_allclose(jacobian @ shift, np.tile(shift, (2, 1)), atol=1e-5)
    # One that grows moves a sample in proportion to its own size and shift.
    mean, drawn = jnp.array(MEAN), moved(jnp.array(MEAN))
    same = policy.sample(jax.random.key(0), mean, sigma=SIGMA, num_samples=2)
    np.testing.assert_array_equal(drawn, same)
    grow = jnp.array([-0.5, 0.0, 0.5, 0.0])  # by 1 in height, about the center
    center = (mean[0] + mean[2]) / 2
    expected = (drawn[:, ::2] - center) / (mean[2] - mean[0])
    np.testing.assert_allclose((jacobian @ grow)[:, ::2], expected, rtol=1e-4)


def test_odd_number_of_samples_is_refused():
    with pytest.raises(ValueError, match="even, got 3"):
        policy.sample(jax.random.key(0), jnp.array(MEAN), sigma=SIGMA, num_samples=3)


def scipy_log_prob(sampled, mean, sigma):
    """Sum of four normal log densities, in (center y, center x, log h, log w)."""

    def coordinates(box):
        y0, x0, y1, x1 = np.asarray(box, float)
        return [(y0 + y1) / 2, (x0 + x1) / 2, math.log(y1 - y0), math.log(x1 - x0)]

    sides = np.asarray(mean, float)[2:] - np.asarray(mean, float)[:2]
    scale = sigma * np.array([*sides, 1.0, 1.0])
    return scipy.stats.norm.logpdf(coordinates(sampled), coordinates(mean), scale).sum()


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("mean", [MEAN, boxes.WHOLE, (0.7, 0.4, 0.75, 0.5)])
def test_log_prob_agrees_with_scipy(mean, sigma):
    mean = jnp.array(mean, jnp.float32)
    sample = jax.jit(functools.partial(policy.sample, num_samples=6))
    drawn = sample(jax.random.key(3), mean, sigma=sigma)
    log_prob = jax.jit(functools.partial(policy.log_prob, mean=mean, sigma=sigma))
    for box, got in zip(drawn, jax.vmap(log_prob)(drawn), strict=True):
        assert got == pytest.approx(scipy_log_prob(box, mean, sigma), abs=1e-3)


def test_log_prob_gradient_agrees_with_finite_differences(float64):
    rng = np.random.default_rng(5)
    logits, sampled = jnp.array(rng.normal(0, 2, (6, 6))), jnp.array(MEAN)

    @jax.jit
    def of_logits(z):
        return policy.log_prob(sampled, mean_box(z), sigma=SIGMA)

    @jax.jit
    def of_mean(mean):
        return policy.log_prob(sampled, mean, sigma=SIGMA)

    check = functools.partial(jax.test_util.check_grads, order=1, modes=["rev"])
    check(of_logits, (logits,), rtol=1e-6)
    check(of_mean, (jnp.array([0.1, 0.2, 0.8, 0.7]),), rtol=1e-6)


def test_action_outside_the_image_keeps_its_gradient():
    logits = rectangle(0, 8, 8, 16, grid=16, logit=2.0)
    mean = mean_box(logits)
    sampled = policy.action(jnp.array([-2.0, 2.0, 0.5, 0.5]), mean, sigma=SIGMA)
    crop = boxes.clip(sampled, min_side=0.25)
    assert sampled[0] < 0 and sampled[3] > 1
    assert jnp.all(jnp.abs(crop - sampled) > 0.05)

    def of_logits(z):
        return policy.log_prob(sampled, mean_box(z), sigma=SIGMA)

    def of_center(center):
        return policy.log_prob(sampled, boxes.center_to_yxyx(center), sigma=SIGMA)

    assert jnp.abs(jax.jit(jax.grad(of_logits))(logits)).max() > 1e-3
    # The score of a normal mean: noise over standard deviation, up and to the right.
    center = boxes.yxyx_to_center(mean)
    expected = np.array([-2.0, 2.0]) / (SIGMA * center[2:])
    np.testing.assert_allclose(
        jax.jit(jax.grad(of_center))(center)[:2], expected, rtol=1e-3
    )


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0])
def test_entropy_agrees_with_scipy(sigma):
    expected = sum(
        scipy.stats.norm.entropy(scale=sigma * scale) for scale in (0.4, 0.8, 1, 1)
    )
    got = policy.entropy(jnp.array(MEAN), sigma=sigma)
    assert got == pytest.approx(expected, abs=1e-5)


def test_entropy_is_the_mean_of_minus_log_prob(samples):
    log_prob = functools.partial(policy.log_prob, mean=jnp.array(MEAN), sigma=SIGMA)
    surprise = -jnp.mean(jax.vmap(log_prob)(samples))
    # Pairs are equally probable, so 10,000 draws of standard deviation sqrt(2).
    entropy = policy.entropy(jnp.array(MEAN), sigma=SIGMA)
    assert surprise == pytest.approx(float(entropy), abs=0.05)


def test_sigma_may_be_traced():
    mean = jnp.array(MEAN)
    traced = jax.jit(lambda sigma: policy.entropy(mean, sigma=sigma))(SIGMA)
    assert jnp.abs(traced - policy.entropy(mean, sigma=SIGMA)) < 1e-6


def test_max_sum_is_of_square_maps():
    with pytest.raises(AssertionError):
        policy.max_sum_box(jnp.zeros((8, 16)))


def test_max_sum_of_half_precision_is_that_of_its_values():
    for key in jax.random.split(jax.random.key(0), 20):
        logits = (2 * jax.random.normal(key, (32, 32))).astype(jnp.bfloat16)
        expected = policy.max_sum_box(logits.astype(jnp.float32))
        np.testing.assert_array_equal(policy.max_sum_box(logits), expected)
