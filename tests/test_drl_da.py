import dataclasses
import functools
import pathlib
import types
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console
import scipy.ndimage

from hapre_jax import (
    config,
    framework,
    image_ops,
    nets,
    sharding,
    tasks,
    train,
    train_state,
)
from hapre_jax.data import dataset
from hapre_jax.method import of_networks
from hapre_jax.methods import METHODS, drl_da, plain
from hapre_jax.nets import resnet

KEY = jax.random.key(0)
SIDE = 16  # pixels, so that a translation is by one
NAMES = list(drl_da.ACTIONS)

apply_action = jax.jit(drl_da.apply_action)


def _image(seed=0, low=0.0, high=1.0, count=None):
    shape = (SIDE, SIDE, 1) if count is None else (count, SIDE, SIDE, 1)
    pixels = np.random.default_rng(seed).uniform(low, high, size=shape)
    return jnp.array(pixels, jnp.float32)


def _do(name, image, key=KEY):
    return np.asarray(apply_action(key, image, jnp.array(NAMES.index(name))))


# Actions.


def test_actions_keep_the_type_of_an_image():
    image = _image().astype(jnp.bfloat16)
    assert jax.eval_shape(apply_action, KEY, image, jnp.array(6)).dtype == image.dtype


def test_actions_are_fifteen_operations_and_a_stop():
    assert NAMES == [
        "mirror",
        "flip",
        "rotate_left",
        "rotate_right",
        "warp",
        "zoom",
        "noise",
        "lighter",
        "darker",
        "left",
        "right",
        "up",
        "down",
        "sharpen",
        "smooth",
        "stop",
    ]
    assert drl_da.STOP == 15


def _moved(image, shift):
    """By whole pixels, down and to the right; what comes in is black."""
    moved = np.roll(image, shift, axis=(0, 1))
    for axis, pixels in enumerate(shift):
        if pixels:
            edge = 0 if pixels > 0 else -1
            np.moveaxis(moved, axis, 0)[edge] = 0
    return moved


def _filtered(image, kernel):
    """By SciPy where the whole kernel is inside."""
    inner = scipy.ndimage.convolve(image[:, :, 0], np.array(kernel, float))[1:-1, 1:-1]
    filtered = image.copy()
    filtered[1:-1, 1:-1, 0] = np.clip(inner, 0, 1)
    return filtered


