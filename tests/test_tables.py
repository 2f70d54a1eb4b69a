"""The paper's tables: what would be trained for them, and what is made of made-up runs.

What the answers of such a run are worth is in `write_run`: a macro-F1 of 1, with misses
of 11/15, so that gains are 0 or 4/15, the same for all patients.
"""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import pathlib
import shlex

import PIL.Image
import pytest
import rich.console

from hapre_jax import config, config_file, experiments
from hapre_jax.errors import UserError
from hapre_jax.paper_tables import cross_source, films, layouts, plan, records

_FILE = pathlib.Path(__file__).parents[1] / "launch" / "tables.py"
_SPEC = importlib.util.spec_from_file_location("tables", _FILE)
tables = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tables)

PRESETS = ("cpu", "gpu", "paper")
PAPER = json.loads(records.PAPER.read_text())


def make_plan(table, preset="cpu", *, names=tuple(films.SOURCES), rows=None, seeds=1):
    layout, preset = layouts.LAYOUTS[table], layouts.presets(preset)
    return plan.make(
        chosen={name: films.SOURCES[name] for name in names},
        networks=layout.networks(preset),
        rows=rows or layout.rows,
        preset=preset,
        seeds=seeds,
        root="DIR",
        workdir=pathlib.Path("work"),
    )


def config_of(run):
    return config.override_all(config_file.load(run.config), run.values)


# What would be trained.


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("table", "2345")
def test_runs_are_what_their_folders_say(table, preset):
    cells = make_plan(table, preset)
    folders = set()
    for cell in cells:
        (run,) = cell.runs
        run.check()
        folders.add(run.folder)
        where = f"work/{cell.source}/{cell.net}/{cell.row}/seed-0"
        assert str(run.folder) == where
        attention = f"+{cell.row}" if cell.row in ("cbam", "danet") else ""
        assert run.values["task.net"] == cell.net + attention
        assert run.values.get("data.root") == (
            None if cell.source.startswith("phantom") else "DIR"
        )
    assert len(folders) == len(cells)
    nets = {
        "2": {"cpu": 1, "gpu": 1, "paper": 1},
        "3": {"cpu": 3, "gpu": 3, "paper": 3},
        "4": {"cpu": 3, "gpu": 3, "paper": 3},
        "5": {"cpu": 3, "gpu": 7, "paper": 7},
    }
    rows = {"2": 15, "3": 2, "4": 4, "5": 1}
    assert len(cells) == 7 * nets[table][preset] * rows[table]


@pytest.mark.parametrize("preset", PRESETS)
def test_tables_share_only_runs_that_are_the_same(preset):
    known = {}
    for table in "2345":
        for run in plan.by_seed(make_plan(table, preset)):
            assert known.setdefault(run.folder, run) == run
    # Of each source, the plain ResNet and HAPre-KRS of the first depth are in four and
    # in three tables.
    folders = [r.folder for t in "2345" for r in plan.by_seed(make_plan(t, preset))]
    first = f"work/ped_pneumonia/{layouts.presets(preset).nets[0]}"
    counts = [
        sum(str(folder) == f"{first}/{row}/seed-0" for folder in folders)
        for row in ("resnet", "hapre_krs")
    ]
    assert counts == [4, 3]


def test_sources_are_the_films_that_they_are_named_after():
    found = {}
    for cell in make_plan("5", rows=("resnet",)):
        data = config_of(cell.runs[0]).data
        framing = data.quality if data.name == "phantom" else data.degrade
        found[cell.source] = (data.name, framing)
    assert found == {
        "phantom_high": ("phantom", "high"),
        "phantom_medium": ("phantom", "medium"),
        "phantom_low": ("phantom", "low"),
        "ped_pneumonia": ("ped_pneumonia", "none"),
        "ped_pneumonia_low": ("ped_pneumonia", "low"),
        "rsna_pneumonia": ("rsna_pneumonia", "none"),
        "nih_chest_xray": ("nih_chest_xray", "none"),
    }


def test_cpu_preset_is_the_recipe_as_it_is():
    (cell,) = make_plan("2", names=["ped_pneumonia_low"], rows=["hapre_krs"])
    recipe = config_file.load("configs/hapre_krs_best.py:ped_pneumonia_low")
    changes = {"data.root": "DIR", "compare_plain": "false"}
    assert config_of(cell.runs[0]) == config.override_all(recipe, changes)


def test_gpu_preset_has_224_pixels():
    (cell,) = make_plan("2", "gpu", names=["phantom_low"], rows=["hapre_krs"])
    found = config_of(cell.runs[0])
    assert (found.task.net, found.task.image_size) == ("resnet18", 224)
    assert (found.policy.image_size, found.data.image_size) == (64, 512)
    assert found.train.steps == 4000 and not found.compare_plain


def test_paper_preset_is_the_papers_config():
    (cell,) = make_plan("2", "paper", names=["ped_pneumonia"], rows=["hapre_krs"])
    paper = config_file.load("configs/hapre_krs.py")
    data = dataclasses.replace(paper.data, root="DIR")
    assert config_of(cell.runs[0]) == dataclasses.replace(paper, data=data)


