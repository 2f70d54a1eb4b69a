"""Each operation: densities, valid actions, neighbors, and the two ways of its map."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image

from hapre_jax import boxes, estimators, operations, policy_gradient
from hapre_jax.config import PolicyConfig

HYBRID = operations.Hybrid(
    (operations.KeyArea(min_side=0.2), operations.Rotation(40.0), operations.Gamma(2.0))
)
NUMBERS = {
    "none": operations.Numbers(),
    "rotation": operations.Rotation(40.0),
    "gamma": operations.Gamma(3.0),
    "contrast": operations.Contrast(),
    "window": operations.Window(),
    "sharpening": operations.Sharpening(),
}
AREAS = {"mask": operations.Mask(), "zoom": operations.Zoom()}
ANCHORS = operations.KeyArea(readout="anchors")
ALL = {
    **NUMBERS,
    **AREAS,
    "key_area": operations.KeyArea(),
    "anchors": ANCHORS,
    "hybrid": HYBRID,
}
KEY = jax.random.key(0)
SIGMA = 0.3


def each(operations):
    return pytest.mark.parametrize("operation", operations.values(), ids=operations)


def smooth_image(side=32):
    """Bright to the upper right, so that every turn and mirroring shows."""
    line = (np.arange(side, dtype=np.float32) + 0.5) / side
    waves = np.sin(5 * line)[:, None] + np.cos(3 * line)[None]
    return jnp.array(0.5 + 0.1 * waves + 0.2 * (line[None] - line[:, None]))[..., None]


@each(ALL)
def test_has_the_functions_of_an_operation(operation):
    assert operation.has_gradient is True
    for name, function in vars(operations.Operation).items():
        if callable(function) and not name.startswith("_"):
            expected = list(inspect.signature(function).parameters)
            ours = inspect.signature(getattr(type(operation), name))
            assert list(ours.parameters) == expected, name


@each(ALL)
def test_logits_of_zero_mean_the_identity_which_changes_nothing(operation):
    def zeros(shape):
        if isinstance(shape[0], int):
            return jnp.zeros(shape)
        return tuple(map(zeros, shape))

    mean = operation.mean(zeros(operation.logits_shape(8)))
    np.testing.assert_allclose(mean, operation.identity(), atol=1e-5)
    image = smooth_image()
    same = operation.apply(image, operation.identity(), 32)
    np.testing.assert_allclose(same, image, atol=1e-5)
    assert operation.apply(image, operation.identity(), 8).shape == (8, 8, 1)


@each(ALL)
def test_random_and_neighboring_actions_are_valid(operation):
    drawn = jax.vmap(operation.random)(jax.random.split(KEY, 50))
    clip = jax.vmap(operation.clip)
    np.testing.assert_allclose(clip(drawn), drawn, atol=1e-5)
    near = operation.neighbors(drawn[0])
    np.testing.assert_allclose(clip(near), near, atol=1e-5)
    assert all(np.abs(other - drawn[0]).max() > 0.01 for other in near)


@each(NUMBERS)
def test_density_of_numbers_is_scipy_s(operation):
    mean = jnp.linspace(-0.4, 0.5, operation.count)
    drawn = operation.sample(KEY, mean, SIGMA, 6)
    np.testing.assert_allclose(drawn[:3] + drawn[3:], [2 * mean] * 3, atol=1e-6)
    normal = scipy.stats.norm(np.asarray(mean), SIGMA)
    for action in np.asarray(drawn):
        expected = normal.logpdf(action).sum()
        found = operation.log_prob(jnp.array(action), mean, SIGMA)
        assert found == pytest.approx(expected, abs=1e-5)
    entropy = operation.entropy(mean, SIGMA)
    assert entropy == pytest.approx(normal.entropy().sum(), abs=1e-5)


def test_samples_of_numbers_have_the_width_of_the_policy():
    window = operations.Window()
    mean = jnp.array([0.2, -0.7])
    drawn = np.asarray(window.sample(KEY, mean, SIGMA, 8000))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=1e-5)
    np.testing.assert_allclose(drawn.std(0), SIGMA, atol=0.01)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03


def test_score_of_numbers_is_the_standardized_distance():
    gradient = jax.grad(operations.Window().log_prob, argnums=1)
    found = gradient(jnp.array([0.5, 0.0]), jnp.array([0.2, 0.6]), SIGMA)
    np.testing.assert_allclose(found, [0.3 / 0.09, -0.6 / 0.09], rtol=1e-5)


def test_numbers_step_to_both_sides_and_stay_in_bounds():
    found = operations.Window().neighbors(jnp.array([0.5, 0.9]))
    expected = [[0.75, 0.9], [0.5, 1.0], [0.25, 0.9], [0.5, 0.65]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_numbers_out_of_bounds_are_pulled_back():
    def loss(mean):
        return policy_gradient.bound_loss(mean, operations.Window().clip(mean))

    value, gradient = jax.value_and_grad(loss)(jnp.array([1.2, -0.5]))
    assert value == pytest.approx(3 * 0.2**2, rel=1e-5)
    np.testing.assert_allclose(gradient, [2 * 3 * 0.2, 0], atol=1e-5)


def test_imitation_of_numbers_is_half_the_squared_distance():
    def loss(logits, action, weight):
        return operations.Window().imitation_loss(logits, action, weight, 2.0)

    arguments = jnp.array([0.3, 0.0]), jnp.array([0.1, 0.4]), jnp.float32(0.5)
    assert loss(*arguments) == pytest.approx(0.5 * 0.5 * (0.04 + 0.16), rel=1e-5)
    gradients = jax.grad(loss, argnums=(0, 1, 2))(*arguments)
    np.testing.assert_allclose(gradients[0], [0.1, -0.2], atol=1e-6)
    assert not jnp.any(gradients[1]) and gradients[2] == 0


def test_numbers_are_drawn_in_pairs():
    with pytest.raises(ValueError, match="even, got 3"):
        operations.Window().sample(KEY, jnp.zeros(2), SIGMA, 3)


def test_settings_of_contrast_and_sharpening_by_hand():
    assert operations.Numbers().parameters(jnp.zeros(0)) == {}
    told = operations.Contrast(max_contrast=4.0).parameters(jnp.array([0.5]))
    assert told == {"log2_contrast": pytest.approx(1.0)}
    for number, factor in ((0.5, 2.5), (-0.5, 0.5)):
        told = operations.Sharpening(strength=3.0).parameters(jnp.array([number]))
        assert told == {"sharpness": pytest.approx(factor)}


# A key area, then a turn by up to 40 degrees, then gamma from 1/2 to 2.
TWO_ACTIONS = [[0.0, 0.0, 0.5, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0, -0.5, 1.0]]


def test_what_is_logged_of_mean_actions_by_hand():
    lungs = jnp.array([[0.0, 0.0, 0.5, 1.0], [jnp.nan] * 4])
    logged = HYBRID.metrics(jnp.array(TWO_ACTIONS), {"lung_box": lungs})
    expected = {
        "side": 0.75,
        "lung_iou": 0.25,  # 0.5 of the first, whose lungs alone are known
        "lung_iou/known": 0.5,
        "rotation": 0.0,
        "rotation_std": 20.0,
        "log2_gamma": 0.5,
        "log2_gamma_std": 0.5,
    }
    assert logged == {k: pytest.approx(v, abs=1e-5) for k, v in expected.items()}
    assert "lung_iou" not in HYBRID.metrics(jnp.array(TWO_ACTIONS), {})


def test_rotation_is_pillow_s_counterclockwise():
    image = smooth_image()
    action = jnp.array([0.5])
    assert NUMBERS["rotation"].parameters(action)["rotation"] == pytest.approx(20)
    turned = NUMBERS["rotation"].apply(image, action, 32)
    expected = Image.fromarray(np.asarray(image[..., 0])).rotate(
        20, Image.Resampling.BILINEAR
    )
    np.testing.assert_allclose(turned[..., 0], expected, atol=1e-3)


def test_intensities_by_hand():
    image = jnp.array([[0.2, 0.6], [0.4, 0.8]])[:, :, None]
    # Powers: 3 ** 0.5; its inverse.
    for number, power in ((0.5, 3**0.5), (-0.5, 3**-0.5)):
        found = NUMBERS["gamma"].apply(image, jnp.array([number]), 2)
        np.testing.assert_allclose(found, image**power, rtol=1e-5)
        parameter = NUMBERS["gamma"].parameters(jnp.array([number]))["log2_gamma"]
        assert parameter == pytest.approx(np.log2(power), rel=1e-5)
    # The mean is 0.5; twice the differences, clipped.
    twice = jnp.array([np.log(2) / np.log(3)])
    found = NUMBERS["contrast"].apply(image, twice, 2)[..., 0]
    np.testing.assert_allclose(found, [[0.0, 0.7], [0.3, 1.0]], atol=1e-5)
    # Level 0.5 + 0.4 * 0.25 = 0.6 and a third of the width: 0.433 to 0.767.
    found = NUMBERS["window"].apply(image, jnp.array([0.25, -1.0]), 2)[..., 0]
    np.testing.assert_allclose(found, [[0, 0.5], [0, 1]], atol=1e-5)


def test_gamma_of_black_has_a_finite_gradient():
    def total(number):
        return jnp.sum(NUMBERS["gamma"].apply(jnp.zeros((2, 2, 1)), number, 2))

    assert np.isfinite(jax.grad(total)(jnp.array([-0.5]))).all()


def test_sharpening_moves_from_and_to_the_smoothed_image():
    image = np.asarray(smooth_image()) + 0.05 * np.random.default_rng(0).normal(
        size=(32, 32, 1)
    ).astype(np.float32)
    smooth = image
    for axis in (0, 1):
        weights = np.array([1, 4, 6, 4, 1]) / 16
        smooth = scipy.ndimage.correlate1d(smooth, weights, axis, mode="nearest")
    for number, factor in ((-1.0, 0.0), (-0.5, 0.5), (0.5, 2.5)):
        found = NUMBERS["sharpening"].apply(jnp.array(image), jnp.array([number]), 32)
        expected = np.clip(smooth + factor * (image - smooth), 0, 1)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mask_hides_what_is_outside_and_moves_nothing():
    image = smooth_image(8)
    found = np.array(AREAS["mask"].apply(image, jnp.array([0.25, 0, 0.75, 0.5]), 8))
    np.testing.assert_array_equal(found[2:6, :4], np.asarray(image)[2:6, :4])
    found[2:6, :4] = 0
    assert not found.any()


def test_points_of_a_mask_stay_where_they_are():
    mask, action = AREAS["mask"], jnp.array([0.25, 0.5, 0.75, 1.0])
    points = jnp.array([[0.3, 0.6], [0.3, 0.4]])
    np.testing.assert_array_equal(mask.to_source(points, action), points)
    np.testing.assert_array_equal(mask.from_source(points, action), points)
    np.testing.assert_array_equal(mask.is_seen(points, action), [True, False])


def test_zoom_magnifies_the_box_and_keeps_the_rest():
    # Half of the rows, from the first on, get three quarters of what is seen; the
    # other half gets the rest. Columns: a middle half, and a quarter of an eighth each.
    zoom, box = operations.Zoom(share=0.75), jnp.array([0.0, 0.25, 0.5, 0.75])
    seen = jnp.array([[0.75, 0.125], [0.375, 0.5], [0.875, 0.9375]])
    expected = [[0.5, 0.25], [0.25, 0.5], [0.75, 0.875]]
    np.testing.assert_allclose(zoom.to_source(seen, box), expected, atol=1e-6)
    # A ramp, on each axis, shows where every pixel comes from.
    line = (jnp.arange(64) + 0.5) / 64
    for axis in (0, 1):
        ramp = jnp.broadcast_to(line if axis else line[:, None], (64, 64))[..., None]
        found = zoom.apply(ramp, box, 16)
        middles = (jnp.arange(16) + 0.5) / 16
        grid = jnp.stack(jnp.meshgrid(middles, middles, indexing="ij"), -1)
        expected = zoom.to_source(grid.reshape(-1, 2), box)[:, axis].reshape(16, 16)
        np.testing.assert_allclose(found[..., 0], expected, atol=0.01)


def test_zoom_leaves_a_large_box_alone():
    box = jnp.array([0.1, 0.05, 0.95, 0.9])
    points = jnp.array([[0.0, 0.3], [0.5, 0.99]])
    found = operations.Zoom(share=0.75).to_source(points, box)
    np.testing.assert_allclose(found, points, atol=1e-6)


AREA = [0.2, 0.1, 0.6, 0.7]


@pytest.mark.parametrize(
    ("operation", "action"),
    [
        (operations.KeyArea(), AREA),
        (AREAS["zoom"], AREA),
        (NUMBERS["rotation"], [-0.8]),
        # Gray levels as they are, and so small a turn that the points are seen.
        (HYBRID, [*AREA, 0.6, 0.0]),
    ],
)
def test_points_come_back_and_lie_where_the_pixels_are_seen(operation, action):
    action = jnp.array(action)
    pixels = np.random.default_rng(0).integers(20, 44, (20, 2))
    points = jnp.array((pixels + 0.5) / 64, jnp.float32)
    source = operation.to_source(points, action)
    assert np.abs(source - points).max() > 0.05
    np.testing.assert_allclose(operation.from_source(source, action), points, atol=1e-5)
    # Images whose grays are their own coordinates.
    line = (jnp.arange(128) + 0.5) / 128
    for axis, coordinate in enumerate(jnp.meshgrid(line, line, indexing="ij")):
        seen = np.asarray(operation.apply(coordinate[..., None], action, 64))
        found = seen[pixels[:, 0], pixels[:, 1], 0]
        np.testing.assert_allclose(found, source[:, axis], atol=0.01)


def test_points_outside_of_the_area_are_not_seen():
    action = jnp.array([0.25, 0.25, 0.75, 0.75])
    points = jnp.array([[0.5, 0.5], [0.1, 0.5], [0.5, 0.9]])
    for operation in (operations.KeyArea(), operations.Mask()):
        is_seen = operation.is_seen(points, action)
        np.testing.assert_array_equal(is_seen, [True, False, False])
    # Turned back by 30 degrees about the middle of the crop, its corner is not seen.
    turned = jnp.concatenate([action, jnp.array([0.75, 0.0])])
    corner = HYBRID.is_seen(jnp.array([[0.26, 0.26], [0.5, 0.5]]), turned)
    np.testing.assert_array_equal(corner, [False, True])


def test_hybrid_is_the_product_of_its_parts():
    key_area, rotation, gamma = HYBRID.parts
    assert HYBRID.logits_shape(16) == ((16, 16), (1,), (1,))
    mean = jnp.array([0.2, 0.1, 0.6, 0.9, 0.3, -0.2])
    drawn = HYBRID.sample(KEY, mean, SIGMA, 4)
    assert drawn.shape == (4, 6)
    expected = (
        key_area.log_prob(drawn[0, :4], mean[:4], SIGMA)
        + rotation.log_prob(drawn[0, 4:5], mean[4:5], SIGMA)
        + gamma.log_prob(drawn[0, 5:], mean[5:], SIGMA)
    )
    assert HYBRID.log_prob(drawn[0], mean, SIGMA) == pytest.approx(float(expected))
    found = HYBRID.entropy(mean, SIGMA)
    expected = sum(
        part.entropy(of, SIGMA)
        for part, of in zip(HYBRID.parts, jnp.split(mean, [4, 5]), strict=True)
    )
    assert found == pytest.approx(float(expected))
    np.testing.assert_array_equal(HYBRID.area(drawn[1]), drawn[1, :4])
    assert set(HYBRID.parameters(mean)) == {"rotation", "log2_gamma"}
    np.testing.assert_allclose(HYBRID.from_area(mean[:4])[4:], 0)
    # The area's cost is all of it: the whole image costs 1.
    assert HYBRID.cost(mean) == pytest.approx(0.4 * 0.8)


def test_hybrid_tries_the_neighbors_of_each_part():
    action = jnp.array([0.3, 0.2, 0.7, 0.6, 0.5, 0.0])
    found = HYBRID.neighbors(action)
    np.testing.assert_allclose(found[0], [0.25, 0.15, 0.75, 0.65, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(found[2:4, 4], [0.75, 0.25])
    np.testing.assert_allclose(found[4:, 5], [0.25, -0.25])
    np.testing.assert_allclose(found[2:, :4], np.tile(action[:4], (4, 1)))
    assert len(found) == 6


def test_hybrid_cuts_its_area_from_all_pixels():
    """One pixel in eight is bright: only a cut of the full-size image can show it."""
    image = jnp.zeros((64, 64, 1)).at[::8].set(1)
    area = jnp.array([0.0, 0.0, 0.25, 0.25])
    for parts in (
        (operations.KeyArea(), NUMBERS["gamma"]),
        (NUMBERS["gamma"], operations.KeyArea()),
    ):
        hybrid = operations.Hybrid(parts)
        found = hybrid.apply(image, hybrid.from_area(area), 16)
        expected = boxes.crop_and_resize(image, area, size=16)
        np.testing.assert_allclose(found, np.clip(expected, 0.5 / 255, 1), atol=3e-3)
        assert found.max() > 0.9


def test_an_area_of_a_turned_film_is_told_where_it_lies_in_the_film():
    """By a quarter counterclockwise: what is at the top comes to the left."""
    hybrid = operations.Hybrid((operations.Rotation(90.0), operations.KeyArea()))
    image = jnp.zeros((32, 32, 1)).at[:8, 16:24].set(1)
    action = jnp.array([1.0, 0.25, 0.0, 0.5, 0.25])
    assert hybrid.apply(image, action, 8).min() > 0.99
    area = jax.jit(hybrid.area)(action)
    np.testing.assert_allclose(area, [0.0, 0.5, 0.25, 0.75], atol=1e-6)
    # By half as much, the central square stands on its corner, in its tight box.
    area = hybrid.area(jnp.array([0.5, 0.25, 0.25, 0.75, 0.75]))
    low, high = 0.5 - np.sqrt(0.125), 0.5 + np.sqrt(0.125)
    np.testing.assert_allclose(area, [low, low, high, high], atol=1e-6)


def test_imitation_of_anchors_is_half_the_squared_distance():
    """From the whole image: moved by a tenth up, half as high, as wide."""

    def loss(logits, action, weight):
        return ANCHORS.imitation_loss(logits, action, weight, 2.0)

    logits, action = jnp.zeros((8, 8, 3)), jnp.array([0.15, 0.0, 0.65, 1.0])
    arguments = logits, action, jnp.float32(0.5)
    expected = 0.5 * 0.5 * (0.1**2 + math.log(2) ** 2)
    assert loss(*arguments) == pytest.approx(expected, rel=1e-5)
    gradients = jax.grad(loss, argnums=(0, 1, 2))(*arguments)
    # Cells above are made surer, all heights smaller, each by its share of 1/64. In a
    # smaller height the move counts for more, by its square.
    assert gradients[0][0, 3, 0] < 0 < gradients[0][7, 3, 0]
    expected = 0.5 * (math.log(2) - 0.1**2) / 64
    np.testing.assert_allclose(gradients[0][..., 1], expected, rtol=1e-4)
    assert not jnp.any(gradients[1]) and gradients[2] == 0


def test_imitation_of_a_hybrid_teaches_every_part():
    logits = (jnp.zeros((8, 8)), jnp.zeros(1), jnp.zeros(1))
    action = jnp.array([0.25, 0.25, 0.75, 0.75, 0.5, -0.5])

    def loss(logits):
        return HYBRID.imitation_loss(logits, action, jnp.float32(1), 2.0)

    gradients = jax.grad(loss)(logits)
    assert gradients[0][4, 4] < 0 < gradients[0][0, 0]
    np.testing.assert_allclose(gradients[1:], [[-0.5], [0.5]])


@pytest.mark.parametrize(
    ("name", "rate"), [("reinforce", 0.05), ("pathwise", 0.05), ("elite", 0.2)]
)
def test_gradient_steps_find_area_and_numbers_at_once(name, rate):
    """From the identity, with nothing but losses of actions of both."""
    operation = operations.Hybrid((operations.KeyArea(min_side=0.2), ALL["window"]))
    target = jnp.array([0.25, 0.25, 0.75, 0.75, 0.6, -0.5])
    settings = PolicyConfig(estimator=name, samples=8, gamma=0.0)
    estimator, optimizer = estimators.ESTIMATORS[name], optax.adam(rate)

    def evaluate(actions):
        return jnp.sum((actions - target[None]) ** 2, axis=1)

    def update(carry, inputs):
        logits, state = carry
        key, sigma = inputs

        def loss(logits):
            keys = jax.random.split(key, 8)
            trials = jax.vmap(
                lambda k: estimator(operation, settings, evaluate, logits, k, sigma)
            )(keys)
            return jnp.mean(trials.policy_loss)

        updates, state = optimizer.update(jax.grad(loss)(logits), state)
        return (optax.apply_updates(logits, updates), state), None

    start = (jnp.zeros((8, 8)), jnp.zeros(2))
    keys, sigmas = jax.random.split(KEY, 200), jnp.geomspace(0.3, 0.1, 200)
    carry = (start, optimizer.init(start))
    (logits, _), _ = jax.lax.scan(update, carry, (keys, sigmas))
    mean = operation.mean(logits)
    assert (
        boxes.iou(mean[:4], target[:4])
        > 0.5
        > boxes.iou(operations.KeyArea().identity(), target[:4])
    )
    np.testing.assert_allclose(mean[4:], target[4:], atol=0.12)
