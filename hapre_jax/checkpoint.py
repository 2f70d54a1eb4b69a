"""Checkpoints of a run: the last state, to go on, and the best one, to use."""

import contextlib
import json
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from hapre_jax import config as config_lib
from hapre_jax import state as state_lib
from hapre_jax.config import Config
from hapre_jax.errors import UserError
from hapre_jax.framework import Method
from hapre_jax.state import TrainState


class Checkpoints:
    """`checkpoints/last` and `checkpoints/best` of a run's folder.

    Orbax writes each checkpoint beside the one before and renames it when complete, so
    a process killed at any moment leaves a whole one.
    """

    def __init__(self, workdir: pathlib.Path):
        def manager(name):
            options = ocp.CheckpointManagerOptions(
                max_to_keep=1, enable_async_checkpointing=False
            )
            return ocp.CheckpointManager(
                (workdir / "checkpoints" / name).absolute(),
                options=options,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "progress": ocp.JsonCheckpointHandler(),
                },
            )

        self._managers = {name: manager(name) for name in ("last", "best")}

    def save(self, name: str, state: TrainState, progress: dict[str, Any]) -> None:
        """Writes `state` and the JSON `progress` (data position, metrics)."""
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
        )
        manager = self._managers[name]
        step = int(state.step)
        if manager.latest_step() == step:  # reached again after a restart
            return
        manager.save(step, args=arguments)
        manager.wait_until_finished()

    def restore(self, name: str, like: TrainState) -> tuple[TrainState, dict] | None:
        """State and progress of a checkpoint, or None where there is none yet.

        Raises:
          UserError: the checkpoint is of other networks than `like`, or damaged.
        """
        manager = self._managers[name]
        step = manager.latest_step()
        if step is None:
            return None
        where = f"the checkpoint {self.find(name)}"
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
        try:
            saved = jax.tree.leaves(manager.item_metadata(step)["state"].tree)
            fits = _shapes(like) == {array.name: array.shape for array in saved}
            # Looked at first, as Orbax finds out only when it has half of the arrays.
            restored = manager.restore(step, args=arguments) if fits else None
        except Exception as error:  # Orbax has no class of its own
            raise UserError(
                f"{where} is damaged; delete {manager.directory.parent} to train anew"
            ) from error
        if restored is None:
            raise UserError(
                f"{where} was written by another architecture than this config's"
            )
        return restored["state"], restored["progress"]

    def find(self, name: str) -> str:
        """Where a checkpoint lies; empty where there is none yet."""
        manager = self._managers[name]
        step = manager.latest_step()
        return "" if step is None else f"{manager.directory}/{step}"

    def close(self) -> None:
        """Releases Orbax's threads."""
        for manager in self._managers.values():
            manager.close()


def _shapes(state):
    """Shape of each array of a state, under the name that Orbax gives it."""
    named = jax.tree_util.tree_flatten_with_path(state)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): array.shape
        for path, array in named
    }


def restore_best(workdir: pathlib.Path, config: Config, method: Method) -> TrainState:
    """The state that a finished or interrupted run would be used with."""
    like = state_lib.blank(method, config)
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        restored = checkpoints.restore("best", like)
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet: its training has only begun")
    return restored[0]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader never sees half a file.

    Raises:
      UserError: the folder is missing or cannot be written to.
    """
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a reader never sees half of it.

    Raises:
      UserError: the folder is missing or cannot be written to.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        # Names of files need not be UTF-8: they stay what they are.
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_json(path: pathlib.Path) -> Any:
    """The JSON value of a file.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; delete it") from error


def read_results(workdir: pathlib.Path) -> dict[str, Any]:
    """What `results.json` of a finished run holds.

    Raises:
      UserError: the run is not finished, or the file is damaged.
    """
    if not (workdir / "results.json").exists():
        raise UserError(f"{workdir} has no results.json: it is no finished run")
    return read_json(workdir / "results.json")


def check_workdir(workdir: pathlib.Path, config: Config) -> None:
    """Raises `UserError` for a folder that cannot hold this run; writes nothing."""
    path = workdir / "config.json"
    if path.exists():
        before, now = (
            config_lib.options(c) for c in (config_lib.load(str(path)), config)
        )
        for name, field in now.items():
            if name not in config_lib.MACHINE and before[name].value != field.value:
                raise UserError(
                    f"{workdir} holds a run with {name} = {before[name].value}, not "
                    f"{field.value}; choose another --workdir, or delete that folder"
                )
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file; choose another --workdir")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing} cannot be written to; choose another --workdir")


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Makes a folder that `check_workdir` passed the folder of this run."""
    check_workdir(workdir, config)
    if not (workdir / "config.json").exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", config_lib.to_dict(config))
