"""Films that a user names, one by one: in files, folders, zips, patterns and lists."""

import functools
import glob
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from hapre_jax.data import files, images
from hapre_jax.errors import UserError


class Input(NamedTuple):
    """A film that was named, not read yet."""

    path: str  # as a user would name it; of a zip's entry, ZIP/ENTRY
    name: str  # posix path below what was named, for files made of it
    open: Callable[[], Image.Image]  # mode L, upright; raises `UserError`


def find(paths: Iterable[str]) -> Iterator[Input]:
    """The films of files, folders, zips and glob patterns.

    What does not exist comes as an input too, whose `open` says so: a missing film is
    no reason to leave the others.
    """
    for path in paths:
        matches = [path]
        if not os.path.exists(path):
            matches = _once(glob.glob(path, recursive=True))
        if not matches:
            yield Input(
                path, pathlib.PurePath(path).name, _refuse(path, "is not there")
            )
        for match in matches:
            yield from _below(match)


def from_arrays(arrays: Iterable[np.ndarray]) -> Iterator[Input]:
    """Films in memory, upright, `u8[H, W]` or `u8[H, W, 1]` with 0 black.

    They are called 0, 1, 2, ...; `open` of an array of another kind raises `UserError`.
    """
    for index, array in enumerate(arrays):
        yield Input(str(index), str(index), functools.partial(_from_array, array))


def lines(stream: Iterable[str]) -> Iterator[str]:
    """The paths of a list, one a line; empty lines do not count.

    Raises:
      UserError: it is a list of another kind.
    """
    for line in stream:
        if "\0" in line:
            raise UserError(
                "the list of films holds NUL characters: give a path a line, in UTF-8, "
                "as find writes without -print0"
            )
        if path := line.rstrip("\r\n"):
            yield path


def _once(matches: list[str]) -> list[str]:
    """Sorted files and folders, less those that are, or lie in, another one of them.

    `**` follows links and finds folders as well as what they hold.
    """
    seen: set[str] = set()
    kept = []
    for match in sorted(matches, key=len):  # the shortest of several ways to a file
        real = os.path.realpath(match)
        if not any(str(at) in seen for at in (real, *pathlib.PurePath(real).parents)):
            seen.add(real)
            kept.append(match)
    return sorted(kept)


def _below(path: str) -> Iterator[Input]:
    if not os.path.isdir(path) and not path.lower().endswith(".zip"):
        yield Input(
            path, pathlib.PurePath(path).name, functools.partial(_open_file, path)
        )
        return
    try:
        tree = files.open_films(path)
    except UserError as error:
        yield Input(path, pathlib.PurePath(path).name, _refuse("", str(error)))
        return
    for name in tree.names():
        where = os.path.join(tree.root, name)
        yield Input(where, name, functools.partial(_open_entry, tree, name))
    for name in tree.zips():
        where = os.path.join(path, name)
        if os.path.isdir(path):
            for film in _below(where):
                yield film._replace(name=f"{name[:-4]}/{film.name}")
        else:
            yield Input(where, name, _refuse(where, "is a zip in a zip: unpack it"))


def _open_entry(tree: files.Tree, name: str) -> Image.Image:
    return images.open_gray(tree.read(name), name=name)


def _open_file(path: str) -> Image.Image:
    file = pathlib.Path(path)
    return images.open_gray(files.read_file(file), name=file.name)


def _from_array(array: np.ndarray) -> Image.Image:
    array = np.asarray(array)
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
        raise UserError(
            f"the array is {array.dtype}[{', '.join(map(str, array.shape))}], but must "
            "be uint8[H, W]: gray levels, 0 is black and 255 is white"
        )
    return Image.fromarray(pixels)


def _refuse(path: str, reason: str) -> Callable[[], Image.Image]:
    def fail():
        raise UserError(f"{path} {reason}".strip())

    return fail
