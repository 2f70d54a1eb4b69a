"""A search of settings with Optuna: its space, its study, and trials, each a training.

Workers share the study's journal in a folder, or a database. Each trial is an ordinary
`python -m hapre_jax.train`. Optuna is an extra: functions import it, not the module.
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
import runpy
import time
import warnings
import zlib
from collections.abc import Iterator
from typing import IO, Any

from hapre_jax import config as config_lib
from hapre_jax import config_file, experiments, log
from hapre_jax.config import Config
from hapre_jax.errors import UserError
from hapre_jax.experiments import Experiment, Failure

_POLL_SECONDS = 0.5
_BEGUN_WITH = "settings"  # what a study keeps of its config, seed included
_BEAT_SECONDS = 60  # between two signs of life of a worker, in a database
_GRACE_SECONDS = 300  # without one, after which it counts as dead
_FOLDER = "folder"  # a trial's attribute: where it runs


class TrialFailed(Exception):
    """A training that ended with an error."""


def import_optuna() -> Any:
    """The module, which says no more than warnings.

    Raises:
      UserError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError("sweeps need Optuna: pip install -e '.[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides Optuna's warnings of what is experimental, or not for ask and tell."""
    with warnings.catch_warnings():
        experimental = import_optuna().exceptions.ExperimentalWarning
        warnings.simplefilter("ignore", experimental)
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        yield


def load_space(file: str) -> dict:
    """The distributions of a config file, after a check of their fields.

    Raises:
      UserError: the file has no `get_space`, or it names a field that is not there.
    """
    import_optuna()  # which the file imports
    base = config_file.load(file)
    path, _ = config_file.find(file)
    is_python = path.suffix == ".py"  # a run's config.json has fields alone
    space = runpy.run_path(str(path)).get("get_space") if is_python else None
    if not callable(space):
        raise UserError(f"config file {file} has no get_space()")
    try:
        found = space()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"get_space() of {file} fails with {reason}") from error
    kind = import_optuna().distributions.BaseDistribution
    if not isinstance(found, dict) or not all(
        isinstance(distribution, kind) for distribution in found.values()
    ):
        raise UserError(
            f"get_space() of {file} gives {found!r}, but must give a dict from fields "
            "to Optuna's distributions"
        )
    for field, distribution in found.items():
        choices = getattr(distribution, "choices", None)
        ends = choices or (distribution.low, distribution.high)
        for value in ends:
            config_lib.override(base, field, config_lib.to_text(value))
    return found


def open_study(
    name: str, workdir: pathlib.Path, *, storage: str, seed: int, warmup_steps: int
) -> Any:
    """The study of a folder, or of a database that many machines share.

    Args:
      name: of the study.
      workdir: where its journal is, without a database.
      storage: the database's address, or empty.
      seed: of the settings that are drawn.
      warmup_steps: of a training, before which no trial is given up.

    Raises:
      UserError: the database cannot be opened.
    """
    optuna = import_optuna()
    if storage:
        backend = _database(storage)
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.JournalStorage(_journal(workdir / "study.journal"))
    return optuna.create_study(
        study_name=name,
        storage=backend,
        load_if_exists=True,
        direction="maximize",
        sampler=_sampler(seed),
        # A policy that still waits for its classifier says nothing of the setting.
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=5, n_warmup_steps=warmup_steps
        ),
    )


def _journal(path):
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    class Lock(JournalFileSymlinkLock):
        """Held by who adds to the journal, which ends in a whole line then.

        What is added to a line that a full disk or a kill left half would spoil both,
        and with them the study.
        """

        def acquire(self):
            super().acquire()
            with path.open("rb+") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
                if file.read() not in (b"", b"\n"):
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            return True

    class Journal(JournalFileBackend):
        """Names its folder where the disk is full, which Python's error does not."""

        def append_logs(self, logs):
            try:
                super().append_logs(logs)
            except OSError as error:
                raise UserError(
                    f"{path.parent} cannot be written: {error.strerror}"
                ) from error

    return Journal(str(path), Lock(str(path)))


def _database(address):
    optuna = import_optuna()
    try:
        with quiet():
            return optuna.storages.RDBStorage(
                address,
                heartbeat_interval=_BEAT_SECONDS,
                grace_period=_GRACE_SECONDS,
                heartbeat_stale_trial_callback=_put_in_front,
            )
    except Exception as error:  # of SQLAlchemy, or of the database's own package
        reason = str(error).partition("\n")[0]
        message = f"the database of --storage cannot be opened: {reason}"
        raise UserError(message) from error


def _sampler(seed):
    from optuna.samplers import TPESampler

    class ByTrial(TPESampler):
        """Draws anew for each trial, by its number.

        Of one generator for all of them, every worker, and every one that goes on with
        a study, would draw the same settings again.
        """

        def before_trial(self, study, trial):
            super().__init__(seed=zlib.crc32(f"{seed} {trial.number}".encode()))
            super().before_trial(study, trial)

    return ByTrial()


