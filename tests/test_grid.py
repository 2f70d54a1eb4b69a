"""The grid launcher, without a training."""

import importlib.util
import io
import json
import pathlib
import re

import pytest
import rich.console
from tiny import FACTS, SCORES

from hapre_jax import experiments
from hapre_jax.errors import UserError

_FILE = pathlib.Path(__file__).parents[1] / "launch" / "grid.py"
_SPEC = importlib.util.spec_from_file_location("grid", _FILE)
grid = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(grid)


def results(plain, ours, iou):
    area = {"lung_iou": iou, "trivial_iou": {"mean_box": 0.4}}
    of_one = ("error", "error_but_for_a_constant", "error_untouched", "correlation")
    test = SCORES | {"macro_f1": ours, "key_area": area}
    # The truth is not known of the contrast.
    test["parameters"] = {
        "rotation": dict(zip(of_one, (4 * ours, 2, 20, 0.9), strict=True)),
        "log2_contrast": dict.fromkeys(of_one),
    }
    return FACTS | {"plain": {"macro_f1": plain}, "test": test}


def test_grid_is_all_combinations_with_all_seeds(tmp_path):
    runs = grid.grid("c.py", ["policy.sigma=0.2,0.3", "task.net=resnet8"], 2, tmp_path)
    assert [(run.values["policy.sigma"], run.values["seed"]) for run in runs] == [
        ("0.2", "0"),
        ("0.2", "1"),
        ("0.3", "0"),
        ("0.3", "1"),
    ]
    name = "policy.sigma=0.2,task.net=resnet8"
    assert runs[1].folder == tmp_path / name / "seed-1"
    assert (
        grid.grid("c.py", [], 1, tmp_path)[0].folder == tmp_path / "default" / "seed-0"
    )


def test_a_path_as_a_value_is_one_folder_and_a_line_of_its_own(tmp_path):
    setting = "data.root=/first/films,/second/films,/first/films"
    runs = grid.grid("c.py", [setting], 1, tmp_path)
    assert [run.folder for run in runs] == [
        tmp_path / "data.root=_first_films" / "seed-0",
        tmp_path / "data.root=_second_films" / "seed-0",
    ]
    assert runs[0].values["data.root"] == "/first/films"
    assert [row["run"] for row in grid.summarize(runs)] == [
        "data.root=_first_films",
        "data.root=_second_films",
    ]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seeds", "0"], "--seeds is 0, but must be at least 1"),
        # Not an abbreviation of --seeds, which would train three of them.
        (["--seed", "3"], "unrecognized arguments: --seed 3"),
        (["--set", "seed=3,4"], "--set seed: seeds are 0 to N - 1 of --seeds N"),
        (
            ["--set", "train.steps=10", "--set", "train.steps=20"],
            "--set train.steps is given twice: give it all its values once",
        ),
    ],
)
def test_wrong_flags_are_refused_in_one_sentence(flags, sentence, tmp_path):
    with pytest.raises(UserError) as error:
        grid.main(["--workdir", str(tmp_path / "new"), *flags])
    assert str(error.value) == sentence
    assert not (tmp_path / "new").exists()


def test_two_values_of_one_folder_are_refused(tmp_path):
    settings = ["data.root=a/x;a_x"]
    with pytest.raises(UserError, match="two runs would have the folder .*=a_x/seed-0"):
        grid.grid("configs/films.py", settings, 1, tmp_path)


def test_values_that_have_commas_are_divided_by_semicolons(tmp_path):
    settings = ["data.split_fractions=0.7,0.1,0.2;0.5,0.2,0.3", "data.draw=2,3;"]
    runs = grid.grid("configs/phantom.py", settings, 1, tmp_path)
    assert [run.values for run in runs] == [
        {"data.split_fractions": fractions, "data.draw": "2,3", "seed": "0"}
        for fractions in ("0.7,0.1,0.2", "0.5,0.2,0.3")
    ]