def test_runs_come_seed_by_seed():
    cells = make_plan("4", names=["phantom_low"], rows=["resnet", "cbam"], seeds=2)
    assert [str(run.folder.relative_to("work")) for run in plan.by_seed(cells)] == [
        "phantom_low/resnet8/resnet/seed-0",
        "phantom_low/resnet8/cbam/seed-0",
        "phantom_low/resnet14/resnet/seed-0",
        "phantom_low/resnet14/cbam/seed-0",
        "phantom_low/resnet20/resnet/seed-0",
        "phantom_low/resnet20/cbam/seed-0",
        "phantom_low/resnet8/resnet/seed-1",
        "phantom_low/resnet8/cbam/seed-1",
        "phantom_low/resnet14/resnet/seed-1",
        "phantom_low/resnet14/cbam/seed-1",
        "phantom_low/resnet20/resnet/seed-1",
        "phantom_low/resnet20/cbam/seed-1",
    ]
    seeds = [config_of(run).seed for run in plan.by_seed(cells)]
    assert seeds == 6 * [0] + 6 * [1]


def dry_run(workdir, *arguments):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert tables.main(["--dry-run", "--workdir", str(workdir), *arguments]) == 0
    return said.getvalue().splitlines()


# Two seeds of each: nothing; 15 rows; 3 sources, 3 nets, 2 rows; 3 nets, 4 rows; 3.
@pytest.mark.parametrize(
    ("table", "count"), [("1", 0), ("2", 30), ("3", 36), ("4", 24), ("5", 6)]
)
def test_dry_run_prints_commands_and_writes_nothing(table, count, tmp_path):
    lines = dry_run(tmp_path / "new", "--table", table, "--seeds", "2")
    assert len(lines) == count
    assert all(line.startswith("python -m hapre_jax.train --config ") for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_what_would_be_run():
    arguments = ["--table", "4", "--seeds", "1", "--rows", "danet", "--shard", "2/2"]
    assert dry_run("w", *arguments, "--sources", "phantom_high") == [
        "python -m hapre_jax.train --config configs/baselines.py:danet@phantom "
        "--workdir w/phantom_high/resnet20/danet/seed-0 --data.quality high "
        "--task.net resnet20+danet --seed 0"
    ]


@pytest.mark.parametrize(
    ("table", "preset", "nets"),
    [
        ("4", "cpu", "resnet20,resnet8"),
        ("5", "gpu", "vgg16,resnet34"),
        ("2", "gpu", ""),
    ],
)
def test_some_networks_of_the_preset(table, preset, nets):
    arguments = ["--table", table, "--preset", preset, "--seeds", "1"]
    lines = dry_run("w", *arguments, "--nets", nets, "--rows", "resnet")
    found = [line.partition("--task.net ")[2].split()[0] for line in lines]
    assert found == (nets or "resnet18").split(",")


@pytest.mark.parametrize(("preset", "workdir"), [("paper", "w"), ("cpu", "my runs")])
def test_printed_commands_are_those_of_the_shell(preset, workdir):
    arguments = ["--table", "2", "--seeds", "1", "--rows", "resnet"]
    (line,) = dry_run(workdir, *arguments, "--preset", preset)
    (cell,) = make_plan("2", preset, names=["phantom_low"], rows=["resnet"])
    folder = workdir / cell.runs[0].folder.relative_to("work")
    expected = cell.runs[0]._replace(folder=folder).arguments
    assert shlex.split(line) == ["python", "-m", "hapre_jax.train", *expected]


def test_films_are_trained_on_beside_phantoms_where_there_are_some():
    arguments = ["--table", "2", "--seeds", "1", "--rows", "mixup"]
    phantom, real = dry_run("w", *arguments, "--data-root", "DIR")
    assert "--workdir w/phantom_low/resnet8/mixup/seed-0 " in phantom
    assert "--data.root" not in phantom
    assert real == (
        "python -m hapre_jax.train --config configs/baselines.py:mixup@ped_pneumonia "
        "--workdir w/ped_pneumonia/resnet8/mixup/seed-0 --task.net resnet8 "
        "--data.root DIR --seed 0"
    )


# Submitit's debug executor does not close its log files.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_jobs_of_slurm_share_the_runs(tmp_path, monkeypatch, write_run):
    """Submitit's debug executor runs here what Slurm would run elsewhere."""
    shares = []

    def train(runs, console):
        shares.append([run.folder for run in runs])
        for run in runs:
            write_run(run.folder, 0.5)
        return []

    monkeypatch.setattr(tables.experiments, "run_all", train)
    flags = ["--table", "2", "--seeds", "1", "--rows", "resnet,mixup,hapre_krs"]
    flags += ["--workdir", str(tmp_path), "--sources", "phantom_low"]
    assert tables.main([*flags, "--slurm", "2", "--cluster", "debug"]) == 0
    first, second = shares
    assert len(first) == 2 and len(second) == 1 and not {*first} & {*second}
    assert "3 of 3 runs" in (tmp_path / "table2.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--sources", "phantom_low,rsna_pneumonia"],
            "source rsna_pneumonia is read from files: give --data-root DIR",
        ),
        (
            ["--sources", "phantom"],
            "there is no source 'phantom'; there are phantom_high, phantom_medium, "
            "phantom_low, ped_pneumonia, ped_pneumonia_low, rsna_pneumonia, "
            "nih_chest_xray, and folders or zips of your own films",
        ),
        (
            ["--rows", "resnet,cutmix"],
            "table 4 has no row cutmix; it has resnet, cbam, danet, hapre_krs",
        ),
        (
            ["--nets", "resnet20,resnet18"],
            "table 4 has no network resnet18; it has resnet8, resnet14, resnet20",
        ),
        (
            ["--sources", "phantom_low,"],
            "there is no source ''; there are phantom_high, phantom_medium, "
            "phantom_low, ped_pneumonia, ped_pneumonia_low, rsna_pneumonia, "
            "nih_chest_xray, and folders or zips of your own films",
        ),
        (["--shard", "3/2"], "--shard '3/2' is not i/n with i from 1 to n"),
        (["--test-on", "films"], "--test-on is of table 3, not of table 4"),
        (["--set", "seed"], "--set 'seed' is not FIELD=VALUE"),
        (["--set", "seed=5"], "--set seed: seeds are 0 to N - 1 of --seeds N"),
        (
            ["--set", "train.steps=5", "--set", "train.steps=6"],
            "--set train.steps is given twice",
        ),
        (
            ["--set", "trian.steps=5"],
            "config has no field trian.steps; did you mean train.steps?",
        ),
        (["--seeds", "0"], "--seeds is 0, but must be at least 1"),
        ([], "{workdir} has no finished run of table 4"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(arguments, sentence, tmp_path):
    workdir = tmp_path / "new"
    with pytest.raises(UserError) as error:
        # What is not refused is not trained either.
        tables.main(
            ["--table", "4", "--workdir", str(workdir), "--finished", *arguments]
        )
    assert str(error.value) == sentence.format(workdir=workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("hospital", "{path}: there is no such folder or file"),
        ("phantom_low.zip", "{path} is called as a source is: rename it"),
    ],
)
def test_other_films_must_be_there_under_a_name_of_their_own(name, sentence, tmp_path):
    path = tmp_path / name
    with pytest.raises(UserError) as error:
        tables.main(["--table", "3", "--finished", "--test-on", str(path)])
    assert str(error.value) == "--test-on " + sentence.format(path=path)


