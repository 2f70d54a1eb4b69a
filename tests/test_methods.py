import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import boxes, config, framework, tasks
from hapre_jax.methods import METHODS, hapre, plain, random_crop

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).uniform(size=(4, 32, 32, 1))
    return jnp.array(pixels, jnp.float32)


@pytest.fixture(scope="module")
def started(tiny_config, image):
    """HAPre-KRS before its first step: method, parameters, state."""
    method = METHODS["hapre"](tiny_config, 3)
    return method, *jax.jit(method.init)(KEY, image[:1])


def test_methods_are_those_that_a_config_may_name():
    names = config.options(config.Config())["method"].choices
    assert set(METHODS) == set(names)


@pytest.mark.parametrize("name", ["plain", "random_crop", "true_lungs"])
def test_networks_of_each_method(tiny_config, image, started, name):
    _, params, model_state = started
    assert set(params) == set(model_state) == {"task", "policy"}
    method = METHODS[name](tiny_config, 3)
    assert method.needs_lungs == (name == "true_lungs")
    shapes = jax.eval_shape(method.init, KEY, image[:1])
    assert set(shapes[0]) == set(shapes[1]) == {"task"}
    # The same task network, so that only what it is shown makes a difference.
    chex.assert_trees_all_equal_shapes(shapes[0]["task"], params["task"])
    chex.assert_trees_all_equal_shapes(shapes[1]["task"], model_state["task"])
    assert params["task"]["head"]["bias"].shape == (3,)


def test_map_of_anchors_says_where_the_key_area_is(tiny_config, image):
    settings = dataclasses.replace(tiny_config.policy, readout="anchors")
    method = METHODS["hapre"](dataclasses.replace(tiny_config, policy=settings), 3)
    params, model_state = jax.jit(method.init)(KEY, image[:1])
    bias = params["policy"]["logits"]["bias"]
    # Log weight, log height and log width of every cell.
    params["policy"]["logits"]["bias"] = bias + jnp.log(jnp.array([3.0, 0.5, 0.8]))
    prediction = jax.jit(method.predict)(params, model_state, {"image": image})
    np.testing.assert_allclose(prediction.policy_map, np.full((4, 8, 8), 0.75))
    expected = np.tile([0.25, 0.1, 0.75, 0.9], (4, 1))
    np.testing.assert_allclose(prediction.area, expected, atol=1e-5)


def test_first_key_area_is_the_whole_image_and_the_first_answer_the_plain_one(
    tiny_config, image, started
):
    method, params, model_state = started
    prediction = jax.jit(method.predict)(params, model_state, {"image": image})
    np.testing.assert_allclose(prediction.area, np.tile(boxes.WHOLE, (4, 1)), atol=1e-5)
    np.testing.assert_allclose(prediction.policy_map, np.full((4, 8, 8), 0.5))
    whole = METHODS["plain"](tiny_config, 3)
    expected = jax.jit(whole.predict)(
        {"task": params["task"]}, {"task": model_state["task"]}, {"image": image}
    )
    np.testing.assert_allclose(
        prediction.probabilities, expected.probabilities, rtol=1e-3
    )
    assert expected.area is None and expected.entropy is None


def test_plain_loss_is_the_cross_entropy_of_the_whole_image(tiny_config, image):
    # Frozen statistics, so that training and prediction see the same network.
    task = dataclasses.replace(tiny_config.task, norm="frozen")
    method = METHODS["plain"](dataclasses.replace(tiny_config, task=task), 3)
    params, model_state = jax.jit(method.init)(KEY, image[:1])
    batch = {"image": image, "label": jnp.array([0, 2, 1, 1])}
    loss, aux = jax.jit(method.loss)(params, model_state, None, batch, KEY, 0)
    probabilities = jax.jit(method.predict)(
        params, model_state, {"image": image}
    ).probabilities
    expected = -np.log(np.asarray(probabilities)[np.arange(4), batch["label"]]).mean()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert aux.metrics == {"task_loss": loss}
    chex.assert_trees_all_equal(aux.model_state, model_state)


