"""Boxes by their middles, average precision, and the task on top of them."""

import dataclasses
import importlib.util
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from hapre_jax import (
    centers,
    config,
    config_file,
    log,
    metrics,
    nets,
    operations,
    tasks,
)
from hapre_jax.config import DataConfig
from hapre_jax.data import feed, pipeline
from hapre_jax.errors import UserError
from hapre_jax.method import Prediction
from hapre_jax.nets import Output

_FILE = pathlib.Path(__file__).parents[1] / "launch" / "detection.py"
_SPEC = importlib.util.spec_from_file_location("detection", _FILE)
detection = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(detection)

NOWHERE = [math.nan] * 4
BOX = [0.2, 0.5, 0.4, 0.8]  # middle (0.3, 0.65)
# Of a film with a lesion beside one without, and of two without.
BOXES_OF = [[np.array([BOX]), np.zeros((0, 4))], [np.zeros((0, 4))] * 2]
KEY_AREA = operations.KeyArea()


def perfect(boxes, grid=8):
    """The map of a detector that knows the boxes."""
    found = np.zeros((grid, grid, 5), np.float32)
    found[..., 0] = -12
    for box in np.array(boxes, np.float32):
        if np.isnan(box[0]):
            continue
        middle, size = (box[:2] + box[2:]) / 2 * grid, box[2:] - box[:2]
        y, x = middle.astype(int)
        found[y, x] = [12, *(middle - [y, x]), *np.log(size)]
    return jnp.array(found)


def test_boxes_are_read_back():
    other = [0.6, 0.1, 0.9, 0.2]
    found, scores = centers.decode(perfect([BOX, other, NOWHERE]), count=3)
    order = np.argsort(np.asarray(found)[:2, 0])
    np.testing.assert_allclose(found[order], [BOX, other], atol=1e-6)
    assert scores[1] > 0.99 and scores[2] < 0.01


def test_a_middle_that_a_neighbor_beats_is_none():
    found = np.array(perfect([BOX]))
    found[3, 5, 0] = 5.0  # beside the middle, at cell (2, 5)
    _, scores = centers.decode(jnp.array(found), count=2)
    assert scores[0] > 0.99 and scores[1] < 0.01


def test_loss_is_least_for_the_boxes_themselves(variant):
    boxes = jnp.array([BOX, NOWHERE])
    loss = variant(centers.loss)
    right = loss(perfect([BOX]), boxes)
    for wrong in ([0.2, 0.6, 0.4, 0.9], [0.1, 0.5, 0.5, 0.8], NOWHERE):
        assert loss(perfect([wrong]), boxes) > right + 0.1
    nothing = jnp.array([NOWHERE, NOWHERE])
    assert loss(perfect([NOWHERE]), nothing) < 1e-3


def test_loss_of_place_and_size_by_hand():
    boxes = jnp.array([BOX])
    found = perfect([BOX])
    # The middle lies in cell (2, 5), at (0.4, 0.2) of it.
    np.testing.assert_allclose(found[2, 5, 1:3], [0.4, 0.2], atol=1e-5)
    moved = found.at[2, 5, 1:].add(jnp.array([0.1, -0.2, 0.3, 0.0]))
    change = centers.loss(moved, boxes) - centers.loss(found, boxes)
    assert change == pytest.approx(0.6, rel=1e-4)


def test_gradient_is_finite_without_a_box():
    gradient = jax.grad(centers.loss)(jnp.zeros((4, 4, 5)), jnp.array([NOWHERE]))
    assert np.isfinite(gradient).all() and jnp.any(gradient[..., 0] > 0)
    assert not jnp.any(gradient[..., 1:])


def test_boxes_without_extent_and_no_boxes_at_all():
    flat = jnp.zeros((4, 4, 5))
    assert np.isfinite(centers.loss(flat, jnp.array([[0.25, 0.5, 0.25, 0.75]])))
    none = centers.loss(flat, jnp.zeros((0, 4)))
    assert none == centers.loss(flat, jnp.array([NOWHERE]))


def test_no_more_boxes_than_cells():
    with pytest.raises(ValueError, match="count is 17, but a map of .* has fewer"):
        centers.decode(jnp.zeros((4, 4, 5)), count=17)


def test_average_precision_by_hand():
    # Three boxes to find; of four answers in order of probability the first and the
    # third are right: (1 / 1 + 2 / 3) / 3.
    truth = [np.array([BOX, [0.0, 0.0, 0.1, 0.1]]), np.array([BOX])]
    far = [0.8, 0.8, 0.9, 0.9]
    scores = [np.array([0.9, 0.8]), np.array([0.7, 0.6])]
    found = [np.array([BOX, BOX]), np.array([BOX, far])]  # a second one is wrong
    assert metrics.average_precision(scores, found, truth) == pytest.approx(5 / 9)
    # IoU with a box moved by half its width: 1 / 3.
    shifted = [np.array([[0.2, 0.65, 0.4, 0.95]])]
    some = ([np.array([0.5])], shifted, [np.array([BOX])])
    assert metrics.average_precision(*some) == 0
    assert metrics.average_precision(*some, min_iou=0.3) == 1
    none = [np.zeros((0, 4))]
    assert math.isnan(metrics.average_precision([np.zeros(0)], none, none))