EXPECTED = {
    "mirror": lambda image: np.flip(image, axis=1),
    "flip": lambda image: np.flip(image, axis=0),
    "rotate_left": lambda image: image_ops.rotate(image, jnp.array(5.0)),
    "rotate_right": lambda image: image_ops.rotate(image, jnp.array(-5.0)),
    "zoom": lambda image: image_ops.zoom(image, jnp.array(1.1)),
    "lighter": lambda image: np.clip(image + 0.075, 0, 1),
    "darker": lambda image: np.clip(image - 0.075, 0, 1),
    "left": lambda image: _moved(image, (0, -1)),
    "right": lambda image: _moved(image, (0, 1)),
    "up": lambda image: _moved(image, (-1, 0)),
    "down": lambda image: _moved(image, (1, 0)),
    "sharpen": lambda image: _filtered(image, [[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "smooth": lambda image: _filtered(
        image, [[0.1, 0.1, 0.1], [0.1, 0.2, 0.1], [0.1, 0.1, 0.1]]
    ),
    "stop": lambda image: image,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_action_without_chance_is(name):
    image = _image()
    found = _do(name, image)
    np.testing.assert_allclose(found, EXPECTED[name](np.asarray(image)), atol=2e-5)
    # No chance: no other key gives anything else.
    np.testing.assert_array_equal(found, _do(name, image, jax.random.key(1)))
    assert (np.abs(found - image).max() > 0.05) == (name != "stop")


def test_actions_that_are_left_depend_on_chance():
    chances = {name for name in NAMES if name not in EXPECTED}
    assert chances == {"warp", "noise"}
    for name in chances:
        first, again, other = (
            _do(name, _image(), key) for key in (KEY, KEY, jax.random.key(1))
        )
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_stop_keeps_every_bit(seed):
    image = np.array(_image(seed))
    image[0, 0], image[0, 1] = 0, 1
    np.testing.assert_array_equal(_do("stop", image, jax.random.key(seed)), image)


def test_results_stay_within_black_and_white():
    black, noise = jnp.zeros((SIDE, SIDE, 1)), _image()
    for image in (noise, jnp.round(noise), black, black + 1):
        for name in NAMES:
            changed = _do(name, image)
            assert changed.shape == image.shape and changed.dtype == np.float32
            assert changed.min() >= 0 and changed.max() <= 1
    # Where bounds are met.
    assert _do("noise", black).min() == 0 and _do("noise", black + 1).max() == 1
    assert _do("sharpen", noise).min() == 0 and _do("sharpen", noise).max() == 1


_apply_to_many = jax.jit(jax.vmap(drl_da.apply_action, (0, None, None)))


def _many(name, image):
    keys = jax.random.split(KEY, 800)
    changed = _apply_to_many(keys, image, jnp.array(NAMES.index(name)))
    return np.asarray(changed)[..., 0]


def test_warp_moves_pixels_but_little():
    """Of a ramp, grays tell where a pixel comes from.

    Pixels 5 and 10 of 0..15 are the inner points of the grid. They move by up to 2 % of
    16 pixels, uniform, times a standard normal: 0.32 / sqrt(3) in the quadratic mean.
    """
    ramp = jnp.broadcast_to(jnp.arange(SIDE)[:, None, None] / 15, (SIDE, SIDE, 1))
    for image in (ramp, ramp.swapaxes(0, 1)):
        changed = _many("warp", image) * 15
        moved = changed[:, 5:11:5, 5:11:5] - np.asarray(image)[5:11:5, 5:11:5, 0] * 15
        assert np.sqrt(np.mean(moved**2)) == pytest.approx(0.32 / 3**0.5, rel=0.06)
        assert abs(moved.mean()) < 0.02
        # Each point moves by itself, and none as far as two pixels.
        points = moved.reshape(len(moved), 4)
        assert np.abs(np.corrcoef(points.T) - np.eye(4)).max() < 0.15
        assert np.abs(moved).max() < 2
        # A fifth of the way between two points, each counts accordingly.
        between = (changed - np.asarray(image)[..., 0] * 15)[:, 5, 6]
        np.testing.assert_allclose(
            between, 0.8 * moved[:, 0, 0] + 0.2 * moved[:, 0, 1], atol=1e-4
        )


def test_noise_is_of_every_pixel_and_deviates_by_a_twentieth():
    grain = _many("noise", jnp.full((SIDE, SIDE, 1), 0.5, jnp.float32)) - 0.5
    assert grain.std() == pytest.approx(0.05, rel=0.02)
    assert grain.mean() == pytest.approx(0, abs=1e-3)
    for first, second in (
        (grain[:, :-1], grain[:, 1:]),
        (grain[:, :, :-1], grain[:, :, 1:]),
        (grain[:-1], grain[1:]),
    ):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


# Rewards.


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.7, 0.695, 0.5),
        (0.695, 0.7, -0.5),
        (0.7, 0.7, 0.0),
        (0.7, 0.6, 1.0),
        (0.7, 5.0, -1.0),
    ],
)
def test_reward_by_hand(variant, before, after, expected):
    found = variant(drl_da.reward)(jnp.array(before), jnp.array(after))
    assert found == pytest.approx(expected, abs=1e-4)


# An episode, of a task network that NumPy can follow.


class _Linear:
    """A task network whose logits are sums of pixels, whose features are the image.

    Features also tell the first weight, and so whose they are. In training, its state
    is what it was shown.
    """

    image_size = SIDE

    def apply(self, variables, image, *, train, key=None):
        kernel = variables["params"]["kernel"]
        logits = image.reshape(len(image), -1) @ kernel
        features = {"stage1": 0 * image[:, :2], "stage2": image + kernel[0, 0]}
        return nets.Output(logits, features), {"shown": image} if train else {}

    def loss(self, outputs, target):
        log_probabilities = jax.nn.log_softmax(outputs.logits)
        return -jnp.take_along_axis(log_probabilities, target[:, None], axis=1)[:, 0]


def _kernel(seed=5, scale=0.05):
    values = np.random.default_rng(seed).normal(scale=scale, size=(SIDE * SIDE, 3))
    return jnp.array(values, jnp.float32)


def _probabilities(kernel, image):
    logits = np.asarray(image, float).reshape(-1, SIDE * SIDE) @ np.asarray(kernel)
    raw = np.exp(logits)
    return raw / raw.sum(axis=1, keepdims=True)


def _loss(kernel, image, label):
    rows = np.arange(len(label))
    return -np.log(_probabilities(kernel, image)[rows, label]).mean()


def _descended(kernel, image, label, rate):
    """A kernel after a step of gradient descent on one image, and the gradient."""
    error = _probabilities(kernel, image)[0] - np.eye(3)[label]
    gradient = np.outer(np.asarray(image, float).ravel(), error)
    norm = np.linalg.norm(gradient)
    return np.asarray(kernel) - rate * gradient / max(norm, 1), gradient


VALIDATION = {"image": _image(7, count=6), "label": jnp.array([0, 1, 2, 2, 1, 0])}
LABEL = jnp.array(2)


@pytest.fixture(scope="module")
def world():
    make = functools.partial(drl_da.make_world, _Linear())
    return jax.jit(make)({"params": {"kernel": _kernel()}}, *VALIDATION.values())


@pytest.fixture(scope="module")
def begin():
    return jax.jit(functools.partial(drl_da.begin, _Linear()))


@pytest.fixture(scope="module")
def play():
    return jax.jit(functools.partial(drl_da.play, _Linear()))


def _ten(image):
    """An image at 10 x 10 places."""
    return jax.image.resize(image, (10, 10, 1), "linear")


def test_world_knows_the_loss_on_the_validation_films(world):
    assert world.loss == pytest.approx(_loss(_kernel(), **VALIDATION), rel=1e-5)
    np.testing.assert_array_equal(world.classifier["params"]["kernel"], _kernel())
    np.testing.assert_array_equal(world.image, VALIDATION["image"])
    np.testing.assert_array_equal(world.label, VALIDATION["label"])


def test_states_are_the_last_features_at_ten_by_ten_by_hand():
    """Of 5 x 5 features: each place between two of them, at a quarter."""

    class Five(_Linear):
        def apply(self, variables, image, *, train):
            assert not train
            return nets.Output(
                image, {"stage2": image[:, ::3, :5], "stage1": image}
            ), {}

    ramp = jnp.arange(SIDE, dtype=jnp.float32)[:, None, None] / 3
    image = jnp.broadcast_to(ramp, (2, SIDE, SIDE, 1))[:, :15]
    states = drl_da.see(Five(), {}, image)
    rows = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4]
    expected = np.broadcast_to(np.array(rows)[:, None, None], (2, 10, 10, 1))
    np.testing.assert_allclose(states, expected, atol=1e-5)