# What the other methods show the task network.

SIDE = 16  # pixels of what it sees, in `tiny_config`


class _Spy:
    """A task network of nothing, which remembers what it was shown."""

    image_size = SIDE

    def __init__(self):
        self.shown = []

    def apply(self, variables, inputs, *, train, key=None):
        self.shown.append(np.asarray(inputs))
        return jnp.zeros((len(inputs), 3)), {}

    def loss(self, outputs, target):
        return outputs[:, 0]

    def probabilities(self, outputs):
        return outputs


@pytest.fixture
def spy(monkeypatch):
    """In the place of each method's task network."""
    made = _Spy()
    monkeypatch.setattr(plain, "classification", lambda config, num_classes: made)
    return made


def _train(method, batch, key=KEY):
    batch = batch | {"label": jnp.zeros(len(batch["image"]), jnp.int32)}
    method.loss({"task": {}}, {"task": {}}, None, batch, key, 0)


def _predict(method, batch):
    method.predict({"task": {}}, {"task": {}}, batch)


def _boxes_of(crops):
    """The boxes that crops `f32[B, 16, 16, 2]` of coordinates were cut from."""
    ends = []
    for line in (crops[:, :, 0, 0], crops[:, 0, :, 1]):
        # Inner pixels: the resampling kernel is cut off at the image's border.
        slope = (line[:, 12] - line[:, 3]) / 9
        ends.append((line[:, 3] - 3.5 * slope, line[:, 12] + 3.5 * slope))
    (y_low, y_high), (x_low, x_high) = ends
    return np.stack([y_low, x_low, y_high, x_high], axis=1)


def test_random_crop_shows_a_random_part_of_each_image_in_training(tiny_config, spy):
    line = (np.arange(64, dtype=np.float32) + 0.5) / 64
    image = jnp.array(np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1))
    batch = {"image": jnp.tile(image[None], (8, 1, 1, 1))}
    baseline = dataclasses.replace(tiny_config.baseline, crop_area=0.5)
    method = METHODS["random_crop"](
        dataclasses.replace(tiny_config, baseline=baseline), 3
    )
    for key in (KEY, KEY, jax.random.key(1)):
        _train(method, batch, key)
    first, again, other = map(_boxes_of, spy.shown)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max(axis=1).min() > 0.01
    assert len(np.unique(first.round(2), axis=0)) == 8  # its own box for each image
    assert first.min() > -1e-3 and first.max() < 1 + 1e-3
    areas = np.prod(first[:, 2:] - first[:, :2], axis=1)
    assert 0.5 - 1e-3 < areas.min() < areas.max() < 1 - 1e-3


def test_random_crop_answers_from_the_whole_image_as_plain_does(tiny_config, image):
    methods = [METHODS[name](tiny_config, 3) for name in ("plain", "random_crop")]
    weights = jax.jit(methods[0].init)(KEY, image[:1])
    answers = [
        jax.jit(method.predict)(*weights, {"image": image}).probabilities
        for method in methods
    ]
    np.testing.assert_array_equal(*answers)
    batch = {"image": image, "label": jnp.array([0, 2, 1, 1])}
    losses = [
        jax.jit(method.loss)(*weights, None, batch, KEY, 0)[0] for method in methods
    ]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("smallest", [0.1, 0.3])
