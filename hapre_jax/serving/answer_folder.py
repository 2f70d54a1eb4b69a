"""A folder of answers: tables, JSON lines and pictures, written as they come.

Films are read, answered and written one batch after the other, so any number fits, and
what was interrupted goes on.
"""

import collections
import contextlib
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from hapre_jax import csv_file
from hapre_jax.data import files, inputs
from hapre_jax.errors import UserError
from hapre_jax.reporting import figures
from hapre_jax.serving import answering, inference, output_folder
from hapre_jax.serving.answering import Answer, Refused
from hapre_jax.serving.inference import Model

TABLE, LINES, ERRORS = "predictions.csv", files.ANSWERS, "errors.csv"
_CROPS, _OVERLAYS, _HEATMAPS = files.PICTURES
_PICTURE = 512  # pixels of a side of overlays and heatmaps
_EDGES = ("top", "left", "bottom", "right")


class Writer:
    """Writes answers as they come: `predictions.csv`, `predictions.jsonl`.

    It goes on with a folder where it was interrupted. What `predictions.jsonl` has was
    done; the table is made from it anew, as the two may have been cut at different
    films, and what could not be read is tried again.

    Attributes:
      answered: how often each path was answered before.
      pictures: names that pictures have, see `figures.picture_name`.
    """

    def __init__(self, out: pathlib.Path, classes: Sequence[str]):
        self._out, self._classes = out, tuple(classes)
        self.answered: collections.Counter[str] = collections.Counter()
        self.pictures: dict[str, int] = {}
        with self._saying_where(), contextlib.ExitStack() as files:
            self._table, self._errors, self._lines = (
                files.enter_context(_open(out / name, mode))
                for name, mode in ((TABLE, "w"), (ERRORS, "w"), (LINES, "a"))
            )
            self._begin(out / LINES)
            self._files = files.pop_all()

    def _begin(self, lines):
        """Writes the headers, and a table of what was done."""
        names = (f"p_{name}" for name in self._classes)
        header = ["path", "answer", *names, "calibrated"]
        header += [*_EDGES, "kept", "flags", "picture"]
        csv_file.write_row(self._table, header)
        csv_file.write_row(self._errors, ["path", "reason"])
        whole = 0
        for line in _whole_lines(lines):
            told = json.loads(line)
            picture = told.pop("picture") or ""
            self._add_to_table(Answer(**told), picture)
            self.answered[told["path"]] += 1
            self.pictures[picture.lower()] = 1
            whole += len(line)
        os.truncate(lines, whole)

    def write(self, one: Answer, picture: str = "") -> None:
        """A film's answer, and what the pictures made of it are called."""
        told = one._asdict() | {"picture": picture or None}
        with self._saying_where():
            print(json.dumps(told), file=self._lines)
            self._add_to_table(one, picture)

    def _add_to_table(self, one, picture):
        numbers = [f"{one.probabilities[name]:.6f}" for name in self._classes]
        numbers.append("" if one.calibrated is None else f"{one.calibrated:.6f}")
        area = one.key_area or ("", "", "", "")
        kept = "" if one.kept is None else f"{one.kept:.4f}"
        flags = "; ".join(one.flags)
        cells = [one.path, one.answer, *numbers, *area, kept, flags, picture]
        csv_file.write_row(self._table, cells)

    def refuse(self, one: Refused) -> None:
        """A film that could not be read."""
        with self._saying_where():
            csv_file.write_row(self._errors, [one.input.path, one.reason])

    def close(self) -> None:
        """Ends the files."""
        with self._saying_where():
            self._files.close()

    @contextlib.contextmanager
    def _saying_where(self):
        """What the system says of a full disk, it does not say of which file."""
        try:
            yield
        except OSError as error:
            reason = error.strerror
            raise UserError(f"{self._out} cannot be written: {reason}") from error