def test_an_episode_begins_with_the_classifier_as_it_was(world, begin, play):
    first = begin(world, _image(), LABEL)
    for _ in range(2):
        action = jnp.array(NAMES.index("lighter"))
        played, _ = play(world, KEY, first, action, rate=0.1)
        assert np.abs(played.params["kernel"] - _kernel()).max() > 1e-3
        again = begin(world, _image(), LABEL)
        chex.assert_trees_all_equal(again, first)
    np.testing.assert_array_equal(first.params["kernel"], _kernel())
    np.testing.assert_array_equal(first.image, _image())
    expected = _ten(_image()) + _kernel()[0, 0]
    np.testing.assert_allclose(first.state, expected, atol=1e-5)
    assert first.label == 2 and first.taken == 0 and first.loss == world.loss


@pytest.mark.parametrize(
    # Gradients about 5 and 0.5 long: only the former is cut.
    ("low", "high", "is_cut"),
    [(0.3, 1.0, True), (0.0, 0.1, False)],
)
def test_a_step_of_an_episode_by_hand(world, begin, play, low, high, is_cut):
    image, rate = _image(3, low, high), 0.002
    episode, kernel = begin(world, image, LABEL), np.asarray(_kernel())
    loss = _loss(kernel, **VALIDATION)
    for taken, name in enumerate(("mirror", "left", "flip"), 1):
        episode, reward = play(
            world, KEY, episode, jnp.array(NAMES.index(name)), rate=rate
        )
        image = EXPECTED[name](np.asarray(image))
        np.testing.assert_allclose(episode.image, image, atol=1e-5)
        before, before_loss = kernel, loss
        kernel, gradient = _descended(kernel, image, 2, rate)
        assert (np.linalg.norm(gradient) > 1) == is_cut
        np.testing.assert_allclose(
            episode.params["kernel"] - before, kernel - before, atol=2e-7
        )
        loss = _loss(kernel, **VALIDATION)
        assert episode.loss == pytest.approx(loss, abs=1e-5)
        # What float32 keeps of a difference of losses, a hundredfold.
        assert reward == pytest.approx(100 * (before_loss - loss), abs=1e-3)
        assert 0.005 < abs(reward) < 1
        # The frozen classifier's, not that of the episode.
        expected = _ten(jnp.array(image)) + _kernel()[0, 0]
        np.testing.assert_allclose(episode.state, expected, atol=1e-5)
        assert episode.taken == taken and episode.label == 2


def test_a_long_gradient_moves_the_classifier_by_the_rate_alone(world, begin, play):
    episode = begin(world, _image(), LABEL)
    action = jnp.array(NAMES.index("sharpen"))
    for rate in (0.5, 0.01):
        after, _ = play(world, KEY, episode, action, rate=rate)
        change = after.params["kernel"] - episode.params["kernel"]
        assert np.linalg.norm(change) == pytest.approx(rate, rel=1e-3)


def test_rewards_of_long_steps_are_cut(world, begin, play):
    action = jnp.array(NAMES.index("mirror"))
    found = {}
    for label in range(3):
        episode = begin(world, _image(), jnp.array(label))
        after, reward = play(world, KEY, episode, action, rate=2.0)
        change = 100 * float(world.loss - after.loss)
        assert abs(change) > 1
        found[label] = float(reward)
        assert reward == np.sign(change)
    assert -1 in found.values()


def test_stopping_is_worth_nothing_and_keeps_the_image(world, begin, play):
    episode = begin(world, _image(), LABEL)
    after, reward = play(world, KEY, episode, jnp.array(drl_da.STOP), rate=0.1)
    assert reward == 0
    assert abs(after.loss - episode.loss) > 1e-3
    np.testing.assert_array_equal(after.image, episode.image)
    np.testing.assert_array_equal(after.state, episode.state)
    assert after.taken == 1


