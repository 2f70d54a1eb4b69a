import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from tiny import FACTS, SCORES

from hapre_jax import (
    boxes,
    checkpoint,
    cli,
    evaluate,
    evaluation,
    json_file,
    other_films,
    predictions,
    run_folder,
)
from hapre_jax import config as config_lib
from hapre_jax.config import Config, DataConfig, PolicyConfig, TrainConfig
from hapre_jax.data import pipeline, splits
from hapre_jax.data.dataset import NO_BOXES, NOWHERE, Dataset
from hapre_jax.errors import UserError
from hapre_jax.method import Prediction
from hapre_jax.methods import METHODS
from hapre_jax.train_state import TrainState

ROOT = pathlib.Path(__file__).parents[1]
CLASSES = ("normal", "bacterial", "viral")
NO_LUNGS = (
    "method true_lungs needs lung boxes, and of a split of this data set none is known"
)


def _dataset(labels, lung_boxes=NO_BOXES):
    """Image k is of gray k."""
    count = len(labels)
    images = np.zeros((count, 2, 2, 1), np.uint8)
    images += np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    names = tuple(map(str, range(count)))
    return Dataset(
        images, np.array(labels, np.int32), names, names, CLASSES, lung_boxes
    )


def _lookup(table, seen=None, actions=None):
    """A `predict` that answers image k with line k of a table."""

    def predict(params, model_state, batch):
        assert (params, model_state) == ("average", "statistics")
        index = batch["image"][:, 0, 0, 0]
        if seen is not None:
            seen.append(len(index))
        if actions is None:
            return Prediction(jnp.array(table[index]))
        return Prediction(
            jnp.array(table[index]),
            jnp.array(actions[index]),
            jnp.array(-1.0 * index),
            # Of a policy at its start, but for one of 16 cells.
            jnp.full((len(index), 4, 4), 0.5).at[:, 0, 0].set(0.1 * index),
        )

    return predict


STATE = TrainState(None, "params", "model_state", None, ("average", "statistics"))


def _sklearn_scores(labels, answers):
    options = {"average": "macro", "zero_division": 0}
    return {
        "accuracy": metrics.accuracy_score(labels, answers),
        "macro_precision": metrics.precision_score(labels, answers, **options),
        "macro_recall": metrics.recall_score(labels, answers, **options),
        "macro_f1": metrics.f1_score(labels, answers, **options),
    }


def _assert_scores(scores, labels, answers):
    for name, expected in _sklearn_scores(labels, answers).items():
        assert scores[name] == pytest.approx(expected, rel=1e-6), name
        assert type(scores[name]) is float
    matrix = metrics.confusion_matrix(labels, answers, labels=[0, 1, 2])
    assert scores["confusion_matrix"] == matrix.tolist()
    assert scores["n"] == len(labels)


def test_scores_are_scikit_learn_s_and_padding_is_not_counted():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 13)
    table = rng.dirichlet(np.ones(3), 13).astype(np.float32)
    seen = []
    config = Config(train=TrainConfig(batch_size=1))
    source = _dataset(labels)
    found = evaluation.evaluate(_lookup(table, seen), STATE, source, config=config)
    assert seen == [4, 4, 4, 4]  # one shape, so one compilation; 3 of 16 are padding
    np.testing.assert_array_equal(found.predictions.probabilities, table)
    _assert_scores(found.scores, labels, table.argmax(axis=1))
    assert found.scores["key_area"] is None
    assert found.predictions.area is None


@pytest.mark.parametrize(
    ("train", "shares", "size"),
    [
        ({}, 1, 128),
        ({"parts": 8}, 1, 16),  # a training step holds 4 of 32
        ({"devices": 8}, 1, 16),  # of which each device has 4
        ({"devices": 8}, 8, 128),
        ({"devices": 8, "model_devices": 2}, 1, 32),
        ({"devices": 0}, 8, 128),  # as many as there were, which are these
        ({"batch_size": 4, "parts": 4, "devices": 4}, 1, 1),
    ],
)
def test_films_at_once_are_as_many_as_fit_into_training(train, shares, size):
    config = Config(train=TrainConfig(**{"batch_size": 32} | train))
    assert evaluation.batch_size(config, shares) == size


