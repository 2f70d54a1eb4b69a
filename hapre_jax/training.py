"""The loop that trains a method, whatever its task is, in a folder of its own.

A program says how a state is scored, and by which score the best one is chosen. What it
trains goes on where it was interrupted, and ends in the same bits.
"""

import contextlib
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
from jax.sharding import Mesh

from hapre_jax import (
    checkpoint,
    interrupts,
    log,
    optimization,
    pretrained,
    provenance,
    run_folder,
    sharding,
    train_state,
    train_step,
)
from hapre_jax import config as config_lib
from hapre_jax.config import Config
from hapre_jax.data import dataset as datasets
from hapre_jax.data import feed, files, pipeline, sources, splits
from hapre_jax.errors import UserError, listing
from hapre_jax.method import Method
from hapre_jax.reporting import area_history, learning_curves
from hapre_jax.train_state import TrainState


class Fitted(NamedTuple):
    """A finished training."""

    best: TrainState  # of the best validation
    seconds: float  # of training and validation, in all processes that worked on it


def open_run(
    config: Config,
    workdir: pathlib.Path,
    make: Callable[[Sequence[str]], Method],
    check: Callable[[Method, datasets.Splits], None],
    *,
    console: rich.console.Console,
    claims: contextlib.ExitStack,
    masks: bool = False,
    boxes: bool = False,
) -> tuple[Method, datasets.Splits]:
    """Makes the method, loads its data and makes the run's folder; or leaves nothing.

    A command that cannot work must not claim the folder of the corrected one.

    Args:
      config: of the run.
      workdir: its folder, which `run_folder.check_workdir` passed.
      make: the method that is to be trained to tell some classes apart.
      check: raises `UserError` for what the method needs and the films lack.
      console: where progress goes.
      claims: keeps the folder for this process until it is closed.
      masks, boxes: see `pipeline.load`.

    Raises:
      UserError: the data cannot be loaded, or the run has lost how it was divided.
    """
    if config.train.tensorboard:
        log.import_tensorboard()
    mesh = sharding.make_mesh(config.train)  # or says why there is none
    provenance.commit()  # of what is at work from now on
    is_new = not (workdir / "config.json").exists()
    if is_new and config.data.name == "folder":  # others know their films by name
        run_folder.check_not_among(workdir, config.data.root, "--workdir")
    if not is_new:
        claims.enter_context(run_folder.claim(workdir))
    saved = workdir / "splits.csv"
    if not saved.exists() and any((workdir / "checkpoints").glob("*/*")):
        raise UserError(
            f"{saved} is lost, which says what films the checkpoints there were "
            "trained on: restore it, or choose another --workdir"
        )
    with log.progress_bar(console, f"{config.data.name} images") as update:
        source = sources.open_source(config.data, seed=config.seed)
        method = make(source.classes)
        if is_new:  # before hours of reading
            blank = train_state.blank(method, config)
            pretrained.start(config, blank.params, blank.model_state)
        films = pipeline.read(
            source, config.data, seed=config.seed, progress=update, masks=masks
        )
        data = pipeline.divide(
            films, splits_file=saved if saved.exists() else None, boxes=boxes
        )
        check(method, data)
        shards = sharding.share(mesh)[1]
        feed.check_batch_size(config.train.batch_size, len(data.train), shards)
        if is_new:
            workdir.mkdir(parents=True, exist_ok=True)
            claims.enter_context(run_folder.claim(workdir))
        run_folder.write_config(workdir, config)
        # Before the division and as of then: what is in neither file is a new film.
        listed = workdir / files.UNREADABLE
        if films.unreadable and not (saved.exists() and listed.exists()):
            pipeline.write_unreadable(listed, films.unreadable)
        if not saved.exists():
            splits.write(saved, pipeline.division(data))
    return method, data


def iterate(
    config: Config,
    films: datasets.Dataset,
    *,
    start: int = 0,
    partners: bool = False,
    whole: bool = False,
) -> feed.TrainIterator:
    """The batches of a run from step `start` on: this process's share, or `whole`."""
    return feed.TrainIterator(
        films,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start=start,
        threads=config.data.threads,
        processes=config.data.processes,
        shard=(0, 1) if whole else sharding.share(sharding.make_mesh(config.train)),
        partners=partners,
    )