# The Q-network.


def _shapes(actions=16, channels=1):
    network = nets.DuelingNet(actions)
    features = jax.ShapeDtypeStruct((1, 10, 10, channels), jnp.float32)
    return network, jax.eval_shape(network.init, KEY, features)


def test_dueling_network_s_shapes():
    network, variables = _shapes(channels=7)
    kernels = sorted(x.shape for x in jax.tree.leaves(variables) if x.ndim > 1)
    streams = [(512, 1), (512, 16), (512, 512), (512, 512)]
    convolutions = [(3, 3, 7, 256), (3, 3, 64, 32), (3, 3, 256, 64)]
    assert kernels == sorted(streams + convolutions)
    features = jax.ShapeDtypeStruct((5, 10, 10, 7), jnp.float32)
    values = jax.eval_shape(network.apply, variables, features)
    assert values == jax.ShapeDtypeStruct((5, 16), jnp.float32)


def test_dueling_network_s_values_by_hand():
    network, variables = _shapes(actions=4, channels=2)
    rng = np.random.default_rng(0)

    def draw(leaf):
        inputs = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 20
        return rng.normal(scale=inputs**-0.5, size=leaf.shape).astype(np.float32)

    variables = jax.tree.map(draw, variables)
    features = rng.normal(size=(3, 10, 10, 2)).astype(np.float32)
    found = np.asarray(jax.jit(network.apply)(variables, features))

    def layer(name, x):
        parameters = variables["params"][name]
        if name.startswith("Conv"):
            x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
            x = np.moveaxis(x, 3, -1).reshape(*x.shape[:3], -1)
        kernel = parameters["kernel"].reshape(-1, parameters["bias"].size)
        return x @ kernel + parameters["bias"]

    x = features
    for index in range(3):
        x = np.maximum(layer(f"Conv_{index}", x), 0)
    x = x.reshape(3, -1)
    # Each stream's last layer is named before its first one.
    value, advantage = (
        layer(f"Dense_{last}", np.maximum(layer(f"Dense_{first}", x), 0))
        for last, first in ((0, 1), (2, 3))
    )
    assert value.shape == (3, 1) and advantage.shape == (3, 4)
    assert np.abs(advantage.mean(axis=1)).max() > 0.05
    np.testing.assert_allclose(found.mean(axis=1), value[:, 0], atol=1e-4)
    centered = advantage - advantage.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        found - found.mean(axis=1, keepdims=True), centered, atol=1e-4
    )
    assert centered.std() > 0.05 and value.std() > 0.01


# What an agent makes of a batch.


def _agent(**preferences):
    """Variables that give each action its value, in any state."""
    bias = np.zeros(len(NAMES), np.float32)
    for name, value in preferences.items():
        bias[NAMES.index(name)] = value
    return jax.tree.map(
        lambda x: bias if x.shape == bias.shape else np.zeros(x.shape, np.float32),
        _shapes()[1],
    )


def _agent_that_stops_at_light_films():
    """Lightens until the features' mean gray, in the middle, is above 0.6."""
    agent = _agent(lighter=0.6)
    for name, leaves in agent["params"].items():
        kernel = leaves["kernel"]
        if name.startswith("Conv"):
            kernel[1, 1, 0, 0] = 1
        elif kernel.shape == (512, 512):
            # Channel 0 of 4 x 4 places of 32.
            kernel[::32, 0] = 1 / 16
        elif kernel.shape == (512, len(NAMES)):
            kernel[0, drl_da.STOP] = 1
    return agent


@pytest.fixture(scope="module")
def augment():
    """(agent, key, images) -> images after three actions at most."""
    classifier = {"params": {"kernel": jnp.zeros((SIDE * SIDE, 3))}}

    def run(agent, key, images):
        guide = {"classifier": classifier, "agent": agent}
        return drl_da.augment(_Linear(), guide, key, images, length=3)

    return jax.jit(run)


@pytest.mark.parametrize(
    "name", ["flip", "lighter", "left", "down", "smooth", "rotate_left"]
)
def test_an_agent_that_likes_one_action_takes_it_all_the_time(augment, name):
    images = _image(count=3)
    found = augment(_agent(**{name: 1.0, "stop": 0.5}), KEY, images)
    for image, changed in zip(images, found, strict=True):
        expected = np.asarray(image)
        for _ in range(3):
            expected = np.asarray(EXPECTED[name](expected))
        np.testing.assert_allclose(changed, expected, atol=1e-4)


def test_an_agent_that_stops_at_once_keeps_every_bit(augment):
    images = _image(count=3)
    np.testing.assert_array_equal(augment(_agent(stop=1.0), KEY, images), images)


