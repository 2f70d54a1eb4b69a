"""From a data config to three splits: films are opened, read once and divided.

Each film is read, to know that it can be and where its lungs are. As 8-bit squares they
are kept in memory, if they fit; if not, each batch reads its films again (`feed`).
"""

import collections
import concurrent.futures
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hapre_jax import csv_file
from hapre_jax.config import DataConfig
from hapre_jax.data import dataset, frames, sources, splits
from hapre_jax.errors import UserError, listing

_log = logging.getLogger(__name__)


class Unreadable(NamedTuple):
    """A film that was left out."""

    name: str
    reason: str


class Films(NamedTuple):
    """The readable films of a source, not divided yet."""

    source: dataset.Source
    data: DataConfig  # how they were read
    seed: int
    kept: list[int]  # indices of the records of these films
    examples: list[frames.Example]  # of these films
    pixels: np.ndarray | None  # u8[all records, S, S, 1], if they are kept in memory
    unreadable: list[Unreadable]  # the others

    @property
    def records(self) -> list[dataset.Record]:
        """Those of these films."""
        return [self.source.records[index] for index in self.kept]


def load(
    data: DataConfig,
    *,
    seed: int,
    splits_file: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    masks: bool = False,
    boxes: bool = False,
) -> dataset.Splits:
    """Opens a source, reads its films and divides them.

    Args:
      data: which source, and how its images are stored and divided.
      seed: of the division, and of what is drawn or degraded.
      splits_file: see `divide`.
      progress: see `read`.
      masks: see `read`.
      boxes: see `divide`.

    Raises:
      UserError: see `sources.open_source`, `read` and `divide`.
    """
    source = sources.open_source(data, seed=seed)
    films = read(source, data, seed=seed, progress=progress, masks=masks)
    return divide(films, splits_file=splits_file, boxes=boxes)


def read(
    source: dataset.Source,
    data: DataConfig,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    masks: bool = False,
) -> Films:
    """Reads each film once, as far as it is not known that it can be.

    Args:
      source: of `sources.open_source`, by the same config and seed.
      data: how its images are stored.
      seed: of what is degraded, and of the division to come.
      progress: called with the number of images read and their total.
      masks: keeps the lung masks in memory too, and only films that have one.

    Raises:
      UserError: an unreadable image (`on_error="stop"`), or a class without a readable
        one.
    """
    side = data.image_size
    pixels = None
    if len(source.records) * side**2 <= data.memory_gib * 2**30:
        pixels = np.empty((len(source.records), side, side, 1), np.uint8)
    kept, examples, failures = _examples(
        source, data, seed=seed, pixels=pixels, progress=progress, masks=masks
    )
    return Films(source, data, seed, kept, examples, pixels, failures)


def divide(
    films: Films, *, splits_file: pathlib.Path | None = None, boxes: bool = False
) -> dataset.Splits:
    """Divides films, whose memory the splits take over: they can be divided once.

    Args:
      films: of `read`.
      splits_file: the division to reuse, as `splits.write` wrote it; films that were
        not readable then are left out.
      boxes: gives the lesion boxes also as one array, for batches.

    Raises:
      UserError: an empty split, a class without a training image, a division that tears
        a patient or a film apart, or films that are not those of `splits_file`.
    """
    source, data, records = films.source, films.data, films.records
    labels = np.array([record.label for record in records], np.int32)
    rows = [
        splits.Row(r.name, example.sha256, source.classes[r.label], r.group, "")
        for r, example in zip(records, films.examples, strict=True)
    ]
    if splits_file is not None:
        split = splits.recall(splits_file, rows)
        _say_what_came_back(splits_file, rows, split)
    else:
        split = _divide(source, records, rows, labels, data, films.seed)
    rows = [row._replace(split=str(s)) for row, s in zip(rows, split, strict=True) if s]
    # A division that was published or edited by hand may tear them apart.
    splits.refuse_leaks(rows, groups=data.split_level == "group")
    _check_splits(source.classes, labels, split)
    _say_what_is_shared(rows)
    _say_what_is_in_doubt(rows)
    members = [np.flatnonzero(split == name) for name in splits.SPLITS]
    return dataset.Splits(*_datasets(films, members, boxes=boxes))


