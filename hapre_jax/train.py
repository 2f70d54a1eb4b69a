"""Trains a method and reports what it learned: `python -m hapre_jax.train`.

A run lives in one folder and goes on where it was interrupted when the same command is
given again; interrupted or not, it ends in the same bits.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
from typing import Any

import jax
import numpy as np
import rich.console

from hapre_jax import (
    appearance,
    checkpoint,
    cli,
    evaluation,
    explain,
    html_report,
    json_file,
    log,
    methods,
    predictions,
    probabilities,
    reward_landscape,
    run_folder,
    sharding,
    train_state,
    training,
)
from hapre_jax.config import Config, DataConfig
from hapre_jax.data import dataset as datasets
from hapre_jax.data import files, phantom
from hapre_jax.method import Method
from hapre_jax.reporting import (
    area_history,
    figures,
    heatmap_sheet,
    landscape_sheet,
    report,
)

_HEATMAP_IMAGES = 6
_PICTURES = (
    "learning.png",
    "key_areas.png",
    "key_areas_over_time.png",
    "landscape.png",
    "heatmaps.png",
    "mistakes.png",
)


def train_and_evaluate(
    config: Config,
    workdir: pathlib.Path,
    *,
    console: rich.console.Console | None = None,
    stop_after: int | None = None,
) -> dict[str, Any] | None:
    """Runs one experiment, or goes on with it, and writes `results.json`.

    Args:
      config: of the run; with `compare_plain`, or where the method learns from it, the
        plain classifier is trained first, in the folder `plain` of this one, on the
        same images with the same budget.
      workdir: the run's folder.
      console: where progress goes; a silent one by default.
      stop_after: steps after which to leave with a checkpoint, as a time limit would.

    Returns:
      What `results.json` holds, or None if it stopped before the end.
    """
    console = console or rich.console.Console(quiet=True)
    run_folder.check_workdir(workdir, config)
    if results := training.finished(workdir, "classification"):
        root = results["config"].get("data", {}).get("root", "")
        named = config.data.root
        if named and not files.is_same_place(named, root):
            whose = root or "the program itself"
            said = f"This run is finished, with films of {whose}: {named} was not"
            log.say(console, f"{said} looked at")
        return results
    with contextlib.ExitStack() as claims:
        method, data = training.open_run(
            config,
            workdir,
            lambda classes: methods.make(config, len(classes)),
            functools.partial(_check_lungs, config.method),
            console=console,
            claims=claims,
        )
        typical = workdir / appearance.FILE
        if not typical.exists():
            json_file.write(typical, appearance.describe(data.train.images))
        plain = None
        if config.method != "plain" and (config.compare_plain or method.prepare):
            plain_config, folder = _plain(config), workdir / run_folder.PLAIN
            folder.mkdir(exist_ok=True)
            claims.enter_context(run_folder.claim(folder))
            run_folder.write_config(folder, plain_config)
            of_plain = methods.make(plain_config, len(data.train.classes))
            plain = _run(plain_config, of_plain, folder, data, console, stop_after)
            if plain is None:
                return None
        return _run(config, method, workdir, data, console, stop_after, plain=plain)


def _plain(config: Config) -> Config:
    """The run of the folder `run_folder.PLAIN` of another run."""
    return dataclasses.replace(config, method="plain", compare_plain=False)


def _check_lungs(name: str, method: Method, data: datasets.Splits) -> None:
    """Raises `UserError` where the method needs lungs, and a split knows none."""
    for split in data:
        evaluation.check_lungs(name, method, split)


def _run(config, method, workdir, data, console, stop_after, plain=None) -> dict | None:
    """Fits one method, scores its best checkpoint on the test split and reports."""
    if results := training.finished(workdir, "classification"):
        return results
    mesh = sharding.make_mesh(config.train)
    evaluate = functools.partial(
        evaluation.evaluate,
        evaluation.make_predict(method, mesh),
        config=config,
        mesh=mesh,
    )
    before = None
    if method.prepare:
        before = functools.partial(
            _learn_before, config, method, workdir, data, console
        )
    fitted = training.fit(
        config,
        method,
        workdir,
        data,
        validate=functools.partial(_validate, evaluate, data),
        best_by="macro_f1",
        mesh=mesh,
        console=console,
        before=before,
        stop_after=stop_after,
    )
    if fitted is None:
        return None
    # Not split over devices: pictures are of a few films.
    whole = sharding.gather(fitted.best, mesh)
    results = _test(config, method, evaluate, fitted, whole, workdir, data)
    results["plain"] = plain["test"] if plain else None
    _draw_heatmaps(config, whole, workdir, data, beside_plain=bool(plain))
    html_report.write(workdir, results)
    # Last: it says that the run is finished.
    json_file.write(workdir / "results.json", results)
    return results


def _test(config, method, evaluate, fitted, whole, workdir, data) -> dict[str, Any]:
    """Scores of the best checkpoint on the test split, written and drawn."""
    best, mean_box = fitted.best, evaluation.mean_lung_box(data.train)
    validated = evaluate(best, data.validation).table
    temperature = probabilities.fit_temperature(
        validated.probabilities, validated.labels
    )
    scores, found, table = evaluate(
        best, data.test, mean_box=mean_box, temperature=temperature
    )
    results = training.facts(config, fitted, data) | {
        "temperature": temperature,
        "test": scores,
        "landscape": None,
    }
    predictions.write(workdir / "predictions.csv", table)
    mistakes = figures.mistakes_sheet(data.test, found)
    if mistakes is not None:
        figures.save(mistakes, workdir / "mistakes.png")
    if found.area is not None:
        sheet = figures.key_area_sheet(data.test, found)
        figures.save(sheet, workdir / "key_areas.png")
        area_history.draw_run(workdir, data.validation)
        size = evaluation.batch_size(config)
        measured = reward_landscape.measure(
            method, whole, data.validation, batch_size=size
        )
        landscape_sheet.save(measured, workdir / "landscape.png", step=int(whole.step))
        results["landscape"] = _best_scale(measured, found.area, data.test.lung_boxes)
    return results


def _draw_heatmaps(config, whole, workdir, data, *, beside_plain):
    """Where the classifier looks, beside the plain one, if that can be said."""
    if explain.make(config, len(data.test.classes)) is None:
        return
    rows = figures.first_of_each_class(data.test.labels, _HEATMAP_IMAGES)
    films, found = data.test.take(rows), {}
    if beside_plain:
        plain_best = _best_of_plain(config, workdir, data)
        found["plain"] = explain.look(_plain(config), plain_best, films)
    found[config.method] = explain.look(config, whole, films)
    sheet = heatmap_sheet.draw(films, found, count=_HEATMAP_IMAGES)
    figures.save(sheet, workdir / "heatmaps.png")


def _best_of_plain(config, workdir, data) -> train_state.TrainState:
    """The best checkpoint of the run that `_plain` is the config of."""
    method = methods.make(_plain(config), len(data.train.classes))
    return checkpoint.restore_best(workdir / run_folder.PLAIN, _plain(config), method)


def _best_scale(measured, areas, lung_boxes) -> dict | None:
    """Where the loss leads to, by validation images, and how near the areas are."""
    zoom = reward_landscape.best_zoom(measured)
    if zoom is None or not datasets.is_known(lung_boxes).any():
        return None
    return {"best_zoom": zoom, "iou": reward_landscape.overlap(areas, lung_boxes, zoom)}


def _learn_before(
    config, method, workdir, data, console, state
) -> train_state.TrainState:
    """The state with what the method learns from the plain classifier's best one.

    Interrupted, it starts anew: until it is done, and then is saved, it is as good as
    random numbers. Of several processes each learns it by itself, all from the same
    films: the same.
    """
    best = _best_of_plain(config, workdir, data)
    with (
        contextlib.closing(training.iterate(config, data.train, whole=True)) as batches,
        log.progress_bar(console, f"{config.method}, before training") as update,
    ):
        learned = method.prepare(*best.average, batches, data.validation, update)
    return train_state.start_from(state, state.params, state.model_state | learned)


def _validate(evaluate, data, state) -> tuple[dict, np.ndarray | None]:
    """Scores of the validation split, and its key areas."""
    mean_box = evaluation.mean_lung_box(data.train)
    scores, found, _ = evaluate(state, data.validation, mean_box=mean_box)
    return scores, found.area


def main(argv: list[str]) -> int:
    """The program."""
    config, arguments = cli.parse(
        argv,
        program="python -m hapre_jax.train",
        description="Train a method on a data set, score it on the test split, and "
        "leave tables and pictures in a folder. Give the same command again to go on "
        "with an interrupted run.",
        default_config="configs/phantom.py",
    )
    sharding.join(config.train)
    console = rich.console.Console(quiet=jax.process_index() > 0)
    workdir = pathlib.Path(arguments.workdir)
    with sharding.one_writer(workdir) as folder:
        results = train_and_evaluate(config, folder, console=console)
    assert results is not None  # it was not told to stop early
    console.print(report.summary_table(results))
    if warning := report.verdict(results):
        log.say(console, warning)
    files = ["report.html", "results.json", "predictions.csv", "metrics.jsonl"]
    written = [name for name in [*files, *_PICTURES] if (workdir / name).exists()]
    if lost := [name for name in files if name not in written]:
        again = "delete results.json and give the command again to have them anew"
        log.say(console, f"{workdir} has lost {', '.join(lost)}: {again}")
    log.say(console, f"Everything is in {workdir}: {', '.join(written)}")
    log.say(console, f"Next: {_next(config.data, workdir)}")
    return 0


def _next(data: DataConfig, workdir: pathlib.Path) -> str:
    """The command after a run: a test elsewhere, where its classes are known."""
    test = f"python -m hapre_jax.evaluate {shlex.quote(str(workdir))}"
    if data.name != "phantom":
        return f"{test} --data.root DIR"
    if data.quality in phantom.QUALITIES:
        other = "low" if data.quality == "medium" else "medium"
        return f"{test} --data.quality {other}"
    return f"open {shlex.quote(str(workdir / 'report.html'))}"


if __name__ == "__main__":
    cli.run(main)