def test_a_source_of_other_classes_is_scored_in_the_common_space():
    # Of a model of three classes, on films that are normal or not.
    table = np.array(
        [[0.4, 0.35, 0.25], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.6, 0.1, 0.3]],
        np.float32,
    )
    source = dataclasses.replace(
        _dataset([1, 0, 0, 1]), classes=("Lung Opacity", "Normal")
    )
    three = ("normal", "bacterial", "viral")
    found = evaluation.evaluate(
        _lookup(table), STATE, source, config=Config(), classes=three
    )
    assert found.scores["classes"] == ["normal", "pneumonia"]
    # True: normal, pneumonia, pneumonia, normal. Film 0 is answered pneumonia by the
    # sum, though normal is the likeliest of the three.
    assert found.scores["confusion_matrix"] == [[1, 1], [1, 1]]
    with pytest.raises(UserError, match="no common label space"):
        evaluation.evaluate(
            _lookup(table), STATE, source, config=Config(), classes=("cat", "dog")
        )


def test_views_are_scored_apart():
    table = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    source = dataclasses.replace(_dataset([0, 1, 2, 2]), views=("PA", "AP", "PA", ""))
    scores = evaluation.evaluate(_lookup(table), STATE, source, config=Config()).scores
    assert {view: scored["n"] for view, scored in scores["views"].items()} == {
        "unknown": 1,
        "AP": 1,
        "PA": 2,
    }
    assert scores["views"]["PA"]["accuracy"] == pytest.approx(0.5)
    # Right in all of AP: that it has films of class 1 alone is no mistake.
    assert scores["views"]["AP"] == {
        "n": 1,
        "accuracy": 1.0,
        "macro_precision": 1.0,
        "macro_recall": 1.0,
        "macro_f1": 1.0,
    }
    # Of PA: class 0 right, class 1 answered once and never true, class 2 missed.
    assert scores["views"]["PA"]["macro_recall"] == pytest.approx(1 / 3)


def test_framings_are_scored_apart():
    table = np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 0]]
    # Longer sides 0.55, 0.6, 0.95, 0.5, unknown.
    boxes = [(0.1, 0.1, 0.5, 0.65), (0.0, 0.1, 0.6, 0.5), (0.0, 0.0, 0.95, 0.8)]
    boxes += [(0.5, 0.5, 1.0, 0.9), (np.nan,) * 4]
    source = dataclasses.replace(
        _dataset([0, 1, 2, 1, 0]), lung_boxes=np.array(boxes, np.float32)
    )
    scores = evaluation.evaluate(_lookup(table), STATE, source, config=Config()).scores
    assert {name: of["n"] for name, of in scores["framings"].items()} == {
        "unknown": 1,
        "high": 1,
        "low": 2,
        "medium": 1,
    }
    assert scores["framings"]["low"]["accuracy"] == 0.5  # film 3 is called 2
    assert scores["framings"]["high"]["accuracy"] == 0.0
    # Nothing is known of where the lungs are.
    source = dataclasses.replace(source, lung_boxes=NO_BOXES)
    scores = evaluation.evaluate(_lookup(table), STATE, source, config=Config()).scores
    assert scores["framings"] == {}


def test_a_split_smaller_than_a_batch_is_one_batch():
    seen = []
    table = np.eye(3, dtype=np.float32)
    found = evaluation.evaluate(
        _lookup(table, seen), STATE, _dataset([0, 1, 1]), config=Config()
    )
    assert seen == [3]
    assert found.scores["accuracy"] == pytest.approx(2 / 3)


