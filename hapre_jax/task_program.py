"""Runs of another task than classification: what their programs have in common."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
from PIL import Image

from hapre_jax import cli, evaluation, json_file, log, run_folder, sharding, training
from hapre_jax.config import Config
from hapre_jax.data import dataset
from hapre_jax.errors import UserError
from hapre_jax.method import Method, Prediction
from hapre_jax.reporting import area_history, figures


class Program(NamedTuple):
    """What is specific to a task."""

    task: str  # as results.json says it
    make: Callable[[Config], Method]
    # Scores of a split from rows and the answers to them, see `evaluation.answers`.
    score: Callable[
        [Iterable[tuple[slice, Prediction]], dataset.Dataset], dict[str, float]
    ]
    best_by: str  # the score that decides which checkpoint is the best
    draw: Callable[[Prediction, dataset.Dataset], Image.Image]  # films and answers
    targets: str  # what it is trained on: "masks" or "boxes" of `pipeline.load`
    # Raises `UserError` for what it needs to be told of films, and is not.
    check: Callable[[Config, dataset.Splits], None] = lambda config, data: None


def run(
    argv: list[str],
    program: Program,
    *,
    name: str,
    description: str,
    default_config: str,
) -> int:
    """The program of a task: its command line, a run, and what it says at the end."""
    config, arguments = cli.parse(
        argv,
        program=name,
        description=description,
        default_config=default_config,
        task=program.task,
    )
    sharding.join(config.train)
    console = rich.console.Console(quiet=jax.process_index() > 0)
    workdir = pathlib.Path(arguments.workdir)
    with sharding.one_writer(workdir) as folder:
        results = train_and_test(config, folder, program, console=console)
    assert results is not None  # it was not told to stop early
    test = results["test"]
    shown = {name: value for name, value in test.items() if isinstance(value, float)}
    if test["key_area"]:
        shown["side of the key area"] = test["key_area"]["side_fraction"]
    said = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
    log.say(console, f"{test['n']} test films: {said}")
    log.say(console, f"Everything is in {workdir}: results.json, answers.png")
    return 0


def train_and_test(
    config: Config,
    workdir: pathlib.Path,
    program: Program,
    *,
    console: rich.console.Console | None = None,
    stop_after: int | None = None,
) -> dict[str, Any] | None:
    """Runs one experiment, or goes on with it, and writes `results.json`.

    As `train.train_and_evaluate`, which see, but without a plain run beside it.
    """
    console = console or rich.console.Console(quiet=True)
    run_folder.check_workdir(workdir, config)
    if results := training.finished(workdir, program.task):
        return results
    if config.method != "hapre":
        raise UserError(
            f"method is {config.method}, but {program.task} has hapre alone; "
            "policy.operation none is the whole film"
        )
    for name, default in (("probe_size", 0), ("probe_dtype", "same")):
        if (value := getattr(config.policy, name)) != default:
            raise UserError(
                f"policy.{name} is {value}, but {program.task} tries areas as it "
                f"trains on them: leave it at {default}"
            )
    with contextlib.ExitStack() as claims:
        method, data = training.open_run(
            config,
            workdir,
            lambda classes: program.make(config),
            lambda method, data: program.check(config, data),
            console=console,
            claims=claims,
            **{program.targets: True},
        )
        return _run(config, method, workdir, program, data, console, stop_after)


def _run(config, method, workdir, program, data, console, stop_after) -> dict | None:
    mesh = sharding.make_mesh(config.train)
    answer = functools.partial(
        evaluation.answers,
        evaluation.make_predict(method, mesh),
        config=config,
        mesh=mesh,
    )
    score = functools.partial(
        _score, config, program, answer, evaluation.mean_lung_box(data.train)
    )
    fitted = training.fit(
        config,
        method,
        workdir,
        data,
        validate=lambda state: score(state, data.validation),
        best_by=program.best_by,
        mesh=mesh,
        console=console,
        stop_after=stop_after,
    )
    if fitted is None:
        return None
    scores, areas = score(fitted.best, data.test)
    with contextlib.closing(answer(fitted.best, data.test)) as batches:
        rows, found = next(batches)
    shown = data.test.take(np.arange(rows.stop))
    figures.save(program.draw(found, shown), workdir / "answers.png")
    if areas is not None:
        area_history.draw_run(workdir, data.validation)
    facts = training.facts(config, fitted, data)
    results = facts | {"task": program.task, "test": scores}
    # Last: it says that the run is finished.
    json_file.write(workdir / "results.json", results)
    return results


def _score(config, program, answer, mean_box, state, films):
    """Scores of a split, as in results.json, and its key areas or None."""
    actions = []

    def answers():
        for rows, found in answer(state, films):
            # Answers on whole films may be too large to keep.
            actions.append(found._replace(probabilities=None))
            yield rows, found

    scores = {"n": len(films), **program.score(answers(), films)}
    found = jax.tree.map(lambda *parts: np.concatenate(parts), *actions)
    scores |= evaluation.score_actions(found, films, config=config, mean_box=mean_box)
    return scores, found.area
