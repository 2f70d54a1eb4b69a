import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from test_estimators import (
    DETECTED,
    GRID,
    KEY,
    KEY_AREA,
    SHRUNK,
    STEPS,
    logits_of,
    policy_settings,
)

from hapre_jax import boxes, estimators, framework, operations, tasks
from hapre_jax.config import Config, PolicyConfig, TrainConfig
from hapre_jax.method import split_variables
from hapre_jax.nets import Output

# The method, with networks that can be seen through. Channels of an image are the
# coordinates of its pixels, so that a crop tells the box it was cut from.

SIZE, CROP, CLASSES = 64, 8, 3


class _Network:
    """Linear; its state counts the images that it was trained on."""

    def __init__(self, shape, logits):
        self._shape, self._logits = shape, logits

    def init(self, key, image, *, train):
        weights = 0.1 * jax.random.normal(key, self._shape)
        return {"params": {"w": weights}, "batch_stats": {"seen": jnp.zeros(())}}

    def apply(self, variables, image, *, train, mutable):
        assert mutable == ["batch_stats"]
        seen = variables["batch_stats"]["seen"] + (len(image) if train else 0)
        logits = self._logits(variables["params"]["w"], image)
        return Output(logits, {}), {"batch_stats": {"seen": seen}}


class _Task:
    """Classifies by a linear map; remembers what it was trained on."""

    image_size = CROP

    def __init__(self):
        self.network = _Network(
            (CROP * CROP * 2, CLASSES), lambda w, x: x.reshape(len(x), -1) @ w
        )
        self.trained_on = []

    def init(self, key, image):
        assert image.shape == (1, CROP, CROP, 2)
        return self.network.init(key, image, train=False)

    def apply(self, variables, image, *, train, key=None):
        assert (key is not None) == train
        if train:
            self.trained_on.append(image)
        return self.network.apply(
            variables, image, train=train, mutable=["batch_stats"]
        )

    def loss(self, outputs, target):
        return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, target)

    def target(self, batch):
        return batch["label"]

    def show_target(self, target, operation, action):
        return target

    def whole_loss(self, outputs, target, operation, actions):
        return self.loss(outputs, target)

    def whole_answers(self, outputs, operation, actions):
        return jax.nn.softmax(outputs.logits)


@pytest.mark.parametrize(
    ("estimator", "operation", "said"),
    [
        ("paper", operations.Numbers(), "estimator paper tries neighbors"),
        (
            "paper",
            operations.Hybrid((operations.Numbers(), operations.Numbers())),
            "estimator paper tries neighbors",
        ),
        ("reinforce", operations.KeyArea(readout="max_sum"), "needs the gradient"),
        (
            "pathwise",
            operations.Hybrid(
                (operations.KeyArea(readout="max_sum"), operations.Gamma())
            ),
            "needs the gradient",
        ),
    ],
)
def test_what_cannot_teach_an_operation_is_refused(estimator, operation, said):
    settings = Config(policy=PolicyConfig(estimator=estimator))
    with pytest.raises(ValueError, match=said):
        framework.make(_Task(), None, operation, settings)


def _make(*, steps=STEPS, **changes):
    """Method, task and all that its loss takes but the step."""
    settings = policy_settings(**{"warmup_steps": 0} | changes)
    task = _Task()
    policy_network = _Network(
        (GRID, GRID), lambda w, x: 10 * w[None] + 0.3 * jnp.mean(x, axis=-1)
    )
    method = framework.make(
        task,
        policy_network,
        KEY_AREA,
        Config(policy=settings, train=TrainConfig(steps=steps)),
    )
    line = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    image = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    # Of different contrast, or all would have one key area.
    image = jnp.array(image)[None] * jnp.array([1.0, 0.8, 0.9]).reshape(3, 1, 1, 1)
    batch = {"image": image, "label": jnp.array([0, 2, 1])}
    now = method.init(jax.random.key(1), image[:1])
    average = method.init(jax.random.key(2), image[:1])
    return method, task, (*now, average, batch, KEY)


def _loss(method, arguments, step=0):
    return method.loss(*arguments, jnp.array(step))