def fit(
    config: Config,
    method: Method,
    workdir: pathlib.Path,
    data: datasets.Splits,
    *,
    validate: Callable[[TrainState], tuple[dict, np.ndarray | None]],
    best_by: str,
    mesh: Mesh,
    console: rich.console.Console,
    before: Callable[[TrainState], TrainState] | None = None,
    stop_after: int | None = None,
) -> Fitted | None:
    """Trains to the last step, or to `stop_after`: then it returns None.

    Either way it leaves a checkpoint to go on from, also where it is interrupted.

    Args:
      config: of the run.
      method: what is trained.
      workdir: the run's folder, see `open_run`.
      data: batches are of its training split; the validation split has the films of
        `validate`.
      validate: scores of a state, as in results.json, and the key areas `f32[N, 4]` of
        the N validation films, or None.
      best_by: the score whose highest value decides which checkpoint is the best.
      mesh: devices of the run.
      console: where progress goes.
      before: called with the state before the first step, where that is not a random
        one.
      stop_after: steps after which to leave, as a time limit would; of
        `train.steps_per_call` steps, those that are whole by then.
    """
    train = config.train
    end = train.steps if stop_after is None else min(train.steps, stop_after)
    end -= end % train.steps_per_call
    with contextlib.ExitStack() as stack:
        loop = _Loop(
            config,
            method,
            workdir,
            data,
            mesh=mesh,
            console=console,
            before=before,
            stack=stack,
        )
        loop.run(end, validate, best_by)
        if int(loop.state.step) < train.steps:
            return None
        if not loop.checkpoints.find("best"):  # it was lost after the last validation
            loop.validate(validate, best_by)
        best = loop.checkpoints.restore("best", loop.state)
        if best is None:
            raise UserError(f"{workdir}/checkpoints/best is lost; delete {workdir}")
        return Fitted(best[0], loop.seconds)


class _Progress(NamedTuple):
    """What the checkpoint to go on from says besides the state."""

    best_score: float = -1.0  # below any: they lie in [0, 1]
    seconds: float = 0.0
    # Step and metrics of those since the last record.
    pending: tuple[tuple[int, dict[str, np.float32]], ...] = ()

    @classmethod
    def of(cls, saved: dict) -> "_Progress":
        """Of a checkpoint's JSON."""
        # Older versions had other names.
        named = "best_score" if "best_score" in saved else "best_f1"
        renamed = {"lungs_known": "lung_iou/known"}
        pending = tuple(
            (number, {renamed.get(k, k): np.float32(v) for k, v in values.items()})
            for number, values in saved.get("pending", ())
        )
        return cls(saved[named], saved["seconds"], pending)


