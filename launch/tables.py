"""The paper's tables: trains what is missing, then writes them with intervals.

python launch/tables.py --table 2 --workdir runs/table2
python launch/tables.py --table 2 --data-root DIR --workdir runs/table2 --seeds 5
python launch/tables.py --table 2 --sources phantom_low,my_hospital    # your own films
python launch/tables.py --table 3 --workdir runs/table2 --shard 1/4    # of 4 machines
python launch/tables.py --table 3 --workdir runs/table2 --slurm 4      # through Slurm

  1  the data sets: films, patients and sizes; nothing is trained
  2  the paper's methods on each source
  3  a classifier and HAPre-KRS, trained on each source and tested on all of them
  4  attention and HAPre-KRS on each depth of the ResNet
  5  backbones, with their parameters

Each run is an ordinary `python -m hapre_jax.train` in WORKDIR/SOURCE/NET/ROW/seed-N, so
tables share runs, a finished run is skipped and an interrupted one goes on. Tables are
made of what is finished: WORKDIR/tableN.html, .md, .tex, .csv and .json.
"""

import argparse
import pathlib
import runpy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.markdown

from hapre_jax import (
    atomic,
    cli,
    config_file,
    experiments,
    html_report,
    json_file,
    log,
    provenance,
    result_table,
    run_folder,
    scores,
)
from hapre_jax import config as config_lib
from hapre_jax.data import files, sources
from hapre_jax.errors import UserError
from hapre_jax.experiments import Experiment

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
_PAPER = pathlib.Path(__file__).with_name("paper_results.json")
_REFERENCE = "resnet"  # the row that others are compared with

# Rows of configs/baselines.py under the paper's names.
TITLES = {
    "resnet": "ResNet",
    "random_aug": "Random Aug",
    "cutout": "Cutout",
    "cutmix": "CutMix",
    "mixup": "Mixup",
    "drl_da": "DRL-DA",
    "cbam": "CBAM",
    "danet": "DANet",
    "dre_net": "DRE-Net",
    "dre_net_official": "DRE-Net, as released",
    "two_stage": "Two-Stage",
    "mag_sd": "MAG-SD",
    "hapre_krs": "HAPre-KRS",
    "random_crop": "random crops",
    "true_lungs": "true lung box",
}
# Those that the paper does not have, and that do not compete.
_BESIDE = ("random_crop", "true_lungs")
# What these must know, films of one's own do not come with.
_NEEDS_LUNGS, _NEEDS_NORMAL = "true_lungs", "two_stage"


class Source(NamedTuple):
    """Films to train and test on."""

    recipe: str  # of configs/baselines.py
    values: dict[str, str] = {}

    @property
    def needs_root(self) -> bool:
        """Whether it is read from files whose place it does not know."""
        return self.recipe != "phantom" and not self.is_folder

    @property
    def is_folder(self) -> bool:
        """Whether it is films of one's own."""
        return "data.root" in self.values


SOURCES = {
    "phantom_high": Source("phantom", {"data.quality": "high"}),
    "phantom_medium": Source("phantom", {"data.quality": "medium"}),
    "phantom_low": Source("phantom", {"data.quality": "low"}),
    "ped_pneumonia": Source("ped_pneumonia"),
    "ped_pneumonia_low": Source("ped_pneumonia_low"),
    "rsna_pneumonia": Source("ped_pneumonia", {"data.name": "rsna_pneumonia"}),
    "nih_chest_xray": Source("ped_pneumonia", {"data.name": "nih_chest_xray"}),
}
# What films of one's own are trained by.
_RECIPE_OF_FOLDERS = "ped_pneumonia"


class Preset(NamedTuple):
    """How large everything is."""

    nets: tuple[str, ...]  # depths of the ResNet; Table 2 has the first
    backbones: tuple[str, ...]
    values: dict[str, str]


