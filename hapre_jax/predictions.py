"""A run's answer for each image of a split, as a CSV file: `predictions.csv`."""

import csv
import pathlib
from typing import NamedTuple

import numpy as np

from hapre_jax import csv_file
from hapre_jax.errors import UserError

_PROBABILITY = "p_"  # before the name of a class
_BOX = ("y0", "x0", "y1", "x1")


class Predictions(NamedTuple):
    """Answers for N images in K classes."""

    names: tuple[str, ...]
    groups: tuple[str, ...]  # of patients; the images of one are not independent
    views: tuple[str, ...]  # "" where unknown
    classes: tuple[str, ...]
    labels: np.ndarray  # i32[N], the truth
    probabilities: np.ndarray  # f32[N, K]
    key_areas: np.ndarray | None = None  # f32[N, 4] yxyx in [0, 1] of the square image

    @property
    def answers(self) -> np.ndarray:
        """`i32[N]`: the most probable class."""
        return np.argmax(self.probabilities, axis=1).astype(np.int32)


def write(file: pathlib.Path, predictions: Predictions) -> None:
    """Writes a line an image: the file is there whole or not at all."""
    classes = predictions.classes
    header = ["path", "group", "view", "label", "answer"]
    header += [_PROBABILITY + name for name in classes]
    header += _BOX if predictions.key_areas is not None else ()
    rows, answers = [header], predictions.answers
    for row, name in enumerate(predictions.names):
        line = [name, predictions.groups[row], predictions.views[row]]
        line += [classes[predictions.labels[row]], classes[answers[row]]]
        # Nine digits give a float32 back exactly.
        line += [f"{p:.9g}" for p in predictions.probabilities[row]]
        if predictions.key_areas is not None:
            line += [f"{edge:.9g}" for edge in predictions.key_areas[row]]
        rows.append(line)
    csv_file.write(file, rows)


def read(file: pathlib.Path, *, count: int | None = None) -> Predictions:
    """What `write` wrote.

    Args:
      file: the table.
      count: of films that were tested, if it is known: a table may have been cut.

    Raises:
      UserError: there is no such file, it is not one of these, or of other films.
    """
    try:
        with file.open(
            newline="", encoding="utf-8-sig", errors="surrogateescape"
        ) as stream:
            rows = list(csv.DictReader(stream))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a line has another number of fields than the first")
        if not rows:
            raise ValueError("it has no film")
        if missing := [
            of for of in ("path", "group", "view", "label") if of not in rows[0]
        ]:
            raise ValueError(f"it has no column {missing[0]!r}")
        if count not in (None, len(rows)):
            raise ValueError(f"it has {len(rows)} films, but {count} were tested")
        columns = list(rows[0])
        classes = tuple(
            name.removeprefix(_PROBABILITY)
            for name in columns
            if name.startswith(_PROBABILITY)
        )
        for row in rows:
            if row["label"] not in classes:
                raise ValueError(f"it has no class {row['label']!r}")
        areas = None
        if set(_BOX) <= set(columns):
            areas = np.array([[row[edge] for edge in _BOX] for row in rows], np.float32)
        return Predictions(
            names=tuple(row["path"] for row in rows),
            groups=tuple(row["group"] for row in rows),
            views=tuple(row["view"] for row in rows),
            classes=classes,
            labels=np.array([classes.index(row["label"]) for row in rows], np.int32),
            probabilities=np.array(
                [[row[_PROBABILITY + name] for name in classes] for row in rows],
                np.float32,
            ),
            key_areas=areas,
        )
    except (OSError, ValueError, csv.Error) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{file} cannot be read as a table of predictions ({said}): restore it, or "
            "delete the JSON file of results beside it and give its command again"
        ) from error
