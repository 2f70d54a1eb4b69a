"""Scores a trained run on the test split of any source.

`python -m hapre_jax.evaluate RUN [--data.…]`.
"""

import dataclasses
import pathlib

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
        "CSV file with a line a film, and a page with curves, key areas and mistakes.",
        add_arguments=add_arguments,
        examples=(
            "runs/phantom --data.quality medium",
            "runs/ped_pneumonia --data.name folder --data.root my_hospital --all",
        ),
    )
    console = rich.console.Console()
    workdir = pathlib.Path(arguments.run)
    trained = run_folder.read_config(workdir)
    config = other_films.config_of(config, trained, program="evaluate")
    results = run_folder.read_results(workdir)
    tested_with = {
        "films": "all" if arguments.all else "test split",
        "data": config_lib.to_dict(config)["data"],
    }
    output = _output(arguments.out, workdir, tested_with)
    with log.progress_bar(console, f"{config.data.name} images") as update:
        tested_on, mean_box, known = other_films.load(
            config,
            trained,
            workdir,
            classes=results["classes"],
            whole=arguments.all,
            progress=update,
        )
    other_films.say_what_is_left_out(known, console)
    method = methods.make(trained, len(results["classes"]))
    evaluation.check_lungs(config.method, method, tested_on)
    best = checkpoint.restore_best(workdir, trained, method)
    tested = evaluation.evaluate(
        evaluation.make_predict(method),
        best,
        tested_on,
        config=config,
        classes=results["classes"],
        mean_box=mean_box,
        temperature=results.get("temperature"),  # which older versions did not fit
    )
    results |= {"dataset": config.data.name, "test": tested.scores, "plain": None}
    results |= {"config": config_lib.to_dict(config), "films": tested_with["films"]}
    by_image = output.with_name(f"{output.stem}_predictions.csv")
    predictions.write(by_image, tested.table)
    _draw(tested_on, tested, output)
    page = output.with_suffix(".html")
    text = html_report.of_test(output, results, trained_on=trained.data.name)
    atomic.write_text(page, text)
    # Last: it says that the test is finished.
    json_file.write(output, results)
    console.print(report.summary_table(results))
    log.say(console, f"Written to {output}, image by image to {by_image}.")
    log.say(console, f"Next: open {page}")
    return 0


def _output(named: str | None, workdir: pathlib.Path, tested_with) -> pathlib.Path:
    """Where results go, checked before hours of work.

    By default to evaluation.json of the run, or, where that is of other films, to the
    first of evaluation-2.json, ... that is free or of these.
    """
    if named is None:
        output, number = workdir / "evaluation.json", 1
        while output.exists() and _tested_with(output) != tested_with:
            number += 1
            output = workdir / f"evaluation-{number}.json"
        return output
    output = pathlib.Path(named)
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--out {output} is no file in a folder that exists")
    if output.suffix != ".json":
        raise UserError(f"--out {output} must end in .json")
    if (output.parent / "config.json").exists() and output.name in _OF_A_RUN:
        raise UserError(f"--out {output} is a file of the run itself; choose another")
    return output


def _tested_with(output):
    """Which films the results of a file are of; None where it does not say."""
    try:
        found = json_file.read(output)
        films = found.get("films", "test split")  # older versions had no other
        return {"films": films, "data": found["config"]["data"]}
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