@pytest.mark.parametrize("name", ["hospital", "hospital.zip"])
def test_films_of_ones_own_are_a_source(name, tmp_path):
    path = tmp_path / name
    path.touch() if path.suffix else path.mkdir()
    printed = io.StringIO()
    command = ["--table", "2", "--dry-run", "--rows", "hapre_krs", "--seeds", "1"]
    with contextlib.redirect_stdout(printed):
        tables.main([*command, "--sources", f"phantom_low,{path}"])
    phantoms, own = map(shlex.split, printed.getvalue().splitlines())
    assert "runs/tables/phantom_low/resnet8/hapre_krs/seed-0" in phantoms
    assert "runs/tables/hospital/resnet8/hapre_krs/seed-0" in own
    values = dict(zip(own[3::2], own[4::2], strict=True))
    assert values["--config"] == "configs/baselines.py:hapre_krs@ped_pneumonia"
    assert (values["--data.name"], values["--data.root"]) == ("folder", str(path))


@pytest.mark.parametrize(
    ("first", "second"),
    [("hospital", "hospital.zip"), ("phantom_low", "phantom_low.zip")],
)
def test_sources_have_names_of_their_own(first, second, tmp_path):
    (tmp_path / first).mkdir()
    (tmp_path / second).touch()
    chosen = [first if first in films.SOURCES else f"{tmp_path / first}"]
    chosen += [f"{tmp_path / second}"]
    with pytest.raises(UserError, match=rf"two are called {first}; rename .*{second}$"):
        tables.main(["--table", "2", "--finished", "--sources", ",".join(chosen)])


# What is made of finished runs.


def fields_of(source):
    return films.fields(films.SOURCES[source], "DIR")


def finished(workdir, table, *arguments):
    """Parts of `tableN.md` between empty lines, and the records of the JSON file."""
    command = ["--table", table, "--workdir", str(workdir), "--finished", *arguments]
    assert tables.main(command) == 0
    text = (workdir / f"table{table}.md").read_text(encoding="utf-8")
    stored = json.loads((workdir / f"table{table}.json").read_text())
    return text.rstrip().split("\n\n"), stored["records"]


