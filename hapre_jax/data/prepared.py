"""Films as `python -m hapre_jax.data prepare` stored them: array_record through TFDS.

Beside the records lies `films.jsonl`, which says of each film all but its pixels, so
that a source opens without reading gigabytes. Boxes are yxyx in [0, 1] of the film.
"""

import collections
import contextlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hapre_jax.data import dataset, files
from hapre_jax.errors import UserError

INDEX = "films.jsonl"
INCOMPLETE = "incomplete."  # how TFDS calls a folder until it is finished


class Header(NamedTuple):
    """The first line of the index."""

    name: str  # of the data set
    variant: str  # of its labels; empty where there is one way only
    classes: tuple[str, ...]
    root: str = ""  # of the originals, where several collections have one name


class Row(NamedTuple):
    """One of the other lines."""

    split: str  # of TFDS
    position: int  # in that split
    record: dataset.Record
    facts: dataset.Facts


def find(root: str, name: str, variant: str = "") -> pathlib.Path | None:
    """The folder of a prepared data set at or below a root, or None.

    Args:
      root: such a folder, or one up to three levels above it, as TFDS lays them out.
      name: of the data set.
      variant: of its labels.

    Raises:
      UserError: several to choose from, or the root holds another one.
    """
    top = files.expand(root)
    if not os.path.isdir(top):
        return None
    headers = {folder: read_header(folder / INDEX) for folder in _folders(top)}
    wanted = [
        folder for folder, header in headers.items() if header[:2] == (name, variant)
    ]
    if headers and not wanted:
        others = ", ".join(
            f"{header.name} {header.variant}".rstrip() + f" in {folder}"
            for folder, header in headers.items()
        )
        raise UserError(
            f"{top} holds no prepared {name} {variant}".rstrip() + f", but {others}"
        )
    if len(wanted) > 1:
        listed = ", ".join(map(str, wanted))
        raise UserError(f"{top} holds {name} several times: name one of {listed}")
    return wanted[0] if wanted else None


def _folders(top: pathlib.Path) -> list[pathlib.Path]:
    """The folders that hold an index; of links to one, the first."""
    found: dict[pathlib.Path, pathlib.Path] = {}
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        for path in sorted(top.glob(depth + INDEX)):
            if not path.parent.name.startswith(INCOMPLETE):
                found.setdefault(path.resolve(), path.parent)
    return list(found.values())


def write_index(path: pathlib.Path, header: Header, rows: Sequence[Row]) -> None:
    """Writes `films.jsonl`: the header, then a line a film."""
    lines = [json.dumps(header._asdict())]
    for split, position, record, facts in rows:
        known = dataset.is_known(facts.lung_box)
        values = record._asdict() | facts._asdict()
        del values["corrections"]  # of phantoms alone, which are drawn, not read
        values |= {
            "lung_box": facts.lung_box.tolist() if known else None,
            "lesion_boxes": facts.lesion_boxes.tolist(),
        }
        lines.append(json.dumps({"split": split, "position": position} | values))
    path.write_text("\n".join(lines) + "\n")


def read_header(path: pathlib.Path) -> Header:
    """The header that `write_index` wrote.

    Raises:
      UserError: it cannot be read.
    """
    with _naming(path), path.open() as file:
        values = json.loads(file.readline())
        return Header(**values | {"classes": tuple(values["classes"])})


def read_index(path: pathlib.Path) -> list[Row]:
    """The rows that `write_index` wrote.

    Raises:
      UserError: they cannot be read.
    """
    with _naming(path):
        return [_row(json.loads(line)) for line in path.read_text().splitlines()[1:]]


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): prepare the data "
            "set again"
        ) from error


def _row(values: dict[str, Any]) -> Row:
    box = values["lung_box"]
    lesions = np.array(values["lesion_boxes"], np.float32).reshape(-1, 4)
    return Row(
        values["split"],
        values["position"],
        dataset.Record(**{name: values[name] for name in dataset.Record._fields}),
        dataset.Facts(
            values["sha256"],
            values["height"],
            values["width"],
            dataset.NOWHERE if box is None else np.array(box, np.float32),
            lesions,
        ),
    )


def source(folder: pathlib.Path) -> dataset.Source:
    """The films of a prepared data set.

    Raises:
      UserError: its index or its records cannot be read.
    """
    import tensorflow_datasets as tfds  # slow to import, and only needed here

    header, rows = read_header(folder / INDEX), read_index(folder / INDEX)
    try:
        builder = tfds.builder_from_directory(folder)
        encoded = {"image", "lung_mask"} & set(builder.info.features)
        # All splits. The films stay encoded, so that they are read as others are.
        stores = builder.as_data_source(
            decoders={name: tfds.decode.SkipDecoding() for name in encoded}
        )
        stored = {split: len(store) for split, store in stores.items()}
    except Exception as error:  # of TFDS, array_record and the file system
        raise UserError(
            f"{folder} is no readable TFDS data set ({error}): prepare it again"
        ) from error
    listed = collections.Counter(row.split for row in rows)
    if listed != stored:
        raise UserError(
            f"{folder / INDEX} is damaged (it lists {dict(listed)} films of "
            f"{stored}): prepare the data set again"
        )
    return dataset.Source(
        name=header.name,
        classes=header.classes,
        records=[row.record for row in rows],
        read=_StoreReader(folder, stores, rows),
        facts=[row.facts for row in rows],
    )


class _StoreReader:
    """`Source.read` of films that are stored."""

    def __init__(self, folder: pathlib.Path, stores: Any, rows: list[Row]):
        self._folder, self._stores, self._rows = folder, stores, rows

    def __call__(self, index: int) -> dataset.Film:
        row = self._rows[index]
        try:
            example = self._stores[row.split][row.position]
            image = Image.open(io.BytesIO(example["image"]))
            image.load()
            lungs = None
            if dataset.is_known(row.facts.lung_box) and "lung_mask" in example:
                lungs = np.asarray(Image.open(io.BytesIO(example["lung_mask"])))
        except Exception as error:  # of array_record and Pillow
            raise UserError(
                f"{row.record.name}, as prepared in {self._folder}, cannot be read: "
                f"{error}"
            ) from error
        return dataset.Film(image, example["image"], row.facts, lungs)
