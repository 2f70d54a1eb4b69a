r"""Runs a grid of experiments over seeds and makes one table of them.

python launch/grid.py --config configs/phantom.py --workdir runs/grid --seeds 3 \
    --set policy.sigma=0.2,0.35

Each run is an ordinary `python -m hapre_jax.train` in a folder of its own: a finished
one is skipped, an interrupted one goes on, a failed one is listed at the end.
"""

import collections
import itertools
import pathlib

import rich.console
import rich.markup
import rich.table

from hapre_jax import cli, experiments, json_file, run_folder, scores
from hapre_jax.errors import UserError
from hapre_jax.experiments import Experiment

# Columns of the table, and where `results.json` has their scores.
_COLUMNS = {
    "plain macro F1": "plain.macro_f1",
    "macro F1": "test.macro_f1",
    "plain accuracy": "plain.accuracy",
    "accuracy": "test.accuracy",
    "lung IoU": "test.key_area.lung_iou",
    "mean box IoU": "test.key_area.trivial_iou.mean_box",
}
# Scores of `evaluation.score_parameter`.
_BESIDE_THE_TRUTH = (
    "error",
    "error_but_for_a_constant",
    "error_untouched",
    "correlation",
)


def grid(
    config: str, settings: list[str], seeds: int, workdir: pathlib.Path
) -> list[Experiment]:
    """All combinations of `PATH=VALUE,VALUE` settings, each with all seeds."""
    axes: dict[str, list] = {}
    for setting in settings:
        path, equals, values = setting.partition("=")
        if not equals or not path or not values:
            raise UserError(f"--set {setting!r} is not PATH=VALUE,VALUE,...")
        experiments.check_setting(path, axes, hint=": give it all its values once")
        listed = values.removesuffix(";").split(";" if ";" in values else ",")
        # A value given twice would count its seeds twice.
        axes[path] = [(path, value) for value in dict.fromkeys(listed)]
    runs = []
    for combination in itertools.product(*axes.values()):
        name = ",".join(f"{path}={value}" for path, value in combination) or "default"
        name = name.replace("/", "_")  # a path as a value is one folder too
        for seed in range(seeds):
            values = dict(combination) | {"seed": str(seed)}
            folder = workdir / name / f"seed-{seed}"
            runs.append(Experiment(config, values, folder))
    folders = collections.Counter(run.folder for run in runs)
    folder, count = folders.most_common(1)[0] if runs else (workdir, 0)
    if count > 1:
        raise UserError(
            f"two runs would have the folder {folder}: call the values otherwise, as a "
            "/ is written as _ there"
        )
    return runs


def summarize(runs: list[Experiment]) -> list[dict]:
    """A row a combination: its values, and mean, interval and values of each score."""
    rows = []
    for name, group in itertools.groupby(runs, lambda run: run.folder.parent.name):
        done = [run.folder for run in group if run.is_finished]
        results = [run_folder.read_results(folder) for folder in done]
        columns = dict(_COLUMNS)
        # How an operation was set, beside the truth, where that is known.
        for parameter in results[0]["test"].get("parameters", ()) if results else ():
            columns |= {
                f"{parameter}: {score.replace('_', ' ')}": (
                    f"test.parameters.{parameter}.{score}"
                )
                for score in _BESIDE_THE_TRUTH
            }
        found = {
            column: scores.across_seeds(scores.known(results, path))
            for column, path in columns.items()
        }
        known = {column: score for column, score in found.items() if score}
        rows.append({"run": name, "n": len(results), "scores": known})
    return rows


def table(rows: list[dict]) -> rich.table.Table:
    """The rows for the terminal: mean ± 95 % interval over seeds.

    Scores or runs are its columns, whichever are fewer: a terminal is narrow.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    runs = [f"{row['run']}, seeds: {row['n']}" for row in rows]
    cells = [
        [scores.shown(row["scores"].get(n), per_cent=False) or "-" for n in names]
        for row in rows
    ]
    columns, lines = names, runs
    if len(runs) < len(names):
        columns, lines = runs, names
        cells = [list(column) for column in zip(*cells, strict=True)]
    shown = rich.table.Table(title="mean ± 95 % over seeds")
    for title in ("", *columns):  # values such as paths are long, and none is cut
        shown.add_column(rich.markup.escape(title), overflow="fold")
    for line, of_line in zip(lines, cells, strict=True):
        shown.add_row(rich.markup.escape(line), *of_line)
    return shown


def main(argv: list[str]) -> int:
    """The program; 1 if a run failed."""
    parser = cli.Parser(
        prog="python launch/grid.py",
        description=__doc__,
    )
    parser.add_argument("--config", default="configs/phantom.py", help="experiment")
    parser.add_argument("--workdir", default="runs/grid", help="folder of all runs")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1 of each")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=V,V",
        help="values of a config field to try; again for another field. Between values "
        "that have commas themselves, and after a single one, is a semicolon",
    )
    parser.add_argument("--shard", default="1/1", help="i/n: every n-th run (clusters)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    arguments = parser.parse_args(argv)

    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}, but must be at least 1")
    console = rich.console.Console()
    workdir = pathlib.Path(arguments.workdir)
    runs = grid(arguments.config, arguments.set, arguments.seeds, workdir)
    mine = experiments.choose(runs, arguments.shard)
    if arguments.dry_run:
        experiments.print_commands(mine)
        return 0
    failures = experiments.run_all(mine, console)
    rows = summarize(runs)
    json_file.write(workdir / "summary.json", rows)
    console.print(table(rows))
    experiments.say_failures(failures, console)
    return 1 if failures else 0


if __name__ == "__main__":
    cli.run(main)