def test_table_2_has_all_methods_that_are_finished(tmp_path, write_run, capsys):
    here = tmp_path / "phantom_low" / "resnet8"
    write_run(here / "resnet" / "seed-0", 0.6, accuracy=0.9, misses=True)
    write_run(here / "resnet" / "seed-1", 0.7, accuracy=0.9, misses=True)
    write_run(here / "hapre_krs" / "seed-0", 0.8, accuracy=0.8, iou=0.5)
    write_run(here / "hapre_krs" / "seed-1", 0.8, accuracy=0.8, iou=0.6)
    write_run(here / "true_lungs" / "seed-1", 0.9)
    write_run(here / "cbam" / "seed-7", 0.9)  # was not asked for
    (title, table, notes), records = finished(tmp_path, "2", "--seeds", "2")
    assert title == "**phantom_low, resnet8, 20 test films**"
    # 12.706 * 0.05 is 63.5 points; the gain of F1 is 1 - 11/15.
    assert table.splitlines() == [
        "|  | Acc | Pre | Rec | F1 | F1 over patients | F1 more than ResNet | lung IoU "
        "| seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| ResNet | **90.0 ± 0.0** | <u>65.0 ± 63.5</u> | <u>65.0 ± 63.5</u> "
        "| <u>65.0 ± 63.5</u> | [73.3, 73.3] |  |  | 2 |",
        "| HAPre-KRS | <u>80.0 ± 0.0</u> | **80.0 ± 0.0** | **80.0 ± 0.0** "
        "| **80.0 ± 0.0** | [100.0, 100.0] | +26.7 ± 0.0 [+26.7, +26.7], p < 0.002 "
        "| 55.0 ± 63.5 | 2 |",
        "| true lung box | 90.0 | 90.0 | 90.0 | 90.0 | [100.0, 100.0] "
        "| +26.7 [+26.7, +26.7], p < 0.002 (seeds: 1) |  | 1 |",
    ]
    assert "Gains in F1 are paired by seed and film" in notes
    assert "5 of 30 runs, seeds 0 to 1, preset cpu, at commit unknown; table" in notes
    assert [
        (one["source"], one["tested"], one["net"], one["row"], one["paper"])
        for one in records
    ] == [
        ("phantom_low", "phantom_low", "resnet8", row, None)
        for row in ("resnet", "hapre_krs", "true_lungs")
    ]
    assert records[1]["seeds"] == [0, 1] and records[2]["seeds"] == [1]
    assert records[1]["gain"]["value"] == pytest.approx(4 / 15)
    with (tmp_path / "table2.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ("row", "scores.macro_f1.values", "seeds", "preset", "commits")
    made = ("cpu", '["unknown"]')
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("resnet", "[0.6, 0.7]", "[0, 1]", *made),
        ("hapre_krs", "[0.8, 0.8]", "[0, 1]", *made),
        ("true_lungs", "[0.9]", "[1]", *made),
    ]
    latex = (tmp_path / "table2.tex").read_text(encoding="utf-8").splitlines()
    assert latex[2] == r"\caption{phantom\_low, resnet8, 20 test films}"
    assert latex[7].startswith(
        r"ResNet & \textbf{90.0 $\pm$ 0.0} & \underline{65.0 $\pm$ 63.5} & "
    )
    assert "HAPre" in capsys.readouterr().out  # narrow terminals part its name


def test_films_that_are_not_there_are_said_before_anything_is_trained(tmp_path):
    arguments = ["--table", "2", "--workdir", str(tmp_path), "--data-root", "nowhere"]
    with pytest.raises(UserError, match="^--data-root nowhere does not exist$"):
        tables.main(arguments)
    assert not list(tmp_path.iterdir())


def test_published_scores_stand_beside_ours_where_there_are_some(tmp_path, write_run):
    for source in ("phantom_low", "ped_pneumonia"):
        here = tmp_path / source / "resnet8"
        for row in ("random_crop", "hapre_krs"):
            write_run(here / row / "seed-0", 0.5)
    arguments = ["--rows", "random_crop,hapre_krs", "--data-root", "DIR"]
    parts, records = finished(tmp_path, "2", *arguments)
    assert [part.splitlines()[0] for part in parts[1:4:2]] == [
        "|  | Acc | Pre | Rec | F1 | F1 over patients | F1 more than ResNet |",
        "|  | Acc | Pre | Rec | F1 | F1 over patients | F1 more than ResNet "
        "| paper's F1 |",
    ]
    # The only one that competes has nothing to be better than.
    assert parts[3].splitlines()[2:] == [
        "| random crops | 50.0 | 50.0 | 50.0 | 50.0 | [100.0, 100.0] |  |  |",
        "| HAPre-KRS | 50.0 | 50.0 | 50.0 | 50.0 | [100.0, 100.0] |  | 82.8 |",
    ]
    assert records[3]["paper"] == {
        "accuracy": 0.8884,
        "macro_precision": 0.8257,
        "macro_recall": 0.8311,
        "macro_f1": 0.8279,
    }


def test_table_3_tests_each_training_on_every_source(tmp_path, write_run):
    # F1 of resnet and of hapre_krs: trained on the first, tested on the second.
    figures = {
        ("phantom_high", "phantom_high"): (0.9, 0.95),
        ("phantom_high", "phantom_low"): (0.3, 0.6),
        ("phantom_low", "phantom_high"): (0.2, 0.85),
        ("phantom_low", "phantom_low"): (0.7, 0.8),
    }
    for (trained, tested), (plain, ours) in figures.items():
        elsewhere = "" if trained == tested else tested
        here = tmp_path / trained / "resnet14"
        on = {"tested": elsewhere, "films": fields_of(tested)}
        write_run(here / "resnet" / "seed-0", plain, misses=True, **on)
        # At home there is nothing to gain.
        write_run(here / "hapre_krs" / "seed-0", ours, misses=not elsewhere, **on)
    arguments = ["--sources", "phantom_high,phantom_low", "--seeds", "1"]
    parts, records = finished(tmp_path, "3", *arguments)
    assert parts[0] == "**trained on phantom_high**"
    none, more = "+0.0 [+0.0, +0.0], p = 1.000", "+26.7 [+26.7, +26.7], p < 0.002"
    assert parts[1].splitlines()[2:] == [
        "| phantom_high: resnet14, ResNet "
        "| <u>90.0</u> | <u>90.0</u> | <u>90.0</u> | <u>90.0</u> | [73.3, 73.3] |  |",
        "| phantom_high: resnet14, HAPre-KRS "
        f"| **95.0** | **95.0** | **95.0** | **95.0** | [73.3, 73.3] | {none} |",
        "| phantom_low: resnet14, ResNet "
        "| <u>30.0</u> | <u>30.0</u> | <u>30.0</u> | <u>30.0</u> | [73.3, 73.3] |  |",
        f"| phantom_low: resnet14, HAPre-KRS "
        f"| **60.0** | **60.0** | **60.0** | **60.0** | [100.0, 100.0] | {more} |",
    ]
    assert parts[2] == "**trained on phantom_low**"
    found = {
        (one["source"], one["tested"], one["row"]): one["scores"]["macro_f1"]["mean"]
        for one in records
    }
    assert found == {
        (*place, row): f1
        for place, pair in figures.items()
        for row, f1 in zip(("resnet", "hapre_krs"), pair, strict=True)
    }


