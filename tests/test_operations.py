import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import boxes, operations, policy, policy_gradient

KEY_AREA = operations.KeyArea(alpha=1.25, min_side=0.25, max_side=0.9)


def test_key_area_has_the_functions_of_an_operation():
    assert operations.KeyArea().has_gradient
    assert not operations.KeyArea(readout="max_sum").has_gradient
    for name, function in vars(operations.Operation).items():
        if callable(function) and not name.startswith("_"):
            expected = list(inspect.signature(function).parameters)
            ours = inspect.signature(getattr(operations.KeyArea, name))
            assert list(ours.parameters) == expected, name


def test_identity_leaves_a_square_image_as_it_is():
    image = np.random.default_rng(0).uniform(size=(8, 8, 1)).astype(np.float32)
    identity = KEY_AREA.identity()
    np.testing.assert_array_equal(KEY_AREA.apply(jnp.array(image), identity, 8), image)


def test_uniform_logits_mean_the_identity():
    mean = KEY_AREA.mean(jnp.zeros((16, 16)))
    np.testing.assert_allclose(mean, KEY_AREA.identity(), atol=1e-6)


def test_neighbors_are_the_expanded_and_the_shrunk_box(variant):
    given = jnp.array([0.3, 0.2, 0.7, 0.6])
    neighbors = variant(KEY_AREA.neighbors)(given)
    expected = [[0.25, 0.15, 0.75, 0.65], [0.34, 0.24, 0.66, 0.56]]
    np.testing.assert_allclose(neighbors, expected, atol=1e-6)


def test_neighbors_stay_in_bounds_and_in_the_image():
    # Height 0.8 -> 1.0, at most 0.9; width 0.3 -> 0.24, at least 0.25.
    neighbors = KEY_AREA.neighbors(jnp.array([0.0, 0.0, 0.8, 0.3]))
    expected = [[0.0, 0.0, 0.9, 0.375], [0.08, 0.025, 0.72, 0.275]]
    np.testing.assert_allclose(neighbors, expected, atol=1e-6)


def test_alpha_scales_the_sides():
    operation = operations.KeyArea(alpha=2.0, min_side=0.1)
    neighbors = operation.neighbors(jnp.array([0.3, 0.3, 0.7, 0.7]))
    expected = [[0.1, 0.1, 0.9, 0.9], [0.4, 0.4, 0.6, 0.6]]
    np.testing.assert_allclose(neighbors, expected, atol=1e-6)


def test_moves_choose_the_neighbors():
    operation = operations.KeyArea(1.25, min_side=0.1, max_side=0.55, moves="shift")
    neighbors = operation.neighbors(jnp.array([0.0, 0.25, 0.4, 0.75]))
    expected = [
        [0.0, 0.225, 0.5, 0.775],  # width 0.625, at most 0.55
        [0.04, 0.3, 0.36, 0.7],
        [0.0, 0.25, 0.4, 0.75],
        [0.1, 0.25, 0.5, 0.75],
        [0.0, 0.125, 0.4, 0.625],
        [0.0, 0.375, 0.4, 0.875],
    ]
    np.testing.assert_allclose(neighbors, expected, atol=1e-6)
    stretching = dataclasses.replace(operation, moves="stretch")
    more = stretching.neighbors(jnp.array([0.0, 0.25, 0.4, 0.75]))
    np.testing.assert_array_equal(more[:6], neighbors)
    wider, taller = [0.04, 0.225, 0.36, 0.775], [0.0, 0.3, 0.5, 0.7]
    np.testing.assert_allclose(more[6:], [wider, taller], atol=1e-6)


@pytest.mark.parametrize("logit", [0.5, 30.0])
def test_readout_max_sum_reads_an_action_back_however_faint_its_map(logit):
    action = jnp.array([0.25, 0.125, 0.875, 0.5])
    operation = dataclasses.replace(KEY_AREA, readout="max_sum")
    covered = operation.as_map(action, 16)
    logits = jnp.where(covered > 0.5, logit, -logit)
    np.testing.assert_allclose(operation.mean(logits), action, atol=1e-6)
    is_read_by_moments = np.allclose(KEY_AREA.mean(logits), action, atol=1e-3)
    assert is_read_by_moments == (logit == 30.0)


def test_clip_uses_the_bounds_of_the_operation():
    clipped = KEY_AREA.clip(jnp.array([-0.5, 0.45, 1.5, 0.55]))
    np.testing.assert_allclose(clipped, [0.05, 0.375, 0.95, 0.625], atol=1e-6)


def test_density_is_that_of_the_policy():
    mean, sigma = jnp.array([0.2, 0.1, 0.6, 0.9]), 0.3
    drawn = KEY_AREA.sample(jax.random.key(0), mean, sigma, 4)
    expected = policy.sample(jax.random.key(0), mean, sigma=0.3, num_samples=4)
    np.testing.assert_array_equal(drawn, expected)
    log_prob = policy.log_prob(drawn[0], mean, sigma=0.3)
    assert KEY_AREA.log_prob(drawn[0], mean, sigma) == log_prob
    assert KEY_AREA.entropy(mean, sigma) == policy.entropy(mean, sigma=0.3)


