import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hapre_jax import (
    boxes,
    config,
    evaluate,
    evaluation,
    heatmap,
    landscape,
    optimization,
    pretrained,
    tasks,
    train_state,
    train_step,
)
from hapre_jax.data import dataset as datasets
from hapre_jax.data import nih_chest_xray, ped_pneumonia, phantom, rsna_pneumonia
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS, plain, two_stage

KEY = jax.random.key(0)
LABEL = jnp.array([0, 2, 1, 1])


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).uniform(size=(4, 32, 32, 1))
    return jnp.array(pixels, jnp.float32)


def with_baseline(settings, **changes):
    baseline = dataclasses.replace(settings.baseline, **changes)
    return dataclasses.replace(settings, baseline=baseline)


# Which class is normal.


def test_normal_is_the_first_class_of_every_data_set_but_a_folder():
    sources = {
        "phantom": phantom,
        "ped_pneumonia": ped_pneumonia,
        "rsna_pneumonia": rsna_pneumonia,
        "nih_chest_xray": nih_chest_xray,
    }
    names = config.options(config.Config())["data.name"].choices
    assert {*sources, "folder"} == set(names)
    for name, source in sources.items():
        assert source.CLASSES[0] == "normal"
        settings = config.Config(data=config.DataConfig(name=name))
        assert two_stage.normal_class(settings, len(source.CLASSES)) == 0


def test_phantoms_that_are_not_of_a_disease_have_no_normal_class():
    normal = {}
    for quality in config.options(config.Config())["data.quality"].choices:
        settings = config.Config(data=config.DataConfig(quality=quality))
        finding = (phantom.QUALITIES | phantom.VARIANTS)[quality].finding
        classes = phantom.CLASSES_OF[finding]
        normal[quality] = "normal" in classes
        if normal[quality]:
            assert classes[two_stage.normal_class(settings, len(classes))] == "normal"
            continue
        with pytest.raises(UserError, match=f"phantoms of quality {quality} have no"):
            METHODS["two_stage"](settings, len(classes))
        # One may say what stage 1 is to tell from the others.
        settings = with_baseline(settings, normal_class=1)
        assert two_stage.normal_class(settings, len(classes)) == 1
    assert set(normal.values()) == {False, True}


def test_of_a_folder_one_must_say_which_class_is_normal():
    folder = config.Config(data=config.DataConfig(name="folder"))
    message = "must know which class of folder is normal: set baseline.normal_class"
    with pytest.raises(UserError, match=message):
        METHODS["two_stage"](folder, 3)
    assert two_stage.normal_class(with_baseline(folder, normal_class=1), 2) == 1
    with pytest.raises(UserError, match="normal_class is 2, but there are 2 classes"):
        METHODS["two_stage"](with_baseline(folder, normal_class=2), 2)


# Pure functions.


def test_combined_probabilities_by_hand(variant):
    # exp gives 1 : 3 for the two classes beside normal.
    logits = jnp.array([5.0, jnp.log(2.0), jnp.log(6.0)])
    combine = variant(functools.partial(two_stage.combine, normal=0))
    found = combine(jnp.array(0.8), logits)
    np.testing.assert_allclose(found, [0.2, 0.2, 0.6], rtol=1e-6)
    middle = variant(functools.partial(two_stage.combine, normal=1))
    found = middle(jnp.array(0.8), logits[jnp.array([1, 0, 2])])
    np.testing.assert_allclose(found, [0.2, 0.2, 0.6], rtol=1e-6)


def test_of_two_classes_stage_one_decides_alone():
    for logits in ([0.0, 0.0], [90.0, -90.0], [-90.0, 90.0]):
        combined = two_stage.combine(jnp.array(0.3), jnp.array(logits), normal=0)
        np.testing.assert_allclose(combined, [0.7, 0.3], rtol=1e-6)


def test_combined_probabilities_sum_to_one_where_stage_two_is_sure_of_normal():
    logits = jnp.array([500.0, 1.0, 1.0])
    combined = two_stage.combine(jnp.array(0.5), logits, normal=0)
    np.testing.assert_allclose(combined, [0.5, 0.25, 0.25], rtol=1e-6)