def test_table_3_has_films_that_were_only_tested_on(tmp_path, write_run):
    (tmp_path / "hospital").mkdir()
    run = tmp_path / "phantom_low" / "resnet8" / "resnet" / "seed-0"
    write_run(run, 0.7)
    hospital = films.all_below(str(tmp_path / "hospital"))
    write_run(run, 0.4, tested="hospital", films=hospital.values, whole=True)
    arguments = ["--sources", "phantom_low", "--rows", "resnet", "--seeds", "1"]
    arguments += ["--test-on", str(tmp_path / "hospital")]
    parts, _ = finished(tmp_path, "3", *arguments)
    lines = parts[1].splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| phantom_low: resnet8, ResNet", "70.0"],
        ["| hospital: resnet8, ResNet", "40.0"],
    ]
    assert parts[-1].endswith(
        "Made by `python launch/tables.py --table 3 --sources phantom_low "
        "--rows resnet --test-on hospital --seeds 1`."
    )


@pytest.mark.parametrize("change", ["another folder", "another part of it"])
def test_tests_on_other_films_of_the_same_name_do_not_count(
    change, tmp_path, write_run
):
    below = {}
    for place in ("a", "b"):
        (tmp_path / place / "hospital").mkdir(parents=True)
        below[place] = films.all_below(str(tmp_path / place / "hospital"))
    wrong = below["b"]
    if change == "another part of it":
        wrong = below["a"]._replace(whole=False)
    run = tmp_path / "runs" / "phantom_low" / "resnet8" / "resnet" / "seed-0"
    write_run(run, 0.7)
    write_run(run, 0.4, tested="hospital", films=wrong.values, whole=wrong.whole)
    file = run / "on" / "hospital.json"
    assert cross_source.is_test_of(file, wrong)
    assert not cross_source.is_test_of(file, below["a"])
    # It does not say of what films it is.
    assert not cross_source.is_test_of(run / "results.json", wrong)
    arguments = ["--sources", "phantom_low", "--rows", "resnet", "--seeds", "1"]
    arguments += ["--test-on", below["a"].values["data.root"]]
    _, records = finished(tmp_path / "runs", "3", *arguments)
    assert [one["tested"] for one in records] == ["phantom_low"]


def test_runs_of_another_folder_of_the_same_name_are_refused(tmp_path, write_run):
    for place in ("a", "b"):
        (tmp_path / place / "hospital").mkdir(parents=True)
    run = tmp_path / "runs" / "hospital" / "resnet8" / "resnet" / "seed-0"
    trained = config.override_all(
        config.Config(),
        {"data.name": "folder", "data.root": str(tmp_path / "b" / "hospital")},
    )
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(config.to_dict(trained)))
    arguments = ["--table", "2", "--workdir", str(tmp_path / "runs"), "--finished"]
    arguments += ["--sources", str(tmp_path / "a" / "hospital"), "--rows", "resnet"]
    with pytest.raises(UserError, match="seed-0 was trained on the films of .*/b/hosp"):
        tables.main(arguments)


def test_fields_may_be_set_for_all_runs():
    arguments = ["--table", "2", "--rows", "two_stage", "--seeds", "1"]
    (line,) = dry_run("w", *arguments, "--set", "baseline.normal_class=1")
    assert "--baseline.normal_class 1 " in line


def test_own_films_have_no_row_of_true_lungs(tmp_path):
    (tmp_path / "hospital").mkdir()
    lines = dry_run("w", "--table", "2", "--sources", str(tmp_path / "hospital"))
    assert len(lines) == 3 * 13
    assert not any("true_lungs" in line or "two_stage" in line for line in lines)


def test_rows_that_own_films_do_not_have_are_named(tmp_path, write_run, capsys):
    (tmp_path / "hospital").mkdir()
    write_run(tmp_path / "hospital" / "resnet8" / "resnet" / "seed-0", 0.5)
    arguments = ["--table", "2", "--sources", str(tmp_path / "hospital")]
    arguments += ["--workdir", str(tmp_path), "--finished"]
    assert tables.main(arguments) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert (
        "Two-Stage is left out of hospital: it must know which class is the healthy "
        "one: --set baseline.normal_class=0, or 1" in said
    )
    assert "true lung box is left out of hospital: it must know where the lungs" in said
    assert tables.main([*arguments, "--set", "baseline.normal_class=1"]) == 0
    assert "Two-Stage is left out" not in capsys.readouterr().out