def whole(films: Films) -> dataset.Dataset:
    """Films that are not divided, to test on all of them; `divide` says of memory."""
    (found,) = _datasets(films, [np.arange(len(films.kept))], boxes=False)
    return found


def _datasets(films: Films, members, *, boxes) -> list[dataset.Dataset]:
    """Parts of the films, by their places among them."""
    rows_of = [np.array(films.kept)[places] for places in members]
    images: list[Any] = (
        [
            frames.LazyImages(films.source, films.data, films.seed, rows)
            for rows in rows_of
        ]
        if films.pixels is None
        else _part(films.pixels, rows_of)
    )
    return [
        _dataset(films, places, of_part, boxes=boxes)
        for places, of_part in zip(members, images, strict=True)
    ]


def division(divided: dataset.Splits) -> list[splits.Row]:
    """What a split file says of a source that `load` has divided."""
    return [
        splits.Row(name, digest, part.classes[label], group, split)
        for split, part in zip(splits.SPLITS, divided, strict=True)
        for name, digest, label, group in zip(
            part.names, part.hashes, part.labels, part.groups, strict=True
        )
    ]


def write_unreadable(path: pathlib.Path, films: Sequence[Unreadable]) -> None:
    """Lists films that were left out, and why, as CSV with the columns path,reason."""
    csv_file.write(path, [("path", "reason"), *films])


def _examples(
    source: dataset.Source,
    data: DataConfig,
    *,
    seed: int,
    pixels: np.ndarray | None,
    progress: Callable[[int, int], None] | None,
    masks: bool = False,
) -> tuple[list[int], list[frames.Example], list[Unreadable]]:
    """Indices of the readable records, their examples, in order, and the others.

    The squares go to the rows of `pixels`, where films are kept in memory.
    """
    needs_pixels = masks or pixels is not None or data.degrade != "none"
    if source.facts is not None and not needs_pixels:
        framed = [frames.framed(facts, data.geometry) for facts in source.facts]
        return list(range(len(framed))), framed, []

    def attempt(index):
        try:
            example = frames.present(source.read(index), data, seed=seed)
        except UserError as error:
            return error
        if pixels is not None:
            pixels[index] = example.pixels
        if masks and example.mask is None:
            name = source.records[index].name
            return UserError(f"{name} has no lung mask")
        return example._replace(pixels=None, mask=example.mask if masks else None)

    kept, examples, failures = [], [], []
    total = len(source.records)
    pool = concurrent.futures.ThreadPoolExecutor(data.threads) if data.threads else None
    try:
        results = (pool.map if pool else map)(attempt, range(total))
        for index, result in enumerate(results):
            if isinstance(result, UserError):
                if data.on_error == "stop":
                    raise result
                name = source.records[index].name
                failures.append(Unreadable(name, str(result)))
            else:
                kept.append(index)
                examples.append(result)
            if progress:
                progress(index + 1, total)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    readable = {source.records[index].label for index in kept}
    for label, name in enumerate(source.classes):
        if label not in readable:
            reason = f"; for one, {failures[0].reason}" if failures else ""
            raise UserError(f"class {name!r} has no readable image{reason}")
    if failures:
        named = listing([name for name, _ in failures])
        _log.warning(
            f"left out {len(failures)} of {total} images that cannot be read: {named}"
        )
    return kept, examples, failures


def _divide(source, records, rows, labels, data: DataConfig, seed) -> np.ndarray:
    """`str[N]`: the split of each record, by the source or by chance."""
    official = np.array([record.official for record in records])
    if source.is_divided:
        return official
    if data.official_split and "test" not in official:
        raise UserError(
            f"data.official_split is true, but {source.name} names no test images"
        )
    if data.name == "folder" and "test" in official and not data.official_split:
        _log.warning(
            f"{source.name} names test images, but is divided anew: "
            "data.official_split true tests on them"
        )
    tested = official == "test" if data.official_split else np.zeros(len(rows), bool)
    split = np.full(len(rows), "test", "<U10")
    free = np.flatnonzero(~tested)
    # What is tested is given; the rest keeps its proportions.
    shares = data.split_fractions[: 2 if data.official_split else 3]
    split[free] = splits.assign(
        [rows[index].group for index in free],
        labels[free],
        hashes=[rows[index].sha256 for index in free],
        fractions=[share / sum(shares) for share in shares],
        seed=seed,
        level=data.split_level,
    )
    return split