_SMALL = ("resnet8", "resnet14", "resnet20")
_DEEP = ("resnet18", "resnet34", "resnet50")
_BACKBONES = (*_DEEP, "densenet121", "densenet169", "vgg16", "vgg19")


class Layout(NamedTuple):
    """What a table of trained networks is made of, and how it reads."""

    rows: tuple[str, ...]
    title: str  # of the part of one source; fields are those of a record, and `films`
    line: str  # the name of a line, likewise
    reference: str  # what gains are measured against
    networks: Callable[[Preset], tuple[str, ...]] = lambda preset: preset.nets
    # If no sources are named: without films, and those that films add.
    sources: tuple[str, ...] = ("phantom_low",)
    of_films: tuple[str, ...] = ("ped_pneumonia",)


LAYOUTS = {
    "2": Layout(
        rows=tuple(TITLES),
        title="{source}, {net}, {films} test films",
        line="{row}",
        reference=TITLES[_REFERENCE],
        networks=lambda preset: preset.nets[:1],
    ),
    "3": Layout(
        rows=("resnet", "hapre_krs"),
        title="trained on {source}",
        line="{tested}: {net}, {row}",
        reference=TITLES[_REFERENCE],
        sources=("phantom_high", "phantom_medium", "phantom_low"),
        of_films=("ped_pneumonia", "ped_pneumonia_low"),
    ),
    "4": Layout(
        rows=("resnet", "cbam", "danet", "hapre_krs"),
        title="{source}, {films} test films",
        line="{net}, {row}",
        reference="the plain one of its depth",
    ),
    "5": Layout(
        rows=("resnet",),
        title="{source}, {films} test films",
        line="{net}",
        reference="{net}",  # the first
        networks=lambda preset: preset.backbones,
    ),
}


def presets(name: str) -> Preset:
    """`cpu`: the recipes as they are; `gpu`: 224 pixels; `paper`: as the paper trains.

    Only `cpu` was ever run.
    """
    if name == "cpu":
        # ResNet-18 and deeper have one pixel left of 32 at their last stage.
        return Preset(_SMALL, _SMALL, {})
    if name == "gpu":
        values = {
            "task.image_size": "224",
            "policy.image_size": "64",
            "data.image_size": "512",
            "train.steps": "4000",
        }
        return Preset(_DEEP, _BACKBONES, values)
    paper = config_lib.options(config_file.load(str(_CONFIGS / "hapre_krs.py")))
    sections = ("task.", "policy.", "train.", "data.image_size", "data.geometry")
    values = {
        path: config_lib.to_text(field.value)
        for path, field in paper.items()
        if path.startswith(sections)
    }
    values |= {"data.flip": config_lib.to_text(paper["data.flip"].value)}
    return Preset(_DEEP, _BACKBONES, values)


class Group(NamedTuple):
    """The runs of one cell, a seed each."""

    source: str
    net: str
    row: str
    runs: tuple[Experiment, ...]

    @property
    def finished(self) -> list[Experiment]:
        """Those that can be counted."""
        return [run for run in self.runs if run.is_finished]


def plan(
    *,
    chosen: dict[str, Source],
    networks: Sequence[str],
    rows: Sequence[str],
    preset: Preset,
    seeds: int,
    root: str,
    workdir: pathlib.Path,
) -> list[Group]:
    """All runs of a table."""
    changes = runpy.run_path(str(_CONFIGS / "baselines.py"))["ROWS"]
    groups = []
    for name, source in chosen.items():
        for net in networks:
            for row in rows:
                values = preset.values | source.values
                if source.is_folder and _lacks(row, values):
                    continue
                attention = changes[row].get("task.net", "").partition("+")[2]
                values["task.net"] = f"{net}+{attention}" if attention else net
                if source.needs_root:
                    values["data.root"] = root
                runs = tuple(
                    Experiment(
                        f"configs/baselines.py:{row}@{source.recipe}",
                        values | {"seed": str(seed)},
                        workdir / name / net / row / f"seed-{seed}",
                    )
                    for seed in range(seeds)
                )
                groups.append(Group(name, net, row, runs))
    return groups