@pytest.mark.parametrize("table", "234")
@pytest.mark.parametrize("count", [2, 4])
def test_every_shard_has_its_part_of_the_costly_row(table, count):
    runs = plan.by_seed(
        make_plan(table, names=["phantom_low", "phantom_high"], seeds=4)
    )
    shards = [experiments.shard(runs, f"{i + 1}/{count}") for i in range(count)]
    assert sorted(str(run) for part in shards for run in part) == sorted(map(str, runs))
    costly = [sum("/hapre_krs/" in str(run.folder) for run in part) for part in shards]
    assert min(costly) > 0.4 * sum(costly) / count


def test_table_3_has_the_papers_score_of_the_source_that_is_tested(tmp_path, write_run):
    for source, tested in [
        ("ped_pneumonia", "rsna_pneumonia"),
        ("rsna_pneumonia", "ped_pneumonia"),
    ]:
        folder = tmp_path / source / "resnet18" / "hapre_krs" / "seed-0"
        write_run(folder, 0.5)
        write_run(folder, 0.4, tested=tested, films=fields_of(tested))
    arguments = ["--preset", "gpu", "--data-root", "DIR"]
    arguments += ["--sources", "ped_pneumonia,rsna_pneumonia"]
    parts, _ = finished(tmp_path, "3", *arguments)
    last_cells = [
        [line.split(" | ")[-1] for line in part.splitlines()] for part in parts[1:4:2]
    ]
    assert last_cells == [
        ["paper's F1 |", "--- |", "82.8 |", "71.8 |"],
        ["paper's F1 |", "--- |", "86.3 |", "79.5 |"],
    ]


def test_table_4_compares_with_the_plain_network_of_the_same_depth(tmp_path, write_run):
    here = tmp_path / "phantom_low"
    write_run(here / "resnet8" / "resnet" / "seed-0", 0.5, misses=True)
    write_run(here / "resnet8" / "hapre_krs" / "seed-0", 0.6)
    write_run(here / "resnet14" / "resnet" / "seed-0", 0.8)
    write_run(here / "resnet14" / "cbam" / "seed-0", 0.7, misses=True)
    (title, table, _), _ = finished(tmp_path, "4")
    assert title == "**phantom_low, 20 test films**"
    assert table.splitlines() == [
        "|  | Acc | Pre | Rec | F1 | F1 over patients "
        "| F1 more than the plain one of its depth |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| resnet8, ResNet | 50.0 | 50.0 | 50.0 | 50.0 | [73.3, 73.3] |  |",
        "| resnet8, HAPre-KRS | 60.0 | 60.0 | 60.0 | 60.0 | [100.0, 100.0] "
        "| +26.7 [+26.7, +26.7], p < 0.002 |",
        "| resnet14, ResNet | **80.0** | **80.0** | **80.0** | **80.0** "
        "| [100.0, 100.0] |  |",
        "| resnet14, CBAM | <u>70.0</u> | <u>70.0</u> | <u>70.0</u> | <u>70.0</u> "
        "| [73.3, 73.3] | −26.7 [−26.7, −26.7], p < 0.002 |",
    ]


def test_table_4_has_the_papers_score_of_the_depth_and_the_row(tmp_path, write_run):
    for place in ("resnet18/cbam", "resnet34/danet"):
        write_run(tmp_path / "rsna_pneumonia" / place / "seed-0", 0.5)
    arguments = ["--preset", "gpu", "--data-root", "DIR"]
    parts, _ = finished(tmp_path, "4", *arguments, "--sources", "rsna_pneumonia")
    assert [line.split(" | ")[-1] for line in parts[1].splitlines()[2:]] == [
        "74.9 |",
        "77.0 |",
    ]


def test_table_5_has_the_parameters_of_backbones(tmp_path, write_run):
    here = tmp_path / "phantom_low"
    write_run(here / "resnet18" / "resnet" / "seed-0", 0.5, misses=True)
    write_run(here / "resnet34" / "resnet" / "seed-0", 0.6)
    (_, table, _), records = finished(tmp_path, "5", "--preset", "gpu")
    # torchvision's ResNet-34 has 21,797,672 for 1000 classes and colors: less 997 * 513
    # of the head and 2 * 7 * 7 * 64 of the stem it is 21,279,939.
    assert table.splitlines()[:1] + table.splitlines()[3:] == [
        "|  | Acc | Pre | Rec | F1 | F1 over patients | F1 more than resnet18 "
        "| parameters |",
        "| resnet34 | **60.0** | **60.0** | **60.0** | **60.0** "
        "| [100.0, 100.0] | +26.7 [+26.7, +26.7], p < 0.002 | 21.28M |",
    ]
    assert [one["net"] for one in records] == ["resnet18", "resnet34"]