def _gradients(method, arguments, step=0):
    return jax.grad(lambda p: _loss(method, (p, *arguments[1:]), step)[0])(arguments[0])


def _boxes_of(crops, image):
    """The boxes that crops `f32[B, S, S, 2]` of coordinates were cut from."""
    contrast = image[:, -1, -1, 0] * SIZE / (SIZE - 0.5)
    crops = crops / contrast.reshape(-1, 1, 1, 1)
    ends = []
    for line in (crops[:, :, 0, 0], crops[:, 0, :, 1]):
        # Inner pixels: the resampling kernel is cut off at the image's border.
        slope = (line[:, 5] - line[:, 2]) / 3
        ends.append((line[:, 2] - 2.5 * slope, line[:, 5] + 2.5 * slope))
    (y_low, y_high), (x_low, x_high) = ends
    return np.stack([y_low, x_low, y_high, x_high], axis=1)


def test_crops_of_coordinates_tell_their_boxes():
    _, _, (_, _, _, batch, _) = _make()
    box = jnp.array([0.25, 0.375, 0.75, 1.0])
    crops = jax.vmap(lambda image: KEY_AREA.apply(image, box, CROP))(batch["image"])
    found = _boxes_of(crops, batch["image"])
    np.testing.assert_allclose(found, np.tile(box, (3, 1)), atol=1e-3)


def test_init_gives_each_network_its_parameters_and_state():
    _, _, (params, model_state, *_) = _make()
    assert jax.tree.map(jnp.shape, params) == {
        "task": {"w": (CROP * CROP * 2, CLASSES)},
        "policy": {"w": (GRID, GRID)},
    }
    assert model_state == {
        "task": {"batch_stats": {"seen": 0.0}},
        "policy": {"batch_stats": {"seen": 0.0}},
    }
    # Networks of equal shape would not start alike.
    assert params["task"]["w"][0, 0] != params["policy"]["w"][0, 0]


def test_policy_waits_in_the_warmup():
    method, task, arguments = _make(warmup_steps=10)
    _, aux = _loss(method, arguments, step=9)
    assert aux.model_state["policy"] == arguments[1]["policy"]
    assert aux.metrics["policy_loss"] != 0  # logged, but not learned from
    gradients = _gradients(method, arguments, step=9)
    assert not gradients["policy"]["w"].any() and gradients["task"]["w"].any()
    _, aux = _loss(method, arguments, step=10)
    assert aux.model_state["policy"]["batch_stats"]["seen"] == 3
    assert _gradients(method, arguments, step=10)["policy"]["w"].any()


def test_warmup_trains_on_random_boxes_that_know_nothing_of_the_policy():
    method, task, arguments = _make(warmup_steps=10)
    params, image = arguments[0], arguments[3]["image"]
    other = params | {"policy": {"w": params["policy"]["w"] + jnp.eye(GRID)}}
    for step in (0, 9, 10):
        for given in (params, other):
            _loss(method, (given, *arguments[1:]), step)
    first, *same, learned, learned_other = task.trained_on
    for inputs in same:
        np.testing.assert_array_equal(first, inputs)
    assert np.abs(learned - learned_other).max() > 0.01
    found = _boxes_of(first, image)
    sides = found[:, 2:] - found[:, :2]
    assert (sides > 0.2 - 1e-3).all() and (sides < 1 + 1e-3).all()
    assert np.std(found, axis=0).min() > 0.01  # its own box for each image
    _loss(method, (*arguments[:4], jax.random.key(7)), 0)
    assert np.abs(_boxes_of(task.trained_on[-1], image) - found).max() > 0.05


def test_random_share_of_one_trains_on_random_boxes_after_the_warmup():
    method, task, arguments = _make(random_share=1.0, warmup_steps=1)
    _loss(method, arguments, step=0)
    _loss(method, arguments, step=5)
    np.testing.assert_array_equal(*task.trained_on)
    # The policy learns nevertheless.
    assert _gradients(method, arguments, step=5)["policy"]["w"].any()