def _open(file: pathlib.Path, mode: str) -> IO[str]:
    # Names of files need not be UTF-8. Buffered a line at a time, so that no answer is
    # lost, whatever happens next.
    escape = "backslashreplace"
    return file.open(mode, buffering=1, newline="", encoding="utf-8", errors=escape)


def _whole_lines(file: pathlib.Path) -> Iterator[bytes]:
    """The lines of JSON that were written to their end."""
    with file.open("rb") as lines:
        yield from itertools.takewhile(lambda line: line.endswith(b"}\n"), lines)


def is_begun(out: pathlib.Path) -> bool:
    """Whether a folder has answers in it; an interrupted one may have none."""
    lines = out / LINES
    return lines.stat().st_size > 0 if lines.exists() else (out / TABLE).exists()


def without_pictures(
    out: pathlib.Path, films: Iterable[inputs.Input]
) -> Iterator[inputs.Input]:
    """Films less the pictures in a folder of answers, which were made of others."""
    made = {(out / kind).resolve() for kind in files.PICTURES}
    folder = functools.lru_cache(pathlib.Path.resolve)
    for film in films:
        within = folder(pathlib.Path(film.path).parent)
        if made.isdisjoint((within, *within.parents)):
            yield film


def check_pictures(model: Model, *, crops: bool, heatmaps: bool) -> None:
    """Raises `UserError` where a model has no such pictures."""
    if crops:
        answering.check_crops(model.config)
    if heatmaps and model.explain is None:
        name = answering.method_name(model.config)
        raise UserError(
            f"where method {name} looks is not one map, or this is a bundle without "
            f"its {inference.HEAT_GRAPH}: leave --heatmaps"
        )


def predict_films(
    model: Model,
    films: Iterable[inputs.Input],
    out: pathlib.Path,
    *,
    crop_size: int = 0,
    overlays: bool = False,
    heatmaps: bool = False,
    progress=lambda done, failed: None,
) -> tuple[int, int]:
    """Answers all films and writes what was asked for.

    Args:
      model: see `inference.load`.
      films: see `inputs.find`; those that `out` has answers to are not answered again.
      out: folder to write to, see `Writer`.
      crop_size: pixels of a side of the key areas written to `crops/`; 0 writes none.
      overlays: whether films with their key area are written to `overlays/`.
      heatmaps: whether pictures of where the model looks are written to `heatmaps/`.
      progress: called with the films answered and those that could not be read.

    Returns:
      How many are answered, and how many could not be read.

    Raises:
      UserError: of crops or heatmaps, if the method has none; or the folder cannot be
        made.
    """
    check_pictures(model, crops=bool(crop_size), heatmaps=heatmaps)
    output_folder.make(out)
    geometry = model.config.data.geometry

    def pictures(one):
        """Kind and picture of each that was asked for."""
        if crop_size:
            yield _CROPS, one.crop(size=crop_size, geometry=geometry)
        if overlays:
            yield _OVERLAYS, one.draw_area(size=_PICTURE)
        if heatmaps:
            yield _HEATMAPS, one.draw_heat(size=_PICTURE)

    def save(one):
        """Saves them under one name in the folders of all kinds, which it returns."""
        name = ""
        for kind, picture in pictures(one):
            name = name or figures.picture_name(one.film.input.name, writer.pictures)
            path = out / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            figures.save(picture, path)
        return name

    with contextlib.closing(Writer(out, model.classes)) as writer:
        done, failed = writer.answered.total(), 0
        progress(done, failed)
        left = _without(films, writer.answered)
        keep = bool(crop_size)
        for one in answering.answer_all(model, left, keep=keep, with_heat=heatmaps):
            if isinstance(one, Refused):
                writer.refuse(one)
                failed += 1
            else:
                writer.write(one.answer, save(one))
                done += 1
            progress(done, failed)
    return done, failed


def _without(films, answered) -> Iterator[inputs.Input]:
    """Films less those that were answered, as often as they were."""
    before = answered.copy()
    for film in films:
        if before[film.path]:
            before[film.path] -= 1
        else:
            yield film