def _check_splits(classes, labels, split):
    empty = [name for name in splits.SPLITS if name not in split]
    if empty:
        raise UserError(f"no image is left for {', '.join(empty)}")
    for label, name in enumerate(classes):
        if not (labels[split == "train"] == label).any():
            raise UserError(
                f"class {name!r} has no training image: its {(labels == label).sum()} "
                "image(s) all went to validation or test"
            )
        for part in ("validation", "test"):
            if not (labels[split == part] == label).any():
                _log.warning(f"class {name!r} has no {part} image")


def _say_what_came_back(splits_file, rows, split):
    again = [row.path for row, of in zip(rows, split, strict=True) if not of]
    if again:
        _log.warning(
            f"left out {len(again)} images that could not be read when {splits_file} "
            f"was made, so belong to no split: {listing(again)}"
        )


def _say_what_is_in_doubt(rows):
    """The same bytes under two classes: one of them must be wrong."""
    classes = collections.defaultdict(set)
    for row in rows:
        classes[row.sha256].add(row.label)
    doubtful = [digest for digest, names in classes.items() if len(names) > 1]
    if doubtful:
        names = {row.label: row.path for row in rows if row.sha256 == doubtful[0]}
        _log.warning(
            f"{len(doubtful)} image(s) are in two classes, byte for byte: the first "
            f"one as {' and '.join(names.values())}"
        )


def _say_what_is_shared(rows):
    shared = splits.shared_with_train(
        [row.group for row in rows], [row.split for row in rows]
    )
    if shared:
        tested = sum(row.split == "test" for row in rows)
        _log.warning(
            f"{shared} of {tested} test images ({shared / tested:.0%}) share a group "
            "with a training image: their figures are optimistic"
        )


def _part(array: np.ndarray, rows_of: list[np.ndarray]) -> list[np.ndarray]:
    """Views of the rows of each split, which are moved together in place.

    So that nothing is in memory twice.
    """
    first = np.concatenate(rows_of)
    order = np.concatenate([first, np.setdiff1d(np.arange(len(array)), first)])
    is_done = np.zeros(len(array), bool)
    for start in range(len(array)):
        if is_done[start]:
            continue
        row, saved = start, array[start].copy()
        while order[row] != start:
            array[row] = array[order[row]]
            is_done[row] = True
            row = order[row]
        array[row] = saved
        is_done[row] = True
    ends = np.cumsum([len(rows) for rows in rows_of])
    return np.split(array[: ends[-1]], ends[:-1])


def _dataset(films: Films, places, pixels, *, boxes) -> dataset.Dataset:
    """The films at some places, with `pixels` as their images."""
    records = [films.source.records[films.kept[place]] for place in places]
    examples = [films.examples[place] for place in places]
    lesions = tuple(example.lesion_boxes for example in examples)
    views = tuple(record.view for record in records)
    known = [dict(example.corrections) for example in examples]
    masks = [example.mask for example in examples]
    return dataset.Dataset(
        images=pixels,
        labels=np.array([record.label for record in records], np.int32),
        names=tuple(record.name for record in records),
        groups=tuple(record.group for record in records),
        classes=films.source.classes,
        lung_boxes=np.stack([example.lung_box for example in examples]),
        lesion_boxes=lesions if any(map(len, lesions)) else None,
        views=views if any(views) else (),
        hashes=tuple(example.sha256 for example in examples),
        corrections={
            name: np.array([of[name] for of in known], np.float32)
            for name in (known[0] if all(known) else ())
        },
        masks=None if any(mask is None for mask in masks) else np.stack(masks),
        boxes=_padded(lesions) if boxes else None,
    )


def _padded(lesions: Sequence[np.ndarray]) -> np.ndarray:
    """Boxes `f32[n, 4]` of each image as `f32[N, M, 4]`, NaN where n < M."""
    most = max(1, *map(len, lesions))
    padded = np.full((len(lesions), most, 4), np.nan, np.float32)
    for row, of in zip(padded, lesions, strict=True):
        row[: len(of)] = of
    return padded