def test_random_share_is_a_share_of_the_images():
    method, task, arguments = _make(random_share=0.5, warmup_steps=1)
    pure, _, _ = _make(warmup_steps=1)
    counts = []
    for seed in range(12):
        given = (*arguments[:4], jax.random.key(seed))
        _loss(method, given, step=0)  # all random
        _loss(method, given, step=5)
        randoms, mixed = task.trained_on[-2:]
        counts += [np.array_equal(a, b) for a, b in zip(randoms, mixed, strict=True)]
    assert 8 <= sum(counts) <= 28  # of 36; outside with a chance of 0.1 %


@pytest.mark.parametrize("estimator", list(estimators.ESTIMATORS))
def test_task_network_is_trained_on_the_optimal_boxes(estimator):
    method, task, arguments = _make(estimator=estimator)
    image = arguments[3]["image"]
    loss, aux = _loss(method, arguments)
    (inputs,) = task.trained_on
    assert inputs.shape == (3, CROP, CROP, 2)
    found = _boxes_of(inputs, image)
    valid = jax.vmap(KEY_AREA.clip)(jnp.array(found))
    np.testing.assert_allclose(found, valid, atol=2e-3)
    assert np.abs(found - np.array(boxes.WHOLE)).max() > 0.05
    w, label = arguments[0]["task"]["w"], arguments[3]["label"]
    log_p = jax.nn.log_softmax(inputs.reshape(3, -1) @ w)
    expected = -np.mean(np.asarray(log_p)[np.arange(3), label])
    assert aux.metrics["task_loss"] == pytest.approx(expected, rel=1e-5)
    expected += float(aux.metrics["policy_loss"])
    assert loss == pytest.approx(expected, rel=1e-5)


