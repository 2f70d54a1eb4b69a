import dataclasses
import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hapre_jax import config, nets, pretrained, tasks
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS, mag_sd
from hapre_jax.nets import mag_sd as net_lib
from hapre_jax.nets import resnet

KEY = jax.random.key(0)


def build(net="resnet8", classes=3, **options):
    trunk_options = {k: v for k, v in options.items() if k in ("norm", "dtype")}
    trunk = nets.NETS[net](num_classes=0, **trunk_options)
    return nets.MANet(trunk, classes, **options)


def shapes_of(net, side, channels=1):
    image = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    variables = jax.eval_shape(functools.partial(net.init, train=False), KEY, image)
    return variables, image


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# The network.


@pytest.mark.parametrize(
    ("channels", "parameters"),
    # Trunk without head, attention, head. The first is the published count.
    [
        (1, 23_508_032 - 6_272 + 98_432 + 196_608),
        (3, 23_508_032 + 98_432 + 196_608),
    ],
)
def test_parameters_are_those_of_the_released_network(channels, parameters):
    variables, _ = shapes_of(build("resnet50"), 224, channels)
    params = variables["params"]
    assert count(params) == parameters == {1: 23_796_800, 3: 23_803_072}[channels]
    assert count(params["attention"]) == 98_432
    assert params["head"] == {"kernel": jax.ShapeDtypeStruct((65_536, 3), jnp.float32)}


@pytest.mark.parametrize(
    ("net", "side", "places"),
    [
        ("resnet8", 32, 8),
        ("resnet8", 18, 5),  # from a stage of 9 places a side
        ("resnet10", 64, 2),
        ("resnet10", 20, 1),  # from 2, and those from 3
        ("resnet10", 8, 1),  # from 1
        ("resnet10+cbam", 64, 2),
    ],
)
def test_shapes_on_any_resnet(net, side, places):
    network = build(net, classes=5, maps=6)
    variables, image = shapes_of(network, side)
    apply = functools.partial(network.apply, train=False)
    output = jax.eval_shape(apply, variables, image)
    assert output.logits.shape == (2, 5)
    assert output.features["attention"].shape == (2, places, places, 6)
    channels = output.features[sorted(output.features)[-1]].shape[-1]
    assert variables["params"]["head"]["kernel"].shape == (6 * channels, 5)


class Strides(nn.Module):
    """A trunk that learns nothing: the image, and every second place of it."""

    def __call__(self, image, *, train):
        del train
        coarse = jnp.concatenate([image, -2 * image], axis=-1)[:, ::2, ::2]
        return nets.Output(image[:, 0, 0, :0], {"stage1": image, "stage2": coarse})