def test_average_precision_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.7, (40, 2))
    truth = np.concatenate([low, low + 0.2], axis=1)
    is_right = rng.uniform(size=40) < 0.6
    found = truth + np.where(is_right, 0.01, 0.3)[:, None]
    scores = rng.permutation(40) / 40 + 0.21 * is_right
    ours = metrics.average_precision(scores[:, None], found[:, None], truth[:, None])
    # Of it recall is the share of what was found; here, of all 40.
    expected = average_precision_score(is_right, scores) * is_right.mean()
    assert ours == pytest.approx(expected, rel=1e-6)


def test_average_precision_of_several_boxes_a_film_is_scikit_learn_s():
    """Of the answers that lie on a box, the surest is right, and the others wrong."""
    rng = np.random.default_rng(1)
    scores, found, truth, is_right = [], [], [], []
    for _ in range(12):
        places = rng.permutation(16)[: rng.integers(0, 4)]
        low = np.stack(np.divmod(places, 4), axis=1) / 4
        boxes = np.concatenate([low, low + 0.2], axis=1)
        # Each answer on one of the film's boxes, or between all of them.
        on = rng.integers(-1, len(boxes), 5)
        answers = [
            boxes[i] + rng.uniform(-0.01, 0.01, 4)
            if i >= 0
            else [0.21, 0.21, 0.24, 0.24]
            for i in on
        ]
        sure = rng.permutation(5) + rng.uniform(size=5)
        surest = {i: max(sure[on == i]) for i in set(on) - {-1}}
        is_right += [i >= 0 and s == surest[i] for i, s in zip(on, sure, strict=True)]
        scores.append(sure), found.append(np.array(answers)), truth.append(boxes)
    ours = metrics.average_precision(scores, found, truth)
    recall = sum(is_right) / sum(map(len, truth))
    expected = average_precision_score(is_right, np.concatenate(scores)) * recall
    assert 0.1 < expected < 0.9 and ours == pytest.approx(expected, rel=1e-6)


def test_detector_gives_five_numbers_a_cell_and_believes_nothing_at_first():
    trunk = nets.NETS["resnet8"](num_classes=0, norm="group")
    net = nets.CenterNet(trunk, grid=8, width=8)
    image = jnp.zeros((2, 16, 16, 1))
    variables = net.init(jax.random.key(0), image, train=False)
    logits = net.apply(variables, image, train=False).logits
    assert logits.shape == (2, 8, 8, 5)
    np.testing.assert_allclose(jax.nn.sigmoid(logits[..., 0]), 0.01, atol=0.005)


def test_boxes_are_shown_paid_for_and_brought_back():
    task = tasks.Detection(None, image_size=16, count=1)
    target = jnp.array([[BOX], [BOX]])
    # The first area holds the box, the second does not.
    areas = jnp.array([[0.0, 0.4, 0.5, 0.9], [0.5, 0.0, 1.0, 0.5]])
    shown = jnp.stack(
        [task.show_target(t, KEY_AREA, a) for t, a in zip(target, areas, strict=True)]
    )
    np.testing.assert_allclose(shown[0], [[0.4, 0.2, 0.8, 0.8]], atol=1e-6)
    assert np.isnan(shown[1]).all()
    outputs = Output(jnp.stack([perfect(shown[0]), perfect(shown[1])]), {})
    seen, lost = task.whole_loss(outputs, target, KEY_AREA, areas)
    assert lost - task.loss(outputs, shown)[1] == pytest.approx(7.0)
    assert seen == pytest.approx(float(task.loss(outputs, shown)[0]))
    answers = task.whole_answers(outputs, KEY_AREA, areas)
    assert answers.shape == (2, 1, 5)
    assert answers[0, 0, 0] > 0.99
    np.testing.assert_allclose(answers[0, 0, 1:], BOX, atol=1e-5)


