"""Trains a method and reports what it learned: `python -m hapre_jax.train`.

A run lives in one folder and goes on where it was interrupted when the same command is
given again; interrupted or not, it ends in the same bits.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
from jax.sharding import Mesh

from hapre_jax import (
    appearance,
    area_history,
    checkpoint,
    cli,
    figures,
    html_report,
    interrupts,
    landscape,
    learning_curves,
    log,
    predictions,
    probabilities,
    report,
    sharding,
    state,
)
from hapre_jax import config as config_lib
from hapre_jax import evaluate as evaluation
from hapre_jax.config import Config
from hapre_jax.data import dataset as datasets
from hapre_jax.data import feed, pipeline, splits
from hapre_jax.errors import UserError, listing
from hapre_jax.framework import Method
from hapre_jax.methods import METHODS

_SHEET_IMAGES = 12
_PICTURES = (
    "learning.png",
    "key_areas.png",
    "key_areas_over_time.png",
    "landscape.png",
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
    checkpoint.check_workdir(workdir, config)
    if (workdir / "results.json").exists():
        return checkpoint.read_json(workdir / "results.json")
    with contextlib.ExitStack() as claims:
        data = _prepare(config, workdir, console, claims)
        plain = None
        needs_plain = METHODS[config.method](config, len(data.train.classes)).prepare
        if config.method != "plain" and (config.compare_plain or needs_plain):
            plain_config, folder = _plain(config), workdir / "plain"
            folder.mkdir(exist_ok=True)
            claims.enter_context(checkpoint.claim(folder))
            checkpoint.write_config(folder, plain_config)
            plain = _run(plain_config, folder, data, console, stop_after)
            if plain is None:
                return None
        return _run(config, workdir, data, console, stop_after, plain=plain)


def _plain(config: Config) -> Config:
    """The run of the folder `plain` of another run."""
    return dataclasses.replace(config, method="plain", compare_plain=False)


def _prepare(config, workdir, console, claims) -> datasets.Splits:
    """Loads the data and makes the run's folder, or leaves nothing where that fails.

    A command that cannot work must not claim the folder of the corrected one.
    """
    if config.train.tensorboard:
        log.import_tensorboard()
    sharding.make_mesh(config.train)
    is_new = not (workdir / "config.json").exists()
    if not is_new:
        claims.enter_context(checkpoint.claim(workdir))
    saved = workdir / "splits.csv"
    with log.progress_bar(console, f"{config.data.name} images") as update:
        unreadable: list[pipeline.Unreadable] = []
        data = pipeline.load(
            config.data,
            seed=config.seed,
            splits_file=saved if saved.exists() else None,
            progress=update,
            on_unreadable=unreadable.extend,
        )
        _iterate(config, data, start=0)
        if is_new:
            method = METHODS[config.method](config, len(data.train.classes))
            for split in (data.train, data.validation, data.test):
                evaluation.check_lungs(method, split)
            state.start_from_files(state.blank(method, config), config)
            workdir.mkdir(parents=True, exist_ok=True)
            claims.enter_context(checkpoint.claim(workdir))
        checkpoint.write_config(workdir, config)
        if not saved.exists():
            splits.write(saved, pipeline.division(data))
        typical = workdir / appearance.FILE
        if not typical.exists():
            checkpoint.write_json(typical, appearance.describe(data.train.images))
        if unreadable:
            pipeline.write_unreadable(workdir / "unreadable.csv", unreadable)
    return data


def _iterate(config, data, *, start, partners=False) -> feed.TrainIterator:
    return feed.train_iterator(
        data.train,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start=start,
        threads=config.data.threads,
        processes=config.data.processes,
        shard=sharding.share(),
        partners=partners,
    )


def _run(config, workdir, data, console, stop_after, plain=None) -> dict | None:
    """Fits one method, scores its best checkpoint on the test split and reports."""
    results_file = workdir / "results.json"
    if results_file.exists():
        return checkpoint.read_json(results_file)
    method = METHODS[config.method](config, len(data.train.classes))
    mesh = sharding.make_mesh(config.train)
    predict = evaluation.make_predict(method, mesh)
    fitted = fit(
        config,
        method,
        predict,
        mesh,
        workdir,
        data,
        console=console,
        stop_after=stop_after,
    )
    if fitted is None:
        return None
    best = fitted.best
    validated = evaluation.evaluate(
        predict, best, data.validation, config=config, mesh=mesh
    ).table
    temperature = probabilities.fit_temperature(
        validated.probabilities, validated.labels
    )
    tested = evaluation.evaluate(
        predict,
        best,
        data.test,
        config=config,
        mean_box=evaluation.mean_lung_box(data.train),
        temperature=temperature,
        mesh=mesh,
    )
    results = {
        "method": config.method,
        "config": config_lib.to_dict(config),
        "dataset": config.data.name,
        "seed": config.seed,
        "classes": list(data.test.classes),
        "steps": config.train.steps,
        "best_step": int(best.step),
        "temperature": temperature,
        "test": tested.scores,
        "plain": plain["test"] if plain else None,
        "landscape": None,
        "seconds": fitted.seconds,
        "device": jax.devices()[0].device_kind,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "flax", "optax", "numpy")
        },
    }
    predictions.write(workdir / "predictions.csv", tested.table)
    mistakes = figures.mistakes_sheet(data.test, tested.predictions)
    if mistakes is not None:
        figures.save(mistakes, workdir / "mistakes.png")
    if tested.predictions.action is not None:
        sheet = figures.key_area_sheet(
            data.test, tested.predictions, count=_SHEET_IMAGES
        )
        figures.save(sheet, workdir / "key_areas.png")
        records = log.read(workdir / "metrics.jsonl")
        history = area_history.draw(data.validation, records)
        figures.save(history, workdir / "key_areas_over_time.png")
        measured = landscape.measure_and_draw(
            method, sharding.gather(best, mesh), data.validation, workdir
        )
        results["landscape"] = _best_scale(
            measured, tested.predictions.action, data.test.lung_boxes
        )
    html_report.write(workdir, results)
    # Last: it says that the run is finished.
    checkpoint.write_json(results_file, results)
    return results


def _best_scale(measured, areas, lung_boxes) -> dict | None:
    """Where the loss leads to, by validation images, and how near the areas are."""
    zoom = landscape.best_zoom(measured)
    if zoom is None or lung_boxes is None or np.isnan(lung_boxes).all():
        return None
    return {"best_zoom": zoom, "iou": landscape.overlap(areas, lung_boxes, zoom)}


class Fitted(NamedTuple):
    """A finished training."""

    best: state.TrainState  # of best validation macro-F1
    seconds: float  # of training and validation, in all processes that worked on it


def fit(
    config: Config,
    method: Method,
    predict: Callable,
    mesh: Mesh,
    workdir: pathlib.Path,
    data: datasets.Splits,
    *,
    console: rich.console.Console,
    stop_after: int | None = None,
) -> Fitted | None:
    """Trains to the last step, or to `stop_after`: then it returns None.

    Either way it leaves a checkpoint to go on from, also where it is interrupted.
    """
    started = time.perf_counter()
    train = config.train
    optimizer = state.make_optimizer(config)
    now = state.init(method, optimizer, config)
    mean_box = evaluation.mean_lung_box(data.train)
    best_f1, seconds_before = -1.0, 0.0
    with contextlib.ExitStack() as stack:
        checkpoints = checkpoint.Checkpoints(workdir)
        stack.callback(checkpoints.close)
        if restored := checkpoints.resume(sharding.shapes(now, mesh)):
            now, progress, faults = restored
            best_f1, seconds_before = progress["best_f1"], progress["seconds"]
            for fault in faults:
                log.say(console, f"{fault}: moved to {workdir}/checkpoints/damaged")
            log.say(console, f"{config.method}: going on from step {int(now.step)}")
        else:
            now, notes = state.start_from_files(now, config)
            for note in notes:
                log.say(console, f"{config.method}: {note}")
            if method.prepare:
                now = _learn_before(config, method, now, workdir, data, console)
        now = sharding.put_state(now, mesh)
        first = int(now.step)
        # A step takes one batch, so its number is the position in the data.
        partners = method.needs_partner and train.batch_size == 1
        batches = _iterate(config, data, start=first, partners=partners)
        stack.callback(batches.close)
        if restored:
            batches.check(progress["data"])
        # The step is dispatched, not awaited: the next batch is read and copied to the
        # device while it runs.
        upcoming = map(functools.partial(sharding.put_batch, mesh=mesh), batches)
        end = train.steps if stop_after is None else min(train.steps, stop_after)

        step_fn = state.make_step(method, optimizer, config, mesh)
        metrics_log = log.MetricsLog(workdir, step=first, tensorboard=train.tensorboard)
        stack.callback(metrics_log.close)
        # Of each step since the last record, on the device at first.
        pending: list[tuple[int, dict]] = []
        if restored:
            pending = [
                (number, {name: np.float32(value) for name, value in values.items()})
                for number, values in progress.get("pending", ())
            ]
        due: tuple[int, list] | None = None  # a record to write, and its step
        settle = functools.partial(
            _settle,
            config=config,
            data=data,
            checkpoints=checkpoints,
            metrics_log=metrics_log,
            console=console,
        )
        update = stack.enter_context(
            log.progress_bar(console, config.method, start=first)
        )

        def record(step, metrics):
            logged = _mean_metrics(settle(metrics), step)
            metrics_log.write("train", step, logged)
            update(step, train.steps, _describe(logged))

        interrupt = stack.enter_context(
            # Processes would not agree on a step to leave after.
            interrupts.held_back()
            if jax.process_count() == 1
            else contextlib.nullcontext(interrupts.Interrupt())
        )
        several = train.steps_per_call
        for step in range(first + several, end + 1, several):
            if several == 1:
                now, step_metrics = step_fn(now, next(upcoming))
            else:
                taken = tuple(itertools.islice(upcoming, several))
                now, step_metrics = step_fn(now, taken)
            if step == first + several:
                jax.block_until_ready(step_metrics)
                took = time.perf_counter() - started
                log.say(console, f"{config.method}: first step done after {took:.1f} s")
            if due:  # fetched while the step that was just dispatched runs
                record(*due)
                due = None
            pending.append((step, step_metrics))
            leaves = step == end or interrupt
            evaluates = step % train.eval_every == 0 or step == train.steps
            saves = step % train.checkpoint_every == 0 or step == train.steps
            if step % train.log_every == 0 or evaluates or saves:
                due, pending = (step, pending), []
            if due and (evaluates or saves or leaves):
                record(*due)
                due = None
            if evaluates:
                scores = _validate(
                    config, predict, now, data.validation, mean_box, mesh, metrics_log
                )
                learning_curves.draw_run(
                    workdir,
                    steps=train.steps,
                    warmup_steps=config.policy.warmup_steps,
                )
                # On a tie the later one: its policy has learned for longer.
                if scores["macro_f1"] >= best_f1:
                    best_f1 = scores["macro_f1"]
                    checkpoints.save("best", now, {"macro_f1": best_f1})
            if saves or leaves:
                # A record comes when it is due, whenever the run is interrupted.
                pending = settle(pending)
                progress = {
                    "data": batches.identity,
                    "best_f1": best_f1,
                    "seconds": seconds_before + time.perf_counter() - started,
                    "pending": [
                        (number, {name: float(value) for name, value in values.items()})
                        for number, values in pending
                    ],
                }
                checkpoints.save("last", now, progress)
            if leaves:
                break
        if interrupt:
            log.say(
                console,
                f"{config.method}: {interrupt.name} at step {int(now.step)}, "
                "which is saved; the same command goes on from there",
            )
        if int(now.step) < train.steps:
            return None
        best = checkpoints.restore("best", now)
        if best is None:
            raise UserError(f"{workdir}/checkpoints/best is lost; delete {workdir}")
    return Fitted(best[0], seconds_before + time.perf_counter() - started)


def _learn_before(config, method, now, workdir, data, console) -> state.TrainState:
    """The state with what the method learns from the plain classifier's best one.

    Interrupted, it starts anew: it is as good as random numbers until it is done.
    """
    plain_method = METHODS["plain"](_plain(config), len(data.train.classes))
    best = checkpoint.restore_best(workdir / "plain", _plain(config), plain_method)
    with (
        contextlib.closing(_iterate(config, data, start=0)) as batches,
        log.progress_bar(console, f"{config.method}, before training") as update,
    ):
        learned = method.prepare(*best.average, batches, data.validation, update)
    return state.start_from(now, now.params, now.model_state | learned)


def _settle(
    pending, *, config, data, checkpoints, metrics_log, console
) -> list[tuple[int, dict]]:
    """Metrics of steps, fetched; a step where one is not finite stops or is left out.

    Called before a checkpoint of these steps is written.
    """
    finite = []
    for step, values in _each_step(jax.device_get(pending)):
        wrong = [name for name, value in values.items() if not np.isfinite(value)]
        if not wrong:
            finite.append((step, values))
            continue
        films = _films_of(step, config, data)
        metrics_log.write("not_finite", step, {"metrics": wrong, "films": films})
        fault = f"{wrong[0]} is not finite at step {step} (films {listing(films)})"
        if config.train.on_nonfinite == "stop":
            raise UserError(
                f"{fault}; {checkpoints.last_good()}; lower train.task_learning_rate "
                "or train.policy_learning_rate, or set train.on_nonfinite to skip"
            )
        log.say(console, f"{config.method}: {fault}; it is skipped")
    return finite


def _each_step(fetched):
    """Step and metrics, one by one also where one call made several steps."""
    for last, values in fetched:
        count = np.size(next(iter(values.values())))
        for index in range(count):
            step = last - count + 1 + index
            yield step, {k: np.atleast_1d(value)[index] for k, value in values.items()}


def _films_of(step, config, data) -> list[str]:
    """Names of the films in the batch of a step."""
    batches = feed.train_iterator(
        data.train,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start=step - 1,
    )
    with contextlib.closing(batches):
        return [data.train.names[row] for row in next(batches)["index"]]


def _mean_metrics(pending, step) -> dict[str, float]:
    """Means over the steps since the last record that were not skipped."""
    if not pending:
        raise UserError(
            f"all steps of the last record, until step {step}, were skipped as not "
            "finite: lower train.task_learning_rate or train.policy_learning_rate"
        )
    return {
        name: float(np.mean([values[name] for _, values in pending]))
        for name in pending[0][1]
    }


def _validate(config, predict, now, source, mean_box, mesh, metrics_log) -> dict:
    """Scores of a split, after they and some key areas are logged."""
    scores, found, _ = evaluation.evaluate(
        predict, now, source, config=config, mean_box=mean_box, mesh=mesh
    )
    step = int(now.step)
    metrics_log.write("validation", step, _flat_scores(scores))
    if found.action is not None:
        areas = np.asarray(found.action)
        record = area_history.record(source.labels, areas)
        metrics_log.write(area_history.KIND, step, record)
    return scores


def _describe(logged: dict[str, float]) -> str:
    shown = {"task_loss": "loss", "reward": "reward", "lung_iou": "IoU"}
    return "  ".join(
        f"{label} {logged[name]:.3f}" for name, label in shown.items() if name in logged
    )


def _flat_scores(scores: dict) -> dict[str, float]:
    flat = {k: v for k, v in scores.items() if isinstance(v, float)}
    area = dict(scores["key_area"] or {})
    trivial = area.pop("trivial_iou", {})
    area |= {f"{name}_iou": value for name, value in trivial.items()}
    for name, value in area.items():
        if isinstance(value, float):
            flat[f"key_area/{name}"] = value
    return flat


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
    written = ["report.html", "results.json", "predictions.csv", "metrics.jsonl"]
    written += [name for name in _PICTURES if (workdir / name).exists()]
    log.say(console, f"Everything is in {workdir}: {', '.join(written)}")
    source = (
        "--data.quality medium" if config.data.name == "phantom" else "--data.root DIR"
    )
    log.say(console, f"Next: python -m hapre_jax.evaluate {workdir} {source}")
    return 0


if __name__ == "__main__":
    cli.run(main)