@pytest.mark.parametrize("side", [6, 5])  # of 5, the last mean is of what is left
def test_attention_and_logits_by_hand(side):
    network = nets.MANet(Strides(), 3, maps=4)
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    variables, _ = shapes_of(network, side, channels=3)
    # Random ones, variances positive.
    learned = jax.tree.map(
        lambda x: rng.uniform(-0.3, 0.7, x.shape), variables["params"]
    )
    stats = jax.tree.map(
        lambda x: rng.uniform(0.1, 0.7, x.shape), variables["batch_stats"]
    )
    variables = {"params": learned, "batch_stats": stats}
    output = jax.jit(functools.partial(network.apply, train=False))(
        jax.tree.map(jnp.float32, variables), image
    )

    def attend(x, name):
        norm, moments = (
            tree["attention"][f"{name}_norm"]["BatchNorm"] for tree in (learned, stats)
        )
        x = x @ learned["attention"][f"{name}_conv"]["kernel"][0, 0]
        x = (x - moments["mean"]) / np.sqrt(moments["var"] + 1e-3)
        return np.maximum(x * norm["scale"] + norm["bias"], 0)

    coarse = np.concatenate([image, -2 * image], axis=-1)[:, ::2, ::2]
    finer, attention = attend(image, "fine"), attend(coarse, "coarse")
    for y, x in np.ndindex(3, 3):
        window = finer[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        attention[:, y, x] += window.mean(axis=(1, 2))
    assert 0.5 < np.mean(attention > 0) < 1
    np.testing.assert_allclose(
        output.features["attention"], attention, rtol=1e-4, atol=1e-5
    )
    seen = np.zeros((2, 4, 6))
    for y, x in np.ndindex(3, 3):
        seen += attention[:, y, x, :, None] * coarse[:, y, x, None, :] / 9
    root = (np.sign(seen) * np.sqrt(np.abs(seen) + 1e-12)).reshape(2, -1)
    root *= 100 / np.linalg.norm(root, axis=1, keepdims=True)
    expected = root @ learned["head"]["kernel"]
    np.testing.assert_allclose(output.logits, expected, rtol=1e-3, atol=1e-3)


def test_means_of_two_by_two_places_by_hand():
    x = jnp.arange(1.0, 10).reshape(1, 3, 3, 1)
    expected = [[(1 + 2 + 4 + 5) / 4, (3 + 6) / 2], [(7 + 8) / 2, 9]]
    np.testing.assert_allclose(net_lib.halve(x)[0, :, :, 0], expected)


def test_bilinear_pooling_by_hand(variant):
    attention = jnp.array([[[1.0, 0.0], [3.0, 0.0]]])  # the second map sees nothing
    feature = jnp.array([[[2.0, -4.0], [2.0, 0.0]]])
    # Means of products: (2 + 6) / 2 = 4 and -4 / 2 = -2; roots 2 and -sqrt(2).
    expected = 100 * np.array([2, -math.sqrt(2), 0, 0]) / math.sqrt(6)
    pooled = variant(net_lib.bilinear_pool)(attention, feature)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-3)


def test_attention_that_sees_nothing_has_a_finite_gradient():
    attention, feature = jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 4))

    def loss(attention):
        return jnp.sum(net_lib.bilinear_pool(attention, feature))

    value, gradient = jax.value_and_grad(loss)(attention)
    assert value == 0 and np.isfinite(gradient).all()


# Which maps.


def test_maps_are_drawn_by_the_root_of_their_sums(variant):
    # Sums 4 x (0, 1, 4, 9): roots as 0 : 1 : 2 : 3.
    maps = jnp.ones((2, 2, 4)) * jnp.array([[[0.0, 1.0, 4.0, 9.0]]])
    draw = variant(functools.partial(mag_sd.draw_maps, maps=maps, count=30_000))
    shares = np.bincount(draw(KEY), minlength=4) / 30_000
    np.testing.assert_allclose(shares, [0, 1 / 6, 2 / 6, 3 / 6], atol=0.01)
    assert shares[0] == 0


def test_maps_are_drawn_with_replacement_and_uniformly_where_all_are_empty():
    draw = functools.partial(mag_sd.draw_maps, maps=jnp.zeros((2, 2, 2)), count=3)
    drawn = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 4_000)))
    assert drawn.shape == (4_000, 3)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=0.03)
    # Three of two maps: all the same in a quarter of the draws.
    same = (drawn == drawn[:, :1]).all(axis=1)
    assert same.mean() == pytest.approx(0.25, abs=0.03)


# Where they attend.


def test_attended_places_by_hand(variant):
    attention = jnp.array([[0.0, 1.0, 4.0], [2.0, 2.1, 5.0]])
    expected = [[False, False, True], [True, True, True]]
    found = variant(mag_sd.attended)(attention, jnp.array(0.4))
    np.testing.assert_array_equal(found, expected)
    assert not variant(mag_sd.attended)(jnp.zeros((2, 3)), jnp.array(0.4)).any()


def test_boxes_are_padded_by_a_tenth_of_the_image_and_cut():
    padded = mag_sd.pad(jnp.array([0.05, 0.5, 0.8, 0.95]))
    np.testing.assert_allclose(padded, [0, 0.4, 0.9, 1], atol=1e-6)


# What they make of the image.

PIXELS = np.arange(16, dtype=np.float32).reshape(4, 4) ** 2