def _lacks(row: str, values: dict[str, str]) -> str:
    """What a row must be told of films of one's own and is not; empty if nothing."""
    if row == _NEEDS_LUNGS:
        return "where the lungs are"
    if row == _NEEDS_NORMAL and "baseline.normal_class" not in values:
        return "which class is the healthy one: --set baseline.normal_class=0, or 1"
    return ""


def say_what_is_left_out(
    chosen: dict[str, Source],
    rows: Sequence[str],
    preset: Preset,
    console: rich.console.Console,
) -> None:
    """Names the rows that films of one's own do not have."""
    for name, source in chosen.items():
        for row in rows if source.is_folder else ():
            if lacks := _lacks(row, preset.values | source.values):
                said = f"{TITLES[row]} is left out of {name}: it must know {lacks}"
                log.say(console, said)


def check_films(groups: Sequence[Group], chosen: dict[str, Source]) -> None:
    """Raises `UserError` where a run is of another folder of the same name.

    Data sets may have moved; folders of one's own are told apart by their place alone.
    """
    for group in groups:
        for run in group.runs if chosen[group.source].is_folder else ():
            if not (run.folder / "config.json").exists():
                continue
            before = run_folder.read_config(run.folder).data.root
            if not _is_same_place(before, run.values["data.root"]):
                raise UserError(
                    f"{run.folder} was trained on the films of {before}, not of "
                    f"{run.values['data.root']}: give another --workdir"
                )


def by_seed(groups: Sequence[Group]) -> list[Experiment]:
    """All runs, seed by seed, so that an early table has all rows."""
    return [
        run
        for runs in zip(*(group.runs for group in groups), strict=True)
        for run in runs
    ]


# Tables.


def describe(group, reference, *, tested: str = "", paper=None) -> dict[str, Any]:
    """The record of a cell, and where in the table it is; see `scores.record`.

    Args:
      group: the cell.
      reference: that it is compared with; None, or itself, for none.
      tested: source that it is tested on; its own by default.
      paper: the paper's scores of the same.
    """
    compared = reference.finished if reference not in (None, group) else []
    elsewhere = "" if tested == group.source else tested
    place = {"source": group.source, "tested": tested or group.source}
    place |= {"net": group.net, "row": group.row, "paper": paper}
    return place | scores.record(group.finished, compared, tested=elsewhere)


def plain_of_same_net(group, groups) -> Group | None:
    """The plain classifier with the same network, on the same source."""
    same = [other for other in groups if other.net == group.net]
    return next((other for other in same if other.row == _REFERENCE), None)


def published(table: str, group: Group) -> dict | None:
    """The paper's scores of a cell of Table 2 or 4; those of 5 are of its own films."""
    paper = json_file.read(_PAPER)
    rows = {"2": paper["2"], "4": paper["4"].get(group.net, {})}.get(table, {})
    return rows.get(group.row, {}).get(group.source)


def records_by_source(table: str, groups: Sequence[Group]) -> list[dict]:
    """What Tables 2, 4 and 5 are made of."""
    records = []
    for group in groups:
        here = [other for other in groups if other.source == group.source]
        reference = here[0] if table == "5" else plain_of_same_net(group, here)
        records.append(describe(group, reference, paper=published(table, group)))
    return records


def tables_of(table: str, records: Sequence[dict]) -> list[result_table.Table]:
    """Tables 2 to 5, one for each source, of their records."""
    layout, tables = LAYOUTS[table], []
    for source in dict.fromkeys(one["source"] for one in records):
        found = [one for one in records if one["source"] == source]
        lines = [
            layout.line.format(**one | {"row": TITLES[one["row"]]}) for one in found
        ]
        tables.append(
            scores.table(
                layout.title.format(films=scores.count_films(found[0]), **found[0]),
                found,
                lines,
                reference=layout.reference.format(**found[0]),
                beside=[TITLES[row] for row in _BESIDE],
                extra={"parameters": count_parameters} if table == "5" else None,
            )
        )
    return tables


