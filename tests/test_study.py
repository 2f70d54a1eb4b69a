"""The tables and plots of a study, from results that are made up."""

import importlib.util
import json
import pathlib

import pytest
from PIL import Image
from tiny import FACTS, SCORES

from hapre_jax.errors import UserError

_FILE = pathlib.Path(__file__).parents[1] / "launch" / "study.py"
_SPEC = importlib.util.spec_from_file_location("study", _FILE)
study = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(study)


def _write(folder, variant, seed, f1, iou=None, plain=None):
    area = None
    if iou is not None:
        area = {"lung_iou": iou, "trivial_iou": {"mean_box": 0.4}, "at_bound": 0.0}
    results = FACTS | {
        "seed": seed,
        "test": SCORES | {"macro_f1": f1, "key_area": area},
        "landscape": None,
        "plain": None if plain is None else {"macro_f1": plain},
    }
    file = folder / variant / f"seed-{seed}" / "results.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(results))


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    _write(folder, "a=1", 0, 0.5, iou=0.3)
    _write(folder, "default", 0, 0.8, iou=0.6, plain=0.5)
    _write(folder, "default", 1, 0.9, iou=0.8, plain=0.7)
    _write(folder, "method=plain", 0, 0.6)
    (folder / "unfinished" / "seed-0").mkdir(parents=True)
    return folder


def test_table_has_a_line_a_variant_the_reference_first(runs, capsys):
    assert study.main([str(runs)]) == 0
    # Two seeds: 12.706 * (0.1 / sqrt(2)) / sqrt(2) = 12.706 * 0.05.
    assert capsys.readouterr().out.splitlines() == [
        "| variant | seeds | macro-F1 | plain macro-F1 | lung IoU | mean box "
        "| at a bound |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| default | 0 1 | 0.850 ± 0.635 | 0.600 ± 1.271 | 0.700 ± 1.271 "
        "| 0.400 ± 0.000 | 0.000 ± 0.000 |",
        "| a=1 | 0 | 0.500 |  | 0.300 | 0.400 | 0.000 |",
        "| method=plain | 0 | 0.600 |  |  |  |  |",
    ]


def test_plot_is_a_picture_with_a_line_a_variant(runs, tmp_path, capsys):
    file = tmp_path / "study.png"
    assert study.main([str(runs), "--plot", str(file), "--title", "phantom"]) == 0
    assert capsys.readouterr().out.endswith(f"Written: {file}\n")
    with Image.open(file) as picture:
        width, height = picture.size
        assert picture.convert("RGB").getextrema() != ((255, 255),) * 3
    study.plot(study.collect(runs)[:1], file, title="")
    with Image.open(file) as picture:
        assert picture.size[0] == width and picture.size[1] < height


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere/study.png", "No such file"), ("study.docx", "Format 'docx' is not")],
)
def test_a_picture_that_cannot_be_written(runs, tmp_path, name, reason):
    file = tmp_path / name
    with pytest.raises(UserError, match=f"^{file} cannot be written: {reason}"):
        study.main([str(runs), "--plot", str(file)])


def test_runs_of_another_task_are_named(runs):
    file = runs / "default" / "seed-1" / "results.json"
    file.write_text('{"task": "segmentation", "test": {"dice": 0.5}}')
    with pytest.raises(UserError, match="seed-1 is a run of segmentation; this pro"):
        study.main([str(runs)])


def test_folder_without_runs_is_named(tmp_path):
    with pytest.raises(UserError, match="has no finished run"):
        study.main([str(tmp_path)])
