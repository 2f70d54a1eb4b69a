"""A folder that a program fills film by film; the same command goes on with it.

Until nothing is left to do, a file there says what was asked for.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from hapre_jax import json_file, run_folder
from hapre_jax.errors import UserError

UNFINISHED = "unfinished.json"
_OF_A_MODEL = ("config.json", "bundle.json", "results.json")


def check(out: pathlib.Path, asked: dict[str, Any], *, taken: str | None) -> None:
    """Raises `UserError` where a folder cannot be filled; makes nothing.

    Args:
      out: the folder.
      asked: of JSON's types, all that decides what is written.
      taken: why it cannot be begun with, such as "is not empty", if it cannot; else it
        may have been begun with anything.
    """
    run_folder.check_place(out, "--out")
    if any((out / name).exists() for name in _OF_A_MODEL):
        raise UserError(f"{out} is a run or a bundle itself; choose another --out")
    if not taken:
        return
    otherwise = "choose another --out, or delete that folder"
    if not (out / UNFINISHED).exists():
        raise UserError(f"{out} {taken}; {otherwise}")
    if json_file.read(out / UNFINISHED) != asked:
        raise UserError(
            f"{out} is not finished, but was begun with another model, other films "
            f"or other options; {otherwise}"
        )


def make(out: pathlib.Path) -> None:
    """Makes a folder that may be there; raises `UserError` where it cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error.strerror}") from error


@contextlib.contextmanager
def unfinished(out: pathlib.Path, asked: dict[str, Any]) -> Iterator[None]:
    """Makes a folder that `check` passed, keeps it for this process, until `finish`.

    Raises:
      UserError: it cannot be made, or another process fills it.
    """
    make(out)
    with run_folder.claim(out, flag="--out"):
        json_file.write(out / UNFINISHED, asked)
        yield


def finish(out: pathlib.Path) -> None:
    """Says of an `unfinished` folder that nothing is left to do."""
    (out / UNFINISHED).unlink()