def count_parameters(one: dict) -> str:
    """Millions of the network of a record, for one channel and three classes."""
    from hapre_jax.nets.__main__ import measure  # imports Flax, for this table only

    return f"{measure(one['net'], channels=1).parameters / 1e6:.2f}M"


def is_test_of(file: pathlib.Path, values: dict[str, str]) -> bool:
    """Whether a file has a test on films with such config fields, see `films_of`.

    Films of another folder, or another part of the same ones, may have had its name.
    """
    config = json_file.read(file).get("config") if file.exists() else None
    if config is None:
        return False
    fields = config_lib.options(config_lib.from_dict(config))
    stored = {path: config_lib.to_text(fields[path].value) for path in values}
    if values["data.name"] == "folder":
        if not _is_same_place(stored["data.root"], values["data.root"]):
            return False
    return stored | {"data.root": ""} == values | {"data.root": ""}


def _is_same_place(one: str, other: str) -> bool:
    return files.expand(one).resolve() == files.expand(other).resolve()


def is_tested(group: Group, name: str, values: dict[str, str]) -> bool:
    """Whether all finished runs of a cell were tested on a source."""
    return name == group.source or all(
        is_test_of(run.folder / "on" / f"{name}.json", values) for run in group.finished
    )


def records_of_table_3(
    groups: Sequence[Group], tests: dict[str, dict[str, str]]
) -> list[dict]:
    """What Table 3 is made of: each source that was trained on, and each test.

    Args:
      groups: all cells.
      tests: config fields of films that they were tested on, by name.
    """
    paper, records = json_file.read(_PAPER)["3"], []
    for source in dict.fromkeys(group.source for group in groups):
        here = [group for group in groups if group.source == source]
        for tested, values in tests.items():
            for group in (g for g in here if is_tested(g, tested, values)):
                known = paper.get(source, {}).get(group.net, {}).get(group.row, {})
                reference = plain_of_same_net(group, here)
                if reference and not is_tested(reference, tested, values):
                    reference = None
                records.append(
                    describe(group, reference, tested=tested, paper=known.get(tested))
                )
    return records


def evaluate_elsewhere(
    groups: Sequence[Group],
    runs: Sequence[Experiment],
    tests: dict[str, dict[str, str]],
    console: rich.console.Console,
) -> list[experiments.Failure]:
    """Tests those of `runs` that are finished on films with config fields `tests`."""
    jobs = []
    for group in groups:
        for run in (run for run in group.finished if run in runs):
            for name, values in tests.items():
                output = run.folder / "on" / f"{name}.json"
                if name != group.source and not is_test_of(output, values):
                    jobs.append((run, values, output))
    failures = []
    with log.progress_bar(console, "tests") as update:
        for done, (run, values, output) in enumerate(jobs, 1):
            flags = [f"--{path}={value}" for path, value in values.items()]
            command = ["hapre_jax.evaluate", str(run.folder), "--out", str(output)]
            said = output.with_suffix(".log")
            if not experiments.run_program([*command, *flags], said):
                failures.append(experiments.Failure(str(output), said))
            update(done, len(jobs), str(output))
    return failures


def films_of(source: Source, root: str) -> dict[str, str]:
    """Config fields of a source's films."""
    recipe = config_file.load(f"configs/hapre_krs_best.py:{source.recipe}")
    values = {
        "data.name": recipe.data.name,
        "data.degrade": recipe.data.degrade,
        "data.root": root if source.needs_root else "",
    }
    return values | source.values


def films_below(path: str) -> dict[str, str]:
    """Config fields of the films of a folder or zip, nearly all of them for a test."""
    return {
        "data.name": "folder",
        "data.degrade": "none",
        "data.root": path,
        "data.split_fractions": "0.05,0.05,0.9",
    }