def test_heat_box_by_hand(variant):
    heat = np.full((4, 8), -3.0, np.float32)
    heat[1, 2], heat[2, 5], heat[3, 7] = 1.0, -0.9, -1.1
    half, more = (
        variant(functools.partial(two_stage.heat_box, threshold=threshold))
        for threshold in (0.5, 0.6)
    )
    # Half way from -3 to 1 is -1: rows 1 and 2, columns 2 to 5.
    np.testing.assert_allclose(half(jnp.array(heat)), [0.25, 0.25, 0.75, 0.75])
    np.testing.assert_allclose(more(jnp.array(heat)), [0.25, 0.25, 0.5, 0.375])
    np.testing.assert_array_equal(half(jnp.full((3, 3), -2.0)), boxes.WHOLE)
    np.testing.assert_array_equal(half(jnp.zeros((1, 1))), boxes.WHOLE)


def test_heat_box_holds_the_hottest_place_whatever_the_rounding():
    rng = np.random.default_rng(0)
    heats = rng.normal(size=(200, 5, 5)).astype(np.float32) * np.float32(1e-3) + 7
    find = functools.partial(two_stage.heat_box, threshold=1.0)
    found = np.asarray(jax.jit(jax.vmap(find))(heats))
    for heat, box in zip(heats, found, strict=True):
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        expected = np.array([row, column, row + 1, column + 1]) / 5
        np.testing.assert_allclose(box, expected, rtol=1e-6)


# The method.


@pytest.fixture(scope="module", params=["gate", "cam"])
def started(request, tiny_config, image):
    """Reading, settings, method, parameters and state; statistics are frozen."""
    task = dataclasses.replace(tiny_config.task, norm="frozen")
    settings = dataclasses.replace(tiny_config, task=task)
    settings = with_baseline(settings, two_stage=request.param)
    method = METHODS["two_stage"](settings, 3)
    return request.param, settings, method, *jax.jit(method.init)(KEY, image[:1])


def test_networks_are_the_task_network_and_the_gate(started, tiny_config, image):
    _, _, _, params, model_state = started
    assert set(params) == set(model_state) == {"task", "gate"}
    whole = METHODS["plain"](tiny_config, 3)
    expected, _ = jax.eval_shape(whole.init, KEY, image[:1])
    chex.assert_trees_all_equal_shapes(params["task"], expected["task"])
    assert params["gate"]["head"]["bias"].shape == (2,)
    kernels = [params[name]["stem_conv"]["kernel"] for name in ("task", "gate")]
    assert kernels[0].shape == kernels[1].shape
    assert float(jnp.abs(kernels[0] - kernels[1]).min()) > 0  # each its own start


def test_stage_one_may_be_another_network(tiny_config):
    task = dataclasses.replace(tiny_config.task, image_size=32)
    settings = dataclasses.replace(tiny_config, task=task)
    settings = with_baseline(settings, stage_one_net="densenet121", two_stage="cam")
    method = METHODS["two_stage"](settings, 3)
    image = jnp.zeros((1, 40, 40, 1))
    params, _ = jax.eval_shape(method.init, KEY, image)
    assert "block4_layer16" in params["gate"] and "stage1_block1" in params["task"]


def by_hand(started, image, network, shown):
    """Logits and last features of one network, as the plain classifier's."""
    _, settings, _, params, model_state = started
    task = plain.classification(settings, {"task": 3, "gate": 2}[network])
    variables = {"params": params[network], **model_state[network]}
    output, _ = jax.jit(functools.partial(task.apply, train=False))(variables, shown)
    return output.logits, output.features["stage3"]


def cam_boxes(started, image):
    """Where stage 1 looks, an image after the other."""
    _, settings, _, params, _ = started
    whole = tasks.resize(image, settings.task.image_size)
    _, features = by_hand(started, image, "gate", whole)
    kernel = params["gate"]["head"]["kernel"]
    found = []
    for feature in features:
        heat = heatmap.cam(feature, kernel[:, 1] - kernel[:, 0])
        box = two_stage.heat_box(heat, threshold=settings.baseline.cam_threshold)
        found.append(boxes.clip(box, min_side=settings.policy.min_side))
    return jnp.stack(found)


def seen_by_stage_two(started, image):
    size = started[1].task.image_size
    if started[0] == "gate":
        return tasks.resize(image, size)
    crop = functools.partial(boxes.crop_and_resize, size=size)
    return jax.vmap(crop)(image, cam_boxes(started, image))


def test_answer_is_that_of_the_stages(started, image):
    reading, settings, method, params, model_state = started
    predict = jax.jit(method.predict)
    first, again = (predict(params, model_state, {"image": image}) for _ in range(2))
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    assert (first.area is None) == (reading == "gate")
    whole = tasks.resize(image, settings.task.image_size)
    gate, _ = by_hand(started, image, "gate", whole)
    shown = seen_by_stage_two(started, image)
    stage_two, _ = by_hand(started, image, "task", shown)
    expected = np.asarray(jax.nn.softmax(stage_two))
    if reading == "gate":
        ill = np.asarray(jax.nn.softmax(gate))[:, 1:]
        split = expected[:, 1:] / expected[:, 1:].sum(1, keepdims=True)
        expected = np.concatenate([1 - ill, ill * split], axis=1)
    np.testing.assert_allclose(first.probabilities, expected, rtol=1e-3)