def test_an_agent_looks_at_each_image_before_each_action(augment):
    grays = np.array([0.1, 0.5, 0.7], np.float32)
    images = jnp.array(np.broadcast_to(grays[:, None, None, None], (3, SIDE, SIDE, 1)))
    found = np.asarray(augment(_agent_that_stops_at_light_films(), KEY, images))
    np.testing.assert_allclose(found[0], 0.1 + 3 * 0.075, atol=1e-5)
    np.testing.assert_allclose(found[1], 0.5 + 2 * 0.075, atol=1e-5)
    np.testing.assert_array_equal(found[2], images[2])


def test_each_image_and_each_action_has_its_own_chance(augment):
    images = jnp.full((3, SIDE, SIDE, 1), 0.5, jnp.float32)
    agent = _agent(noise=1.0)
    found, again, other = (
        np.asarray(augment(agent, key, images))[..., 0] - 0.5
        for key in (KEY, KEY, jax.random.key(1))
    )
    np.testing.assert_array_equal(found, again)
    assert abs(np.corrcoef(found.ravel(), other.ravel())[0, 1]) < 0.15
    correlations = np.corrcoef(found.reshape(3, -1)) - np.eye(3)
    assert np.abs(correlations).max() < 0.25
    # Three times the same noise would deviate by 0.15.
    assert found.std() == pytest.approx(0.05 * 3**0.5, rel=0.1)


# The method.


@pytest.fixture
def linear(monkeypatch):
    """In the place of the task network."""
    monkeypatch.setattr(plain, "classification", lambda config, num_classes: _Linear())


def _weights(agent):
    guide = {"classifier": {"params": {"kernel": _kernel()}}, "agent": agent}
    return {"task": {"kernel": _kernel(6)}}, {"task": {}, "guide": guide}


@pytest.mark.usefixtures("linear")
def test_half_of_a_batch_is_changed(tiny_config):
    method = METHODS["drl_da"](tiny_config, 3)
    batch = {
        "image": jax.image.resize(_image(count=5), (5, 32, 32, 1), "linear"),
        "label": jnp.array([0, 2, 1, 1, 0]),
    }
    params, model_state = _weights(_agent(left=1.0))
    value, aux = jax.jit(method.loss)(params, model_state, None, batch, KEY, 0)
    shown = np.asarray(aux.model_state["task"]["shown"])
    image = np.array(tasks.resize(batch["image"], SIDE))
    np.testing.assert_allclose(shown[2:], image[2:], atol=1e-6)
    # An episode of the tiny config has two actions.
    for changed, original in zip(shown[:2], image[:2], strict=True):
        expected = _moved(_moved(original, (0, -1)), (0, -1))
        np.testing.assert_allclose(changed, expected, atol=1e-5)
    # The network that is trained sees them, not the frozen one.
    assert value == pytest.approx(_loss(_kernel(6), shown, batch["label"]), rel=1e-5)
    assert aux.metrics == {"task_loss": value}
    chex.assert_trees_all_equal(aux.model_state["guide"], model_state["guide"])


@pytest.mark.usefixtures("linear")
def test_a_batch_of_one_is_changed_every_other_time(tiny_config):
    baseline = dataclasses.replace(tiny_config.baseline, drl_da_length=1)
    method = METHODS["drl_da"](dataclasses.replace(tiny_config, baseline=baseline), 3)
    image, label = _image(count=1), jnp.array([1])
    params, model_state = _weights(_agent(left=1.0))

    def loss(key):
        batch = {"image": image, "label": label}
        return method.loss(params, model_state, None, batch, key, 0)[0]

    values = np.asarray(jax.jit(jax.vmap(loss))(jax.random.split(KEY, 200)))
    moved = _moved(np.asarray(image[0]), (0, -1))
    expected = [_loss(_kernel(6), x, label) for x in (image, moved[None])]
    assert abs(expected[0] - expected[1]) > 1e-3
    distance = np.abs(values[:, None] - np.array(expected))
    assert distance.min(axis=1).max() < 1e-4
    # Four deviations of 200 throws of a coin.
    assert np.mean(distance[:, 1] < 1e-4) == pytest.approx(0.5, abs=0.142)


def test_networks_of_the_method(tiny_config):
    method, base = (METHODS[name](tiny_config, 3) for name in ("drl_da", "plain"))
    image = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    params, model_state = jax.eval_shape(method.init, KEY, image)
    expected = jax.eval_shape(base.init, KEY, image)
    assert params == expected[0]
    assert model_state["task"] == expected[1]["task"]
    guide = model_state["guide"]
    assert guide["classifier"] == {"params": params["task"], **model_state["task"]}
    # ResNet-8 ends in 64 channels.
    assert guide["agent"] == _shapes(channels=64)[1]
    assert not method.needs_lungs and not method.needs_partner
    # Without the guide: what is exported, and answers, is the plain classifier's.
    assert of_networks(params, model_state) == expected
    shapes = [
        jax.eval_shape(each.predict, *expected, {"image": image})
        for each in (method, base)
    ]
    assert shapes[0] == shapes[1]


# Learning.

ACTS = 60
FIRST = 32  # transitions before anything is learned