def test_mix_up_by_hand(variant):
    # Rows 1 and 2, columns 2 and 3 at twice the size: every half pixel.
    box = jnp.array([0.25, 0.5, 0.75, 1.0])
    mixed = variant(mag_sd.mix)(jnp.array(PIXELS)[:, :, None], box)[:, :, 0]
    where = np.arange(4) / 2 - 0.25
    rows = np.array([np.interp(1 + where, range(4), x) for x in PIXELS.T]).T
    crop = np.array([np.interp(2 + where, range(4), x) for x in rows])
    np.testing.assert_allclose(mixed, 0.6 * PIXELS + 0.4 * crop, rtol=1e-5, atol=1e-4)


def test_mix_up_with_the_whole_image_is_the_image():
    image = jnp.array(PIXELS)[:, :, None]
    mixed = mag_sd.mix(image, jnp.array([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(mixed, image, rtol=1e-5, atol=1e-4)


def test_dimming_by_hand(variant):
    mask = np.zeros((4, 4), bool)
    mask[1:3, 2] = True
    image = jnp.array(np.stack([PIXELS, -PIXELS], axis=-1))
    dimmed = variant(mag_sd.dim)(image, jnp.array(mask))
    expected = 1.001 * np.asarray(image)
    expected[1:3, 2] = 0.001 * np.asarray(image)[1:3, 2]
    np.testing.assert_allclose(dimmed, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("place", "top", "left"),
    # Two rows fit at 0, 1, 2; three columns at 0 and 1.
    [
        ((0.0, 0.0), 0, 0),
        ((0.34, 0.49), 1, 0),
        ((0.67, 0.5), 2, 1),
        ((0.9999999, 0.9999999), 2, 1),
    ],
)
def test_patching_by_hand(variant, place, top, left):
    box = jnp.array([0.25, 0.0, 0.76, 0.74])  # rows 1 and 2, columns 0 to 2
    image = jnp.array(PIXELS)[:, :, None]
    patched = variant(mag_sd.patch)(image, box, jnp.array(place))
    expected = PIXELS.copy()
    expected[top : top + 2, left : left + 3] = PIXELS[1:3, :3]
    np.testing.assert_array_equal(patched[:, :, 0], expected)


def test_patching_the_whole_image_changes_nothing():
    image = jnp.array(PIXELS)[:, :, None]
    box, place = jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([0.7, 0.2])
    np.testing.assert_array_equal(mag_sd.patch(image, box, place), image)


def test_views_attend_to_the_map(variant):
    """One map with a spot at the top left of 4 x 4: pixels 0 to 1 of 8."""
    pixels = np.random.default_rng(0).normal(size=(8, 8, 1))
    image = jnp.array(pixels, jnp.float32)
    maps = jnp.zeros((4, 4, 5)).at[0, 0, 3].set(2.0)
    # Thresholds are above a quarter, the share that reaches the next pixel; but the
    # dimmed one may be below.
    views = variant(mag_sd.augment)(KEY, image, maps)
    box = jnp.array([0.0, 0.0, 0.35, 0.35])
    np.testing.assert_allclose(views.mixed, mag_sd.mix(image, box), atol=1e-5)
    factor = np.asarray(views.dimmed / image)[:, :, 0]
    np.testing.assert_allclose(factor[:2, :2], 0.001, rtol=1e-3)
    np.testing.assert_allclose(factor[3:], 1.001, rtol=1e-5)
    np.testing.assert_allclose(factor[:, 3:], 1.001, rtol=1e-5)
    # The patch of 3 x 3 pixels lies somewhere, all else is as it was.
    patched = np.asarray(views.patched)
    expected = []
    for y, x in np.ndindex(6, 6):
        pasted = np.array(image)
        pasted[y : y + 3, x : x + 3] = np.array(image)[:3, :3]
        expected.append((pasted == patched).all())
    assert sum(expected) == 1


def test_thresholds_of_each_view():
    """Of ramps, so that rows tell the threshold."""
    ramp = jnp.linspace(1.0, 0.0, 64)[:, None, None]
    image = jnp.arange(1.0, 65)[:, None, None] * jnp.ones((64, 64, 1))
    keys = jax.random.split(KEY, 300)
    maps = ramp * jnp.ones((64, 64, 1))
    views = jax.jit(jax.vmap(mag_sd.augment, (0, None, None)))(keys, image, maps)
    mixed, dimmed, patched = (np.asarray(view)[:, :, 0, 0] for view in views)
    rows = (dimmed < 0.5).sum(axis=1) / 64
    # A row at share y from the top attends with 1 - y.
    assert 0.5 <= rows.min() < 0.53 and 0.77 < rows.max() <= 0.8
    assert rows.mean() == pytest.approx(0.65, abs=0.02)
    # The last row of a box that is magnified, padded by a tenth.
    below = (mixed[:, -1] - 0.6 * 64) / 0.4 / 64
    assert 0.5 <= below.min() < 0.52 and 0.68 < below.max() <= 0.71
    # Rows that show others, where the patch did not stay in its place.
    moved = (patched != np.arange(1, 65)).sum(axis=1) / 64
    assert moved.min() == 0
    assert 0.5 <= moved[moved > 0].min() < 0.52 and 0.68 < moved.max() <= 0.71
    # Each view has its own.
    assert abs(np.corrcoef(rows, below)[0, 1]) < 0.2


def test_views_carry_no_gradient():
    rng = np.random.default_rng(0)
    image = jnp.array(rng.normal(size=(8, 8, 1)), jnp.float32)
    maps = jnp.array(rng.uniform(size=(4, 4, 3)), jnp.float32)

    def total(image, maps):
        return sum(jnp.sum(view**2) for view in mag_sd.augment(KEY, image, maps))

    for gradient in jax.grad(total, (0, 1))(image, maps):
        np.testing.assert_array_equal(gradient, 0)


# The loss.


@pytest.mark.parametrize(
    ("probabilities", "label", "expected"),
    [
        ((0.8, 0.15, 0.05), 0, (0.8, 0.15, 0.05)),  # right and sure
        ((0.69, 0.16, 0.15), 0, (0.97, 0.01, 0.01)),  # right, not sure
        ((0.8, 0.15, 0.05), 1, (0.01, 0.97, 0.01)),  # wrong
        ((0.4, 0.35, 0.25), 2, (0.01, 0.01, 0.97)),
    ],
)
def test_soft_target_of_each_case(variant, probabilities, label, expected):
    logits = jnp.log(jnp.array(probabilities)) + 3
    target = variant(mag_sd.soft_target)(logits, jnp.array(label))
    np.testing.assert_allclose(target, expected, rtol=1e-5)
    gradient = jax.jacobian(mag_sd.soft_target)(logits, jnp.array(label))
    np.testing.assert_array_equal(gradient, 0)


def test_soft_distance_by_hand(variant):
    target, logits = jnp.array([0.9, 0.1]), jnp.log(jnp.array([3.0, 1.0]))
    distance = variant(mag_sd.soft_distance)(target, logits)
    assert distance == pytest.approx((0.15 + 0.15) / 2, rel=1e-5)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    label = jnp.array([0, 2, 1, 1])
    pixels = rng.uniform(size=(4, 32, 32, 1)) * 0.3
    # What tells the classes apart: which third is bright.
    for image, k in zip(pixels, label, strict=True):
        image[:, 11 * int(k) : 11 * int(k) + 10] += 0.7
    return {"image": jnp.array(pixels, jnp.float32), "label": label}


@pytest.fixture(scope="module")
def settings(tiny_config):
    """With a ResNet of two stages in the place of ResNet-34: it compiles sooner."""
    small = functools.partial(
        resnet.ResNet, stage_sizes=(1, 1), width=8, small_stem=True
    )
    baseline = dataclasses.replace(tiny_config.baseline, attention_maps=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nets.NETS, "resnet34", small)
        yield dataclasses.replace(
            tiny_config,
            method="mag_sd",
            task=dataclasses.replace(tiny_config.task, net="resnet34"),
            baseline=baseline,
        )


@pytest.fixture(scope="module")
def started(settings, batch):
    method = METHODS["mag_sd"](settings, 3)
    return method, *jax.jit(method.init)(KEY, batch["image"][:1])


@pytest.fixture(scope="module")
def learn(started, batch):
    """The jitted (params, model_state, key) -> ((loss, aux), gradient)."""
    value_and_grad = jax.value_and_grad(started[0].loss, has_aux=True)
    return jax.jit(lambda p, s, key: value_and_grad(p, s, None, batch, key, 0))


def test_loss_state_and_gradient_are_those_of_four_passes_in_turn(
    started, learn, batch
):
    """With views and target as constants, so that nothing is learned through them."""
    _, params, model_state = started
    network = build("resnet34", maps=5)
    image = tasks.normalize(tasks.resize(batch["image"], 16), "image")
    label = batch["label"]

    def classify(params, stats, image):
        variables = {"params": params, "batch_stats": stats}
        return network.apply(variables, image, train=True, mutable=["batch_stats"])

    @jax.jit
    def prepare(params, stats):
        raw, _ = classify(params, stats, image)
        keys = jax.random.split(KEY, 4)
        views = jax.vmap(mag_sd.augment)(keys, image, raw.features["attention"])
        return views, jax.vmap(mag_sd.soft_target)(raw.logits, label)

    def compose(params, stats, views, target):
        raw, state = classify(params, stats, image)
        log_probabilities = jax.nn.log_softmax(raw.logits)
        losses = [-jnp.mean(log_probabilities[jnp.arange(4), label])]
        for view in views:
            output, state = classify(params, state["batch_stats"], view)
            difference = jnp.abs(target - jax.nn.softmax(output.logits))
            losses.append(jnp.sum(difference) / (4 * 3))
        return sum(losses), (losses, state)

    task, stats = params["task"], model_state["task"]["batch_stats"]
    views, target = prepare(task, stats)
    (value, (losses, state)), gradient = jax.jit(
        jax.value_and_grad(compose, has_aux=True)
    )(task, stats, views, target)
    (found, aux), found_gradient = learn(params, model_state, KEY)
    assert found == pytest.approx(float(value), rel=1e-4)
    names = ("task_loss", "distance_mixed", "distance_dimmed", "distance_patched")
    assert set(aux.metrics) == set(names)
    parts = [aux.metrics[name] for name in names]
    np.testing.assert_allclose(parts, losses, rtol=1e-3)
    assert min(losses) > 0.01
    chex.assert_trees_all_close(aux.model_state["task"], state, rtol=1e-3, atol=1e-4)
    scale = optax.tree.norm(gradient)
    difference = optax.tree.sub(gradient, found_gradient["task"])
    assert optax.tree.norm(difference) < 1e-3 * scale
    chex.assert_tree_all_finite(found_gradient)


def test_a_step_lowers_the_loss_and_more_lower_it_further(started, learn):
    _, params, model_state = started
    values = []
    for _ in range(20):
        (value, aux), gradient = learn(params, model_state, KEY)
        model_state = aux.model_state
        # Down the gradient, by a tenth of what its slope needs to reach 0.
        rate = 0.1 * value / optax.tree.norm(gradient, squared=True)
        params = jax.tree.map(lambda x, g, r=rate: x - r * g, params, gradient)
        values.append(float(value))
    assert values[1] < values[0]
    assert values[-1] < 0.5 * values[0]


def test_predictions_are_of_the_raw_image_and_deterministic(started, batch, variant):
    method, params, model_state = started
    predict = variant(method.predict)
    answer, again = (
        predict(params, model_state, {"image": batch["image"]}) for _ in range(2)
    )
    np.testing.assert_array_equal(answer.probabilities, again.probabilities)
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, rtol=1e-5)
    network = build("resnet34", maps=5)
    image = tasks.normalize(tasks.resize(batch["image"], 16), "image")
    variables = {"params": params["task"], **model_state["task"]}
    output = jax.jit(functools.partial(network.apply, train=False))(variables, image)
    expected = jax.nn.softmax(output.logits)
    np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-3, atol=1e-5)
    assert answer.area is answer.entropy is answer.policy_map is None
    assert not method.needs_lungs


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "frozen"},
        {"norm": "group"},
        {"dtype": "bfloat16"},
        {"normalize": "fixed"},
    ],
)
def test_other_settings_of_the_task_network(settings, batch, changes):
    task = dataclasses.replace(settings.task, **changes)
    method = METHODS["mag_sd"](dataclasses.replace(settings, task=task), 3)
    params, model_state = jax.eval_shape(method.init, KEY, batch["image"][:1])
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((params, model_state)))
    gradient, aux = jax.eval_shape(
        jax.grad(method.loss, has_aux=True), params, model_state, None, batch, KEY, 0
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(aux.model_state, model_state)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    assert all(value == scalar for value in aux.metrics.values())
    actions = jnp.tile(jnp.array([0.0, 0.0, 0.5, 0.5]), (4, 1))
    losses = jax.eval_shape(method.task_losses, params, model_state, batch, actions)
    assert losses.shape == (4,)


def test_frozen_statistics_stay_and_one_image_is_enough(settings, batch):
    task = dataclasses.replace(settings.task, norm="frozen")
    method = METHODS["mag_sd"](dataclasses.replace(settings, task=task), 3)
    params, model_state = jax.jit(method.init)(KEY, batch["image"][:1])
    single = {name: value[:1] for name, value in batch.items()}
    value, aux = jax.jit(method.loss)(params, model_state, None, single, KEY, 0)
    assert np.isfinite(value)
    chex.assert_trees_all_equal(aux.model_state, model_state)


# What goes around it.


def test_trunk_starts_from_a_file_of_torchvision_s_weights():
    def zeros(variables):
        zero = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variables)
        return zero.pop("params"), zero

    plain = zeros(shapes_of(nets.NETS["resnet18"](num_classes=7), 64, channels=3)[0])
    rng = np.random.default_rng(0)
    tensors = {}

    def name_tensor(path, leaf):
        keys = tuple(entry.key for entry in path[1:])
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,))
        value = rng.standard_normal([leaf.shape[i] for i in order], np.float32)
        tensors[pretrained._resnet_name(keys)] = value

    for tree in plain:
        wrapped = tree if "batch_stats" in tree else {"params": tree}
        jax.tree_util.tree_map_with_path(name_tensor, wrapped)
    expected = pretrained.convert(tensors, "resnet18", *plain)
    variables = shapes_of(build("resnet18"), 64, channels=3)[0]
    loaded = pretrained.convert(
        tensors, "resnet18", *zeros(variables), source="w.safetensors"
    )
    new = {"attention", "head"}
    assert set(loaded.params) == set(expected.params) | new
    for found, full in (
        (loaded.params, expected.params),
        (loaded.model_state["batch_stats"], expected.model_state["batch_stats"]),
    ):
        trunk = {name: tree for name, tree in full.items() if name != "head"}
        chex.assert_trees_all_equal({name: found[name] for name in trunk}, trunk)
        for name in new & set(found):
            assert not any(leaf.any() for leaf in jax.tree.leaves(found[name]))
    assert loaded.notes == (
        "w.safetensors: its head of 7 classes is left out",
        "w.safetensors has no weights for resnet18's attention, which starts new",
    )
    # This head has no bias, so the file's need not have one.
    without = {name: value for name, value in tensors.items() if name != "fc.bias"}
    again = pretrained.convert(
        without, "resnet18", *zeros(variables), source="w.safetensors"
    )
    assert again.notes == loaded.notes


@pytest.mark.parametrize("net", ["resnet8+danet", "densenet121", "vgg16"])
def test_networks_that_are_no_plain_resnet_are_refused(net):
    texts = {"method": "mag_sd", "task.net": net, "task.image_size": "64"}
    with pytest.raises(UserError) as error:
        config.override_all(config.Config(), texts)
    assert str(error.value) == (
        f"task.net is {net}, but method mag_sd has a head of its own on a ResNet: it "
        "takes resnet8, resnet14, resnet20, resnet10, resnet18, resnet34, resnet50, "
        "each with +cbam or without"
    )
    assert config.override(config.Config(method="mag_sd"), "task.net", "resnet8+cbam")


def test_attention_maps_of_the_config(settings, started):
    assert config.Config().baseline.attention_maps == 32
    _, params, _ = started
    assert params["task"]["attention"]["fine_conv"]["kernel"].shape == (1, 1, 8, 5)
    assert params["task"]["head"]["kernel"].shape == (5 * 16, 3)
