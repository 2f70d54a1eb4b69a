"""U-Net, Dice, targets and answers under operations, and the program on them."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score

from hapre_jax import (
    boxes,
    config,
    config_file,
    framework,
    losses,
    metrics,
    nets,
    operations,
    random_views,
    tasks,
)
from hapre_jax.config import Config, DataConfig
from hapre_jax.data import degrade, feed, images, phantom, pipeline, sources
from hapre_jax.errors import UserError
from hapre_jax.nets import Output
from hapre_jax.operations import geometry
from hapre_jax.task_program import train_and_test

_FILE = pathlib.Path(__file__).parents[1] / "launch" / "segmentation.py"
_SPEC = importlib.util.spec_from_file_location("segmentation", _FILE)
segmentation = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(segmentation)

QUARTER = jnp.array([0.0, 0.5, 0.5, 1.0])  # the upper right one


def test_unet_gives_a_logit_a_pixel_and_structure():
    net = nets.UNet(num_classes=2, levels=3, width=8)
    image = jax.ShapeDtypeStruct((2, 16, 24, 1), jnp.float32)
    init = functools.partial(net.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), image)
    apply = functools.partial(net.apply, train=False)
    output = jax.eval_shape(apply, variables, image)
    assert output.logits.shape == (2, 16, 24, 2)
    shapes = {name: of.shape[1:] for name, of in output.features.items()}
    assert shapes == {
        "down1": (16, 24, 8),
        "down2": (8, 12, 16),
        "down3": (4, 6, 32),
        "up2": (8, 12, 16),
        "up1": (16, 24, 8),
    }
    # Two 3x3 convolutions, 8 wide, after the first skip: 24 channels in, then 8.
    kernels = [variables["params"][f"up1_conv{i}"]["kernel"].shape for i in (1, 2)]
    assert kernels == [(3, 3, 24, 8), (3, 3, 8, 8)]
    wrong = jax.ShapeDtypeStruct((1, 18, 16, 1), jnp.float32)
    with pytest.raises(ValueError, match="multiples of 4"):
        jax.eval_shape(init, jax.random.key(0), wrong)


def test_dice_loss_by_hand(variant):
    target = jnp.array([[1.0, 1.0], [0.0, 0.0]])[..., None]
    found = jnp.array([[1.0, 0.5], [0.5, 0.0]])[..., None]
    # 1 - (2 * 1.5 + 1) / (1.5 + 2 + 1)
    loss = variant(losses.dice_loss)
    assert loss(found, target) == pytest.approx(1 - 4 / 4.5, rel=1e-5)
    assert loss(target, target) == 0
    nothing = jnp.zeros_like(target)
    assert loss(nothing, nothing) == 0
    assert loss(nothing, target) == pytest.approx(1 - 1 / 3, rel=1e-5)
    both = jnp.concatenate([found, target], -1), jnp.concatenate([target] * 2, -1)
    assert loss(*both) == pytest.approx((1 - 4 / 4.5) / 2, rel=1e-5)


def test_overlaps_of_masks_are_scikit_learn_s():
    rng = np.random.default_rng(0)
    found, truth = rng.uniform(size=(2, 9, 9)) < 0.4
    masks = jnp.array(found), jnp.array(truth)
    expected = f1_score(truth.ravel(), found.ravel())
    assert metrics.dice(*masks) == pytest.approx(expected, rel=1e-6)
    expected = jaccard_score(truth.ravel(), found.ravel())
    assert metrics.mask_iou(*masks) == pytest.approx(expected, rel=1e-6)
    empty = jnp.zeros((3, 3), bool)
    assert metrics.dice(empty, empty) == 1 and metrics.mask_iou(empty, empty) == 1
    assert metrics.dice(empty, ~empty) == 0


def test_mask_of_a_key_area_is_cut_and_put_back():
    mask = np.zeros((16, 16, 1), np.float32)
    mask[2:6, 10:14] = 1  # in the upper right quarter, rows 2-6, columns 2-6
    shown = geometry.show_mask(operations.KeyArea(), jnp.array(mask), QUARTER, 8)
    expected = np.zeros((8, 8, 1))
    expected[2:6, 2:6] = 1
    np.testing.assert_allclose(shown, expected)
    back = geometry.restore(operations.KeyArea(), shown, QUARTER, 16)
    np.testing.assert_array_equal(back > 0.5, mask > 0.5)
    # Ones everywhere on the area are ones there alone.
    back = geometry.restore(operations.KeyArea(), jnp.ones((8, 8, 1)), QUARTER, 16)
    expected = np.zeros((16, 16, 1))
    expected[:8, 8:] = 1
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize(("stored", "shown_size"), [(64, 16), (96, 32), (64, 32)])
def test_a_whole_mask_is_shown_as_means_of_its_pixels(stored, shown_size):
    mask = np.random.default_rng(0).uniform(size=(stored, stored, 1)) < 0.5
    mask = mask.astype(np.float32)
    operation = operations.KeyArea()
    whole = jnp.array(boxes.WHOLE)
    shown = geometry.show_mask(operation, jnp.array(mask), whole, shown_size)
    n = stored // shown_size
    blocks = mask.reshape(shown_size, n, shown_size, n, 1)
    np.testing.assert_allclose(shown, blocks.mean((1, 3)), atol=1e-6)


def test_what_a_mask_hides_is_no_target():
    shown = geometry.show_mask(operations.Mask(), jnp.ones((16, 16, 1)), QUARTER, 8)
    expected = np.zeros((8, 8, 1))
    expected[:4, 4:] = 1
    np.testing.assert_array_equal(shown, expected)


def test_mask_turns_with_the_image():
    mask = np.zeros((32, 32), np.float32)
    mask[6:12, 14:25] = 1
    rotation, action = operations.Rotation(40.0), jnp.array([0.75])
    shown = geometry.show_mask(rotation, jnp.array(mask[..., None]), action, 32)
    # SciPy turns from the second axis to the first, counterclockwise as it is seen.
    expected = scipy.ndimage.rotate(mask, 30, reshape=False, order=1)
    assert np.abs(shown[..., 0] - expected).mean() < 0.01
    back = geometry.restore(rotation, shown, action, 32)[..., 0]
    assert np.mean((back > 0.5) != (mask > 0.5)) < 0.02


def test_intensity_leaves_targets_alone():
    mask = (jax.random.uniform(jax.random.key(0), (8, 8, 1)) < 0.5).astype(jnp.float32)
    gamma, action = operations.Gamma(), jnp.array([0.7])
    np.testing.assert_allclose(geometry.restore(gamma, mask, action, 8), mask)
    boxes = jnp.array([[0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(geometry.show_boxes(gamma, boxes, action), boxes)


def test_boxes_move_with_the_key_area_and_back():
    boxes = jnp.array([[0.1, 0.6, 0.2, 0.75], [0.4, 0.4, 0.6, 0.6]])
    shown = geometry.show_boxes(operations.KeyArea(), boxes, QUARTER)
    expected = [[0.2, 0.2, 0.4, 0.5], [0.8, -0.2, 1.2, 0.2]]
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    back = geometry.restore_boxes(operations.KeyArea(), shown, QUARTER)
    np.testing.assert_allclose(back, boxes, atol=1e-6)


def _task():
    return tasks.Segmentation(None, image_size=8, whole_size=16)


def test_what_an_area_leaves_out_counts_as_missed():
    """A perfect answer on half of a structure has Dice 2/3 of it."""
    whole = np.zeros((2, 16, 16, 1), np.float32)
    whole[:, 0:8, 4:12] = 1
    areas = jnp.stack([QUARTER, jnp.array([0.0, 0.0, 1.0, 1.0])])
    shown = jax.vmap(functools.partial(_task().show_target, operation=KEY_AREA))(
        jnp.array(whole), action=areas
    )
    outputs = Output(80 * (shown - 0.5), {})
    found = _task().whole_loss(outputs, jnp.array(whole), KEY_AREA, areas)
    # 32 of 64 pixels; (2 * 32 + 1) / (32 + 64 + 1).
    np.testing.assert_allclose(found, [1 - 65 / 97, 0], atol=0.03)


KEY_AREA = operations.KeyArea()


def test_loss_is_cross_entropy_and_dice_of_what_is_shown():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    target = (rng.uniform(size=(2, 8, 8, 1)) < 0.3).astype(np.float32)
    found = _task().loss(Output(jnp.array(logits), {}), jnp.array(target))
    p = 1 / (1 + np.exp(-logits.astype(float)))
    for row in range(2):
        entropy = -np.mean(np.log(np.where(target[row] == 1, p[row], 1 - p[row])))
        shared = np.sum(p[row] * target[row])
        dice = (2 * shared + 1) / (np.sum(p[row] ** 2) + np.sum(target[row]) + 1)
        assert found[row] == pytest.approx(entropy + 1 - dice, rel=1e-4)


def test_phantoms_know_their_lungs():
    film = phantom.make(4, quality="low", size=64)
    rows, columns = np.flatnonzero(film.lungs.any(1)), np.flatnonzero(film.lungs.any(0))
    box = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / 64
    # The lung box leaves out what the heart hides.
    np.testing.assert_allclose(box, film.lung_box, atol=2.1 / 64)


def test_masks_are_loaded_where_they_are_asked_for():
    data = DataConfig(image_size=32, train_images=4, validation_images=3, test_images=3)
    assert pipeline.load(data, seed=2).test.masks is None
    splits = pipeline.load(data, seed=2, masks=True)
    assert splits.train.masks.shape == (4, 32, 32, 1)
    film = phantom.make(8, seed=2, quality="low", size=32)  # the second test film
    np.testing.assert_array_equal(splits.test.masks[1, ..., 0] == 255, film.lungs)
    taken = splits.test.take(np.array([1]))
    np.testing.assert_array_equal(taken.masks, splits.test.masks[1:2])
    batch = next(feed.eval_batches(splits.test, 3))
    np.testing.assert_array_equal(batch["lungs"], splits.test.masks)


def test_films_without_a_mask_are_left_out(caplog):
    data = DataConfig(image_size=32, train_images=6, validation_images=3, test_images=3)
    source = sources.open_source(data, seed=0)

    def read(index):
        film = source.read(index)
        return film._replace(lungs=None) if index == 4 else film

    changed = dataclasses.replace(source, read=read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "open_source", lambda data, seed: changed)
        splits = pipeline.load(data, seed=0, masks=True)
    assert len(splits.train) == 5 and "left out 1 of 12" in caplog.text


def test_mask_of_a_degraded_film_is_where_its_lungs_went():
    film = phantom.make(4, quality="high", size=96)
    for seed in range(4):
        found = degrade.degrade(
            Image.fromarray(film.image),
            film.lungs,
            level=degrade.LEVELS["low"],
            size=96,
            rng=np.random.default_rng(seed),
        )
        assert found.mask.dtype == np.uint8 and found.mask.max() == 255
        tight = images.tight_box(found.mask > 127) / 96
        np.testing.assert_allclose(tight, found.lung_box, atol=1.6 / 96)


def test_flips_take_the_mask_along():
    batch = {"image": jnp.zeros((1, 4, 4, 1)).at[0, 0, 1].set(1)}
    batch["lungs"] = batch["image"]
    flipped = random_views.flip(
        batch, jax.random.key(0), axis="horizontal", probability=1.0
    )
    assert flipped["image"][0, 0, 2, 0] == 1
    np.testing.assert_array_equal(flipped["lungs"], flipped["image"])


class _Bright:
    """A network that knows: lungs are what is bright."""

    def init(self, key, image, *, train):
        return {"params": {}}

    def apply(self, variables, image, *, train, mutable):
        return Output(20 * image, {}), {}


class _Looks:
    """A policy network that always looks at the upper right quarter."""

    def init(self, key, image, *, train):
        return {"params": {}}

    def apply(self, variables, image, *, train, mutable):
        quarter = np.full((len(image), 8, 8), -30.0)
        quarter[:, :4, 4:] = 30
        return Output(jnp.array(quarter, jnp.float32), {}), {}


def test_answers_of_a_trained_method_are_of_whole_films():
    """A network that is right in its key area: what is left out is not found."""
    task = tasks.Segmentation(_Bright(), 16, whole_size=32, normalize="fixed")
    settings = Config()
    method = framework.make(
        task,
        _Looks(),
        KEY_AREA,
        settings,
    )
    lungs = np.zeros((2, 32, 32, 1), np.float32)
    lungs[0, 4:12, 20:28] = 1  # inside
    lungs[1, 8:24, 20:28] = 1  # its lower half is outside
    found = method.predict({"task": {}, "policy": {}}, {"task": {}, "policy": {}},
                           {"image": jnp.array(lungs)})  # fmt: skip
    np.testing.assert_allclose(found.area, [QUARTER] * 2, atol=1e-5)
    expected = lungs.copy()
    expected[1, 16:] = 0
    np.testing.assert_array_equal(found.probabilities > 0.5, expected)
    films = dataclasses.make_dataclass("Films", ["masks"])(np.uint8(255 * lungs))
    # Dice 1 and 2 * 64 / (64 + 128), IoU 1 and 64 / 128.
    scores = segmentation.score([(slice(0, 2), jax.device_get(found))], films)
    assert scores["dice"] == pytest.approx((1 + 2 / 3) / 2, rel=1e-6)
    assert scores["iou"] == pytest.approx(0.75, rel=1e-6)


TINY = (
    "--data.image_size=32 --data.train_images=8 --data.validation_images=3 "
    "--data.test_images=6 --task.image_size=16 --policy.image_size=16 --policy.grid=8 "
    "--policy.samples=2 --policy.train_crops=2 --policy.warmup_steps=1 "
    "--train.steps=4 --train.batch_size=4 --train.log_every=2"
).split()


@pytest.mark.slow
def test_program_trains_goes_on_and_scores_masks_of_whole_films(tmp_path, capsys):
    workdir = tmp_path / "run"
    command = [*TINY, f"--workdir={workdir}"]
    settings = config.override_all(
        config_file.load("configs/phantom.py"),
        dict(flag.removeprefix("--").split("=") for flag in TINY),
    )
    program = segmentation.PROGRAM
    assert train_and_test(settings, workdir, program, stop_after=3) is None
    assert segmentation.main(command) == 0
    assert "hapre: going on from step 3" in capsys.readouterr().out
    results = json.loads((workdir / "results.json").read_text())
    scores = results["test"]
    assert set(scores) == {"n", "dice", "iou", "key_area", "parameters"}
    assert scores["n"] == 6 and 0 <= scores["iou"] <= scores["dice"] <= 1
    assert 0 < scores["key_area"]["lung_coverage"] <= 1
    with Image.open(workdir / "answers.png") as picture:
        assert picture.size == (3 * 32, 6 * 32)
    assert (workdir / "key_areas_over_time.png").exists()
    whole = train_and_test(settings, tmp_path / "whole", program)
    assert whole | {"seconds": 0} == results | {"seconds": 0}


def test_program_computes_in_the_type_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(segmentation.hapre, "of_task", lambda config, task: task)
    found = {}
    for dtype in ("float32", "bfloat16"):
        settings = config.override(Config(), "task.dtype", dtype)
        net = segmentation.make(settings).network
        image = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
        output, variables = jax.eval_shape(
            functools.partial(net.init_with_output, train=False),
            jax.random.key(0),
            image,
        )
        assert {of.dtype.name for of in jax.tree.leaves(variables)} == {"float32"}
        found[dtype] = {of.dtype.name for of in output.features.values()}
        assert output.logits.dtype == jnp.float32
    assert found == {"float32": {"float32"}, "bfloat16": {"bfloat16"}}


def test_program_refuses_what_the_network_cannot_halve(tmp_path):
    workdir = tmp_path / "run"
    command = [*TINY, f"--workdir={workdir}", "--task.image_size=18"]
    with pytest.raises(UserError, match="task.image_size is 18"):
        segmentation.main(command)
    assert not workdir.exists()