class _Loop:
    """What a training carries from step to step; the stack closes what it opened.

    It begins at the last checkpoint, or at the state before the first step.
    """

    def __init__(self, config, method, workdir, data, *, mesh, console, before, stack):
        self.config, self.method, self.workdir = config, method, workdir
        self.data, self.mesh, self.console = data, mesh, console
        self.started = time.perf_counter()
        optimizer = optimization.make_optimizer(config)
        self.state = train_state.init(method, optimizer, config)
        self.step_fn = train_step.make_step(method, optimizer, config, mesh)
        self.checkpoints = checkpoint.Checkpoints(workdir)
        stack.callback(self.checkpoints.close)
        saved = self.take_up()
        progress = _Progress.of(saved) if saved else _Progress()
        self.best_score, self.seconds_before = progress.best_score, progress.seconds
        if not self.checkpoints.find("best"):
            self.best_score = _Progress().best_score
        # Metrics of each step since the last record, on the device at first, and a
        # record that is due.
        self.pending: list[tuple[int, dict]] = list(progress.pending)
        self.due: tuple[int, list] | None = None
        if not saved:
            self.prepare(before)
        self.state = sharding.put_state(self.state, mesh)
        # A step takes one batch, so its number is the position in the data.
        step = int(self.state.step)
        partners = method.needs_partner and config.train.batch_size == 1
        self.batches = iterate(config, data.train, start=step, partners=partners)
        stack.callback(self.batches.close)
        if saved:
            self.batches.check(saved["data"])
        elif before:
            self.save()  # what took longer, maybe, than all that is to come
        self.log = self.open_log(step)
        stack.callback(self.log.close)
        self.update = stack.enter_context(
            log.progress_bar(console, config.method, start=step)
        )

    @property
    def seconds(self) -> float:
        """Of this process and of those before it."""
        return self.seconds_before + time.perf_counter() - self.started

    def say(self, text):
        log.say(self.console, text)

    def take_up(self) -> dict | None:
        """Restores the state of the last checkpoint; returns what else it holds."""
        restored = self.checkpoints.resume(sharding.shapes(self.state, self.mesh))
        if not restored:
            return None
        self.state, saved, faults = restored
        if not faults and not self.checkpoints.find("best"):
            if _Progress.of(saved).best_score > _Progress().best_score:
                self.say(
                    f"{self.workdir}/checkpoints/best is lost: the best of the "
                    "validations from here on takes its place"
                )
        for fault in faults:
            self.say(f"{fault}: moved to {self.workdir}/checkpoints/damaged")
        self.say(f"{self.config.method}: going on from step {int(self.state.step)}")
        return saved

    def open_log(self, step) -> log.MetricsLog:
        """The log as it was at a step; says where records are missing."""
        train = self.config.train
        opened = log.MetricsLog(self.workdir, step=step, tensorboard=train.tensorboard)
        due = step - step % train.log_every
        if due and due not in opened.steps:
            self.say(
                f"{self.workdir}/metrics.jsonl has lost records up to step {due}: "
                "curves will begin later"
            )
        return opened

    def prepare(self, before):
        """Makes the state that of before the first step."""
        params, model_state = self.state.params, self.state.model_state
        loaded = pretrained.start(self.config, params, model_state)
        self.state = train_state.start_from(
            self.state, loaded.params, loaded.model_state
        )
        for note in loaded.notes:
            self.say(f"{self.config.method}: {note}")
        if before:
            self.state = before(self.state)

    def run(self, end, validate, best_by):
        """Makes the steps until `end`, or until an interrupt."""
        with interrupts.held_back() as interrupt:
            self.make_steps(end, validate, best_by, interrupt)
            if interrupt:
                self.say(
                    f"{self.config.method}: {interrupt.name} at step "
                    f"{int(self.state.step)}, which is saved; the same command goes on "
                    "from there"
                )

    def make_steps(self, end, validate, best_by, interrupt):
        """Makes them, with all that is due between them."""
        name, train = self.config.method, self.config.train
        first, several = int(self.state.step), train.steps_per_call
        if first < end:
            self.update(first, train.steps, "compiling")
        is_alone = jax.process_count() == 1
        # The step is dispatched, not awaited: the next batch is read and copied to the
        # device while it runs.
        upcoming = map(
            functools.partial(sharding.put_batch, mesh=self.mesh), self.batches
        )
        for step in range(first + several, end + 1, several):
            taken = tuple(itertools.islice(upcoming, several))
            batch = taken[0] if several == 1 else taken
            self.state, metrics = self.step_fn(self.state, batch)
            if step == first + several:
                jax.block_until_ready(metrics)
                took = time.perf_counter() - self.started
                self.say(f"{name}: first step done after {took:.1f} s")
            self.write_due()  # fetched while the step that was just dispatched runs
            self.pending.append((step, metrics))
            validates = step % train.eval_every == 0 or step == train.steps
            saves = step % train.checkpoint_every == 0 or step == train.steps
            records = step % train.log_every == 0 or validates or saves
            if records:
                self.due, self.pending = (step, self.pending), []
            leaves = step == end
            # Processes leave after the same step, whichever was told to. They ask each
            # other at records, as it makes them wait for each other.
            if is_alone or records or leaves:
                if told := sharding.largest(interrupt.number or 0):
                    interrupt.number, leaves = told, True
            if validates or saves or leaves:
                self.write_due()
            if validates:
                self.validate(validate, best_by)
            if saves or leaves:
                self.save()
            if leaves:
                break

    def write_due(self):
        """Writes the record that is due, if there is one."""
        if self.due is None:
            return
        (step, pending), self.due = self.due, None
        logged = mean_metrics(self.settle(pending), step)
        self.log.write("train", step, logged)
        self.update(step, self.config.train.steps, _describe(logged))

    def validate(self, validate, best_by):
        """Logs scores and key areas of the state, and keeps it if it is the best."""
        step, films = int(self.state.step), self.data.validation
        scores, areas = validate(self.state)
        self.log.write("validation", step, flat_scores(scores))
        if areas is not None:
            record = area_history.record(films.labels, areas)
            self.log.write(area_history.KIND, step, record)
        learning_curves.draw_run(
            self.workdir,
            steps=self.config.train.steps,
            warmup_steps=self.config.policy.warmup_steps,
        )
        # On a tie the later one: its policy has learned for longer.
        if scores[best_by] >= self.best_score:
            self.best_score = scores[best_by]
            self.checkpoints.save("best", self.state, {best_by: self.best_score})

    def save(self):
        """Writes the checkpoint to go on from."""
        # A record comes when it is due, whenever the run is interrupted.
        self.pending = self.settle(self.pending)
        progress = {
            "data": self.batches.identity,
            "best_score": self.best_score,
            "seconds": self.seconds,
            "pending": [
                (number, {name: float(value) for name, value in values.items()})
                for number, values in self.pending
            ],
        }
        self.checkpoints.save("last", self.state, progress)

    def settle(self, pending) -> list[tuple[int, dict]]:
        """Metrics of steps, fetched; one that is not finite stops or is left out.

        Called before a checkpoint of these steps is written.
        """
        finite = []
        for step, values in _each_step(jax.device_get(pending)):
            wrong = [name for name, value in values.items() if not np.isfinite(value)]
            if not wrong:
                finite.append((step, values))
                continue
            films = _films_of(step, self.config, self.data.train)
            self.log.write("not_finite", step, {"metrics": wrong, "films": films})
            fault = f"{wrong[0]} is not finite at step {step} (films {listing(films)})"
            if self.config.train.on_nonfinite == "stop":
                raise UserError(
                    f"{fault}; {self.checkpoints.last_good()}; lower "
                    "train.task_learning_rate or train.policy_learning_rate, or set "
                    "train.on_nonfinite to skip"
                )
            self.say(f"{self.config.method}: {fault}; it is skipped")
        return finite