class _Record(NamedTuple):
    """What a step of the learner did."""

    added: int
    episodes: int
    action: int
    reward: float
    is_last: bool  # by its action, or by its length
    learned: bool  # the agent is another one
    followed: bool  # the target is another one
    is_level: bool  # the target is the agent
    priorities: np.ndarray


class _Run(NamedTuple):
    config: config.Config
    records: list[_Record]
    start: drl_da.Learner
    kept: dict[int, drl_da.Learner]  # after how many steps
    act: Callable  # learner -> learner and metrics


@pytest.fixture(scope="module")
def learn(tiny_config):
    """Runs the learner on a small ResNet, from the same start each time."""
    # Of so many steps that nearly all of these explore, and some stop.
    baseline = dataclasses.replace(tiny_config.baseline, drl_da_steps=1000)
    given = dataclasses.replace(tiny_config, baseline=baseline)
    # With two stages of ResNet-8's three: it compiles sooner.
    network = resnet.ResNet(3, stage_sizes=(1, 1), width=8, small_stem=True)
    task = tasks.Classification(network, SIDE)
    start, act = drl_da.make_learner(given, task)
    films, labels = _image(8, count=5), jnp.array([0, 1, 2, 1, 0])
    classifier = jax.jit(task.init)(KEY, films[:1])
    world = jax.jit(functools.partial(drl_da.make_world, task))(
        classifier, *VALIDATION.values()
    )
    start, act = jax.jit(start), jax.jit(act)

    @jax.jit
    def same(first, second):
        leaves = jax.tree.map(lambda a, b: jnp.all(a == b), first, second)
        return jnp.all(jnp.stack(jax.tree.leaves(leaves)))

    def run(steps, keep=()):
        learner = first = start(KEY, world, films[0], labels[0])
        records, kept = [], {}
        for step in range(steps):
            before, film = learner, (step + 1) % 5
            # Of this seed some episodes are stopped at once, others later.
            key = jax.random.fold_in(jax.random.key(9), step)
            learner, metrics = act(key, world, before, films[film], labels[film])
            action, taken = int(metrics["action"]), int(before.episode.taken) + 1
            ends = action == drl_da.STOP or taken == baseline.drl_da_length
            records.append(
                _Record(
                    added=int(learner.memory.added),
                    episodes=int(learner.episodes),
                    action=action,
                    reward=float(metrics["reward"]),
                    is_last=ends,
                    learned=not same(before.agent, learner.agent),
                    followed=not same(before.target, learner.target),
                    is_level=bool(same(learner.agent, learner.target)),
                    priorities=np.asarray(learner.memory.priorities),
                )
            )
            if step + 1 in keep:
                kept[step + 1] = learner
        return _Run(
            given,
            records,
            first,
            kept,
            lambda learner: act(KEY, world, learner, films[0], labels[0]),
        )

    return run


@pytest.fixture(scope="module")
def learned(learn):
    return learn(ACTS, keep=(FIRST - 1, FIRST, FIRST + 2, FIRST + 3, ACTS))


def test_every_action_is_remembered_as_it_was(learned):
    size = learned.config.baseline.drl_da_memory
    assert size == 40
    records, last = learned.records, learned.kept[ACTS]
    assert [record.added for record in records] == list(range(1, ACTS + 1))
    assert last.step == ACTS
    stored = last.memory.transitions
    order = [step % size for step in range(ACTS - size, ACTS)]
    for row, record in zip(order, records[ACTS - size :], strict=True):
        assert stored.action[row] == record.action
        assert stored.reward[row] == np.float32(record.reward)
        assert stored.is_last[row] == record.is_last
    # An episode's next step is where its last one led; a new one is another film.
    goes_on = 0
    for row, following in zip(order, order[1:], strict=False):
        led_there = (stored.next_state[row] == stored.state[following]).all()
        assert led_there == (not stored.is_last[row])
        goes_on += int(led_there)
    assert 5 < goes_on < size - 5
    rewards = np.array([record.reward for record in records])
    assert 0 < np.abs(rewards).max() <= 1 and len(np.unique(rewards)) > 10


def test_episodes_are_counted_and_begin_anew(learned):
    ended = np.cumsum([record.is_last for record in learned.records])
    np.testing.assert_array_equal([r.episodes for r in learned.records], ended)
    # Both ways to end one: cut after two actions, and stopped at once.
    is_first = np.roll([record.is_last for record in learned.records], 1)
    stops = [record.action == drl_da.STOP for record in learned.records]
    assert 0 < np.sum(is_first & stops) < ACTS - ended[-1]
    first = learned.start.episode.params["head"]["kernel"]
    begun = []
    for step, learner in learned.kept.items():
        begun.append(learned.records[step - 1].is_last)
        assert (learner.episode.taken == 0) == begun[-1]
        same = np.array_equal(learner.episode.params["head"]["kernel"], first)
        assert same == begun[-1]
    assert set(begun) == {True, False}