def test_table_1_counts_the_films(tmp_path, capsys):
    assert tables.main(["--table", "1", "--workdir", str(tmp_path)]) == 0
    lines = (tmp_path / "table1.md").read_text(encoding="utf-8").splitlines()
    # 3,000 to train on, 300 to validate and 600 to test, each a patient, in turns
    # of the three classes.
    unknown = "not known before they are read"
    assert lines[:5] == [
        "**The data sets**",
        "",
        "|  | films | patients | classes | height | width | paper's films |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| phantom_low | 3900 | 3900 | 1300 normal, 1300 bacterial, 1300 viral "
        f"| {unknown} | {unknown} |  |",
    ]
    assert lines[-1] == "Counted by `python launch/tables.py --table 1`."
    assert json.loads((tmp_path / "table1.json").read_text())["records"] == [
        {
            "source": "phantom_low",
            "images": 3900,
            "groups": 3900,
            "classes": {"normal": 1300, "bacterial": 1300, "viral": 1300},
            "paper": None,
        }
    ]
    page = (tmp_path / "table1.html").read_text(encoding="utf-8")
    assert "The data sets" in page and "1300 viral" in page
    assert "3900" in capsys.readouterr().out


def test_table_1_counts_films_of_ones_own(tmp_path):
    for name in ("ill/a.png", "ill/b.png", "well/c.png"):
        path = tmp_path / "hospital" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (48, 32)).save(path)
    workdir = tmp_path / "work"
    hospital = f"{tmp_path / 'hospital'}"
    tables.main(["--table", "1", "--workdir", str(workdir), "--sources", hospital])
    text = (workdir / "table1.md").read_text(encoding="utf-8")
    assert "| hospital | 3 | 3 | 2 ill, 1 well | not known" in text
    assert "Counted by `python launch/tables.py --table 1 --sources hospital`." in text


# Failures.


def fail(command, output):
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("error: the disk is full\n")
    return False


def test_failed_runs_are_listed_and_the_others_are_shown(
    tmp_path, write_run, capsys, monkeypatch
):
    write_run(tmp_path / "phantom_low" / "resnet8" / "resnet" / "seed-0", 0.5)
    monkeypatch.setattr(experiments, "run_program", fail)
    arguments = ["--table", "5", "--seeds", "1", "--workdir", str(tmp_path)]
    assert tables.main(arguments) == 1
    said = capsys.readouterr().out
    for net in ("resnet14", "resnet20"):
        folder = f"{tmp_path}/phantom_low/{net}/resnet/seed-0"
        assert f"failed: {folder}: error: the disk is full (see {folder}.log)" in said
    text = (tmp_path / "table5.md").read_text(encoding="utf-8")
    assert "| resnet8 | 50.0 | 50.0 | 50.0 | 50.0 | [100.0, 100.0] |  | 0.08M |" in text


def test_reason_is_given_where_all_runs_fail(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiments, "run_program", fail)
    arguments = ["--table", "5", "--seeds", "1", "--workdir", str(tmp_path)]
    with contextlib.suppress(UserError):
        tables.main(arguments)
    assert "error: the disk is full" in capsys.readouterr().out


def test_failed_test_on_another_source_is_listed_and_not_fatal(
    tmp_path, write_run, capsys, monkeypatch
):
    for source in ("phantom_high", "phantom_low"):
        for net in ("resnet8", "resnet14"):
            write_run(tmp_path / source / net / "resnet" / "seed-0", 0.5)
    monkeypatch.setattr(experiments, "run_program", fail)
    arguments = ["--table", "3", "--seeds", "1", "--workdir", str(tmp_path)]
    arguments += ["--rows", "resnet", "--sources", "phantom_high,phantom_low"]
    assert tables.main(arguments) == 1
    assert "error: the disk is full" in capsys.readouterr().out