def test_key_areas_of_padding_are_not_counted():
    whole, small = boxes.WHOLE, (0.0, 0.0, 0.5, 0.5)
    areas = np.array([whole, small, small, small, small], np.float32)
    lungs = np.tile(np.array(small, np.float32), (5, 1))
    table = np.full((5, 3), 1 / 3, np.float32)
    config = Config(train=TrainConfig(batch_size=1))
    found = evaluation.evaluate(
        _lookup(table, actions=areas),
        STATE,
        _dataset([0, 1, 2, 0, 1], lungs),
        config=config,
    )
    area = found.scores["key_area"]
    assert area["lung_iou"] == pytest.approx((0.25 + 4) / 5)
    assert area["side_fraction"] == pytest.approx((1 + 4 * 0.5) / 5)
    assert area["entropy"] == pytest.approx(-(0 + 1 + 2 + 3 + 4) / 5)
    changes = (0.5 + 0.4 + 0.3 + 0.2 + 0.1) / 5 / 16
    assert area["map_change"] == pytest.approx(changes)
    np.testing.assert_array_equal(found.predictions.area, areas)


def test_a_method_is_not_told_the_answers():
    batch = {name: name for name in ("image", "label", "index", "mask")}
    assert evaluation.without_answers(batch) == {"image": "image"}
    told = evaluation.without_answers(batch | {"lung_box": "lung_box"})
    assert told == {"image": "image", "lung_box": "lung_box"}


@pytest.mark.parametrize("lungs", [NO_BOXES, np.zeros((3, 4), np.float32)])
def test_evaluation_passes_no_label(lungs):
    seen = []

    def predict(params, model_state, batch):
        seen.append(set(batch))
        return Prediction(jnp.eye(3))

    source = _dataset([0, 1, 2], lungs)
    assert evaluation.evaluate(predict, STATE, source, config=Config()).scores["n"] == 3
    assert seen == [{"image"} if not len(lungs) else {"image", "lung_box"}]


def test_true_lungs_needs_lung_boxes(tiny_config):
    method = METHODS["true_lungs"](tiny_config, 3)
    unknown = _dataset([0, 1])
    with pytest.raises(UserError) as error:
        evaluation.check_lungs("true_lungs", method, unknown)
    assert str(error.value) == NO_LUNGS
    # One film is enough, the others are shown whole; other methods need none.
    some = np.array([NOWHERE, (0.0, 0.0, 0.5, 0.5)])
    evaluation.check_lungs("true_lungs", method, _dataset([0, 1], some))
    other = METHODS["random_crop"](tiny_config, 3)
    evaluation.check_lungs("random_crop", other, unknown)


def _score(areas, lungs, **kwargs):
    config = Config(policy=PolicyConfig(min_side=0.25, max_side=0.9))
    return evaluation.score_key_areas(
        np.array(areas, np.float32),
        np.array(lungs, np.float32),
        config=config,
        **kwargs,
    )


def test_key_area_scores_by_hand():
    areas = [(0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.5), (0.1, 0.1, 0.9, 0.9)]
    lungs = [(0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), NOWHERE]
    found = _score(areas, lungs, mean_box=np.array([0.0, 0.0, 0.5, 0.5], np.float32))
    # Of the two films with known lungs: equal, and half of them.
    assert found["lung_iou"] == pytest.approx((1 + 0.5) / 2)
    assert found["lung_coverage"] == pytest.approx((1 + 0.5) / 2)
    trivial = found["trivial_iou"]
    assert trivial["whole"] == pytest.approx(0.25)
    # The central 80 % share 0.4 * 0.4 with the first and hold all of the second.
    first, second = 0.16 / (0.64 + 0.25 - 0.16), 0.25 / 0.64
    assert trivial["central80"] == pytest.approx((first + second) / 2)
    # Overlap 0.25 * 0.25 of two boxes of 0.25.
    assert trivial["mean_box"] == pytest.approx((1 + 0.0625 / 0.4375) / 2)
    # Of all films: sides 0.5, sqrt(0.5 * 0.25), 0.8; one is at the shortest side.
    assert found["side_fraction"] == pytest.approx((0.5 + 0.125**0.5 + 0.8) / 3)
    assert found["at_bound"] == pytest.approx(1 / 3)
    centers = np.array([(0.25, 0.25), (0.5, 0.375), (0.5, 0.5)])
    expected = centers.std(axis=0).mean()
    assert found["displacement"] == pytest.approx(expected, rel=1e-5)


