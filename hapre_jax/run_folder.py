"""A run's folder: whose it is, what it was asked for, and what came of it."""

import contextlib
import fcntl
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from hapre_jax import config as config_lib
from hapre_jax import config_file, json_file
from hapre_jax.config import Config
from hapre_jax.errors import UserError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def claim(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a run's folder for this process; the system frees it however that ends.

    Raises:
      UserError: another process is at work there.
    """
    with (workdir / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is at work in {workdir}; wait until it has ended, or "
                "choose another --workdir"
            ) from error
        except OSError as error:
            _log.warning(
                f"{workdir} cannot be locked ({error.strerror}): see to it that no "
                "other process works there"
            )
        yield


def read_results(workdir: pathlib.Path) -> dict[str, Any]:
    """What `results.json` of a finished run of classification holds.

    Raises:
      UserError: the run is not finished, or of another task, or the file is damaged.
    """
    if not workdir.is_dir():
        raise UserError(f"there is no folder {workdir}")
    if (workdir / "bundle.json").exists():  # of hapre_jax.export
        raise UserError(f"{workdir} is a bundle, but this program takes a finished run")
    if not (workdir / "results.json").exists():
        why = "it is no finished run"
        if (workdir / "config.json").exists():
            why = "its training is not finished; give its command again to go on"
        raise UserError(f"{workdir} has no results.json: {why}")
    results = read_run(workdir)
    if results["task"] != "classification":
        raise UserError(
            f"{workdir} is a run of {results['task']}; this program takes runs of "
            "hapre_jax.train, which classify"
        )
    missing = [name for name in ("classes", "config", "test") if name not in results]
    if missing:
        raise UserError(
            f"{workdir / 'results.json'} does not say {', '.join(missing)}; delete it "
            "and give the run's command again"
        )
    return results


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """What `results.json` of a run of any task holds, `task` above all.

    Raises:
      UserError: the file is missing or damaged.
    """
    results = json_file.read(workdir / "results.json")
    if not isinstance(results, dict):
        raise UserError(f"{workdir / 'results.json'} holds no results; delete it")
    return {"task": "classification"} | results  # which does not name itself


def check_workdir(workdir: pathlib.Path, config: Config) -> None:
    """Raises `UserError` for a folder that cannot hold this run; writes nothing."""
    path = workdir / "config.json"
    if path.exists():
        before, now = (
            config_lib.options(c) for c in (config_file.load(str(path)), config)
        )
        changed = [
            f"{name} = {before[name].value}, not {field.value}"
            for name, field in now.items()
            if name not in config_lib.MACHINE and before[name].value != field.value
        ]
        if changed:
            raise UserError(
                f"{workdir} holds a run with {', '.join(changed)}; choose another "
                "--workdir, or delete that folder"
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
        json_file.write(workdir / "config.json", config_lib.to_dict(config))
