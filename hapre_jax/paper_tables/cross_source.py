"""Tests of finished runs on films of other sources."""

import pathlib
from collections.abc import Sequence

import rich.console

from hapre_jax import config as config_lib
from hapre_jax import experiments, json_file, log
from hapre_jax.data import files
from hapre_jax.experiments import Experiment
from hapre_jax.paper_tables.films import Tested
from hapre_jax.paper_tables.plan import Cell


def is_test_of(file: pathlib.Path, films: Tested) -> bool:
    """Whether a file has a test on films.

    Those of another folder, or another part of the same ones, may have had its name.
    """
    values, results = films.values, json_file.read(file) if file.exists() else {}
    config = results.get("config")
    if config is None or (results.get("films") == "all") != films.whole:
        return False
    fields = config_lib.options(config_lib.from_dict(config))
    stored = {path: config_lib.to_text(fields[path].value) for path in values}
    if values["data.name"] == "folder":
        if not files.is_same_place(stored["data.root"], values["data.root"]):
            return False
    return stored | {"data.root": ""} == values | {"data.root": ""}


def is_tested(cell: Cell, name: str, films: Tested) -> bool:
    """Whether all finished runs of a cell were tested on a source."""
    return name == cell.source or all(
        is_test_of(run.folder / "on" / f"{name}.json", films) for run in cell.finished
    )


def evaluate(
    cells: Sequence[Cell],
    runs: Sequence[Experiment],
    tests: dict[str, Tested],
    console: rich.console.Console,
) -> list[experiments.Failure]:
    """Tests those of `runs` that are finished on films, `tests` by name."""
    jobs = []
    for cell in cells:
        for run in (run for run in cell.finished if run in runs):
            for name, films in tests.items():
                output = run.folder / "on" / f"{name}.json"
                if name != cell.source and not is_test_of(output, films):
                    jobs.append((run, films, output))
    failures = []
    with log.progress_bar(console, "tests") as update:
        for done, (run, films, output) in enumerate(jobs, 1):
            flags = [f"--{path}={value}" for path, value in films.values.items()]
            flags += ["--all"] if films.whole else []
            command = ["hapre_jax.evaluate", str(run.folder), "--out", str(output)]
            said = output.with_suffix(".log")
            if not experiments.run_program([*command, *flags], said):
                failures.append(experiments.Failure(str(output), said))
            update(done, len(jobs), str(output))
    return failures
