import csv
import dataclasses
import importlib.metadata
import json
import math

import numpy as np
import pytest
from PIL import Image
from tiny import shrink

from hapre_jax import config, config_file, log, train

# Other films, rules, operations, and a search, of what others train too.
SLOW = (
    "configs/operations.py",
    "configs/phantom_paper.py",
    "configs/rsna_pneumonia.py",
    "configs/sweep_phantom.py",
)
# Of other programs.
OTHERS = ("configs/detection.py", "configs/segmentation.py")
FILES = [
    file
    for file in config_file.available()
    if file not in OTHERS and config_file.load(file).method == "hapre"
]

SCORES = {
    "n",
    "classes",
    "accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "roc_auc",
    "average_precision",
    "calibration_error",
    "scaled_calibration_error",
    "reliability",
    "confusion_matrix",
    "views",
    "framings",
    "key_area",
    "parameters",
}
KEY_AREA = {
    "lung_iou",
    "lung_coverage",
    "lesion_coverage",
    "trivial_iou",
    "side_fraction",
    "at_bound",
    "displacement",
    "entropy",
    "map_change",
}


def _check_scores(scores, *, has_key_area):
    assert set(scores) == SCORES
    matrix = scores["confusion_matrix"]
    assert scores["n"] == sum(map(sum, matrix)) == 12
    hits = sum(matrix[k][k] for k in range(3))
    assert scores["accuracy"] == pytest.approx(hits / 12)
    for name in ("macro_precision", "macro_recall", "macro_f1", "roc_auc"):
        assert 0 <= scores[name] <= 1
    area = scores["key_area"]
    assert (area is not None) == has_key_area
    if area is None:
        return
    assert set(area) == KEY_AREA
    trivial = area.pop("trivial_iou")
    assert set(trivial) == {"whole", "central80", "mean_box"}
    for value in (*area.values(), *trivial.values()):
        assert type(value) is float and math.isfinite(value)
    for name in ("lung_iou", "lung_coverage", "side_fraction", "at_bound"):
        assert 0 <= area[name] <= 1


def _check_results(results, settings):
    assert set(results) == {
        "method",
        "config",
        "dataset",
        "seed",
        "classes",
        "steps",
        "best_step",
        "temperature",
        "test",
        "plain",
        "landscape",
        "seconds",
        "device",
        "versions",
        "commit",
    }
    assert config.from_dict(results["config"]) == settings
    assert results["method"] == settings.method == "hapre"
    assert results["dataset"] == "phantom" and results["seed"] == settings.seed
    assert results["classes"] == ["normal", "bacterial", "viral"]
    assert results["steps"] == 6 and results["best_step"] in (2, 4, 6)
    assert results["seconds"] > 0 and results["device"] == "cpu"
    assert 0.05 <= results["temperature"] <= 20
    assert set(results["versions"]) == {"jax", "flax", "optax", "numpy"}
    for name, version in results["versions"].items():
        assert version == importlib.metadata.version(name)
    _check_scores(results["test"], has_key_area=True)
    assert set(results["landscape"]) == {"best_zoom", "iou"}
    assert 0.6 < results["landscape"]["best_zoom"] < 2.5
    assert 0 < results["landscape"]["iou"] <= 1
    assert (results["plain"] is not None) == settings.compare_plain
    if results["plain"]:
        _check_scores(results["plain"], has_key_area=False)


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=pytest.mark.slow if file in SLOW else ())
        for file in FILES
    ],
)
def test_every_config_trains_and_leaves_what_it_should(
    file, tmp_path, finished_run, tiny_config
):
    """Shrunk, all steps from the first to the pictures."""
    settings, workdir = shrink(config_file.load(file)), finished_run
    if settings != tiny_config:
        # What the plain classifier leaves beside it is looked at in the finished run.
        settings = dataclasses.replace(settings, compare_plain=False)
        workdir = tmp_path / "run"
        train.train_and_evaluate(settings, workdir)

    files = {path.name for path in workdir.iterdir()}
    assert files == {
        ".lock",
        "config.json",
        "appearance.json",
        "splits.csv",
        "metrics.jsonl",
        "checkpoints",
        "results.json",
        "predictions.csv",
        "report.html",
        "mistakes.png",
        "learning.png",
        "key_areas.png",
        "key_areas_over_time.png",
        "landscape.png",
        "landscape.json",
        "heatmaps.png",
    } | ({"plain"} if settings.compare_plain else set())
    assert config_file.load(str(workdir / "config.json")) == settings
    _check_results(json.loads((workdir / "results.json").read_text()), settings)

    with open(workdir / "splits.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert set(rows[0]) == {"path", "sha256", "label", "group", "split"}
    counts = [sum(row["split"] == name for row in rows) for name in config_splits()]
    assert counts == [24, 12, 12]

    records = log.read(workdir / "metrics.jsonl")
    steps = {kind: [r["step"] for r in records if r["kind"] == kind] for kind in KINDS}
    validated = [2, 4, 6]
    assert steps == {
        "train": [1, 2, 3, 4, 5, 6],
        "validation": validated,
        "key_areas": validated,
    }
    named = {"task_loss", "policy_loss", "d1", "entropy", "side", "lung_iou", "helped"}
    named |= {"reward", *(f"reward_{part}" for part in ("std", "p10", "p50", "p90"))}
    if settings.policy.estimator == "paper":
        named |= {"expanded", "shrunk"}
    norms = {f"{a}_norm/{b}" for a in ("grad", "weight") for b in ("task", "policy")}
    assert set(records[0]) == {"kind", "step", "sigma", *named, *norms}
    for record in records:
        if record["kind"] == "key_areas":
            assert np.shape(record["boxes"]) == (6, 4)
        else:
            assert all(math.isfinite(value) for value in list(record.values())[1:])

    for name in PICTURES:
        with Image.open(workdir / name) as picture:
            assert min(picture.size) > 200
    saved = {
        name: sorted(path.name for path in (workdir / "checkpoints" / name).iterdir())
        for name in ("last", "best")
    }
    # The newest and, for a damaged disk, the one before it.
    assert saved["last"] == ["4", "6"]
    assert len(saved["best"]) == 1 and saved["best"][0] in ("2", "4", "6")


KINDS = ("train", "validation", "key_areas")
PICTURES = (
    "learning.png",
    "key_areas.png",
    "key_areas_over_time.png",
    "landscape.png",
    "heatmaps.png",
)


def config_splits():
    return ("train", "validation", "test")