def test_random_actions_are_valid_and_spread_over_the_image():
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = np.asarray(jax.jit(jax.vmap(KEY_AREA.random))(keys))
    clip = jax.jit(jax.vmap(KEY_AREA.clip))
    np.testing.assert_allclose(clip(drawn), drawn, atol=1e-5)
    sides = drawn[:, 2:] - drawn[:, :2]
    # Uniform in [0.25, 0.9]: mean 0.575, standard deviation 0.19 of one draw.
    np.testing.assert_allclose(sides.mean(0), 0.575, atol=0.02)
    np.testing.assert_allclose(sides.std(0), 0.65 / 12**0.5, atol=0.01)
    for low, high in zip(drawn[:, :2].T, drawn[:, 2:].T, strict=True):
        assert low.min() < 0.01 and high.max() > 0.99
        assert np.mean(low + high) == pytest.approx(1, abs=0.03)


def test_map_of_an_action_has_the_action_as_its_mean():
    action = jnp.array([0.25, 0.125, 0.875, 0.5])
    covered = KEY_AREA.as_map(action, 16)
    assert covered.shape == (16, 16)
    read = KEY_AREA.mean(jnp.where(covered > 0.5, 30.0, -30.0))
    np.testing.assert_allclose(read, action, atol=1e-5)


def _bound_loss(mean):
    return policy_gradient.bound_loss(mean, KEY_AREA.clip(mean))


def test_bound_loss_is_0_for_a_valid_mean_alone():
    valid = jnp.array([0.2, 0.0, 0.8, 0.5])
    value, gradient = jax.value_and_grad(_bound_loss)(valid)
    assert value == pytest.approx(0, abs=1e-10)
    np.testing.assert_allclose(gradient, np.zeros(4), atol=1e-5)
    out = _bound_loss(jnp.array([-0.1, 0.0, 0.5, 0.5]))
    further = _bound_loss(jnp.array([-0.2, 0.0, 0.4, 0.5]))
    assert out > 0.01
    assert further / out == pytest.approx(4, rel=1e-4)  # squared distance


@pytest.mark.parametrize(
    "mean",
    [
        (-0.3, 0.2, 0.3, 0.6),  # out of the image
        (0.45, 0.2, 0.5, 0.6),  # too flat
        (-0.1, -0.1, 1.1, 1.1),  # too large
    ],
)
def test_descending_the_bound_loss_ends_at_a_valid_mean(mean):
    @jax.jit
    def descend(mean):
        def update(_, mean):
            return mean - 0.05 * jax.grad(_bound_loss)(mean)

        return jax.lax.fori_loop(0, 200, update, mean)

    end = descend(jnp.array(mean))
    np.testing.assert_allclose(end, KEY_AREA.clip(end), atol=1e-3)


def test_apply_crops_each_image_of_a_batch():
    images = np.random.default_rng(1).uniform(size=(2, 12, 12, 1)).astype(np.float32)
    actions = jnp.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.25, 1.0, 0.75]])
    apply = jax.jit(jax.vmap(functools.partial(KEY_AREA.apply, size=6)))
    crops = apply(jnp.array(images), actions)
    np.testing.assert_allclose(crops[0], images[0, :6, :6], atol=1e-5)
    np.testing.assert_allclose(crops[1], images[1, 6:, 3:9], atol=1e-5)


def test_operation_can_be_a_static_argument():
    @functools.partial(jax.jit, static_argnums=0)
    def area(operation, action):
        return boxes.area(operation.clip(action))

    action = jnp.array([0.0, 0.0, 1.0, 1.0])
    assert area(KEY_AREA, action) == pytest.approx(0.81, abs=1e-6)
    assert area(operations.KeyArea(), action) == pytest.approx(1, abs=1e-6)


def test_operations_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"alpha is 0\.5, but must be above 1"):
        operations.KeyArea(alpha=0.5)
    with pytest.raises(ValueError, match=r"min_side and max_side are 0\.9 and 0\.3"):
        operations.Zoom(min_side=0.9, max_side=0.3)
    with pytest.raises(ValueError, match="a hybrid needs parts"):
        operations.Hybrid(())
    with pytest.raises(ValueError, match=r"of \(KeyArea.* more than one has an area"):
        operations.Hybrid((operations.KeyArea(), operations.Mask()))


def test_gamma_keeps_black_black_and_the_identity_exact():
    image = jnp.array([0.0, 0.001, 0.5, 1.0]).reshape(2, 2, 1)
    gamma = operations.Gamma(3.0)
    np.testing.assert_array_equal(gamma.change(image, jnp.zeros(1)), image)
    bright = gamma.change(image, jnp.array([-1.0])).ravel()  # to the power 1/3
    darkest = 0.5 / 255
    expected = [0.0, 0.001 * darkest ** (-2 / 3), 0.5 ** (1 / 3), 1.0]
    np.testing.assert_allclose(bright, expected, rtol=1e-5)
    gradient = jax.grad(lambda n: jnp.sum(gamma.change(image, n)))(jnp.array([-1.0]))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["Gamma", "Contrast", "Window", "Sharpening"])
def test_levels_of_bytes_are_not_taken_for_shares(name):
    operation = getattr(operations, name)()
    with pytest.raises(AssertionError, match="expected"):
        operation.apply(jnp.ones((8, 8, 1), jnp.uint8), operation.identity(), 8)
