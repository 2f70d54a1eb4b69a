"""Checkpoints of a run: the last state, to go on, and the best one, to use."""

import contextlib
import errno
import functools
import io
import json
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from hapre_jax import atomic, json_file, train_state
from hapre_jax.config import Config
from hapre_jax.errors import UserError
from hapre_jax.method import Method
from hapre_jax.train_state import TrainState

_log = logging.getLogger(__name__)

_DIGESTS = "sha256.json"  # in the folder of a checkpoint


class Damaged(UserError):
    """A checkpoint that can never be read, or not with the bits that were written."""


class Checkpoints:
    """`checkpoints/last` and `checkpoints/best` of a run's folder.

    Orbax writes each checkpoint beside the one before and renames it when complete, so
    a process killed at any moment leaves a whole one. Of `last` the one before is kept
    too, to go back to where a disk has damaged the newest.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
        # Not Orbax's own, which are made for the cloud.
        self._folder = (workdir / "checkpoints").resolve()

        def manager(name, keep):
            options = ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                create=not read_only,
                read_only=read_only,
                # Of a process that was killed. The reader's may be in use by a writer.
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=False,
            )
            return ocp.CheckpointManager(
                self._folder / name,
                options=options,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "progress": ocp.JsonCheckpointHandler(),
                },
            )

        with _quietly():  # it warns of what read_only is
            self._managers = {"last": manager("last", 2), "best": manager("best", 1)}

    def save(self, name: str, state: TrainState, progress: dict[str, Any]) -> None:
        """Writes `state` and the JSON `progress` (data position, metrics).

        Raises:
          UserError: the disk is full or fails; older checkpoints stay as they are.
        """
        manager = self._managers[name]
        step = int(state.step)
        latest = manager.latest_step()
        # Reached again by a restart from before it: `best` may be ahead of `last`.
        if latest is not None and step <= latest:
            return
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
        )
        try:
            _check_room(self._folder, state)
            with _quietly():
                manager.save(step, args=arguments)
                manager.wait_until_finished()
            folder = self._folder / name / str(step)
            if jax.process_index() == 0:
                json_file.write(folder / _DIGESTS, _digests(folder))
        except Exception as error:  # Orbax has no class of its own
            for partial in (self._folder / name).glob(f"{step}.*"):
                shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"the checkpoint {self._folder}/{name}/{step} cannot be written: "
                f"{_reason(error)}; {self.last_good()}; make room, and give the same "
                "command again"
            ) from error

    def restore(self, name: str, like: TrainState) -> tuple[TrainState, dict] | None:
        """State and progress of the newest checkpoint; None where there is none yet.

        Raises:
          UserError: it is of other networks than `like`, or cannot be read now.
          Damaged: it never can.
        """
        step = self._managers[name].latest_step()
        return None if step is None else self._load(name, step, like)

    def resume(self, like: TrainState) -> tuple[TrainState, dict, list[str]] | None:
        """What to go on from, and sentences on damaged checkpoints that were left out.

        It is the newest intact `last`. A damaged `best` is the state of its step: it is
        written anew from an intact `last` of that step; where there is none, what is
        gone on from is of before it, so that `best` is found again. What is left out is
        moved to `checkpoints/damaged`.

        Returns:
          State, progress and the sentences; None where no `last` is written yet.

        Raises:
          UserError: there are some, but none of use; or one cannot be read now.
        """
        last, best = self._managers["last"], self._managers["best"]
        usable = sorted(last.all_steps(), reverse=True)
        faults: list[Damaged] = []
        left_out, loaded = [], {}

        def load(step):
            """Whether a `last` is intact, which is then in `loaded`."""
            try:
                loaded[step] = self._load("last", step, like)
            except Damaged as error:
                faults.append(error)
                left_out.append(("last", step))
            return step in loaded

        has_last, bad = bool(usable), None
        try:
            self.restore("best", like)
        except Damaged as error:
            bad = best.latest_step()
            faults.append(error)
            left_out.append(("best", bad))
            if bad not in usable or not load(bad):
                left_out += [("last", step) for step in usable if step > bad]
                usable = [step for step in usable if step < bad]
        found = next((step for step in usable if step in loaded or load(step)), None)
        if has_last and found is None:
            raise UserError(f"{faults[0]}; delete {self._folder} to train anew")
        for name, step in left_out:
            self._set_aside(name, step)
        if bad in loaded:
            self.save("best", *loaded[bad])
        if found is None:
            return None
        return *loaded[found], [str(fault) for fault in faults]

    def _load(self, name, step, like) -> tuple[TrainState, dict]:
        manager = self._managers[name]
        folder = self._folder / name / str(step)
        where = f"the checkpoint {folder}"
        # Asked for by name: the run may have been on devices that are not here.
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        arrays = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or device
            ),
            like,
        )
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(arrays), progress=ocp.args.JsonRestore()
        )
        is_whole = False
        try:
            is_whole = _check_files(folder)
            with _quietly():
                saved = jax.tree.leaves(manager.item_metadata(step)["state"].tree)
                fits = _shapes(like) == {array.name: array.shape for array in saved}
                # First, as Orbax finds out only when it has half of the arrays.
                restored = manager.restore(step, args=arguments) if fits else None
        except Exception as error:  # Orbax has no class of its own
            # Such as too little memory, or a server that does not answer.
            if is_whole or _is_of_system(error):
                reason = _reason(error)
                raise UserError(f"{where} cannot be read now: {reason}") from error
            raise Damaged(f"{where} is damaged") from error
        if restored is None:
            raise UserError(
                f"{where} was written by another architecture than this config's: "
                "choose another folder"
            )
        return restored["state"], restored["progress"]

    def _set_aside(self, name, step):
        folder = self._folder / "damaged" / f"{name}-{step}"
        if jax.process_index() == 0:
            folder.parent.mkdir(exist_ok=True)
            if folder.exists():
                shutil.rmtree(folder)
            (self._folder / name / str(step)).rename(folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{name}-{step} is set aside")
        self._managers[name].reload()

    def find(self, name: str) -> str:
        """Where a checkpoint lies; empty where there is none yet."""
        step = self._managers[name].latest_step()
        return "" if step is None else f"{self._folder}/{name}/{step}"

    def last_good(self) -> str:
        """The end of a sentence on what went wrong: where to go on from."""
        good = self.find("last")
        return f"the last good checkpoint is {good}" if good else "no checkpoint yet"

    def close(self) -> None:
        """Releases Orbax's threads."""
        for manager in self._managers.values():
            manager.close()


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of the files below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _DIGESTS:
            found[path.relative_to(folder).as_posix()] = atomic.digest(path)
    return found