def bind(study, base: Config, seed: int, workdir: pathlib.Path) -> None:
    """Keeps in a study what it is begun with: its config and its seed.

    Raises:
      UserError: it was begun with others.
    """
    fields = config_lib.options(base).items()
    now = {n: config_lib.to_text(f.value) for n, f in fields if f.role != "machine"}
    now["seed"] = str(seed)
    begun = study.user_attrs.get(_BEGUN_WITH)
    if begun is None:
        study.set_user_attr(_BEGUN_WITH, now)
    elif changed := [name for name in now if begun.get(name, now[name]) != now[name]]:
        was = ", ".join(f"{name} = {begun[name]}, not {now[name]}" for name in changed)
        raise UserError(
            f"the search in {workdir} was begun with {was}; choose another --workdir"
        )


def ask(study, space: dict, workdir: pathlib.Path) -> Any:
    """The next trial: one that was interrupted, or else new values.

    Raises:
      UserError: the study was begun with another space.
    """
    try:
        with quiet():
            return study.ask(space)
    except ValueError as error:  # choices of a field are others
        raise UserError(
            f"the search in {workdir} was begun with another space ({error}); choose "
            "another --workdir"
        ) from error


@contextlib.contextmanager
def _claim(folder: pathlib.Path, *, wait: bool = False) -> Iterator[IO[str] | None]:
    """Holds a trial's folder while a worker is at it; yields its lock.

    The lock holds the number of the trial. None if another worker is at it; with
    `wait`, that is waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if wait:
                raise TrialFailed(f"{folder} cannot be locked: {error}") from error
            yield None
        else:
            yield file


def _lock(folder):
    return folder.parent / f"{folder.name}.lock"


def _write(lock, text):
    lock.truncate(0)
    lock.write(text)
    lock.flush()


def take_up_interrupted(study) -> None:
    """Puts trials whose worker has died in front.

    They go on in their folder, from their last checkpoint. The lock of a folder says
    that its worker is dead, at once; where only a database is shared, it has given no
    sign of life. A trial whose number the lock does not hold is about to begin, or at
    work on a machine that does not share the folder: it is left alone, unless it had
    all the time to begin.
    """
    optuna = import_optuna()
    with quiet():
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        age = datetime.datetime.now() - trial.datetime_start
        is_late = age.total_seconds() > _GRACE_SECONDS
        named = trial.user_attrs.get(_FOLDER)
        if not named:
            if is_late:
                _take_up(study, trial)
            continue
        if not _lock(folder := pathlib.Path(named)).exists():
            continue
        with _claim(folder) as lock:
            if lock and (is_late or _number(lock) == str(trial.number)):
                _take_up(study, trial)
                _write(lock, "")


def _take_up(study, trial):
    optuna = import_optuna()
    try:
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        return  # another worker was faster
    _put_in_front(study, trial)


def _put_in_front(study, trial):
    study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)


def _number(lock):
    lock.seek(0)
    return lock.read()


def run_trial(trial, *, config: str, workdir: pathlib.Path, seed: int) -> float:
    """Trains with a trial's values; its best validation macro-F1.

    Raises:
      optuna.TrialPruned: it was below the median.
      TrialFailed: the training ended with an error.
      optuna.exceptions.UpdateFinishedTrialError: it was taken from this worker, which
        had given no sign of life.
    """
    from optuna.storages import _heartbeat

    folder = _folder(trial, workdir)
    values = {field: config_lib.to_text(value) for field, value in trial.params.items()}
    experiment = Experiment(config, values | {"seed": str(seed)}, folder)
    output = folder.parent / f"{folder.name}.log"
    with (
        _heartbeat.get_heartbeat_thread(trial._trial_id, trial.storage),
        _claim(folder, wait=True) as lock,
        output.open("a") as said,
    ):
        assert lock  # as it was waited for
        _write(lock, str(trial.number))
        trial.set_user_attr(_FOLDER, str(folder))
        command = ["hapre_jax.train", *experiment.arguments]
        # Should this worker alone be killed, the training keeps the lock to its end.
        with experiments.started(command, said, keep=[lock.fileno()]) as process:
            _watch(process, trial, folder)
    if process.returncode:
        raise TrialFailed(Failure(str(folder), output).reason)
    return max(validations(folder).values())


def _folder(trial, workdir):
    """Where it was interrupted, if that is here, or one of its own."""
    interrupted = trial.user_attrs.get(_FOLDER)
    if interrupted and _lock(folder := pathlib.Path(interrupted)).exists():
        return folder
    return workdir / f"trial-{trial.number:04d}"


def _watch(process, trial, folder):
    """Tells Optuna each validation; leaves when the process ends.

    Raises:
      optuna.TrialPruned: the trial is not worth going on with.
    """
    told: set[int] = set()
    while True:
        is_over = process.poll() is not None
        for step, score in validations(folder).items():
            if step not in told:
                told.add(step)
                trial.report(score, step)
                if trial.should_prune() and not is_over:
                    raise import_optuna().TrialPruned(f"step {step}: F1 {score:.3f}")
        if is_over:
            return
        time.sleep(_POLL_SECONDS)


def validations(folder: pathlib.Path) -> dict[int, float]:
    """Step -> macro-F1 of validation films, as far as a run has got."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return {}
    return {
        record["step"]: record["macro_f1"]
        for record in log.read(file)
        if record.get("kind") == "validation"
    }