def test_nothing_is_learned_before_there_are_transitions_for_a_batch(learned):
    expected = [False] * (FIRST - 1) + [True] * (ACTS - FIRST + 1)
    assert [record.learned for record in learned.records] == expected
    chex.assert_trees_all_equal(learned.kept[FIRST - 1].agent, learned.start.agent)
    for record in learned.records[: FIRST - 1]:
        assert set(record.priorities) <= {0.0, 1.0}


def test_the_target_follows_every_tenth_episode(learned):
    followed = 0
    for record in learned.records:
        is_time = record.is_last and record.episodes % 10 == 0
        # Until something is learned, both are what they were at the start.
        is_early = record.added < FIRST
        assert record.is_level == (is_time or is_early)
        assert record.followed == (is_time and not is_early)
        followed += record.followed
    # An episode has two actions at most, so this does not depend on chance.
    assert followed >= 1


def test_two_runs_are_the_same_in_every_bit(learned, learn):
    again = learn(FIRST + 3, keep=(FIRST + 3,))
    chex.assert_trees_all_equal(again.start, learned.start)
    chex.assert_trees_all_equal(again.kept[FIRST + 3], learned.kept[FIRST + 3])


_values = jax.jit(nets.DuelingNet(len(NAMES)).apply)


def _errors(before, transitions):
    """Of double Q-learning, `f32[40]`, and what the actions were worth."""
    rows = np.arange(len(transitions.action))
    best = np.argmax(_values(before.agent, transitions.next_state), axis=1)
    later = np.asarray(_values(before.target, transitions.next_state))[rows, best]
    worth = transitions.reward + 0.9 * np.where(transitions.is_last, 0, later)
    thought = _values(before.agent, transitions.state)[rows, transitions.action]
    return np.asarray(worth - thought), worth


@pytest.mark.parametrize("step", [FIRST, FIRST + 3])
def test_errors_become_the_priorities_of_what_was_drawn(learned, step):
    memory = learned.kept[step].memory
    # Without the row that this step added.
    sizes = np.asarray(memory.priorities)[: step - 1]
    drawn = sizes != learned.records[step - 2].priorities[: step - 1]
    assert 8 < drawn.sum() < 28 and (memory.priorities[step:] == 0).all()
    before = learned.kept[step - 1]
    errors = _errors(before, memory.transitions)[0][: step - 1]
    np.testing.assert_allclose(sizes[drawn], np.abs(errors)[drawn] + 1e-6, atol=2e-5)
    # Not the network's own values of the next states, once both are not one.
    wrong = before._replace(target=before.agent)
    difference = _errors(wrong, memory.transitions)[0][: step - 1] - errors
    assert np.any(np.abs(difference[drawn]) > 1e-3) == (step > FIRST)


def test_the_first_update_is_against_the_slope_of_the_errors(learned):
    before, after = learned.kept[FIRST - 1], learned.kept[FIRST]
    taken = after.memory.transitions
    _, worth = _errors(before, taken)
    drawn = ~np.isin(after.memory.priorities, [0, 1])

    def loss(agent):
        thought = _values(agent, taken.state)[np.arange(len(worth)), taken.action]
        return jnp.sum(jnp.where(drawn, worth - thought, 0) ** 2)

    slopes, changes = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (
            jax.jit(jax.grad(loss))(before.agent),
            optax.tree.sub(after.agent, before.agent),
        )
    )
    # Adam's first step: each weight by its rate. Some transitions were drawn more than
    # once, which turns a few of the slopes around.
    assert learned.config.train.policy_learning_rate == 0.002
    assert np.abs(changes).max() == pytest.approx(0.002, rel=1e-3)
    is_steep = np.abs(slopes) > np.quantile(np.abs(slopes), 0.9)
    against = np.isclose(changes, -0.002 * np.sign(slopes), rtol=0.02)
    assert np.mean(against, where=is_steep) > 0.9


@pytest.mark.parametrize(
    ("step", "beta"), [(0, 0.4), (500, 0.7), (1000, 1.0), (3000, 1.0)]
)
def test_weights_of_what_is_drawn_rise_until_the_last_step(learned, step, beta):
    """Of 1000 steps. One of 40 transitions is new, and of another one's priority."""
    before = learned.kept[ACTS]
    # The new one takes place 0, with the highest priority: 32^0.6 is 8.
    priorities = jnp.zeros(40).at[0].set(32.0).at[5].set(1.0)
    memory = before.memory._replace(priorities=priorities, added=jnp.int32(40))
    before = before._replace(memory=memory, step=jnp.int32(step))
    after, metrics = learned.act(before)
    errors, _ = _errors(before, after.memory.transitions)
    frequent, rare = errors[0] ** 2 * 8.0**-beta, errors[5] ** 2
    # Drawn are both, 32 times together, but we do not know how often each.
    count = np.arange(1, 32)
    possible = (count * rare + (32 - count) * frequent) / 32
    assert after.memory.priorities[5] != 1 and after.memory.priorities[0] != 32
    assert np.abs(possible / metrics["td_loss"] - 1).min() < 1e-4