def _check_files(folder: pathlib.Path) -> bool:
    """Whether it knows files to be those that were written; `ValueError` if not.

    Orbax would notice some of it, and say so in the tracebacks of its threads.
    """
    path = folder / _DIGESTS
    if not path.exists():  # of an older version, or killed before it was written
        return False
    if json.loads(path.read_bytes()) != _digests(folder):
        raise ValueError(f"{folder} has other files than were written")
    return True


def _is_of_system(error: Exception) -> bool:
    """Whether the system kept a file from being read, which may be there and whole."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def _shapes(state):
    """Shape of each array of a state, under the name that Orbax gives it."""
    named = jax.tree_util.tree_flatten_with_path(state)[0]
    return {_name(path): array.shape for path, array in named}


def _check_room(folder: pathlib.Path, state: TrainState) -> None:
    """Raises `OSError` where a disk has no room for a state and what describes it."""
    needed = 1.2 * sum(array.nbytes for array in jax.tree.leaves(state)) + 2**18
    free = shutil.disk_usage(folder).free
    if free < needed:
        reason = os.strerror(errno.ENOSPC)
        counts = f"{free / 2**20:.1f} MiB free, {needed / 2**20:.1f} needed"
        raise OSError(errno.ENOSPC, f"{reason} ({counts})")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps from the user what Orbax says of a failure that becomes one sentence.

    Its threads print tracebacks of their own.
    """
    said = io.StringIO()
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.CRITICAL)
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_drop_late_answers, hook)
    try:
        with contextlib.redirect_stderr(said):
            yield
    except BaseException:
        # The hook stays: threads go on answering the loop of this save, which is gone.
        said.truncate(0)
        raise
    else:
        sys.unraisablehook = hook
    finally:
        absl.setLevel(before)
        sys.stderr.write(said.getvalue())


def _drop_late_answers(otherwise, unraisable):
    if str(unraisable.exc_value) != "Event loop is closed":
        otherwise(unraisable)


def _reason(error: Exception) -> str:
    """What the system says, which Orbax wraps in much of its own."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if number := re.search(r"os_error_code='(\d+)'", str(cause)):
        return os.strerror(int(number[1]))
    return getattr(cause, "strerror", None) or str(cause).partition("\n")[0]


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")


def restore_best(workdir: pathlib.Path, config: Config, method: Method) -> TrainState:
    """The state that a finished or interrupted run would be used with."""
    like = train_state.blank(method, config)
    try:
        reader = Checkpoints(workdir, read_only=True)
        with contextlib.closing(reader) as checkpoints:
            restored = checkpoints.restore("best", like)
    except Damaged as error:
        raise UserError(
            f"{error}; delete results.json beside it, if it is there, and give the "
            "command of its training again, which writes it anew"
        ) from error
    if restored is None and (workdir / "results.json").exists():
        raise UserError(
            f"{workdir} has lost its checkpoint: delete results.json and give the "
            "command of its training again"
        )
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet: its training has only begun")
    return restored[0]
