"""The runs that a table is made of."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import rich.console

from hapre_jax import config_file, log, run_folder
from hapre_jax.data import files
from hapre_jax.errors import UserError
from hapre_jax.experiments import Experiment
from hapre_jax.paper_tables.films import Source
from hapre_jax.paper_tables.layouts import TITLES, Preset

# What these must know, films of one's own do not come with.
_NEEDS_LUNGS, _NEEDS_NORMAL = "true_lungs", "two_stage"


class Cell(NamedTuple):
    """The runs of one cell, a seed each."""

    source: str
    net: str
    row: str
    runs: tuple[Experiment, ...]

    @property
    def finished(self) -> list[Experiment]:
        """Those that can be counted."""
        return [run for run in self.runs if run.is_finished]


def make(
    *,
    chosen: dict[str, Source],
    networks: Sequence[str],
    rows: Sequence[str],
    preset: Preset,
    seeds: int,
    root: str,
    workdir: pathlib.Path,
) -> list[Cell]:
    """All runs of a table."""
    cells = []
    for name, source in chosen.items():
        for net in networks:
            for row in rows:
                values = preset.values | source.values
                if source.is_folder and what_it_lacks(row, values):
                    continue
                # The table says which depth, the row which attention.
                config = f"configs/baselines.py:{row}@{source.recipe}"
                attention = config_file.load(config).task.net.partition("+")[2]
                values["task.net"] = f"{net}+{attention}" if attention else net
                if source.needs_root:
                    values["data.root"] = root
                runs = tuple(
                    Experiment(
                        config,
                        values | {"seed": str(seed)},
                        workdir / name / net / row / f"seed-{seed}",
                    )
                    for seed in range(seeds)
                )
                cells.append(Cell(name, net, row, runs))
    return cells


def what_it_lacks(row: str, values: dict[str, str]) -> str:
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
            if lacks := what_it_lacks(row, preset.values | source.values):
                said = f"{TITLES[row]} is left out of {name}: it must know {lacks}"
                log.say(console, said)


def check_films(cells: Sequence[Cell], chosen: dict[str, Source]) -> None:
    """Raises `UserError` where a run is of another folder of the same name.

    Data sets may have moved; folders of one's own are told apart by their place alone.
    """
    for cell in cells:
        for run in cell.runs if chosen[cell.source].is_folder else ():
            if not (run.folder / "config.json").exists():
                continue
            before = run_folder.read_config(run.folder).data.root
            if not files.is_same_place(before, run.values["data.root"]):
                raise UserError(
                    f"{run.folder} was trained on the films of {before}, not of "
                    f"{run.values['data.root']}: give another --workdir"
                )


def by_seed(cells: Sequence[Cell]) -> list[Experiment]:
    """All runs, seed by seed, so that an early table has all rows."""
    by_seed = zip(*(cell.runs for cell in cells), strict=True)
    return [run for runs in by_seed for run in runs]