def test_lesion_coverage_by_hand():
    areas = [(0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 1.0, 1.0)]
    lesions = [
        np.array([(0.0, 0.0, 0.25, 0.25), (0.25, 0.25, 0.75, 0.75)], np.float32),
        np.zeros((0, 4), np.float32),  # no lesion: not counted
        np.array([(0.0, 0.5, 0.75, 0.75)], np.float32),
    ]
    unknown = [NOWHERE] * 3
    found = _score(areas, unknown, lesion_boxes=lesions)
    # Film 0: all of one and a quarter of the other; film 2: a third.
    assert found["lesion_coverage"] == pytest.approx((0.625 + 1 / 3) / 2)
    assert _score(areas, unknown)["lesion_coverage"] is None
    found = _score(areas[:1], unknown[:1], lesion_boxes=lesions[1:2])
    assert found["lesion_coverage"] is None


def test_unknown_lungs_have_no_scores():
    found = _score([(0.0, 0.0, 0.9, 0.9)], [NOWHERE], mean_box=NOWHERE)
    assert found["lung_iou"] is found["lung_coverage"] is None
    expected = {"whole": None, "central80": None, "mean_box": None}
    assert found["trivial_iou"] == expected
    assert found["at_bound"] == 1.0 and found["displacement"] == 0.0
    assert found["side_fraction"] == pytest.approx(0.9)


def test_mean_box_is_left_out_where_training_knows_none():
    found = _score([(0.0, 0.0, 0.5, 0.5)], [(0.0, 0.0, 0.5, 0.5)])
    assert found["trivial_iou"]["mean_box"] is None
    assert found["trivial_iou"]["whole"] == pytest.approx(0.25)


def test_mean_lung_box_ignores_films_without():
    lungs = np.array([[0.0, 0.1, 0.5, 0.6], NOWHERE, [0.2, 0.1, 0.7, 0.8]], np.float32)
    found = evaluation.mean_lung_box(_dataset([0, 1, 2], lungs))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.6, 0.7], rtol=1e-6)
    assert evaluation.mean_lung_box(_dataset([0, 1, 2])) is None
    unknown = np.full((3, 4), np.nan, np.float32)
    assert evaluation.mean_lung_box(_dataset([0, 1, 2], unknown)) is None


def _read(path):
    return json.loads(pathlib.Path(path).read_text())


def test_results_of_a_run_are_what_its_best_networks_answer(finished_run, tiny_config):
    """Image by image, with other code, from the pixels."""
    data = pipeline.load(tiny_config.data, seed=tiny_config.seed)
    method = METHODS["hapre"](tiny_config, 3)
    best = checkpoint.restore_best(finished_run, tiny_config, method)
    images = data.test.images.astype(np.float32) / 255
    predict = jax.jit(method.predict)
    singles = [predict(*best.average, {"image": image[None]}) for image in images]
    answers = [int(np.argmax(single.probabilities[0])) for single in singles]
    results = _read(finished_run / "results.json")
    _assert_scores(results["test"], data.test.labels, answers)
    ious = [
        float(boxes.iou(single.area[0], jnp.array(box)))
        for single, box in zip(singles, data.test.lung_boxes, strict=True)
    ]
    area = results["test"]["key_area"]
    assert area["lung_iou"] == pytest.approx(np.mean(ious), rel=1e-4)
    mean_box = data.train.lung_boxes.mean(axis=0)
    ious = [float(boxes.iou(jnp.array(mean_box), box)) for box in data.test.lung_boxes]
    assert area["trivial_iou"]["mean_box"] == pytest.approx(np.mean(ious), rel=1e-4)