def test_random_boxes_are_those_of_a_random_resized_crop(smallest):
    draw = functools.partial(random_crop.random_box, min_area=smallest)
    keys = jax.random.split(KEY, 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(draw))(keys), float)
    low, size = drawn[:, :2], drawn[:, 2:] - drawn[:, :2]
    assert low.min() >= 0 and drawn.max() <= 1 + 1e-6
    area, ratio = size.prod(axis=1), size[:, 0] / size[:, 1]
    assert smallest - 1e-5 < area.min() < smallest + 0.01 and area.max() > 0.98
    assert 0.75 - 1e-5 < ratio.min() < 0.76 and 1.32 < ratio.max() < 4 / 3 + 1e-5
    # Uniform, but for sides cut at the image's, which takes 0.0058 off the mean and
    # only happens where the area is above 3/4.
    cut = 0.0058 / (1 - smallest)
    assert area.mean() == pytest.approx((1 + smallest) / 2 - cut, abs=0.004)
    for share in (0.25, 0.5):
        quantile = smallest + share * (1 - smallest)
        assert np.mean(area < quantile) == pytest.approx(share, abs=0.015)
    logs = np.log(ratio[area < 0.7])
    assert logs.mean() == pytest.approx(0, abs=0.01)
    assert np.abs(logs).mean() == pytest.approx(np.log(4 / 3) / 2, abs=0.005)
    is_free = size < 0.9
    place = (low / np.maximum(1 - size, 1e-6))[is_free]
    assert place.mean() == pytest.approx(0.5, abs=0.01)
    assert place.std() == pytest.approx(12**-0.5, abs=0.01)


# Lungs of 16 of 32 pixels, or of 8 and twice that: a slice of the image.
@pytest.mark.parametrize(
    ("lungs", "lung_scale"),
    [((0.25, 0.5, 0.75, 1.0), 1.0), ((0.375, 0.625, 0.625, 0.875), 2.0)],
)
@pytest.mark.parametrize("use", [_train, _predict])
def test_true_lungs_shows_the_lung_box(tiny_config, image, spy, lungs, lung_scale, use):
    method = _true_lungs(tiny_config, lung_scale)
    left = (0.25, 0.0, 0.75, 0.5)
    boxes_of = [lungs, (0.0, 0.0, 0.5, 0.5), left, lungs]
    if lung_scale == 2:
        boxes_of[1:3] = [(0.125, 0.125, 0.375, 0.375), (0.375, 0.125, 0.625, 0.375)]
    use(method, {"image": image, "lung_box": jnp.array(boxes_of)})
    (shown,) = spy.shown
    expected = [
        image[0, 8:24, 16:],
        image[1, :16, :16],
        image[2, 8:24, :16],
        image[3, 8:24, 16:],
    ]
    np.testing.assert_allclose(shown, expected, atol=1e-5)


def _true_lungs(config, lung_scale):
    baseline = dataclasses.replace(config.baseline, lung_scale=lung_scale)
    return METHODS["true_lungs"](dataclasses.replace(config, baseline=baseline), 3)


@pytest.mark.parametrize("lung_scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("use", [_train, _predict])
def test_true_lungs_shows_films_of_unknown_lungs_whole(
    tiny_config, image, spy, lung_scale, use
):
    lungs = jnp.full((4, 4), jnp.nan).at[0].set(jnp.array([0.0, 0.0, 0.25, 0.25]))
    use(_true_lungs(tiny_config, lung_scale), {"image": image, "lung_box": lungs})
    (shown,) = spy.shown
    whole = tasks.resize(image, SIDE)
    np.testing.assert_allclose(shown[1:], whole[1:], atol=1e-5)
    assert np.abs(shown[0] - whole[0]).max() > 0.01


def test_hapre_builds_what_its_config_says(monkeypatch, tiny_config):
    """Values that no default has; a field that is forgotten shows."""
    policy = dataclasses.replace(
        tiny_config.policy,
        alpha=1.7,
        min_side=0.33,
        max_side=0.77,
        width=11,
        estimator="elite",
        neighbors="stretch",
        readout="max_sum",
    )
    given = dataclasses.replace(tiny_config, policy=policy)
    seen = {}
    monkeypatch.setattr(framework, "make", lambda *a, **k: seen.update(a=a, k=k))
    hapre.make(given, 5)
    task, network, operation, config_on = seen["a"]
    assert config_on == given
    assert dataclasses.astuple(operation) == (1.7, 0.33, 0.77, "stretch", "max_sum")
    prober = seen["k"].pop("prober")
    assert (prober.image_size, prober.network.num_classes) == (16, 5)
    assert not seen["k"]
    assert (task.image_size, task.network.num_classes) == (16, 5)
    assert (network.grid, network.width) == (8, 11)
