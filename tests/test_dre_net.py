import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import (
    boxes,
    config,
    nets,
    optimization,
    pretrained,
    tasks,
    train_state,
    train_step,
)
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS, dre_net

KEY = jax.random.key(0)
NAMES = ("dre_net", "dre_net_official")


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).uniform(size=(4, 32, 32, 1))
    return jnp.array(pixels, jnp.float32)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# Anchors, suppression, ranking.


def test_anchors_of_448_pixels_are_those_of_the_released_code():
    levels = dre_net.anchors([14, 7, 4])
    assert [len(level) for level in levels] == [196, 49, 16]
    # Center and side in pixels; places follow each other row by row.
    for level, place, (y, x), side in [
        (0, 0, (16, 16), 48),
        (0, 1, (16, 48), 48),
        (0, 14, (48, 16), 48),
        (0, 195, (432, 432), 48),
        (1, 0, (32, 32), 96),
        (1, 48, (416, 416), 96),
        (2, 0, (64, 64), 192),
        (2, 7, (192, 448), 192),
        (2, 15, (448, 448), 192),
    ]:
        half = side / 2
        expected = [y - half, x - half, y + half, x + half]
        np.testing.assert_allclose(448 * levels[level][place], expected, atol=1e-4)


def test_anchors_keep_their_share_of_an_image_of_another_size():
    for level, side in zip(dre_net.anchors([8, 4, 2]), (48, 96, 192), strict=True):
        size = level[:, 2:] - level[:, :2]
        np.testing.assert_allclose(size, np.full_like(size, side / 448), rtol=1e-5)
    middle = (level[:, :2] + level[:, 2:]) / 2
    places = [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    np.testing.assert_allclose(middle, places, rtol=1e-6)


@pytest.mark.parametrize("side", range(1, 21))
def test_no_anchor_lies_outside_of_the_image(side):
    half = math.ceil(side / 2)
    for level in dre_net.anchors([side, half, math.ceil(half / 2)]):
        inside = np.clip(level, 0, 1)
        share = (inside[:, 2:] - inside[:, :2]) / (level[:, 2:] - level[:, :2])
        assert share.min() > 0.49


def plain_nms(areas, scores, number, max_iou):
    """Hard NMS with lists, of as many boxes as there are."""

    def overlap(a, b):
        height = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
        width = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
        area_a, area_b = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
        return height * width / (area_a + area_b - height * width)

    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    taken = []
    while order and len(taken) < number:
        best, *order = order
        taken.append(best)
        order = [i for i in order if overlap(areas[best], areas[i]) <= max_iou]
    return taken


@pytest.mark.parametrize("max_iou", [0.0, 0.1, 0.5])
def test_suppress_takes_what_plain_nms_takes(variant, max_iou):
    suppress = variant(functools.partial(dre_net.suppress, count=5, max_iou=max_iou))
    lengths = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        low, size = rng.uniform(0, 0.6, (12, 2)), rng.uniform(0.1, 0.4, (12, 2))
        areas = np.concatenate([low, low + size], axis=1).astype(np.float32)
        scores = rng.normal(size=12).astype(np.float32)
        index, is_found = suppress(jnp.array(areas), jnp.array(scores))
        expected = plain_nms(areas.tolist(), scores.tolist(), 5, max_iou)
        lengths.add(len(expected))
        assert is_found.tolist() == [i < len(expected) for i in range(5)]
        # What is missing is the best one again.
        padding = [expected[0]] * (5 - len(expected))
        assert index.tolist() == expected + padding
    assert max_iou == 0.5 or min(lengths) < 5  # some were short of boxes


def test_suppress_keeps_boxes_at_the_bound_and_takes_the_first_of_equals():
    # Halves of the image overlap none; each has IoU 1/2 with the whole.
    areas = jnp.array(
        [[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0.5, 1, 1], [0, 0, 1, 0.5]], jnp.float32
    )
    scores = jnp.array([1.0, 3.0, 2.0, 3.0])
    index, is_found = dre_net.suppress(areas, scores, count=4, max_iou=0.5)
    assert index.tolist() == [1, 2, 0, 1]
    assert is_found.tolist() == [True, True, True, False]
    index, is_found = dre_net.suppress(areas, scores, count=3, max_iou=0.49)
    assert index.tolist() == [1, 2, 1] and is_found.tolist() == [True, True, False]


def test_choice_is_three_small_and_three_large_anchors():
    rng = np.random.default_rng(0)
    grids = [rng.normal(size=(n, n)).astype(np.float32) for n in (14, 7, 4)]
    choice = dre_net.choose([jnp.array(grid) for grid in grids])
    levels = dre_net.anchors([14, 7, 4])
    small, large = np.concatenate(levels[:2]), levels[2]
    scores = np.concatenate([grid.ravel() for grid in grids[:2]])
    of_small = plain_nms(small.tolist(), scores.tolist(), 3, 0.1)
    of_large = plain_nms(large.tolist(), grids[2].ravel().tolist(), 3, 0.1)
    np.testing.assert_array_equal(
        choice.boxes, np.concatenate([small[of_small], large[of_large]])
    )
    expected = [*scores[of_small], *grids[2].ravel()[of_large]]
    np.testing.assert_array_equal(choice.scores, expected)
    assert choice.is_found.tolist() == [True] * 6


def test_three_large_anchors_of_448_pixels_always_remain():
    large = dre_net.anchors([14, 7, 4])[2]
    overlap = jax.vmap(jax.vmap(boxes.iou, (None, 0)), (0, None))(large, large)
    # Two that are taken drop less than all sixteen.
    assert 2 * np.sum(np.asarray(overlap) > 0.1, axis=1).max() < 16


def test_ranking_loss_by_hand(variant):
    ranking_loss = variant(dre_net.ranking_loss)
    scores = jnp.array([0.5, 2.0, 0.2])
    part_losses = jnp.array([0.1, 0.3, 0.2])  # best first: 0, 2, 1
    found = jnp.array([True, True, True])
    # 0 over 1: 1 - 0.5 + 2; 0 over 2: 1 - 0.5 + 0.2; 2 over 1: 1 - 0.2 + 2.
    assert ranking_loss(scores, part_losses, found) == pytest.approx(2.5 + 0.7 + 2.8)
    without = ranking_loss(scores, part_losses, jnp.array([True, False, True]))
    assert without == pytest.approx(0.7)
    ordered = ranking_loss(jnp.array([3.0, 0.5, 1.5]), part_losses, found)
    assert ordered == 0
    even = ranking_loss(scores, jnp.array([0.4, 0.4, 0.4]), found)
    assert even == 0  # equal parts are in no order
    gradients = jax.grad(ranking_loss, argnums=(0, 1))(scores, part_losses, found)
    np.testing.assert_allclose(gradients[0], [-2, 2, 0])
    np.testing.assert_array_equal(gradients[1], np.zeros(3))


def test_parts_are_cut_from_the_padded_image_and_the_detail_from_the_film():
    rng = np.random.default_rng(0)
    film = jnp.array(rng.uniform(1, 2, size=(64, 64, 1)), jnp.float32)
    image = tasks.resize(film[None], 32)[0]
    grids = [jnp.array(rng.normal(size=(n, n)), jnp.float32) for n in (8, 4, 2)]
    grids[1] = grids[1].at[0, 0].set(9.0)  # center 1/8, side 3/14: sticks not out
    grids[0] = grids[0].at[7, 7].set(8.0)  # center 15/16, side 3/28
    grids[2] = grids[2].at[1, 0].set(7.0)
    parts, detail, choice = dre_net.look(image, film, grids)
    assert parts.shape == (6, 16, 16, 1) and detail.shape == (32, 32, 1)
    for part, box in zip(parts, choice.boxes, strict=True):
        if box.min() > 0.05 and box.max() < 0.95:
            crop = boxes.crop_and_resize(image, box, size=16)
            np.testing.assert_allclose(part, crop, atol=1e-4)
    large = (0.75 - 96 / 448, 0.25 - 96 / 448, 0.75 + 96 / 448, 0.25 + 96 / 448)
    np.testing.assert_allclose(choice.boxes[3], large, rtol=1e-5)
    crop = boxes.crop_and_resize(film, jnp.array(large), size=32)
    np.testing.assert_allclose(detail, crop, atol=1e-4)


def test_around_the_image_is_zero_and_the_detail_ends_at_its_border():
    image = jnp.ones((32, 32, 1))
    grids = [jnp.zeros((n, n)) for n in (7, 4, 2)]
    grids[2] = grids[2].at[1, 1].set(1.0)  # center 6/7: half of side 3/7 is 3/14
    parts, detail, choice = dre_net.look(image, image, grids)
    np.testing.assert_allclose(choice.boxes[3], [9 / 14, 9 / 14, 15 / 14, 15 / 14])
    # Of the part's 16 pixels, 5/6 show the image.
    line = np.asarray(parts[3, :, 2, 0])
    assert line[:12].min() > 0.99 and abs(line[15:]).max() < 0.05
    assert line.sum() == pytest.approx(16 * 5 / 6, abs=0.1)
    np.testing.assert_allclose(detail, np.ones((32, 32, 1)), atol=1e-5)


# Networks.


def init_shapes(net, *arguments):
    # As keyword: a function is no array to abstract.
    return jax.eval_shape(lambda key: net.init(key, *arguments, train=False), KEY)


def test_official_has_the_parameters_of_the_released_code():
    def look(scores):
        return jnp.zeros((1, 6, 32, 32, 3)), jnp.zeros((1, 64, 64, 3)), None

    net = nets.PartNet(nets.NETS["resnet50"](num_classes=3), 3)
    params = init_shapes(net, jnp.zeros((1, 64, 64, 3)), look)["params"]
    assert count(params) == 26_224_460
    # As listed in the docstring: ResNet-50 with its head, proposals, parts, all.
    assert count(params["trunk"]) == 23_514_179
    assert count(params["proposal"]) == 2_654_979
    assert count(params["part_head"]) == 3 * (2048 + 1)
    assert count(params["joint_head"]) == 3 * (8 * 2048 + 1)


def test_official_of_films_has_a_stem_for_one_channel():
    task = config.TaskConfig(net="resnet50", image_size=64)
    method = METHODS["dre_net_official"](config.Config(task=task), 3)
    params, _ = jax.eval_shape(method.init, KEY, jnp.zeros((1, 80, 80, 1)))
    assert count(params) == 26_224_460 - 2 * 7 * 7 * 64 == 26_218_188


def test_official_scores_the_grids_of_448_pixels():
    sides = []

    def look(scores):
        sides.extend(grid.shape for grid in scores)
        return jnp.zeros((2, 6, 32, 32, 1)), jnp.zeros((2, 64, 64, 1)), None

    net = nets.PartNet(nets.NETS["resnet18"](num_classes=3), 3)
    init_shapes(net, jnp.zeros((2, 448, 448, 1)), look)
    assert sides == [(2, 14, 14), (2, 7, 7), (2, 4, 4)]


@pytest.mark.parametrize(
    ("net", "stages"),
    [("resnet18", (64, 128, 256, 512)), ("resnet50", (256, 512, 1024, 2048))],
)
def test_pyramid_has_the_parameters_of_its_layers(net, stages):
    trunk = nets.NETS[net](num_classes=0)
    pyramid = nets.PyramidNet(trunk, 3, width=256)
    params = init_shapes(pyramid, jnp.zeros((1, 64, 64, 3)))["params"]
    expected = sum(
        # Lateral, smoothing, attention and head.
        (channels + 1) * 256 + (9 * 256 + 1) * 256 + 256 + (256 + 1) * 3
        for channels in stages
    )
    trunk_count = {"resnet18": 11_176_512, "resnet50": 23_508_032}[net]
    assert count(params["trunk"]) == trunk_count
    assert count(params) == trunk_count + expected


@pytest.mark.parametrize(("net", "side"), [("resnet8", 30), ("resnet10", 50)])
def test_pyramid_has_a_level_for_each_stage(net, side):
    pyramid = nets.PyramidNet(nets.NETS[net](num_classes=0), 5, width=24)
    output = jax.eval_shape(
        lambda key, image: pyramid.init_with_output(key, image, train=False)[0],
        KEY,
        jnp.zeros((2, side, side, 1)),
    )
    assert output.logits.shape == (2, 5)
    stages = [name for name in output.features if name.startswith("stage")]
    assert len(output.features) == 2 * len(stages)
    for name in stages:
        level = output.features[name.replace("stage", "pyramid")]
        assert level.shape == (*output.features[name].shape[:3], 24)


def test_pyramid_equals_its_definition():
    pyramid = nets.PyramidNet(nets.NETS["resnet8"](num_classes=0), 3, width=8)
    image = jnp.array(np.random.default_rng(0).normal(size=(1, 8, 8, 1)), jnp.float32)
    variables = jax.jit(functools.partial(pyramid.init, train=False))(KEY, image)
    params = dict(variables["params"])
    rng = np.random.default_rng(1)
    # Smoothing that does nothing, and an attention that is not even.
    kernel = np.zeros((3, 3, 8, 8), np.float32)
    kernel[1, 1] = np.eye(8)
    for stage in ("stage1", "stage2", "stage3"):
        params[f"smooth_{stage}"] = {"kernel": jnp.array(kernel), "bias": jnp.zeros(8)}
        attention = rng.normal(size=(8, 1)).astype(np.float32)
        params[f"attention_{stage}"] = {"kernel": jnp.array(attention)}
    variables = {**variables, "params": params}
    output = jax.jit(functools.partial(pyramid.apply, train=False))(variables, image)

    above, logits = None, []
    for index in (3, 2, 1):
        stage = f"stage{index}"
        lateral = params[f"lateral_{stage}"]
        level = np.asarray(output.features[stage])[0] @ lateral["kernel"]
        level = level + lateral["bias"][None, None]
        if above is not None:
            level += above.repeat(2, axis=0).repeat(2, axis=1)
        found = output.features[f"pyramid{index}"][0]
        np.testing.assert_allclose(found, level, atol=1e-4)
        weights = np.exp(level @ np.asarray(params[f"attention_{stage}"]["kernel"]))
        pooled = (weights * level).sum((0, 1)) / weights.sum()
        head = params[f"head_{stage}"]
        logits.append(pooled @ head["kernel"] + head["bias"])
        above = np.asarray(level)
    np.testing.assert_allclose(output.logits[0], np.mean(logits, axis=0), atol=1e-4)


def test_attention_starts_as_the_mean_over_places(variant):
    feature = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    pool = variant(nets.dre_net.attention_pool)
    even = pool(jnp.array(feature), jnp.zeros((3, 5)))
    np.testing.assert_allclose(even, feature.mean((0, 1)), atol=1e-6)
    # A score of log(3) counts three times.
    score = jnp.zeros((3, 5)).at[1, 2].set(jnp.log(3.0))
    expected = (feature.sum((0, 1)) + 2 * feature[1, 2]) / 17
    np.testing.assert_allclose(pool(jnp.array(feature), score), expected, atol=1e-6)
    net = nets.PyramidNet(nets.NETS["resnet8"](num_classes=0), 3, width=8)
    params = net.init(KEY, jnp.zeros((1, 8, 8, 1)), train=False)["params"]
    assert not params["attention_stage1"]["kernel"].any()


# Methods.


@pytest.fixture(scope="module", params=NAMES)
def started(request, tiny_config, image):
    """A method before its first step: its name, itself, parameters and state."""
    method = METHODS[request.param](tiny_config, 3)
    return request.param, method, *jax.jit(method.init)(KEY, image[:1])


def test_answers_are_probabilities_and_the_same_each_time(started, image):
    _, method, params, model_state = started
    predict = jax.jit(method.predict)
    first, again = (predict(params, model_state, {"image": image}) for _ in range(2))
    assert first.probabilities.shape == (4, 3)
    np.testing.assert_allclose(first.probabilities.sum(1), np.ones(4), rtol=1e-5)
    np.testing.assert_array_equal(first.probabilities, again.probabilities)
    assert first.area is None


def test_losses_on_the_whole_image_are_those_of_the_answers(started, image):
    _, method, params, model_state = started
    batch = {"image": image, "label": jnp.array([0, 2, 1, 1])}
    whole = jnp.tile(jnp.array(boxes.WHOLE), (4, 1))
    losses = jax.jit(method.task_losses)(params, model_state, batch, whole)
    answers = jax.jit(method.predict)(params, model_state, {"image": image})
    expected = -np.log(np.asarray(answers.probabilities)[np.arange(4), batch["label"]])
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_training_lowers_the_loss(started, tiny_config):
    name, method, *_ = started
    train = dataclasses.replace(tiny_config.train, lr_warmup_steps=0, steps=50)
    settings = dataclasses.replace(tiny_config, train=train)
    optimizer = optimization.make_optimizer(settings)
    now = train_state.init(method, optimizer, settings)
    assert set(now.params) == {"task"}
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    batch = {"image": pixels, "label": np.array([0, 2, 1, 1], np.int32)}
    step = train_step.make_step(method, optimizer, settings)
    found = []
    for _ in range(5):
        now, metrics = step(now, batch)
        found.append(float(metrics["task_loss"]))
    assert found[-1] < 0.7 * found[0]
    logged = {"task_loss"}
    if name == "dre_net_official":
        logged |= {"whole_loss", "part_loss", "ranking_loss"}
    assert {key for key in metrics if "/" not in key} == logged


@pytest.fixture(scope="module")
def official(tiny_config, image):
    """The released method with frozen statistics: training passes are predictions."""
    task = dataclasses.replace(tiny_config.task, norm="frozen", image_size=32)
    settings = dataclasses.replace(tiny_config, task=task)
    method = METHODS["dre_net_official"](settings, 3)
    return settings, method, *jax.jit(method.init)(KEY, image[:1])


def test_official_loss_is_the_sum_of_its_four_parts(official, image):
    settings, method, params, model_state = official
    label = jnp.array([0, 2, 1, 1])
    batch = {"image": image, "label": label}
    loss, aux = jax.jit(method.loss)(params, model_state, None, batch, KEY, 0)

    trunk = nets.NETS["resnet8"](num_classes=3, norm="frozen")
    variables = {
        "params": params["task"]["trunk"],
        "batch_stats": model_state["task"]["batch_stats"]["trunk"],
    }

    @jax.jit
    def see(image):
        output = trunk.apply(variables, image, train=False)
        return output, jnp.mean(output.features["stage3"], axis=(1, 2))

    def classify(features, name):
        layer = params["task"][name]
        return np.asarray(features) @ layer["kernel"] + layer["bias"][None]

    def cross_entropy(logits, label):
        return -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(label)), label]

    film = tasks.normalize(image, settings.task.normalize)
    whole, whole_feature = see(film)
    propose = nets.dre_net.ProposalNet()
    scores = propose.apply(
        {"params": params["task"]["proposal"]}, whole.features["stage3"]
    )
    assert [grid.shape for grid in scores] == [(4, 8, 8), (4, 4, 4), (4, 2, 2)]
    parts, detail, choice = jax.vmap(dre_net.look)(film, film, scores)
    assert choice.is_found.all()
    features = np.asarray(see(parts.reshape(24, 16, 16, 1))[1])
    of_parts = cross_entropy(classify(features, "part_head"), np.repeat(label, 6))
    together = np.concatenate(
        [features.reshape(4, -1), whole_feature, see(detail)[1]], axis=1
    )
    ranking = 0.0
    for of_image, score in zip(of_parts.reshape(4, 6), choice.scores, strict=True):
        for i in range(6):
            for j in range(6):
                if of_image[i] < of_image[j]:
                    ranking += max(0.0, float(1 - score[i] + score[j]))
    expected = {
        "task_loss": cross_entropy(classify(together, "joint_head"), label).mean(),
        "whole_loss": cross_entropy(whole.logits, label).mean(),
        "part_loss": of_parts.mean(),
        "ranking_loss": ranking / 4,
    }
    assert set(aux.metrics) == set(expected)
    for name, value in expected.items():
        assert aux.metrics[name] == pytest.approx(value, rel=2e-3), name
    assert loss == pytest.approx(sum(expected.values()), rel=2e-3)