def table_1(chosen: dict[str, Source], root: str):
    """What the sources hold."""
    paper, records = json_file.read(_PAPER)["1"], []
    for name, of in chosen.items():
        recipe = config_file.load(f"configs/hapre_krs_best.py:{of.recipe}")
        data = config_lib.override_all(recipe, films_of(of, root)).data
        source = sources.open_source(data, seed=0)
        counts = np.bincount(
            [of.label for of in source.records], minlength=len(source.classes)
        )
        sizes = np.array([(of.height, of.width) for of in source.facts or ()])
        records.append(
            {
                "source": name,
                "images": len(source.records),
                "groups": len({of.group for of in source.records}),
                "classes": dict(zip(source.classes, map(int, counts), strict=True)),
                "heights": sizes[:, 0].tolist() if len(sizes) else None,
                "widths": sizes[:, 1].tolist() if len(sizes) else None,
                "paper": paper.get(name),
            }
        )
    rows = []
    for one in records:
        classes = ", ".join(f"{count} {name}" for name, count in one["classes"].items())
        sides = [
            f"{min(of)} to {max(of)}" if of else "not known before they are read"
            for of in (one["heights"], one["widths"])
        ]
        published = one["paper"] and str(one["paper"]["images"])
        counted = [str(one["images"]), str(one["groups"])]
        rows.append([one["source"], *counted, classes, *sides, published or ""])
        del one["heights"], one["widths"]
    columns = ["", "films", "patients", "classes", "height", "width", "paper's films"]
    return [result_table.make("The data sets", columns, rows)], records


def notes_on(arguments, groups, records) -> str:
    """What a reader must know of the figures."""
    done = sum(len(group.finished) for group in groups)
    asked = sum(len(group.runs) for group in groups)
    commits = sorted({commit for one in records for commit in one["commits"]})
    return (
        "Per cent; mean over seeds ± half of the 95 % t-interval of the mean. In "
        "brackets 95 % intervals over patients: of 2,000 resamplings of the test "
        "patients (of films, where patients are not known), of networks as they are. "
        "Gains in F1 are paired by seed and film; p is of patients alone: where ± over "
        "seeds is larger than a gain, another training may have none. Best **bold**, "
        "second "
        f"<u>underlined</u>, of rows with all seeds. {done} of {asked} runs, seeds 0 "
        f"to {arguments.seeds - 1}, preset {arguments.preset}, at commit "
        f"{', '.join(commits)}; table made at {provenance.commit() or 'unknown'}, jax "
        f"{provenance.versions()['jax']}. The paper's figures are of its own networks, "
        f"at 640 pixels, and divisions. Made by `{command(arguments)}`."
    )