def test_program_reproduces_the_results_of_the_run(tmp_path, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    done = subprocess.run(
        [sys.executable, "-m", "hapre_jax.evaluate", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results, again = _read(run / "results.json"), _read(run / "evaluation.json")
    assert again["test"] == results["test"]
    assert again["plain"] is None
    assert again["config"] == results["config"]
    assert f"Written to {run}/evaluation.json, image by image to " in done.stdout
    assert f"{results['test']['macro_f1']:.3f}" in done.stdout
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr


def test_plain_classifier_of_a_run_is_evaluated_on_the_run_s_split(
    tmp_path, finished_run
):
    out = tmp_path / "e.json"
    assert evaluate.main([str(finished_run / "plain"), "--out", str(out)]) == 0
    results = _read(finished_run / "results.json")
    assert _read(out)["test"] == results["plain"]
    assert not (finished_run / "plain" / "splits.csv").exists()


def test_scores_are_written_when_all_else_is(tmp_path, finished_run, monkeypatch):
    """Tables take a test that has scores for finished, and never repeat it."""

    def interrupt(file, table):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictions, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([str(finished_run / "plain"), "--out", str(tmp_path / "e.json")])
    assert not list(tmp_path.iterdir())


def test_another_quality_of_films(tmp_path, finished_run, capsys):
    out = tmp_path / "high.json"
    arguments = [str(finished_run), "--data.quality", "high", "--out", str(out)]
    assert evaluate.main(arguments) == 0
    results, high = _read(finished_run / "results.json"), _read(out)
    assert high["config"]["data"]["quality"] == "high"
    # Lungs fill such films.
    before, after = results["test"]["key_area"], high["test"]["key_area"]
    assert after["trivial_iou"]["whole"] > 0.6 > before["trivial_iou"]["whole"]
    said = capsys.readouterr().out.replace("\n", "")
    assert f"Written to {out}, image by image to " in said
    assert said.endswith(f"Next: open {tmp_path}/high.html")
    pictures = {"high_key_areas.png", "high_mistakes.png"}
    written = {"high.json", "high.html", "high_predictions.csv"} | pictures
    assert {path.name for path in tmp_path.iterdir()} == written
    page = (tmp_path / "high.html").read_text()
    assert "<h1>hapre on phantom, trained on phantom</h1>" in page
    assert page.count("<img") == 2 and f"{high['test']['macro_f1']:.3f}" in page


def _fails(monkeypatch, capsys, *arguments):
    """The sentence that the program ends with."""
    monkeypatch.setattr("sys.argv", ["evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.run(evaluate.main)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and printed.startswith("error: ")
    return printed.removeprefix("error: ").rstrip("\n")


def _folder_flags(root, *classes):
    """Of films of these classes, which have no lung boxes."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(12):
            pixels = np.full((16, 16), 10 * index + len(name), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return "--data.name", "folder", "--data.root", root


def test_true_lungs_is_not_tested_on_films_of_unknown_lungs(
    tmp_path, tiny_config, monkeypatch, capsys
):
    run = tmp_path / "run"
    settings = dataclasses.replace(tiny_config, method="true_lungs")
    run_folder.write_config(run, settings)
    results = FACTS | {"classes": ["normal", "viral"], "test": SCORES}
    json_file.write(run / "results.json", results)
    rows = [splits.Row(of, of, "normal", of, of) for of in splits.SPLITS]
    splits.write(run / "splits.csv", rows)
    flags = _folder_flags(tmp_path / "films", "normal", "viral")
    assert _fails(monkeypatch, capsys, run, *flags) == NO_LUNGS
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize("more", [(), ("--all",)])
def test_other_classes_are_refused_before_films_are_read(
    more, tmp_path, finished_run, monkeypatch, capsys
):
    flags = _folder_flags(tmp_path / "films", "covid", "normal")
    (tmp_path / "films/covid/0.png").write_bytes(b"damaged")
    said = _fails(monkeypatch, capsys, finished_run, *flags, *more)
    assert said.startswith(
        "the classes normal, bacterial, viral and covid, normal have no common label"
    )


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"threads": 7, "memory_gib": 0.0, "degrade": "low", "image_size": 64}, True),
        ({"root": "elsewhere"}, True),  # moved, or prepared
        ({"name": "phantom", "threads": 7}, True),
        ({"name": "phantom", "image_size": 64}, False),  # drawn anew
        ({"name": "folder", "root": "elsewhere"}, False),  # another hospital
        ({"name": "folder", "root": "over/../here"}, True),
        ({"view": "PA"}, False),
        ({"draw": (3, 3)}, False),
        ({"split_level": "image"}, False),
    ],
)
def test_which_films_are_those_of_a_run(changes, same):
    name = changes.pop("name", "nih_chest_xray")
    mine = DataConfig(name=name, root="" if name == "phantom" else "here")
    assert other_films.same_films(dataclasses.replace(mine, **changes), mine) == same


def _asked_for(trained, **flags):
    """The films that flags of `evaluate` ask for, of a run of other films."""
    given = {f"data.{name}": config_lib.to_text(value) for name, value in flags.items()}
    trained = Config(data=DataConfig(**trained))
    asked = config_lib.override_all(trained, given)
    return other_films.config_of(asked, trained, given=given, program="evaluate").data


def test_another_data_set_s_films_are_chosen_by_flags_alone():
    own = {"view": "PA", "draw": (3, 3), "official_split": True, "degrade": "low"}
    trained = {"name": "nih_chest_xray", "root": "here"} | own
    other = {"name": "rsna_pneumonia", "root": "there"}
    assert _asked_for(trained, **other) == DataConfig(**other)
    for name, value in own.items():  # given, as the run has it
        found = _asked_for(trained, **other, **{name: value})
        assert found == DataConfig(**other, **{name: value})
    moved = trained | {"root": "moved"}
    assert _asked_for(trained, root="moved") == DataConfig(**moved)
    # Another folder is another hospital; the same one goes by several names.
    folder = trained | {"name": "folder"}
    assert _asked_for(folder, root="there") == DataConfig(name="folder", root="there")
    found = _asked_for(folder, root="there", draw=(3, 3))
    assert found == DataConfig(name="folder", root="there", draw=(3, 3))
    found = _asked_for(folder, root="over/../here")
    assert found == DataConfig(**folder | {"root": "over/../here"})


def _hospital(root, seed):
    """Twelve films of a class, two of each patient, who are numbered everywhere."""
    rng, rows = np.random.default_rng(seed), ["path,group"]
    for name in ("normal", "sick"):
        (root / name).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
            rows.append(f"{name}/{index}.png,{name}-{index // 2}")
    (root / "groups.csv").write_text("\n".join(rows) + "\n")
    return str(root)


def test_all_films_of_another_hospital_of_a_run_that_drew_its_own(tmp_path):
    here, there = (_hospital(tmp_path / str(seed), seed) for seed in range(2))
    trained = {"name": "folder", "root": here, "draw": (6, 6), "image_size": 16}
    trained["split_fractions"] = (0.6, 0.2, 0.2)
    divided = pipeline.load(DataConfig(**trained), seed=0)
    rows = pipeline.division(divided)
    splits.write(tmp_path / "splits.csv", rows)

    def load(root):
        settings = Config(data=_asked_for(trained, root=str(root)))
        before = Config(data=DataConfig(**trained))
        return other_films.load(settings, before, tmp_path, classes=None, whole=True)

    assert len(load(there).films) == 24  # where patients of the same numbers are others
    # Those that were not drawn come too, but for the patients of the training.
    moved = load(pathlib.Path(here).rename(tmp_path / "moved"))
    used = {row.group for row in rows if row.split != "test"}
    assert 0 < len(moved.films) == 24 - 2 * len(used)
    assert not used & set(moved.films.groups)


def test_films_of_the_training_are_not_tested(tmp_path, finished_run, capsys):
    """Another source that holds copies of a run's own films."""
    own = splits.read(finished_run / "splits.csv")
    films = dataclasses.replace(_dataset([0, 1, 2, 0]), hashes=tuple("abcd"))
    rows = [
        own[0]._replace(sha256="a", split="train"),
        own[1]._replace(sha256="b", split="validation"),
        own[2]._replace(sha256="c", split="test"),
    ]
    assert other_films.never_seen(films, rows).tolist() == [2, 3]
    rows[0] = rows[0]._replace(group="3")  # whose other film it was trained on
    assert other_films.never_seen(films, rows, patients=True).tolist() == [2]
    # The run has 24, 12 and 12 phantoms; of the first 30 after 18 and 12, half were
    # validated on.
    out = tmp_path / "scores.json"
    flags = ["--data.train_images", "18", "--out", str(out)]
    assert evaluate.main([str(finished_run), *flags]) == 0
    assert "6 films are left out: the run was trained on them," in (
        capsys.readouterr().out
    )
    assert json.loads(out.read_text())["test"]["n"] == 6


@pytest.mark.parametrize("bare", [False, True])
def test_patients_are_known_by_bare_groups_too(tmp_path, bare):
    """Fifteen children with two films each, of which the run drew two thirds."""
    rng, films = np.random.default_rng(0), tmp_path / "chest_xray" / "train"
    (films / "NORMAL").mkdir(parents=True)
    (films / "PNEUMONIA").mkdir()
    names = "NORMAL/IM-{}-{}", "PNEUMONIA/person{}_bacteria_{}"
    for kind, name in enumerate((*names, "PNEUMONIA/person{}_virus_{}")):
        for film in range(10):
            pixels = rng.integers(0, 256, (16, 16), np.uint8)
            path = films / f"{name.format(5 * kind + film // 2, film)}.png"
            Image.fromarray(pixels).save(path)
    trained = DataConfig(
        name="ped_pneumonia",
        root=str(tmp_path),
        image_size=16,
        draw=(6, 6, 6),
        bare_groups=bare,
        split_fractions=(0.4, 0.3, 0.3),
    )
    rows = pipeline.division(pipeline.load(trained, seed=0))
    splits.write(tmp_path / "splits.csv", rows)
    asked = dataclasses.replace(trained, draw=None, bare_groups=not bare)
    configs = (Config(data=data) for data in (asked, trained))
    found = other_films.load(*configs, tmp_path, classes=None, whole=True)
    used = {row.group.rpartition(":")[2] for row in rows if row.split != "test"}
    left = {group.rpartition(":")[2] for group in found.films.groups}
    assert left and not left & used
    assert found.known == 2 * len(used)


def _lone_test_films(root):
    """Films of the run's classes, all of which are meant to be tested on."""
    rows = ["path,label,split"]
    for index, label in enumerate(("normal", "bacterial", "viral") * 2):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 16), np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
        rows.append(f"{index}.png,{label},test")
    table = root / "films.csv"
    table.write_text("\n".join(rows) + "\n")
    return "--data.name", "folder", "--data.root", str(table)


def test_all_films_of_another_hospital(tmp_path, finished_run, monkeypatch, capsys):
    films = _lone_test_films(tmp_path)
    out = tmp_path / "scores.json"
    flags = ["--all", "--out", str(out)]
    assert evaluate.main([str(finished_run), *films, *flags]) == 0
    scored = json.loads(out.read_text())
    assert (scored["test"]["n"], scored["films"]) == (6, "all")
    read = predictions.read(tmp_path / "scores_predictions.csv")
    assert read.names == tuple(f"{index}.png" for index in range(6))
    capsys.readouterr()
    assert _fails(monkeypatch, capsys, finished_run, *flags) == (
        f"--all is for films of another source: {finished_run} was trained on these"
    )


def test_a_test_takes_the_place_of_the_same_one_alone(tmp_path, finished_run, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for quality, name, flags in (
        ("high", "evaluation", []),
        ("medium", "evaluation-2", []),
        # Neither changes what is tested.
        ("high", "evaluation", ["--data.threads", "1", "--data.flip", "vertical"]),
    ):
        assert evaluate.main([str(run), "--data.quality", quality, *flags]) == 0
        said = capsys.readouterr().out.replace("\n", "")
        assert f"Written to {run}/{name}.json, image" in said
        written = json.loads((run / f"{name}.json").read_text())
        assert written["config"]["data"]["quality"] == quality
    assert len(list(run.glob("evaluation*.html"))) == 2


def test_tests_at_the_same_time_do_not_share_a_file(
    tmp_path, finished_run, monkeypatch, capsys
):
    run, films = tmp_path / "run", ["--data.quality", "high"]
    shutil.copytree(finished_run, run)
    out = run / "evaluation.json"
    with run_folder.claim_file(out, flag="--out"):  # as another process does
        assert _fails(monkeypatch, capsys, run, *films, "--out", out) == (
            f"another process is at work on {out}; wait until it has ended, or choose "
            "another --out"
        )
        assert evaluate.main([str(run), *films]) == 0
    assert [path.name for path in sorted(run.glob("evaluation*.json"))] == [
        "evaluation-2.json"
    ]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"view": "PA"}, {"view": "AP"}, True),
        ({}, {"name": "rsna_pneumonia"}, False),
        ({}, {"split_level": "image"}, False),
        ({"name": "phantom"}, {"name": "phantom", "quality": "high"}, False),
        ({"name": "folder", "root": "a"}, {"name": "folder", "root": "b/../a"}, True),
        ({"name": "folder", "root": "a"}, {"name": "folder", "root": "b"}, False),
    ],
)
def test_patients_are_known_by_name_within_a_data_set(first, second, same):
    configs = [DataConfig(**{"name": "nih_chest_xray"} | of) for of in (first, second)]
    assert other_films.same_patients(*configs) == same


def test_a_run_that_does_not_know_its_films_is_not_tested(
    tmp_path, finished_run, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "splits.csv").unlink()
    assert _fails(monkeypatch, capsys, run) == (
        f"{run} has lost its splits.csv, which says what films it was trained on: "
        "restore the file"
    )


def test_only_data_flags_are_taken(finished_run, monkeypatch, capsys):
    said = _fails(monkeypatch, capsys, finished_run, "--policy.min_side", "0.5")
    assert said == (
        "policy.min_side was 0.25 in training; evaluate takes --data flags only"
    )


def test_a_run_that_is_not_finished(tmp_path, monkeypatch, capsys):
    run_folder.write_config(tmp_path, Config())
    said = _fails(monkeypatch, capsys, tmp_path)
    assert said == (
        f"{tmp_path} has no results.json: its training is not finished; give its "
        "command again to go on"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "bundle.json").write_text("{}")
    said = _fails(monkeypatch, capsys, tmp_path)
    assert said == f"{tmp_path} is a bundle, but this program takes a finished run"


def test_damaged_files_of_a_run(tmp_path, monkeypatch, capsys):
    run_folder.write_config(tmp_path, Config())
    (tmp_path / "results.json").write_text('{"classes": [')
    said = _fails(monkeypatch, capsys, tmp_path)
    assert said.startswith(f"{tmp_path}/results.json is not JSON: ")
    for text, expected in (
        ("[]", "holds no results; delete it"),
        (
            '{"classes": ["normal"]}',
            "lacks its config, the classes, the scores of its test, method, dataset, "
            "seed, steps, best_step, seconds, device, versions; delete it and give the "
            "run's command again",
        ),
    ):
        (tmp_path / "results.json").write_text(text)
        said = _fails(monkeypatch, capsys, tmp_path)
        assert said == f"{tmp_path}/results.json {expected}"
    (tmp_path / "config.json").write_text("{")
    said = _fails(monkeypatch, capsys, tmp_path)
    assert said.startswith(f"config file {tmp_path}/config.json cannot be read: ")


def test_results_that_cannot_be_written(tmp_path, finished_run, monkeypatch, capsys):
    out = tmp_path / "nowhere" / "e.json"
    said = _fails(monkeypatch, capsys, finished_run, "--out", out)
    assert said == f"--out {out} is no file in a folder that exists"
    before = (finished_run / "results.json").read_bytes()
    for name in ("results.json", "report.json"):  # whose page would be the run's
        out = finished_run / name
        said = _fails(monkeypatch, capsys, finished_run, "--out", out)
        assert said == f"--out {out} is a file of the run itself; choose another"
    assert (finished_run / "results.json").read_bytes() == before
    # The tests may run as root, whom permissions do not stop.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for flags in ((), ("--out", finished_run / "e.json")):
        said = _fails(monkeypatch, capsys, finished_run, *flags)
        assert said == f"{finished_run} cannot be written to; choose another --out"


def test_batch_size_follows_training(tiny_config):
    """Evaluation must not need more memory than training did."""
    seen = []
    table = np.full((40, 3), 1 / 3, np.float32)
    config = dataclasses.replace(tiny_config, train=TrainConfig(batch_size=8))
    source = _dataset(np.arange(40) % 3)
    evaluation.evaluate(_lookup(table, seen), STATE, source, config=config)
    assert seen == [32, 32]