def test_proposals_send_no_gradient_to_the_trunk_and_learn_from_the_ranking(
    official, image
):
    _, method, params, model_state = official
    batch = {"image": image, "label": jnp.array([0, 2, 1, 1])}

    def ranking(params):
        aux = method.loss(params, model_state, None, batch, KEY, 0)[1]
        return aux.metrics["ranking_loss"]

    gradient = jax.jit(jax.grad(ranking))(params)["task"]
    proposal = gradient.pop("proposal")
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(proposal)) > 1e-3
    assert not any(bool(leaf.any()) for leaf in jax.tree.leaves(gradient))


def test_a_part_that_is_shown_again_counts_once(tiny_config, image):
    # 16 pixels: grids of 4, 2 and 1 places, so that there is one large anchor.
    task = dataclasses.replace(tiny_config.task, norm="frozen")
    settings = dataclasses.replace(tiny_config, task=task)
    method = METHODS["dre_net_official"](settings, 3)
    params, model_state = jax.jit(method.init)(KEY, image[:1])
    grids = [jnp.array(np.random.default_rng(0).normal(size=(n, n))) for n in (4, 2, 1)]
    choice = dre_net.choose(grids)
    assert choice.is_found.tolist() == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(choice.boxes[4:], choice.boxes[3:4].repeat(2, 0))
    batch = {"image": image, "label": jnp.array([0, 2, 1, 1])}
    # Every part has the logits 0, 0, 1: the mean over parts that count is known.
    part_head = {"kernel": jnp.zeros((64, 3)), "bias": jnp.array([0.0, 0.0, 1.0])}
    params = {"task": {**params["task"], "part_head": part_head}}
    _, aux = jax.jit(method.loss)(params, model_state, None, batch, KEY, 0)
    total = math.log(2 + math.e)
    assert aux.metrics["part_loss"] == pytest.approx(total - 1 / 4, rel=1e-5)
    assert aux.metrics["ranking_loss"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_weights_from_a_file_go_to_the_trunk(monkeypatch, tiny_config, name):
    task = dataclasses.replace(tiny_config.task, pretrained="file")
    settings = dataclasses.replace(tiny_config, task=task)
    method = METHODS[name](settings, 3)

    def load(path, net, params, model_state):
        assert (path, net) == ("file", "resnet8")
        assert "stem_conv" in params and "stem_norm" in model_state["batch_stats"]
        sevens = jax.tree.map(lambda x: np.full(x.shape, 7.0, np.float32), params)
        return pretrained.Loaded(sevens, model_state, ("a note",))

    monkeypatch.setattr(pretrained, "load", load)
    fresh = train_state.init(method, optimization.make_optimizer(settings), settings)
    started = pretrained.start(settings, fresh.params, fresh.model_state)
    assert started.notes == ("a note",)
    for name in ("params", "model_state"):
        before, after = (jax.tree.structure(getattr(s, name)) for s in (fresh, started))
        assert before == after
    trunk = started.params["task"]["trunk"]
    assert all((leaf == 7).all() for leaf in jax.tree.leaves(trunk))
    for part in set(fresh.params["task"]) - {"trunk"}:
        before, after = (s.params["task"][part] for s in (fresh, started))
        jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("net", ["vgg16", "densenet121", "resnet18+danet"])
def test_only_a_resnet_without_a_head_of_its_own_can_be_the_trunk(name, net):
    task = config.TaskConfig(net=net, image_size=64)
    with pytest.raises(UserError, match=rf"method {name} has a head of its own"):
        config.Config(method=name, task=task)