def test_loss_is_the_cross_entropy_of_each_stage(started, image):
    reading, settings, method, params, model_state = started
    batch = {"image": image, "label": LABEL}
    if reading == "cam":
        batch["lung_box"] = jnp.tile(jnp.array(boxes.CENTRAL_80), (4, 1))
    loss, aux = jax.jit(method.loss)(params, model_state, None, batch, KEY, 0)
    chex.assert_trees_all_equal(aux.model_state, model_state)
    whole = tasks.resize(image, settings.task.image_size)
    expected = {}
    shown = {"gate": whole, "task": seen_by_stage_two(started, image)}
    for name, labels in (("gate", np.array([0, 1, 1, 1])), ("task", np.array(LABEL))):
        logits, _ = by_hand(started, image, name, shown[name])
        log_probabilities = np.asarray(jax.nn.log_softmax(logits))
        expected[f"{name}_loss"] = -log_probabilities[np.arange(4), labels].mean()
    assert loss == pytest.approx(sum(expected.values()), rel=1e-3)
    if reading == "cam":
        areas = cam_boxes(started, image)
        expected["side"] = jnp.sqrt(jax.vmap(boxes.area)(areas)).mean()
        expected["lung_iou"] = jax.vmap(boxes.iou)(areas, batch["lung_box"]).mean()
        expected["lung_iou/known"] = 1.0
    assert set(aux.metrics) == set(expected)
    for name, value in expected.items():
        assert aux.metrics[name] == pytest.approx(float(value), rel=1e-3), name


@pytest.mark.parametrize("started", ["cam"], indirect=True)
def test_the_box_that_stage_two_sees_is_told_and_scored(started, image):
    _, settings, method, params, model_state = started
    found = jax.jit(method.predict)(params, model_state, {"image": image})
    areas = np.asarray(cam_boxes(started, image))
    np.testing.assert_allclose(found.area, areas, atol=1e-6)
    labels = np.array(LABEL, np.int32)
    names = tuple("abcd")
    source = datasets.Dataset(np.asarray(image), labels, names, names, names)
    scored = evaluation.score_actions(found, source, config=settings)["key_area"]
    side = np.sqrt((areas[:, 2] - areas[:, 0]) * (areas[:, 3] - areas[:, 1])).mean()
    assert scored["side_fraction"] == pytest.approx(side)
    assert "entropy" not in scored  # there is no policy


@pytest.mark.parametrize("started", ["cam"], indirect=True)
def test_stage_two_teaches_stage_one_nothing(started, image):
    _, _, method, params, model_state = started

    def task_loss(params):
        aux = method.loss(
            params, model_state, None, {"image": image, "label": LABEL}, KEY, 0
        )[1]
        return aux.metrics["task_loss"]

    gradient = jax.jit(jax.grad(task_loss))(params)
    assert not any(bool(leaf.any()) for leaf in jax.tree.leaves(gradient["gate"]))
    assert float(jnp.abs(gradient["task"]["head"]["kernel"]).max()) > 1e-3


