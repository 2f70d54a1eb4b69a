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
from collections.abc import Sequence

import rich.console
import rich.markdown

from hapre_jax import (
    atomic,
    cli,
    experiments,
    html_report,
    log,
    provenance,
    result_table,
)
from hapre_jax.data import files
from hapre_jax.errors import UserError
from hapre_jax.paper_tables import cross_source, films, layouts, plan, records


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
        counted = records.of_data_sets(chosen, root)
        notes = f"Counted by `{command(arguments)}`."
        _write(workdir, table, *counted, notes, console)
        return 0
    preset = _changed(layouts.presets(arguments.preset), arguments.set)
    layout = layouts.LAYOUTS[table]
    rows = _words(arguments.rows, layout.rows, f"table {table} has no row")
    networks = layout.networks(preset)
    networks = _words(arguments.nets, networks, f"table {table} has no network")
    cells = plan.make(
        chosen=chosen,
        networks=networks,
        rows=rows,
        preset=preset,
        seeds=arguments.seeds,
        root=root,
        workdir=workdir,
    )
    plan.check_films(cells, chosen)
    mine = experiments.choose(plan.by_seed(cells), arguments.shard)
    # What is printed may go to a shell.
    beside = rich.console.Console(stderr=True) if arguments.dry_run else console
    plan.say_what_is_left_out(chosen, rows, preset, beside)
    if arguments.dry_run:
        experiments.print_commands(mine)
        return 0
    # Before hours of phantoms.
    if root and not arguments.finished and not files.expand(root).exists():
        raise UserError(f"--data-root {root} does not exist")
    tests = {
        name: films.Tested(films.fields(source, root, preset.values))
        for name, source in chosen.items()
    }
    tests |= {name: films.all_below(path) for name, path in folders.items()}
    has_failed = False
    if arguments.slurm and not arguments.finished:
        has_failed = _submit(argv, arguments, console)
    elif not arguments.finished:
        failures = experiments.run_all(mine, console)
        if table == "3":
            failures += cross_source.evaluate(cells, mine, tests, console)
        experiments.say_failures(failures, console)
        has_failed = bool(failures)
    finished = [cell for cell in cells if cell.finished]
    if not finished:
        raise UserError(f"{workdir} has no finished run of table {table}")
    if table == "3":
        found = records.of_tests(finished, tests)
    else:
        found = records.by_source(table, finished)
    for one in found:
        one["preset"] = arguments.preset
    notes = notes_on(arguments, cells, found)
    _write(workdir, table, records.to_tables(table, found), found, notes, console)
    return int(has_failed)


def notes_on(arguments, cells, found) -> str:
    """What a reader must know of the figures."""
    done = sum(len(cell.finished) for cell in cells)
    asked = sum(len(cell.runs) for cell in cells)
    commits = sorted({commit for one in found for commit in one["commits"]})
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
            word if word in films.SOURCES else files.expand(word).resolve().name
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
        help=f"of {', '.join(films.SOURCES)}; or a folder or zip with a folder a "
        "class, your own (default: phantoms, and with --data-root films)",
    )
    parser.add_argument("--rows", metavar="A,B", help=f"of {', '.join(layouts.TITLES)}")
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
        help="table 3: test on all of these films too, a folder or zip with a folder a "
        "class",
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


def _chosen(arguments) -> dict[str, films.Source]:
    """The sources that are asked for, whose files have a place."""
    # Table 1 counts the films of Table 2.
    layout = layouts.LAYOUTS["2" if arguments.table == "1" else arguments.table]
    by_default = layout.sources + (layout.of_films if arguments.data_root else ())
    chosen = films.choose(arguments.sources, by_default)
    for name, source in chosen.items():
        if source.needs_root and not arguments.data_root:
            raise UserError(f"source {name} is read from files: give --data-root DIR")
    return chosen


def _folders(arguments, chosen) -> dict[str, str]:
    """Films of --test-on, by name."""
    folders = {films.name_of(path): path for path in arguments.test_on}
    if folders and arguments.table != "3":
        raise UserError(f"--test-on is of table 3, not of table {arguments.table}")
    for name, path in folders.items():
        if name in films.SOURCES | chosen:
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


def _write(workdir, table, tables, found, notes, console):
    stem = workdir / f"table{table}"
    text = result_table.write(stem, tables, found, notes=notes)
    page = html_report.of_table(f"Table {table}", tables, notes)
    atomic.write_text(stem.with_suffix(".html"), page)
    console.print(rich.markdown.Markdown(text))
    log.say(console, f"Written to {stem}.html, .md, .tex, .csv and .json.")


def _changed(preset: layouts.Preset, changes: Sequence[str]) -> layouts.Preset:
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