def command(arguments: argparse.Namespace) -> str:
    """What makes the same table; where one's films lie is left out."""
    flags = {
        "table": arguments.table,
        "data-root": "DIR" if arguments.data_root else "",
        "sources": ",".join(
            word if word in SOURCES else files.expand(word).resolve().name
            for word in (arguments.sources or "").split(",")
            if word
        ),
        "rows": arguments.rows,
        "nets": arguments.nets,
    }
    words = [f"--{name} {value}" for name, value in flags.items() if value]
    words += [f"--test-on {pathlib.Path(path).name}" for path in arguments.test_on]
    words += [f"--set {text}" for text in arguments.set]
    if arguments.preset != "cpu":
        words.append(f"--preset {arguments.preset}")
    if arguments.table != "1":
        words.append(f"--seeds {arguments.seeds}")
    return " ".join(["python launch/tables.py", *words])


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python launch/tables.py",
        description=__doc__,
    )
    parser.add_argument(
        "--table", required=True, choices=tuple("12345"), help="of the paper; see above"
    )
    parser.add_argument(
        "--workdir",
        default="runs/tables",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of all runs (default runs/tables)",
    )
    parser.add_argument(
        "--data-root", default="", metavar="DIR", help="folder of the films, prepared"
    )
    parser.add_argument(
        "--sources",
        metavar="A,B",
        help=f"of {', '.join(SOURCES)}; or a folder or zip with a folder a class, "
        "your own (default: phantoms, and with --data-root films)",
    )
    parser.add_argument("--rows", metavar="A,B", help=f"of {', '.join(TITLES)}")
    parser.add_argument(
        "--nets",
        metavar="A,B",
        help="of the table's networks: with preset cpu resnet8, resnet14 and resnet20, "
        "of which table 2 has the first",
    )
    parser.add_argument(
        "--test-on",
        action="append",
        default=[],
        metavar="PATH",
        help="table 3: test on these films too, a folder or zip with a folder a class",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a config field of every run; may be given several times. Of films "
        "of your own Two-Stage must be told which class is the healthy one: "
        "baseline.normal_class=0, if it is the first",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="seeds 0 to N - 1 of each (default 3)",
    )
    parser.add_argument(
        "--preset",
        default="cpu",
        choices=("cpu", "gpu", "paper"),
        help="cpu (default): small networks at 32 pixels; gpu: 224 pixels; paper: as "
        "the paper trains, at 640",
    )
    parser.add_argument(
        "--shard",
        default="1/1",
        metavar="I/N",
        help="train the I-th of N parts of the runs, of N machines (default 1/1: all)",
    )
    experiments.add_slurm_flags(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="changes nothing: what there is, is gone on with in any case",
    )
    parser.add_argument(
        "--finished",
        action="store_true",
        help="train nothing, write the table of what is finished",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    return parser


def main(argv: list[str]) -> int:
    """The program; 1 if a run failed."""
    arguments = _parser().parse_args(argv)
    console = rich.console.Console()
    table, workdir, root = arguments.table, arguments.workdir, arguments.data_root
    chosen = _chosen(arguments)
    folders = _folders(arguments, chosen)
    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}, but must be at least 1")
    if table == "1":
        if arguments.rows or arguments.nets:
            raise UserError("--rows and --nets are of tables 2 to 5: 1 has no networks")
        if arguments.dry_run:
            return 0
        tables, records = table_1(chosen, root)
        notes = f"Counted by `{command(arguments)}`."
        _write(workdir, table, tables, records, notes, console)
        return 0
    preset = _changed(presets(arguments.preset), arguments.set)
    rows = _words(arguments.rows, LAYOUTS[table].rows, f"table {table} has no row")
    networks = LAYOUTS[table].networks(preset)
    networks = _words(arguments.nets, networks, f"table {table} has no network")
    groups = plan(
        chosen=chosen,
        networks=networks,
        rows=rows,
        preset=preset,
        seeds=arguments.seeds,
        root=root,
        workdir=workdir,
    )
    check_films(groups, chosen)
    mine = experiments.choose(by_seed(groups), arguments.shard)
    # What is printed may go to a shell.
    beside = rich.console.Console(stderr=True) if arguments.dry_run else console
    say_what_is_left_out(chosen, rows, preset, beside)
    if arguments.dry_run:
        experiments.print_commands(mine)
        return 0
    tests = {name: films_of(source, root) for name, source in chosen.items()}
    tests |= {name: films_below(path) for name, path in folders.items()}
    has_failed = False
    if arguments.slurm and not arguments.finished:
        has_failed = _submit(argv, arguments, console)
    elif not arguments.finished:
        failures = experiments.run_all(mine, console)
        if table == "3":
            failures += evaluate_elsewhere(groups, mine, tests, console)
        experiments.say_failures(failures, console)
        has_failed = bool(failures)
    finished = [group for group in groups if group.finished]
    if not finished:
        raise UserError(f"{workdir} has no finished run of table {table}")
    if table == "3":
        records = records_of_table_3(finished, tests)
    else:
        records = records_by_source(table, finished)
    for one in records:
        one["preset"] = arguments.preset
    notes = notes_on(arguments, groups, records)
    _write(workdir, table, tables_of(table, records), records, notes, console)
    return int(has_failed)


