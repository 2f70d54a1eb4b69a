"""Scores a trained run on the test split of any source.

`python -m hapre_jax.evaluate RUN [--data.…]`.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import shlex
from collections.abc import Iterator
from typing import Any

import rich.console

from hapre_jax import (
    atomic,
    checkpoint,
    cli,
    evaluation,
    html_report,
    json_file,
    log,
    methods,
    other_films,
    predictions,
    run_folder,
)
from hapre_jax import config as config_lib
from hapre_jax.config import Config
from hapre_jax.errors import UserError
from hapre_jax.reporting import figures, report

# Of results whose file, or its page, would take the place of one that training leaves.
_OF_A_RUN = (
    "appearance.json",
    "config.json",
    "landscape.json",
    "report.json",
    "results.json",
)


def main(argv: list[str]) -> int:
    """The program."""

    def add_arguments(parser):
        text = "where to write the results (default RUN/evaluation.json)"
        parser.add_argument("--out", metavar="FILE", help=text)
        text = "score all films of another source, not its test part alone"
        parser.add_argument("--all", action="store_true", help=text)

    config, arguments = cli.parse(
        argv,
        program="python -m hapre_jax.evaluate",
        description="Score the best checkpoint of a run on the test split of its own "
        "data, or of another source named by --data flags. Leaves scores as JSON, a "
        "CSV file with a line a film, and a page with curves, key areas and mistakes. "
        f"{other_films.ABOUT_FLAGS}",
        add_arguments=add_arguments,
        examples=(
            "runs/phantom --data.quality medium",
            "runs/ped_pneumonia --data.name folder --data.root my_hospital --all",
        ),
    )
    console = rich.console.Console()
    workdir = pathlib.Path(arguments.run)
    trained = run_folder.read_config(workdir)
    config = other_films.config_of(
        config, trained, given=arguments.given, program="evaluate"
    )
    tested_with = _films_of(config, arguments.all)
    with _output(arguments.out, workdir, tested_with) as output:
        results = evaluate_run(
            workdir, config, output, whole=arguments.all, console=console
        )
    console.print(report.summary_table(results))
    by_image = output.with_name(f"{output.stem}_predictions.csv")
    log.say(console, f"Written to {output}, image by image to {by_image}.")
    page = shlex.quote(str(output.with_suffix(".html")))
    log.say(console, f"Next: open {page}")
    return 0


def evaluate_run(
    workdir: pathlib.Path,
    config: Config,
    output: pathlib.Path,
    *,
    whole: bool = False,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Scores a finished run on films, and writes what there is to say of it.

    Args:
      workdir: of the run.
      config: its own, but for the films, see `other_films.config_of`.
      output: JSON file for the scores; beside it, called after it, come a CSV file
        with a line a film, a page and its pictures.
      whole: whether all films of another source are taken, see `other_films.load`.
      console: where progress goes; a silent one by default.

    Returns:
      What the JSON file holds.

    Raises:
      UserError: the run is not finished, or cannot be tested on these films.
    """
    console = console or rich.console.Console(quiet=True)
    trained, results = run_folder.read_config(workdir), run_folder.read_results(workdir)
    with log.progress_bar(console, f"{config.data.name} images") as update:
        films, mean_box, known = other_films.load(
            config,
            trained,
            workdir,
            classes=results["classes"],
            whole=whole,
            progress=update,
        )
    other_films.say_what_is_left_out(known, console)
    method = methods.make(trained, len(results["classes"]))
    evaluation.check_lungs(config.method, method, films)
    best = checkpoint.restore_best(workdir, trained, method)
    tested = evaluation.evaluate(
        evaluation.make_predict(method),
        best,
        films,
        config=config,
        classes=results["classes"],
        mean_box=mean_box,
        temperature=results["temperature"],
    )
    results |= {"dataset": config.data.name, "test": tested.scores, "plain": None}
    of = _films_of(config, whole)
    results |= {"config": config_lib.to_dict(config), "films": of["films"]}
    predictions.write(output.with_name(f"{output.stem}_predictions.csv"), tested.table)
    _draw(films, tested, output)
    page = html_report.of_test(output, results, trained_on=trained.data.name)
    atomic.write_text(output.with_suffix(".html"), page)
    # Last: it says that the test is finished.
    json_file.write(output, results)
    return results


def _films_of(config: Config, whole: bool) -> dict[str, Any]:
    """What tells a test on some films from one on others.

    How they are read on a machine does not, nor what was done to those of training.
    """
    data = config_lib.to_dict(config)["data"]
    for name, field in config_lib.options(config.data).items():
        if field.role in ("machine", "augmentation") and not field.is_path:
            del data[name]
    return {"films": "all" if whole else "test split", "data": data}


@contextlib.contextmanager
def _output(
    named: str | None, workdir: pathlib.Path, tested_with: dict[str, Any]
) -> Iterator[pathlib.Path]:
    """Where results go, checked before what may be hours of work, and kept until then.

    By default to evaluation.json of the run, or, where that is of other films, to the
    first of evaluation-2.json, ... that is free or of these.
    """
    with contextlib.ExitStack() as claims:
        if named is None:
            run_folder.check_place(workdir, "--out")
            yield _free(workdir, tested_with, claims)
        else:
            output = pathlib.Path(named)
            _check_output(output)
            claims.enter_context(run_folder.claim_file(output, flag="--out"))
            yield output


def _check_output(output):
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--out {output} is no file in a folder that exists")
    if output.suffix != ".json":
        raise UserError(f"--out {output} must end in .json")
    if (output.parent / "config.json").exists() and output.name in _OF_A_RUN:
        raise UserError(f"--out {output} is a file of the run itself; choose another")
    run_folder.check_place(output.parent, "--out")


def _free(workdir, tested_with, claims):
    """The first file of a run that nobody else writes, free or of these films."""
    for number in itertools.count(1):
        output = workdir / f"evaluation{f'-{number}' if number > 1 else ''}.json"
        with contextlib.ExitStack() as claim:
            try:
                claim.enter_context(run_folder.claim_file(output, flag="--out"))
            except UserError:  # another process is testing on other films
                continue
            if not output.exists() or _tested_with(output) == tested_with:
                claims.push(claim.pop_all())
                return output


def _tested_with(output):
    """Which films the results of a file are of; None where it does not say."""
    try:
        found = json_file.read(output)
        config = config_lib.from_dict(found["config"])
        return _films_of(config, found.get("films") == "all")
    except (UserError, AttributeError, KeyError, TypeError):
        return None


def _draw(films, tested, output):
    """Pictures of what was seen and of mistakes, in the classes of the scores."""
    table = tested.table
    films = dataclasses.replace(films, labels=table.labels, classes=table.classes)
    found = tested.predictions._replace(probabilities=table.probabilities)
    sheets = {"mistakes": figures.mistakes_sheet(films, found)}
    if found.area is not None:
        sheets["key_areas"] = figures.key_area_sheet(films, found)
    for name, sheet in sheets.items():
        file = output.with_name(f"{output.stem}_{name}.png")
        file.unlink(missing_ok=True)  # of a former test
        if sheet is not None:
            figures.save(sheet, file)


if __name__ == "__main__":
    cli.run(main)