def test_a_box_is_shown_where_its_middle_is_seen():
    """Also one that is partly hidden, or that sticks out of what a rotation gets."""
    task = tasks.Detection(None, image_size=16)
    target = jnp.array([[0.4, 0.4, 0.6, 0.6], [0.1, 0.1, 0.2, 0.2]])
    area = jnp.array([0.45, 0.45, 1.0, 1.0])
    hidden = np.full(4, np.nan)
    shown = task.show_target(target, operations.Mask(), area)
    np.testing.assert_allclose(shown, [target[0], hidden], atol=1e-6)
    upright = operations.Hybrid((KEY_AREA, operations.Rotation()))
    shown = task.show_target(target, upright, jnp.append(area, 0.0))
    np.testing.assert_allclose(shown, [[0, 0, 3 / 11, 3 / 11], hidden], atol=1e-6)


TINY = (
    "--data.image_size=32 --data.train_images=9 --data.validation_images=6 "
    "--data.test_images=9 --task.image_size=16 --policy.samples=2 "
    "--policy.warmup_steps=1 --train.steps=4 --train.batch_size=4 --train.eval_every=2"
).split()


@pytest.mark.slow
def test_program_trains_a_detector(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert detection.main([*TINY, f"--workdir={workdir}"]) == 0
    results = json.loads((workdir / "results.json").read_text())
    scores = results["test"]
    assert scores["n"] == 9 and 0 <= scores["ap_50"] <= scores["ap_25"] <= 1
    assert scores["key_area"]["lesion_coverage"] > 0.5
    validated = [
        record
        for record in log.read(workdir / "metrics.jsonl")
        if record["kind"] == "validation"
    ]
    assert [record["step"] for record in validated] == [2, 4]
    assert f"ap_50 {scores['ap_50']:.3f}" in capsys.readouterr().out
    with Image.open(workdir / "answers.png") as picture:
        assert picture.size == (3 * 160, 160)  # a third has a consolidation


def test_a_split_is_scored_by_the_boxes_of_all_its_films():
    far = [0.8, 0.8, 0.9, 0.9]
    truth = (np.array([BOX], np.float32), np.zeros((0, 4), np.float32))
    films = dataclasses.make_dataclass("Films", ["lesion_boxes"])(truth)
    # The film without a box has the surest answer, which is wrong: 1 of 2.
    sure = [np.array([[[0.6, *BOX], [0.1, *far]]]), np.array([[[0.7, *BOX]] * 2])]
    answers = [
        (slice(row, row + 1), Prediction(found)) for row, found in enumerate(sure)
    ]
    # Both answers of the healthy film stand before the right one: 1 of 3.
    assert detection.score(answers, films)["ap_50"] == pytest.approx(1 / 3)
    picture = detection.draw(
        Prediction(np.concatenate(sure)),
        dataclasses.make_dataclass("Films", ["images", "lesion_boxes"])(
            np.zeros((2, 8, 8, 1), np.uint8), truth
        ),
    )
    assert picture.size == (160, 160)  # of the only sick film


def test_program_computes_in_the_type_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(detection.hapre, "of_task", lambda config, task: task)
    found = {}
    for dtype in ("float32", "bfloat16"):
        settings = config.override(config.Config(), "task.dtype", dtype)
        net = detection.make(settings).network
        output, variables = jax.eval_shape(
            lambda key, net=net: net.init_with_output(
                key, jnp.zeros((1, 16, 16, 1)), train=False
            ),
            jax.random.key(0),
        )
        assert {of.dtype.name for of in jax.tree.leaves(variables)} == {"float32"}
        found[dtype] = {of.dtype.name for of in output.features.values()}
        assert output.logits.dtype == jnp.float32
    assert found == {"float32": {"float32"}, "bfloat16": {"bfloat16"}}


def test_films_without_known_boxes_are_refused(tmp_path):
    films = dataclasses.make_dataclass("Films", ["lesion_boxes"])(None)
    with pytest.raises(UserError, match="no lesion boxes are known of phantom"):
        detection.check(config_file.load("configs/detection.py"), (films,) * 3)
    # Of validation films without a lesion no checkpoint would be the best.
    sick, sound = (dataclasses.replace(films, lesion_boxes=of) for of in BOXES_OF)
    with pytest.raises(UserError, match="of phantom, or of one of its splits"):
        detection.check(config_file.load("configs/detection.py"), (sick, sound, sick))


def test_boxes_of_a_batch_are_padded():
    data = DataConfig(image_size=32, train_images=6, validation_images=3, test_images=3)
    assert pipeline.load(data, seed=2).train.boxes is None
    films = pipeline.load(data, seed=2, boxes=True).train
    assert films.boxes.shape == (6, 1, 4)
    for padded, known in zip(films.boxes, films.lesion_boxes, strict=True):
        expected = known if len(known) else [NOWHERE]
        np.testing.assert_array_equal(padded, expected)
    taken = films.take(np.array([4, 0]))
    np.testing.assert_array_equal(taken.boxes, films.boxes[[4, 0]])
    batch = next(feed.eval_batches(films, 6))
    np.testing.assert_array_equal(batch["boxes"], films.boxes)
