"""A run's folder: whose it is, what it was asked for, and what came of it."""

import contextlib
import fcntl
import logging
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from hapre_jax import config as config_lib
from hapre_jax import config_file, json_file
from hapre_jax.config import Config
from hapre_jax.data import files
from hapre_jax.errors import UserError

_log = logging.getLogger(__name__)
PLAIN = "plain"  # in a run's folder, that of the plain classifier's run
# Of the scores of a classifier, what every version has written.
_OF_TEST = {
    "n",
    "accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "key_area",
    "classes",
    "confusion_matrix",
}
# Of a run, likewise, see `training.facts`.
_FACTS = {
    "method": str,
    "dataset": str,
    "seed": int,
    "steps": int,
    "best_step": int,
    "seconds": int | float,
    "device": str,
    "versions": dict,
}


@contextlib.contextmanager
def claim(workdir: pathlib.Path, *, flag: str = "--workdir") -> Iterator[None]:
    """Keeps a folder for this process; the system frees it however that ends.

    Args:
      workdir: of a run, or of what else a program writes.
      flag: that names it.

    Raises:
      UserError: another process is at work there.
    """
    with _locked(workdir / ".lock", f"in {workdir}", flag):
        yield


@contextlib.contextmanager
def claim_file(file: pathlib.Path, *, flag: str) -> Iterator[None]:
    """Likewise a file that is to be written, whether it is there yet or not."""
    lock = file.with_name(f".{file.name}.lock")
    with _locked(lock, f"on {file}", flag):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(lock, where, flag):
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that another process has just removed is nobody's.
            is_held = lock.exists() and os.path.samestat(
                os.fstat(file.fileno()), lock.stat()
            )
        except BlockingIOError:
            is_held = False
        except OSError as error:
            is_held = True
            _log.warning(
                f"{lock.parent} cannot be locked ({error.strerror}): see to it that no "
                "other process works there"
            )
        if not is_held:
            raise UserError(
                f"another process is at work {where}; wait until it has ended, or "
                f"choose another {flag}"
            )
        yield


def find(workdir: pathlib.Path, name: str) -> pathlib.Path | None:
    """A file about a run's films; the plain classifier's run has that of the other."""
    places = (folder / name for folder in (workdir, workdir.parent))
    return next(filter(pathlib.Path.exists, places), None)


def read_config(folder: pathlib.Path) -> Config:
    """What a run, or a bundle, was configured as, see `config_file.of_run`.

    Raises:
      UserError: its folder does not say, or the file that says it is damaged.
    """
    known = config_file.of_run(folder)
    if known is None:
        raise UserError(f"{folder} has no config.json: it is no folder of a run")
    return known


def read_results(workdir: pathlib.Path) -> dict[str, Any]:
    """What `results.json` of a finished run of classification holds.

    Raises:
      UserError: the run is not finished, or of another task, or the file is damaged.
    """
    if not workdir.is_dir():
        raise UserError(f"there is no folder {workdir}")
    refuse_bundle(workdir)
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
    test = results.get("test")
    if not isinstance(test, dict) or not test.keys() >= _OF_TEST:
        test = None
    said = {
        "its config": isinstance(results.get("config"), dict),
        "the classes": are_classes(results.get("classes")),
        "the scores of its test": test is not None,
        "a temperature above 0": is_temperature(results.get("temperature")),
        **{name: isinstance(results.get(name), of) for name, of in _FACTS.items()},
    }
    missing = [what for what, is_said in said.items() if not is_said]
    if missing:
        raise UserError(
            f"{workdir / 'results.json'} lacks {', '.join(missing)}; delete it "
            "and give the run's command again"
        )
    # Older versions did not fit a temperature.
    return {"plain": None, "temperature": None} | results


def refuse_bundle(folder: pathlib.Path) -> None:
    """Raises `UserError` for a folder that `hapre_jax.export` wrote."""
    if (folder / "bundle.json").exists():
        raise UserError(f"{folder} is a bundle, but this program takes a finished run")


def are_classes(value: Any) -> bool:
    """Whether a value of JSON names classes: at least two texts, all different."""
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


def is_temperature(value: Any) -> bool:
    """Whether a value of JSON is a temperature, or None: no temperature."""
    if value is None:
        return True
    return type(value) in (int, float) and 0 < value < math.inf


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
    check_place(workdir, "--workdir")
    known = config_file.of_run(workdir)
    if known is None and any((workdir / "checkpoints").glob("*/*")):
        raise UserError(
            f"{workdir} has lost its config.json, which says how the checkpoints there "
            "were trained: restore it, or choose another --workdir"
        )
    if known is not None:
        before, now = (config_lib.options(c) for c in (known, config))
        changed = [
            f"{name} = {_text(before[name].value)}, not {_text(field.value)}"
            for name, field in now.items()
            if field.role != "machine" and before[name].value != field.value
        ]
        if changed:
            raise UserError(
                f"{workdir} holds a run with {', '.join(changed)}; choose another "
                "--workdir, or delete that folder"
            )


def _text(value):
    return config_lib.to_text(value) or "empty"


def check_place(folder: pathlib.Path, flag: str) -> None:
    """Raises `UserError` where no folder can be, or be written to; makes nothing.

    Args:
      folder: which a program is going to write.
      flag: that names it.
    """
    for place in (folder, *folder.absolute().parents):
        if place.is_symlink() and not place.exists():
            target = os.readlink(place)
            raise UserError(
                f"{place} is a link to {target}, which is not there; choose another "
                f"{flag}"
            )
        if place.exists():
            break
    if not place.is_dir():
        raise UserError(f"{place} is a file; choose another {flag}")
    if not os.access(place, os.W_OK):
        raise UserError(f"{place} cannot be written to; choose another {flag}")


def check_not_among(folder: pathlib.Path, root: str, flag: str) -> None:
    """Raises `UserError` where a folder lies among films, one of which it would become.

    Args:
      folder: which a program is going to write.
      root: as data.root; what is no folder has none among its films.
      flag: that names the folder.
    """
    films = files.expand(root)
    if root and films.is_dir() and folder.resolve().is_relative_to(films.resolve()):
        raise UserError(
            f"{flag} {folder} lies among the films of {films}: choose another"
        )


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Makes a folder that `check_workdir` passed the folder of this run."""
    check_workdir(workdir, config)
    if not (workdir / "config.json").exists():
        workdir.mkdir(parents=True, exist_ok=True)
        json_file.write(workdir / "config.json", config_lib.to_dict(config))