# Tests on other sources.


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Tests a finished run of each source on the others: failures, and what was run.

    Every program but those of ped_pneumonia_low's run succeeds at once.
    """

    def test(names):
        commands = []

        def run_program(command, output):
            commands.append((command, output))
            return "/ped_pneumonia_low/resnet8" not in str(output)

        monkeypatch.setattr(experiments, "run_program", run_program)
        cells = plan.make(
            chosen={name: films.SOURCES[name] for name in names},
            networks=["resnet8"],
            rows=["resnet"],
            preset=layouts.presets("cpu"),
            seeds=1,
            root="DIR",
            workdir=tmp_path,
        )
        for cell in cells:
            folder = cell.runs[0].folder
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "results.json").write_text("{}")
        console = rich.console.Console(file=io.StringIO())
        runs = plan.by_seed(cells)
        tests = {name: films.Tested(fields_of(name)) for name in names}
        tests["hospital"] = films.all_below("films/hospital.zip")
        failures = cross_source.evaluate(cells, runs, tests, console)
        return failures, commands

    return test


def test_finished_runs_are_tested_on_the_sources_of_the_others_once(
    tmp_path, elsewhere
):
    done = tmp_path / "rsna_pneumonia/resnet8/resnet/seed-0/on/phantom_medium.json"
    done.parent.mkdir(parents=True)
    tested = config.override_all(config.Config(), fields_of("phantom_medium"))
    done.write_text(json.dumps({"config": config.to_dict(tested)}))
    names = ["phantom_medium", "ped_pneumonia_low", "rsna_pneumonia"]
    failures, commands = elsewhere(names)
    first = tmp_path / "phantom_medium/resnet8/resnet/seed-0"
    assert commands[0] == (
        [
            "hapre_jax.evaluate",
            str(first),
            "--out",
            str(first / "on" / "ped_pneumonia_low.json"),
            "--data.name=ped_pneumonia",
            "--data.degrade=low",
            "--data.root=DIR",
        ],
        first / "on" / "ped_pneumonia_low.log",
    )
    assert [
        str(output.relative_to(tmp_path)).replace("/resnet8/resnet/seed-0/on", "")
        for _, output in commands
    ] == [
        "phantom_medium/ped_pneumonia_low.log",
        "phantom_medium/rsna_pneumonia.log",
        "phantom_medium/hospital.log",
        "ped_pneumonia_low/phantom_medium.log",
        "ped_pneumonia_low/rsna_pneumonia.log",
        "ped_pneumonia_low/hospital.log",
        "rsna_pneumonia/ped_pneumonia_low.log",
        "rsna_pneumonia/hospital.log",
    ]
    assert commands[2][0][4:] == [
        "--data.name=folder",
        "--data.degrade=none",
        "--data.root=films/hospital.zip",
        "--all",
    ]
    failed = [output for _, output in commands[3:6]]
    assert [failure.output for failure in failures] == failed


@pytest.mark.parametrize("tested", films.SOURCES)
def test_films_of_another_source_are_those_that_its_own_networks_see(tested, elsewhere):
    _, commands = elsewhere(tuple(films.SOURCES))
    configs = {
        cell.source: config_of(cell.runs[0])
        for cell in make_plan("3", rows=["resnet"])
        if cell.net == "resnet8"
    }
    own = configs[tested].data
    names = ["name", "root", "degrade"]
    names += ["quality"] if own.name == "phantom" else []
    seen = []
    for (_, folder, _, output, *flags), _ in commands:
        if pathlib.Path(output).stem == tested:
            trained = pathlib.Path(folder).parents[2].name
            values = dict(flag.removeprefix("--").split("=") for flag in flags)
            data = config.override_all(configs[trained], values).data
            for name in names:
                assert getattr(data, name) == getattr(own, name), (trained, name)
            seen.append(trained)
    assert seen == [source for source in films.SOURCES if source != tested]


def test_what_is_set_for_all_runs_chooses_the_films_of_their_tests():
    changes = {"data.draw": "5,5", "data.official_split": "true", "train.steps": "9"}
    source = films.Source("ped_pneumonia", {"data.name": "folder", "data.root": "a"})
    found = films.fields(source, "", changes)
    of_films = {"data.draw": "5,5", "data.official_split": "true"}
    assert found == films.fields(source, "") | of_films


# What the paper says.


def test_published_scores_are_the_papers():
    f1 = {
        source: PAPER["2"]["hapre_krs"][source]["macro_f1"]
        for source in ("ped_pneumonia", "rsna_pneumonia", "ours")
    }
    assert f1 == {"ped_pneumonia": 0.8279, "rsna_pneumonia": 0.7950, "ours": 0.6834}
    assert PAPER["2"]["resnet"]["ours"]["macro_f1"] == 0.6453
    assert PAPER["2"]["cbam"]["ped_pneumonia"]["macro_recall"] == 0.8291
    trained = PAPER["3"]["rsna_pneumonia"]["resnet50"]["hapre_krs"]
    assert trained["ours"]["macro_f1"] == 0.7074
    assert PAPER["4"]["resnet34"]["danet"]["rsna_pneumonia"]["macro_f1"] == 0.7696
    assert PAPER["5"]["vgg19"]["ours"]["macro_f1"] == 0.6332
    assert PAPER["1"]["ours"]["images"] == 3742


def test_published_tables_agree_where_they_overlap():
    sources = ("ped_pneumonia", "rsna_pneumonia", "ours")
    for net in ("resnet18", "resnet34", "resnet50"):
        for row in ("resnet", "hapre_krs"):
            diagonal = {of: PAPER["3"][of][net][row][of] for of in sources}
            assert diagonal == PAPER["4"][net][row]
        assert PAPER["5"][net]["ours"] == PAPER["4"][net]["resnet"]["ours"]
    for row, scores in PAPER["4"]["resnet18"].items():
        assert scores == PAPER["2"][row]
    for counts in PAPER["1"].values():
        classes = [count for name, count in counts.items() if name != "images"]
        assert sum(classes) == counts["images"]


def test_published_tables_have_all_rows_of_ours_and_whole_scores():
    ours = {"dre_net_official", "random_crop", "true_lungs"}
    assert set(PAPER["2"]) == set(layouts.LAYOUTS["2"].rows) - ours
    assert set(PAPER["4"]) == set(layouts.presets("paper").nets)
    assert set(PAPER["5"]) == set(layouts.presets("paper").backbones)
    for rows in PAPER["4"].values():
        assert set(rows) == set(layouts.LAYOUTS["4"].rows)
    for nets in PAPER["3"].values():
        for rows in nets.values():
            assert set(rows) == set(layouts.LAYOUTS["3"].rows)
    count = 0

    def check(value):
        nonlocal count
        if isinstance(value, dict) and "macro_f1" in value:
            names = ["accuracy", "macro_precision", "macro_recall", "macro_f1"]
            assert list(value) == names
            assert all(0.5 < score < 0.9 for score in value.values())
            count += 1
        elif isinstance(value, dict):
            for inner in value.values():
                check(inner)

    check(PAPER)
    # 12 rows on 3 sources; 3 trainings of 3 depths and 2 rows on 3; 3 depths of 4 rows
    # on 3; 7 backbones on one.
    assert count == 36 + 54 + 36 + 7