def test_losses_on_boxes_are_those_of_stage_two(started, image):
    _, settings, method, params, model_state = started
    batch = {"image": image, "label": LABEL}
    areas = jnp.tile(jnp.array([0.25, 0.0, 1.0, 0.5]), (4, 1))
    found = jax.jit(method.task_losses)(params, model_state, batch, areas)
    expected = jax.jit(METHODS["plain"](settings, 3).task_losses)(
        {"task": params["task"]}, {"task": model_state["task"]}, batch, areas
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("reading", ["gate", "cam"])
def test_training_lowers_both_losses(tiny_config, reading):
    train = dataclasses.replace(tiny_config.train, lr_warmup_steps=0, steps=50)
    settings = dataclasses.replace(tiny_config, train=train)
    settings = with_baseline(settings, two_stage=reading)
    method = METHODS["two_stage"](settings, 2)
    optimizer = optimization.make_optimizer(settings)
    now = train_state.init(method, optimizer, settings)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    batch = {"image": pixels, "label": np.array([0, 1, 1, 0], np.int32)}
    step = train_step.make_step(method, optimizer, settings)
    found = []
    for _ in range(5):
        now, metrics = step(now, batch)
        found.append((float(metrics["task_loss"]), float(metrics["gate_loss"])))
    # Stage 2 sees another crop in each step.
    assert found[-1][1] < 0.7 * found[0][1]
    assert found[-1][0] < (0.7 if reading == "gate" else 1.0) * found[0][0]
    assert {"grad_norm/task", "grad_norm/gate"} <= set(metrics)


def test_stage_one_has_the_rate_of_the_task_and_a_clipping_of_its_own(tiny_config):
    train = dataclasses.replace(
        tiny_config.train,
        lr_warmup_steps=0,
        schedule="constant",
        task_learning_rate=0.1,
        clip_norm=1.0,
    )
    optimizer = optimization.make_optimizer(
        dataclasses.replace(tiny_config, train=train)
    )
    params = {"task": jnp.zeros(4), "gate": jnp.zeros(9)}
    gradients = {"task": jnp.full(4, 1.0), "gate": jnp.full(9, 100.0)}
    updates, after = optimizer.update(gradients, optimizer.init(params), params)
    for name in ("task", "gate"):
        np.testing.assert_allclose(updates[name], -0.1, rtol=1e-4)
    moments = [
        leaf
        for _, tree in optax.tree_utils.tree_get_all_with_path(after, "mu")
        for leaf in jax.tree.leaves(tree)
    ]
    # A tenth of a gradient of norm 1: of 4 equal numbers 1/2 each, of 9 1/3.
    expected = {4: 0.1 / 2, 9: 0.1 / 3}
    assert sorted(len(leaf) for leaf in moments) == [4, 9]
    for leaf in moments:
        np.testing.assert_allclose(leaf, expected[len(leaf)], rtol=1e-5)


def test_each_stage_starts_from_its_own_file(monkeypatch, tiny_config):
    task = dataclasses.replace(tiny_config.task, pretrained="of task")
    settings = dataclasses.replace(tiny_config, task=task)
    settings = with_baseline(settings, stage_one_pretrained="of gate")
    method = METHODS["two_stage"](settings, 3)

    def load(path, net, params, model_state):
        assert net == "resnet8"
        value = {"of task": 5.0, "of gate": 7.0}[path]
        values = jax.tree.map(lambda x: np.full(x.shape, value, np.float32), params)
        return pretrained.Loaded(values, model_state, (path,))

    monkeypatch.setattr(pretrained, "load", load)
    blank = train_state.blank(method, settings)
    found = pretrained.start(settings, blank.params, blank.model_state)
    assert found.notes == ("of task", "of gate")
    fresh = train_state.init(method, optimization.make_optimizer(settings), settings)
    params = pretrained.start(settings, fresh.params, fresh.model_state).params
    for name, value in (("task", 5), ("gate", 7)):
        assert all((leaf == value).all() for leaf in jax.tree.leaves(params[name]))


def test_weights_of_stage_one_need_their_statistics(tiny_config):
    task = dataclasses.replace(tiny_config.task, norm="group")
    settings = dataclasses.replace(tiny_config, task=task)
    METHODS["two_stage"](settings, 3)
    settings = with_baseline(settings, stage_one_pretrained="w.safetensors")
    with pytest.raises(UserError, match=r"stage_one_pretrained .* not group"):
        METHODS["two_stage"](settings, 3)


@pytest.mark.parametrize("net", ["vgg16", "resnet18+danet"])
def test_only_a_head_on_mean_features_has_a_class_activation_map(net):
    task = config.TaskConfig(net=net, image_size=32)
    settings = config.Config(task=task)
    METHODS["two_stage"](settings, 3)
    message = rf"but {re.escape(net)} has no class activation map"
    with pytest.raises(UserError, match=message):
        METHODS["two_stage"](with_baseline(settings, two_stage="cam"), 3)


def test_stage_one_needs_as_many_pixels_as_any_network(tiny_config):
    settings = with_baseline(tiny_config, stage_one_net="densenet121")
    with pytest.raises(UserError, match="densenet121 halves it five times"):
        METHODS["two_stage"](settings, 3)


def test_a_run_stays_what_it_was_trained_as_on_other_films(monkeypatch, finished_run):
    # Else a data set would change which class of the run is normal.
    seen = []

    def spy(settings, num_classes):
        seen.append((settings.data.quality, num_classes))
        raise UserError("enough")

    monkeypatch.setitem(METHODS, "hapre", spy)
    for program in (evaluate, landscape):
        with pytest.raises(UserError, match="enough"):
            program.main([str(finished_run), "--data.quality", "high"])
    assert seen == [("low", 3), ("low", 3)]