def test_without_a_value_is_a_value(tmp_path):
    runs = grid.grid("configs/phantom.py", ["task.pretrained=,w.npz"], 1, tmp_path)
    assert [run.values["task.pretrained"] for run in runs] == ["", "w.npz"]


@pytest.mark.parametrize("setting", ["policy.sigma", "=1", "policy.sigma="])
def test_malformed_setting_is_refused(setting, tmp_path):
    with pytest.raises(UserError, match="PATH=VALUE"):
        grid.grid("c.py", [setting], 1, tmp_path)


def test_finished_grid_is_summarized(tmp_path, capsys):
    for seed, numbers in enumerate([(0.5, 0.8, 0.6), (0.7, 0.9, 0.8)]):
        folder = tmp_path / "default" / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results(*numbers)))
    assert grid.main(["--workdir", str(tmp_path), "--seeds", "2"]) == 0
    (row,) = json.loads((tmp_path / "summary.json").read_text())
    assert row["n"] == 2
    assert row["scores"]["plain macro F1"]["mean"] == pytest.approx(0.6)
    assert row["scores"]["lung IoU"]["values"] == [0.6, 0.8]
    # 12.706 * 0.0707107 / sqrt(2)
    assert row["scores"]["macro F1"]["interval"] == pytest.approx(0.63530, abs=1e-4)
    assert row["scores"]["rotation: error"]["mean"] == pytest.approx(3.4)
    assert row["scores"]["rotation: error untouched"]["values"] == [20, 20]
    assert not [name for name in row["scores"] if "contrast" in name]


@pytest.mark.parametrize("scores", [["accuracy"], ["accuracy", "macro F1"]])
def test_no_value_is_cut_in_a_narrow_terminal(scores):
    """Whether the run is a line of the table or, of more scores than runs, a column."""
    name = "data.root=_a_folder_with_films_of_another_hospital"
    rows = [{"run": name, "n": 1, "scores": dict.fromkeys(scores)}]
    console = rich.console.Console(width=40, file=io.StringIO())
    console.print(grid.table(rows))
    assert name in re.sub(r"[^\w.=]", "", console.file.getvalue())


@pytest.mark.parametrize("columns", [["accuracy"], ["accuracy", "macro F1"]])
def test_brackets_of_a_value_are_no_markup(columns):
    name = "data.root=films [red] [_old]"
    rows = [{"run": name, "n": 1, "scores": dict.fromkeys(columns)}]
    rows.append(rows[0] | {"run": "data.root=x [/old]"})
    console = rich.console.Console(width=120, file=io.StringIO())
    console.print(grid.table(rows[: len(columns)]))
    assert name in console.file.getvalue()
    console.print(grid.table(rows))
    assert "x [/old]" in console.file.getvalue()


def test_dry_run_prints_commands_and_writes_nothing(tmp_path, capsys):
    workdir = tmp_path / "new"
    arguments = ["--workdir", str(workdir), "--seeds", "2", "--dry-run"]
    assert grid.main([*arguments, "--set", "policy.sigma=0.2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "-m" in line]
    assert len(lines) == 2 and not workdir.exists()
    assert lines[1].endswith("--policy.sigma 0.2 --seed 1")


def test_unknown_field_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match=r"policy\.sigma"):
        grid.main(["--workdir", str(tmp_path), "--set", "policy.sigm=0.2"])


def test_failed_run_is_listed_and_not_fatal(tmp_path, capsys, monkeypatch):
    def fail(command, output):
        output.parent.mkdir(parents=True)
        # The run before it was killed with its program's parent, and is at work still.
        said = "$ one\nerror: old\n$ two\nerror: the disk is full\n3/9\n"
        output.write_text(said)
        return False

    monkeypatch.setattr(experiments, "run_program", fail)
    assert grid.main(["--workdir", str(tmp_path), "--seeds", "1"]) == 1
    assert "seed-0: error: the disk is full (see" in capsys.readouterr().out.replace(
        "\n", " "
    )