# Of 2000 draws; 1/16 of an agent that explores is the best one by chance.
@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 1 / 16),
        # A fifth of 100 steps: e^-1 of what is above 0.01.
        (20, 1 - (0.01 + 0.99 * np.exp(-1)) * 15 / 16),
        (1_000_000, 1 - 0.01 * 15 / 16),
    ],
)
def test_exploring_falls_with_a_fifth_of_the_steps(choose, step, share):
    actions = choose(jnp.array(step))
    assert np.mean(actions == NAMES.index("zoom")) == pytest.approx(share, abs=0.045)


@pytest.fixture(scope="module")
def choose(tiny_config):
    """Actions of 2000 learners that think most of zooming."""
    baseline = dataclasses.replace(tiny_config.baseline, drl_da_steps=100)
    given = dataclasses.replace(tiny_config, baseline=baseline)
    start, act = drl_da.make_learner(given, _Linear())
    film = (_image(), LABEL)

    def run(step):
        world = drl_da.make_world(
            _Linear(), {"params": {"kernel": _kernel()}}, *VALIDATION.values()
        )
        learner = start(KEY, world, *film)
        learner = learner._replace(agent=_agent(zoom=1.0), step=step)
        return jax.vmap(lambda key: act(key, world, learner, *film)[1]["action"])(
            jax.random.split(KEY, 2000)
        )

    return jax.jit(run)


def test_training_of_an_agent_takes_as_many_actions_as_configured(tiny_config):
    """And rewards it on as many validation films."""
    steps = FIRST + 1
    baseline = dataclasses.replace(
        tiny_config.baseline, drl_da_steps=steps, drl_da_films=4
    )
    train = dataclasses.replace(tiny_config.train, log_every=10)
    given = dataclasses.replace(tiny_config, baseline=baseline, train=train)
    pixels = np.random.default_rng(0).integers(256, size=(7, 32, 32, 1), dtype=np.uint8)
    names = tuple("abcdefg")
    films = dataset.Dataset(
        pixels, np.array([0, 1, 2, 0, 1, 2, 0], np.int32), names, names, ("x", "y", "z")
    )
    batch = {"image": pixels, "label": films.labels}
    taken, asked = [], []

    class Validation:
        def __len__(self):
            return len(films)

        def take(self, rows):
            taken.extend(rows)
            return films.take(rows)

    def batches():
        while True:
            asked.append(1)
            yield batch

    told = []
    classifier = {"params": {"kernel": _kernel()}}
    agent = drl_da.train_agent(
        given, _Linear(), classifier, batches(), Validation(), lambda *a: told.append(a)
    )
    assert [line[:2] for line in told] == [(n, steps) for n in (10, 20, 30, steps)]
    for line in told:
        word, mean = line[2].split()
        assert word == "reward" and mean[0] in "+-" and -1 <= float(mean) <= 1
    assert len(taken) == len(set(taken)) == 4 and set(taken) < set(range(7))
    # A film for each action and one to begin with: of batches of seven, five.
    assert len(asked) == 5
    # Biases start at 0, and nothing is learned before the 32nd action.
    biases = [leaf for leaf in jax.tree.leaves(agent) if leaf.ndim == 1]
    assert len(biases) == 7 and all(bias.any() for bias in biases)
    chex.assert_tree_all_finite(agent)
    np.testing.assert_array_equal(classifier["params"]["kernel"], _kernel())


def test_each_of_several_processes_learns_from_whole_batches(monkeypatch, tiny_config):
    """Else each would make an agent of its own, of a state that must be the same."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(8, 32, 32, 1), dtype=np.uint8)
    names = tuple("abcdefgh")
    films = dataset.Dataset(
        pixels, np.arange(8, dtype=np.int32) % 3, names, names, ("x", "y", "z")
    )
    best = types.SimpleNamespace(average=({"task": 1}, {"task": 2}))
    monkeypatch.setattr(train.checkpoint, "restore_best", lambda *_: best)
    asked = []

    def prepare(params, model_state, batches, validation, progress):
        asked.append((params, model_state, next(batches)["index"].tolist()))
        return {"guide": 3}

    method = framework.Method(*[None] * 4, prepare=prepare)
    zero = jnp.zeros(())
    before = train_state.TrainState(zero, {"task": zero}, {"task": zero}, (), ())
    console = rich.console.Console(quiet=True)
    splits = dataset.Splits(films, films, films)
    for share in ((0, 1), (0, 2), (1, 2)):
        monkeypatch.setattr(sharding, "share", lambda share=share: share)
        now = train._learn_before(
            tiny_config, method, pathlib.Path(), splits, console, before
        )
        assert now.model_state == {"task": 0, "guide": 3}
    assert tiny_config.train.batch_size == 4 == len(set(asked[0][2]))
    assert asked == [({"task": 1}, {"task": 2}, asked[0][2])] * 3
