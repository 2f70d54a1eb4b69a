"""Tables and plots of a study: one factor at a time, over seeds.

python launch/grid.py --workdir runs/study
python launch/grid.py --workdir runs/study --set policy.estimator=paper,elite
python launch/study.py runs/study --plot runs/study.png

Reads the `results.json` of FOLDER/VARIANT/seed-N, as `launch/grid.py` makes them. Its
run without --set is the variant "default", which is shown first; each --set, a command
of its own, adds a variant for every value. Prints a Markdown table; the picture of
every seed needs matplotlib: pip install -e '.[report]'.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from hapre_jax import cli, run_folder, scores
from hapre_jax.errors import UserError

_REFERENCE = "default"  # the variant of grid.py that changes nothing


class Variant(NamedTuple):
    """The finished runs of one setting, a seed each."""

    name: str
    results: list[dict]


# Columns of the table, and where `results.json` has their scores.
COLUMNS = {
    "macro-F1": "test.macro_f1",
    "plain macro-F1": "plain.macro_f1",
    "lung IoU": "test.key_area.lung_iou",
    "mean box": "test.key_area.trivial_iou.mean_box",
    "best scale": "landscape.best_zoom",
    "IoU there": "landscape.iou",
    "lungs covered": "test.key_area.lung_coverage",
    "lesions covered": "test.key_area.lesion_coverage",
    "side": "test.key_area.side_fraction",
    "at a bound": "test.key_area.at_bound",
}


def collect(folder: pathlib.Path) -> list[Variant]:
    """The variants of a folder of runs, the reference first, then by name."""
    files = sorted(folder.glob("*/seed-*/results.json"))
    if not files:
        raise UserError(f"{folder} has no finished run VARIANT/seed-N/results.json")
    names = list(dict.fromkeys(file.parent.parent.name for file in files))
    names.sort(key=lambda name: name != _REFERENCE)
    return [
        Variant(
            name,
            [
                run_folder.read_results(file.parent)
                for file in files
                if file.parent.parent.name == name
            ],
        )
        for name in names
    ]


def values(variant: Variant, column: str) -> list[float]:
    """The scores of a variant's seeds, without those that it does not have."""
    return scores.known(variant.results, COLUMNS[column])


def markdown(variants: list[Variant]) -> str:
    """The table, a line a variant, without columns that no variant has."""
    columns = [c for c in COLUMNS if any(values(v, c) for v in variants)]
    lines = [["variant", "seeds", *columns], ["---"] * (len(columns) + 2)]
    for variant in variants:
        seeds = " ".join(str(results["seed"]) for results in variant.results)
        found = [scores.across_seeds(values(variant, column)) for column in columns]
        cells = [scores.shown(score, per_cent=False) for score in found]
        lines.append([variant.name, seeds, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(variants: list[Variant], file: pathlib.Path, *, title: str) -> None:
    """Each seed a dot, a line a variant; what it is to be compared with, dashed."""
    try:
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise UserError("plots need matplotlib: pip install -e '.[report]'") from error
    panels = {"lung IoU": "mean box", "macro-F1": "plain macro-F1"}
    figure = matplotlib.figure.Figure(
        figsize=(9, 1.2 + 0.32 * len(variants)), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), sharey=True)
    rows = range(len(variants))
    for axis, (column, trivial) in zip(axes, panels.items(), strict=True):
        for row, variant in zip(rows, variants, strict=True):
            of_seeds = values(variant, column)
            color = "#0072b2" if variant.name == _REFERENCE else "#e69f00"
            axis.plot(of_seeds, [row] * len(of_seeds), "o", color=color, alpha=0.7)
            if of_seeds:
                axis.plot(np.mean(of_seeds), row, "|", color="black", markersize=14)
        known = [score for variant in variants for score in values(variant, trivial)]
        if known:
            axis.axvline(np.mean(known), color="gray", linestyle="--", linewidth=1)
            axis.set_xlabel(f"{column} (dashed: {trivial}, {np.mean(known):.2f})")
        else:
            axis.set_xlabel(column)
        axis.set_xlim(0, 1.02)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(rows, [variant.name for variant in variants])
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    try:
        figure.savefig(file, dpi=110)
    except (OSError, ValueError) as error:  # no such folder, no such kind of file
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be written: {reason}") from error


def main(argv: list[str]) -> int:
    """The program."""
    parser = cli.Parser(
        prog="python launch/study.py",
        description=__doc__,
    )
    parser.add_argument(
        "folder",
        type=pathlib.Path,
        metavar="FOLDER",
        help="of the study's runs, --workdir of grid.py",
    )
    parser.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="picture to write, such as a.png",
    )
    parser.add_argument("--title", default="", help="of the picture (default FOLDER)")
    arguments = parser.parse_args(argv)
    variants = collect(arguments.folder)
    print(markdown(variants))
    if arguments.plot:
        plot(variants, arguments.plot, title=arguments.title or str(arguments.folder))
        print(f"\nWritten: {arguments.plot}")
    return 0


if __name__ == "__main__":
    cli.run(main)