def _each_step(fetched):
    """Step and metrics, one by one also where one call made several steps."""
    for last, values in fetched:
        count = np.size(next(iter(values.values())))
        for index in range(count):
            step = last - count + 1 + index
            yield step, {k: np.atleast_1d(value)[index] for k, value in values.items()}


def _films_of(step, config, films) -> list[str]:
    """Names of the films in the batch of a step."""
    batches = iterate(config, films, start=step - 1, whole=True)
    with contextlib.closing(batches):
        return [films.names[row] for row in next(batches)["index"]]


def mean_metrics(pending: Sequence[tuple[int, dict]], step: int) -> dict[str, float]:
    """Means over steps; of what is known of some films alone, over those.

    Args:
      pending: step and metrics of those since the last record that were not skipped,
        see `method.Aux`.
      step: the newest.

    Raises:
      UserError: there are none.
    """
    if not pending:
        raise UserError(
            f"all steps of the last record, until step {step}, were skipped as not "
            "finite: lower train.task_learning_rate or train.policy_learning_rate"
        )
    means = {
        name: float(np.mean([values[name] for _, values in pending]))
        for name in pending[0][1]
    }
    for share in [name for name in means if name.endswith("/known")]:
        name, known = share.removesuffix("/known"), means.pop(share)
        of_all = means.pop(name)
        if known:
            means[name] = of_all / known
    return means


def _describe(logged: dict[str, float]) -> str:
    shown = {"task_loss": "loss", "reward": "reward", "lung_iou": "IoU"}
    return "  ".join(
        f"{label} {logged[name]:.3f}" for name, label in shown.items() if name in logged
    )


def flat_scores(scores: dict) -> dict[str, float]:
    """The numbers of nested scores by one name each, as records have them."""
    flat = {k: v for k, v in scores.items() if isinstance(v, float)}
    area = dict(scores["key_area"] or {})
    trivial = area.pop("trivial_iou", {})
    area |= {f"{name}_iou": value for name, value in trivial.items()}
    groups = {"key_area": area} | scores.get("parameters", {})
    for group, values in groups.items():
        for name, value in values.items():
            if isinstance(value, float):
                flat[f"{group}/{name}"] = value
    return flat


def facts(config: Config, fitted: Fitted, data: datasets.Splits) -> dict[str, Any]:
    """What results.json says of any run besides its scores."""
    return {
        "method": config.method,
        "config": config_lib.to_dict(config),
        "dataset": config.data.name,
        "seed": config.seed,
        "classes": list(data.test.classes),
        "steps": config.train.steps,
        "best_step": int(fitted.best.step),
        "seconds": fitted.seconds,
        "device": jax.devices()[0].device_kind,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }


def finished(workdir: pathlib.Path, task: str) -> dict[str, Any] | None:
    """What `results.json` of a run's folder holds, or None where there is none yet.

    Raises:
      UserError: it is a run of another task, or the file is damaged.
    """
    if not (workdir / "results.json").exists():
        return None
    results = run_folder.read_run(workdir)
    if results["task"] == task == "classification":
        return run_folder.read_results(workdir)
    if results["task"] != task:
        raise UserError(
            f"{workdir} holds a finished run of {results['task']}, not of {task}; "
            "choose another --workdir"
        )
    return results