def test_task_network_may_be_trained_on_several_boxes_of_an_image():
    method, task, arguments = _make(train_crops=4)
    once, other, _ = _make(train_crops=1)
    loss, aux = _loss(method, arguments)
    _loss(once, arguments)
    (inputs,), (first,) = task.trained_on, other.trained_on
    assert inputs.shape == (12, CROP, CROP, 2)
    np.testing.assert_allclose(inputs[::4], first, atol=1e-6)
    image = jnp.repeat(arguments[3]["image"], 4, axis=0)
    found = _boxes_of(inputs, image)
    assert len(np.unique(found.round(3), axis=0)) > 6  # large ones are all clipped
    # The labels of three images, each for four boxes.
    log_p = jax.nn.log_softmax(inputs.reshape(12, -1) @ arguments[0]["task"]["w"])
    label = np.repeat(np.asarray(arguments[3]["label"]), 4)
    expected = -np.mean(np.asarray(log_p)[np.arange(12), label])
    assert aux.metrics["task_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("estimator", ["reinforce", "pathwise", "elite"])
def test_task_network_may_be_trained_on_what_it_will_be_asked(estimator):
    method, task, (params, *rest) = _make(
        estimator=estimator, train_on="mean", train_crops=4
    )
    upper = (0.0, 0.0, 0.5, 1.0)
    params |= {"policy": {"w": logits_of(upper) / 10}}
    _loss(method, (params, *rest))
    (inputs,) = task.trained_on
    assert inputs.shape == (3, CROP, CROP, 2)
    found = _boxes_of(inputs, rest[2]["image"])
    np.testing.assert_allclose(found, np.tile(upper, (3, 1)), atol=2e-3)
    areas = method.predict(params, rest[0], rest[2]).area
    np.testing.assert_allclose(found, areas, atol=2e-3)


def test_train_on_original_adds_the_whole_images():
    method, task, arguments = _make()
    both, both_task, _ = _make(train_on_original=True)
    _, alone = _loss(method, arguments)
    _, aux = _loss(both, arguments)
    (crops,), (inputs,) = task.trained_on, both_task.trained_on
    originals = tasks.resize(arguments[3]["image"], CROP)
    np.testing.assert_array_equal(inputs, np.concatenate([crops, originals]))
    assert aux.model_state["task"]["batch_stats"]["seen"] == 6
    outputs, _ = task.network.apply(
        {"params": arguments[0]["task"], **arguments[1]["task"]},
        originals,
        train=False,
        mutable=["batch_stats"],
    )
    whole = jnp.mean(task.loss(outputs, arguments[3]["label"]))
    expected = (alone.metrics["task_loss"] + whole) / 2
    assert aux.metrics["task_loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("estimator", list(estimators.ESTIMATORS))
def test_trying_boxes_leaves_the_statistics_of_the_task_network_alone(estimator):
    method, _, arguments = _make(estimator=estimator)
    _, aux = _loss(method, arguments)
    # Three images of the training pass; the probes saw many more.
    assert aux.model_state["task"]["batch_stats"]["seen"] == 3
    assert aux.model_state["policy"]["batch_stats"]["seen"] == 3


def test_all_images_teach_both_networks_where_none_is_held_out():
    batch = {"image": jnp.zeros((5, 4, 4, 1)), "index": jnp.arange(5)}
    for weights in framework.divide(batch, 0.0):
        np.testing.assert_array_equal(weights, np.ones(5))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_image_is_held_out_or_trained_on_for_good(share, variant):
    divide = variant(lambda index: framework.divide(_rows(index), share))
    of_policy, of_task = map(np.asarray, divide(np.arange(10_000)))
    assert of_policy.dtype == of_task.dtype == np.float32
    assert set(of_policy) == {0.0, 1.0}
    np.testing.assert_array_equal(of_task, 1 - of_policy)
    # Standard deviation of the share: at most 0.005.
    assert of_policy.mean() == pytest.approx(share, abs=0.02)
    assert of_policy[:-1] @ of_policy[1:] / 9999 == pytest.approx(share**2, abs=0.025)
    # In whatever batch it comes.
    some = np.random.default_rng(0).permutation(10_000)[:7]
    np.testing.assert_array_equal(divide(some)[0], of_policy[some])
    for row in (0, 3, 9999):
        assert divide(np.array([row]))[1] == of_task[row]


def _rows(index):
    return {"label": jnp.zeros(len(index), jnp.int32), "index": jnp.asarray(index)}


def _hold_out(arguments, pattern, share=0.5):
    """Arguments whose images are of rows held out as in the pattern."""
    is_held_out = framework.divide(_rows(np.arange(50)), share)[0]
    rows = [np.flatnonzero(is_held_out == 0), np.flatnonzero(is_held_out)]
    index = jnp.array([rows[wanted][n] for n, wanted in enumerate(pattern)])
    return (*arguments[:3], arguments[3] | {"index": index}, *arguments[4:])


def _relabel(arguments, row):
    label = arguments[3]["label"]
    changed = label.at[row].set((label[row] + 1) % CLASSES)
    return (*arguments[:3], arguments[3] | {"label": changed}, *arguments[4:])


@pytest.mark.parametrize(
    "changes", [{}, {"train_on_original": True}, {"train_crops": 2}]
)
def test_each_network_learns_from_its_own_images(changes):
    method, _, arguments = _make(held_out=0.5, **changes)
    pattern = (False, True, False)
    arguments = _hold_out(arguments, pattern)
    before = _gradients(method, arguments)
    for row, is_held_out in enumerate(pattern):
        after = _gradients(method, _relabel(arguments, row))
        same, other = ("task", "policy") if is_held_out else ("policy", "task")
        np.testing.assert_array_equal(after[same]["w"], before[same]["w"])
        change = np.abs(after[other]["w"] - before[other]["w"]).max()
        assert change > 1e-3 * np.abs(before[other]["w"]).max() > 0


def test_losses_with_held_out_images_are_means_of_each_network_s_own():
    """Beside those of a method that holds none out, and image by image."""
    held, task, arguments = _make(held_out=0.5, train_crops=2, train_on_original=True)
    arguments = _hold_out(arguments, (False, True, True))
    total, aux = _loss(held, arguments)
    log_p = jax.nn.log_softmax(task.trained_on[0].reshape(9, -1) @ _weights(arguments))
    # Two crops of each image, then the images; of the first image alone.
    expected = -np.mean(np.asarray(log_p)[[0, 1, 6], arguments[3]["label"][0]])
    assert aux.metrics["task_loss"] == pytest.approx(expected, rel=1e-5)
    policy_losses = []
    for row in range(3):
        # One held-out image a batch, the same keys: the mean over one image.
        pattern = tuple(row == other for other in range(3))
        _, alone = _loss(held, _hold_out(arguments, pattern))
        policy_losses.append(float(alone.metrics["policy_loss"]))
    expected = np.mean(policy_losses[1:])
    assert abs(policy_losses[0] - expected) > 1e-4
    assert aux.metrics["policy_loss"] == pytest.approx(expected, rel=1e-5)
    assert total == pytest.approx(
        float(aux.metrics["task_loss"] + aux.metrics["policy_loss"]), rel=1e-6
    )


def _weights(arguments):
    return arguments[0]["task"]["w"]


@pytest.mark.parametrize(
    ("pattern", "idle", "busy"),
    [((False,) * 3, "policy", "task"), ((True,) * 3, "task", "policy")],
)
def test_a_network_without_images_in_a_batch_waits(pattern, idle, busy):
    method, _, arguments = _make(held_out=0.5)
    arguments = _hold_out(arguments, pattern)
    assert _loss(method, arguments)[1].metrics[f"{idle}_loss"] == 0
    gradients = _gradients(method, arguments)
    np.testing.assert_array_equal(gradients[idle]["w"], 0.0)
    assert gradients[busy]["w"].any()


def _shifted(params, name, key):
    noise = 0.3 * jax.random.normal(key, params[name]["w"].shape)
    return params | {name: {"w": params[name]["w"] + noise}}


@pytest.mark.parametrize("estimator", list(estimators.ESTIMATORS))
def test_rewards_come_from_the_averaged_task_network(estimator):
    method, _, (params, model_state, average, *rest) = _make(estimator=estimator)
    before = _gradients(method, (params, model_state, average, *rest))["policy"]["w"]
    other = _shifted(params, "task", jax.random.key(5))
    same = _gradients(method, (other, model_state, average, *rest))["policy"]["w"]
    np.testing.assert_array_equal(before, same)
    other = (_shifted(average[0], "task", jax.random.key(5)), average[1])
    changed = _gradients(method, (params, model_state, other, *rest))["policy"]["w"]
    assert np.abs(before - changed).max() > 1e-3 * np.abs(before).max()
    # The averaged policy plays no part.
    other = (_shifted(average[0], "policy", jax.random.key(5)), average[1])
    same = _gradients(method, (params, model_state, other, *rest))["policy"]["w"]
    np.testing.assert_array_equal(before, same)


@pytest.mark.parametrize(("step", "first", "last"), [(0, 0.5, 0.1), (109, 0.1, 0.5)])
@pytest.mark.parametrize("estimator", list(estimators.ESTIMATORS))
def test_an_action_costs_what_it_keeps(estimator, step, first, last):
    costs = {"area_cost": first, "final_area_cost": last}
    free, _, arguments = _make(estimator=estimator, explore=False)
    dear, _, _ = _make(estimator=estimator, explore=False, **costs)
    without, with_cost = (_loss(m, arguments, step)[1] for m in (free, dear))
    areas = jax.vmap(boxes.area)(free.predict(*arguments[:2], arguments[3]).area)
    # The whole image, which D1 compares with, costs 0.5.
    saved = 0.5 * (1 - float(jnp.mean(areas)))
    assert saved > 0.01
    change = float(with_cost.metrics["d1"] - without.metrics["d1"])
    assert change == pytest.approx(-saved, abs=1e-5)
    if estimator != "paper":  # whose reward is a weight
        change = float(with_cost.metrics["reward"] - without.metrics["reward"])
        assert change == pytest.approx(saved - 0.5, abs=1e-5)
        assert with_cost.metrics["task_loss"] == without.metrics["task_loss"]


@pytest.mark.parametrize("estimator", list(estimators.ESTIMATORS))
def test_policy_loss_has_no_gradient_for_the_task_network(estimator):
    method, task, arguments = _make(estimator=estimator)
    gradient = _gradients(method, arguments)["task"]["w"]
    _loss(method, arguments)
    crops, label = task.trained_on[-1], arguments[3]["label"]

    def task_loss(w):
        log_p = jax.nn.log_softmax(crops.reshape(3, -1) @ w)
        return -jnp.mean(jnp.take_along_axis(log_p, label[:, None], axis=1))

    expected = jax.grad(task_loss)(arguments[0]["task"]["w"])
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("estimator", list(estimators.ESTIMATORS))
def test_task_loss_has_no_gradient_for_the_policy(estimator):
    """It has one through the crop's edges if they are not held fixed."""
    method, task, arguments = _make(estimator=estimator, explore=False)
    # An averaged network of zeros gives all boxes one loss: no reward, no advantage.
    params, state = arguments[2]
    blind = (jax.tree.map(jnp.zeros_like, params), state)
    # Logits of 2 and -2: where they are large, the box has no gradient anyway.
    now = arguments[0] | {"policy": {"w": logits_of(DETECTED) / 100}}
    arguments = (now, arguments[1], blind, *arguments[3:])
    gradients = _gradients(method, arguments)
    assert gradients["task"]["w"].any()
    np.testing.assert_allclose(gradients["policy"]["w"], 0.0, atol=1e-6)


@pytest.mark.parametrize("bias", [-9.0, 0.0, 9.0], ids=["helped", "some", "not helped"])
def test_skipped_neighbors_change_nothing(monkeypatch, bias):
    """Same loss, gradients and log, whether all, some or no areas help."""
    cost = estimators.cost_at
    monkeypatch.setattr(estimators, "cost_at", lambda *a: cost(*a) - bias)
    found = {}
    for skip in (False, True):
        method, _, arguments = _make(estimator="paper", skip_neighbors=skip)
        step = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
        found[skip] = step(*arguments, jnp.array(0))
    helped = float(found[True][0][1].metrics["helped"])
    assert helped == {-9.0: 1.0, 9.0: 0.0}.get(bias, pytest.approx(0.5, abs=0.4))
    chex.assert_trees_all_close(found[True], found[False], rtol=1e-5, atol=1e-7)


def test_loss_is_the_same_compiled():
    method, _, arguments = _make(warmup_steps=1)
    for step in (0, 1):  # in the warm-up and after it
        expected = _loss(method, arguments, step)
        found = jax.jit(method.loss)(*arguments, jnp.array(step))
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def test_logged_lung_iou_is_that_of_the_mean_boxes():
    method, _, arguments = _make()
    image = arguments[3]["image"]
    areas = method.predict(*arguments[:2], {"image": image}).area
    unknown = jnp.full(4, jnp.nan)
    lungs = jnp.stack([areas[0], jnp.array(boxes.WHOLE), unknown])
    arguments[3]["lung_box"] = lungs
    metrics = _loss(method, arguments)[1].metrics
    # Sums over three films, of two of which the lungs are known.
    expected = (1 + float(boxes.area(areas[1]))) / 3
    assert metrics["lung_iou"] == pytest.approx(expected, rel=1e-5)
    assert metrics["lung_iou/known"] == pytest.approx(2 / 3)
    sides = np.sqrt(np.prod(areas[:, 2:] - areas[:, :2], axis=1))
    assert metrics["side"] == pytest.approx(sides.mean(), rel=1e-5)
    assert metrics["sigma"] == pytest.approx(0.4)


@pytest.mark.parametrize("estimator", list(estimators.ESTIMATORS))
def test_only_the_published_rule_logs_its_choices(estimator):
    method, _, arguments = _make(estimator=estimator)
    metrics = _loss(method, arguments)[1].metrics
    assert all(value.shape == () for value in metrics.values())
    assert ({"expanded", "shrunk"} <= set(metrics)) == (estimator == "paper")
    if estimator == "paper":
        others = metrics["helped"] + metrics["expanded"] + metrics["shrunk"]
        assert others == pytest.approx(1.0)


def test_predict_answers_from_the_mean_box():
    method, task, (params, model_state, _, batch, _) = _make()
    # Left half, upper half: sides 0.5 and 1.
    params |= {"policy": {"w": logits_of((0.0, 0.0, 0.5, 1.0)) / 10}}
    prediction = method.predict(params, model_state, {"image": batch["image"]})
    expected = np.tile([0.0, 0.0, 0.5, 1.0], (3, 1))
    np.testing.assert_allclose(prediction.area, expected, atol=1e-3)
    crops = jax.vmap(lambda i, a: boxes.crop_and_resize(i, a, size=CROP))(
        batch["image"], prediction.area
    )
    logits = np.asarray(crops).reshape(3, -1) @ np.asarray(params["task"]["w"])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(prediction.probabilities, expected, rtol=1e-4)
    assert not task.trained_on
    # Entropy of a normal density in four dimensions, of the narrowest policy.
    entropy = 2 * np.log(2 * np.pi * np.e) + 4 * np.log(0.1) + np.log(0.5)
    np.testing.assert_allclose(prediction.entropy, entropy, rtol=1e-3)
    assert prediction.policy_map.shape == (3, GRID, GRID)
    assert prediction.policy_map[0, 0, 0] > 0.99 > 0.01 > prediction.policy_map[0, 7, 7]


def test_predicted_areas_are_valid():
    method, _, (params, model_state, _, batch, _) = _make()
    one_cell = (0.875, 0.875, 1.0, 1.0)
    params |= {"policy": {"w": logits_of(one_cell) / 10}}
    areas = method.predict(params, model_state, {"image": batch["image"]}).area
    np.testing.assert_allclose(areas, np.tile([0.8, 0.8, 1, 1], (3, 1)), atol=1e-3)


def test_task_losses_are_those_of_the_given_boxes():
    method, _, (params, model_state, _, batch, _) = _make()
    actions = jnp.array([boxes.WHOLE, DETECTED, SHRUNK])
    found = method.task_losses(params, model_state, batch, actions)
    for row, box in enumerate(actions):
        crop = boxes.crop_and_resize(batch["image"][row], box, size=CROP)
        logits = np.asarray(crop).reshape(-1) @ np.asarray(params["task"]["w"])
        expected = np.log(np.exp(logits).sum()) - logits[batch["label"][row]]
        assert found[row] == pytest.approx(expected, rel=1e-4)


def test_task_losses_may_be_differentiated_and_vmapped():
    method, _, (params, model_state, _, batch, _) = _make()
    actions = jnp.array([(0.1, 0.2, 0.8, 0.9), DETECTED, SHRUNK])

    def losses_of(params, actions):
        return method.task_losses(params, model_state, batch, actions)

    def expected(params, actions):
        def one(image, label, box):
            crop = boxes.crop_and_resize(image, box, size=CROP)
            logits = crop.reshape(-1) @ params["task"]["w"]
            return jax.nn.logsumexp(logits) - logits[label]

        return jax.vmap(one)(batch["image"], batch["label"], actions)

    mine, other = (
        jax.grad(lambda *a, of=of: of(*a).sum(), (0, 1))(params, actions)
        for of in (losses_of, expected)
    )
    assert np.abs(other[1]).max() > 1e-3
    np.testing.assert_allclose(mine[1], other[1], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(mine[0]["task"]["w"], other[0]["task"]["w"], rtol=1e-4)
    twice = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    found = jax.vmap(losses_of, (0, None))(twice, actions)
    np.testing.assert_allclose(
        found, jax.vmap(expected, (0, None))(twice, actions), rtol=1e-4
    )


def test_resize_is_pillow_s():
    pixels = np.random.default_rng(0).uniform(size=(20, 20)).astype(np.float32)
    found = tasks.resize(jnp.array(pixels)[None, :, :, None], 7)
    expected = Image.fromarray(pixels).resize((7, 7), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found[0, :, :, 0], np.asarray(expected), atol=1e-5)


def test_split_variables_parts_what_is_learned():
    variables = {
        "task": {"params": {"w": 1}, "batch_stats": {"m": 2}},
        "policy": {"params": {"z": 3}},
    }
    params, state = split_variables(variables)
    assert params == {"task": {"w": 1}, "policy": {"z": 3}}
    assert state == {"task": {"batch_stats": {"m": 2}}, "policy": {}}