def _chosen(arguments) -> dict[str, Source]:
    """The sources that are asked for, whose files have a place."""
    layout = LAYOUTS.get(arguments.table, LAYOUTS["2"])  # Table 1 is of those of 2
    by_default = layout.sources + (layout.of_films if arguments.data_root else ())
    chosen = _sources(arguments.sources, by_default)
    for name, source in chosen.items():
        if source.needs_root and not arguments.data_root:
            raise UserError(f"source {name} is read from files: give --data-root DIR")
    return chosen


def _folders(arguments, chosen) -> dict[str, str]:
    """Films of --test-on, by name."""
    folders = {_name_of(path): path for path in arguments.test_on}
    if folders and arguments.table != "3":
        raise UserError(f"--test-on is of table 3, not of table {arguments.table}")
    for name, path in folders.items():
        if name in SOURCES | chosen:
            raise UserError(f"--test-on {path} is called as a source is: rename it")
        if not files.expand(path).exists():
            raise UserError(f"--test-on {path}: there is no such folder or file")
    return folders


def _submit(argv, arguments, console) -> bool:
    """Shares the runs among jobs of Slurm and waits; whether any has failed."""
    shards = [f"{i + 1}/{arguments.slurm}" for i in range(arguments.slurm)]
    jobs = [[*argv, "--slurm", "0", "--shard", shard] for shard in shards]
    folder = arguments.workdir / "slurm"
    statuses = experiments.submit(main, jobs, arguments, folder, console)
    if any(statuses):
        count = sum(map(bool, statuses))
        log.say(console, f"{count} jobs had runs that failed: see {folder}")
    return any(statuses)


def _write(workdir, table, tables, records, notes, console):
    stem = workdir / f"table{table}"
    text = result_table.write(stem, tables, records, notes=notes)
    page = html_report.of_table(f"Table {table}", tables, notes)
    atomic.write_text(stem.with_suffix(".html"), page)
    console.print(rich.markdown.Markdown(text))
    log.say(console, f"Written to {stem}.html, .md, .tex, .csv and .json.")


def _sources(text: str | None, default: Sequence[str]) -> dict[str, Source]:
    """Sources by name; films of one's own are called after their folder or zip."""
    found: dict[str, Source] = {}
    for word in dict.fromkeys(text.split(",")) if text else default:
        name, source = word, SOURCES.get(word)
        if source is None:
            if not word or not files.expand(word).exists():
                raise UserError(
                    f"there is no source {word!r}; there are {', '.join(SOURCES)}, and "
                    "folders or zips of your own films"
                )
            name = _name_of(word)
            source = Source(
                _RECIPE_OF_FOLDERS, {"data.name": "folder", "data.root": word}
            )
        if name in found or (word != name and name in SOURCES):
            raise UserError(f"--sources: two are called {name}; rename {word}")
        found[name] = source
    return found


def _name_of(path: str) -> str:
    """What films of one's own are called: as their folder, or zip without its end."""
    place = files.expand(path).resolve()
    return place.name if place.is_dir() else place.stem


def _changed(preset: Preset, changes: Sequence[str]) -> Preset:
    """A preset with more config fields, `FIELD=VALUE` each."""
    given: dict[str, str] = {}
    for text in changes:
        path, sign, value = text.partition("=")
        if not sign:
            raise UserError(f"--set {text!r} is not FIELD=VALUE")
        experiments.check_setting(path, given)
        given[path] = value
    return preset._replace(values=preset.values | given)


def _words(text: str | None, known: Sequence[str], unknown: str) -> tuple[str, ...]:
    """Those that are named, once each; all that are known where none are."""
    words = tuple(dict.fromkeys(text.split(","))) if text else tuple(known)
    for word in words:
        if word not in known:
            raise UserError(f"{unknown} {word}; it has {', '.join(known)}")
    return words


if __name__ == "__main__":
    cli.run(main)
