"""From a data config to batches: read once, divide, shuffle, resume.

All images of a source live in memory as 8-bit squares; a batch is a row lookup.
"""

import concurrent.futures
import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from hapre_jax import config, errors
from hapre_jax.data import (
    dataset,
    degrade,
    files,
    folder,
    images,
    ped_pneumonia,
    phantom,
    splits,
)

_log = logging.getLogger(__name__)

_NOWHERE = np.full(4, np.nan, np.float32)  # an unknown box


class _Example(NamedTuple):
    pixels: np.ndarray  # u8[S, S, 1]
    sha256: str
    lung_box: np.ndarray  # f32[4] in the stored frame, or NaN


class _Source(NamedTuple):
    classes: tuple[str, ...]
    records: Sequence[dataset.Record]
    read: Callable[[int], _Example]  # by index of a record, from any thread
    split: np.ndarray | None = None  # str[N] where the source decides, else by config


def load(
    data: config.DataConfig,
    *,
    seed: int,
    splits_file: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dataset.Splits:
    """Reads a whole source into memory and divides it.

    Args:
      data: which source, and how its images are stored and divided.
      seed: of the division, and of the phantoms.
      splits_file: the division to reuse; if there is none, it is written here once
        everything else has worked.
      progress: called with the number of images read and their total.

    Raises:
      UserError: nothing to read, an unreadable image (`unreadable="error"`), a class
        without a readable or without a training image, an empty split, or images that
        are not those of `splits_file`.
    """
    if data.name not in _SOURCES:
        raise errors.UserError(f"data.name {data.name!r} is none of {list(_SOURCES)}")
    source = _SOURCES[data.name](data, seed)
    kept, examples = _read_all(
        source, threads=data.threads, unreadable=data.unreadable, progress=progress
    )
    records = [source.records[index] for index in kept]
    groups = [record.group for record in records]
    labels = np.array([record.label for record in records], np.int32)
    hashes = [example.sha256 for example in examples]

    def rows(split):
        return [
            splits.Row(r.name, digest, source.classes[r.label], r.group, str(part))
            for r, digest, part in zip(records, hashes, split, strict=True)
        ]

    if splits_file is not None and splits_file.exists():
        split = splits.recall(splits_file, rows([""] * len(records)))
    elif source.split is not None:
        split = source.split[kept]
    else:
        split = splits.assign(
            splits.join_identical(groups, hashes),
            labels,
            fractions=data.split_fractions,
            seed=seed,
            level=data.split_level,
        )
    for label, name in enumerate(source.classes):
        if not (labels[split == "train"] == label).any():
            raise errors.UserError(
                f"class {name!r} has no training image: its {(labels == label).sum()} "
                "image(s) all went to validation or test"
            )
    shared = splits.shared_with_train(groups, split)
    if shared:
        _log.warning(
            f"{shared} of {(split == 'test').sum()} test images share a group with a "
            "training image: their figures are optimistic"
        )
    divided = dataset.Splits(
        *(
            _gather(source.classes, records, examples, np.flatnonzero(split == name))
            for name in splits.SPLITS
        )
    )
    if splits_file is not None and not splits_file.exists():
        splits.write(splits_file, rows(split))
    return divided


def _phantoms(data: config.DataConfig, seed: int) -> _Source:
    counts = (data.train_images, data.validation_images, data.test_images)
    if min(counts) < 1:
        raise errors.UserError(
            f"phantom splits of {counts} images: each needs at least 1"
        )
    names = [f"phantom-{seed}-{index}" for index in range(sum(counts))]
    records = [
        dataset.Record(name, index % len(phantom.CLASSES), name)
        for index, name in enumerate(names)
    ]

    def read(index):
        film = phantom.make(
            index, seed=seed, quality=data.quality, size=data.image_size
        )
        digest = hashlib.sha256(film.image.tobytes()).hexdigest()
        return _Example(film.image[:, :, None], digest, film.lung_box)

    return _Source(phantom.CLASSES, records, read, np.repeat(splits.SPLITS, counts))


def _ped_pneumonia(data: config.DataConfig, seed: int) -> _Source:
    tree, records = ped_pneumonia.scan(data.root)
    masks = ped_pneumonia.lung_masks(data.root)
    read = functools.partial(_read_file, data, tree, records, masks, seed)
    return _Source(ped_pneumonia.CLASSES, records, read)


def _folder(data: config.DataConfig, seed: int) -> _Source:
    tree, records, classes = folder.scan(data.root)
    read = functools.partial(_read_file, data, tree, records, None, seed)
    return _Source(classes, records, read)


_SOURCES = {"phantom": _phantoms, "ped_pneumonia": _ped_pneumonia, "folder": _folder}


def _read_file(
    data: config.DataConfig,
    tree: files.Tree,
    records: Sequence[dataset.Record],
    masks: Callable[[str], np.ndarray | None] | None,  # of the lungs, by name
    seed: int,
    index: int,
) -> _Example:
    name = records[index].name
    encoded = tree.read(name)
    film = images.open_gray(encoded, name=name)
    digest = hashlib.sha256(encoded).hexdigest()
    lungs = masks(name) if masks else None
    if data.degrade != "none":
        film = images.shape(film, data.geometry)
        if lungs is not None:
            lungs = np.asarray(images.shape(Image.fromarray(lungs), data.geometry))
        degraded = degrade.degrade(
            film,
            lungs,
            level=degrade.LEVELS[data.degrade],
            size=data.image_size,
            # By content: a film looks the same whatever it is called.
            rng=np.random.default_rng((seed, int(digest[:16], 16))),
        )
        return _Example(degraded.image[:, :, None], digest, degraded.lung_box)
    box = _NOWHERE
    if lungs is not None:
        shares = images.tight_box(lungs) / np.array(lungs.shape * 2)
        pixels = shares * np.array((film.height, film.width) * 2)
        box = images.frame_box(pixels, film.height, film.width, data.geometry)
    square = images.fit(film, size=data.image_size, geometry=data.geometry)
    return _Example(square, digest, box)


def _read_all(
    source: _Source,
    *,
    threads: int,
    unreadable: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[int], list[_Example]]:
    """Indices of the readable records, and their examples, in order."""

    def attempt(index):
        try:
            return source.read(index)
        except errors.UserError as error:
            return error

    kept, examples, failures = [], [], []
    total = len(source.records)
    pool = concurrent.futures.ThreadPoolExecutor(threads) if threads else None
    try:
        results = (pool.map if pool else map)(attempt, range(total))
        for index, result in enumerate(results):
            if isinstance(result, errors.UserError):
                if unreadable == "error":
                    raise result
                failures.append((source.records[index].name, result))
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
            reason = f"; for one, {failures[0][1]}" if failures else ""
            raise errors.UserError(f"class {name!r} has no readable image{reason}")
    if failures:
        named = ", ".join(name for name, _ in failures[:3])
        more = f" and {len(failures) - 3} more" if len(failures) > 3 else ""
        _log.warning(
            f"left out {len(failures)} of {total} images that cannot be read: "
            f"{named}{more}"
        )
    return kept, examples


def _gather(
    classes: tuple[str, ...],
    records: list[dataset.Record],
    examples: list[_Example],
    indices: np.ndarray,
) -> dataset.Dataset:
    """One split as arrays. Frees its examples, so that nothing is in memory twice."""
    boxes = np.stack([examples[index].lung_box for index in indices])
    pixels = np.empty((len(indices), *examples[indices[0]].pixels.shape), np.uint8)
    for row, index in enumerate(indices):
        pixels[row] = examples[index].pixels
        examples[index] = examples[index]._replace(pixels=pixels[:0])
    return dataset.Dataset(
        images=pixels,
        labels=np.array([records[index].label for index in indices], np.int32),
        names=tuple(records[index].name for index in indices),
        groups=tuple(records[index].group for index in indices),
        classes=classes,
        lung_boxes=None if np.isnan(boxes).all() else boxes,
    )


class TrainIterator:
    """Endless shuffled batches whose position can be saved: see `train_iterator`."""

    def __init__(self, source: dataset.Dataset, *, batch_size: int, seed: int):
        import grain  # slow to import, and only needed to train

        if batch_size > len(source):
            raise errors.UserError(
                f"train.batch_size {batch_size} is more than the {len(source)} "
                "training images"
            )
        self._source = source
        self._identity = {
            "batch_size": batch_size,
            "seed": seed,
            "images": len(source),
        }
        # What is shuffled is rows; the images are in memory, so that a batch is a row
        # lookup and threads or processes that prefetch would have nothing to do.
        rows = grain.MapDataset.source(np.arange(len(source))).seed(seed).shuffle()
        # Batched as an iterator: the length of an endless `MapDataset` overflows for
        # batches of one.
        rows = rows.repeat().to_iter_dataset(grain.ReadOptions(num_threads=0))
        self._rows = iter(rows.batch(batch_size))

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return _batch(self._source, next(self._rows))

    def get_state(self) -> dict:
        """The position, as JSON: grain's, and of what it is a position."""
        return {"grain": self._rows.get_state(), **self._identity}

    def set_state(self, state: dict) -> None:
        """Goes on where `get_state` was called.

        Raises:
          UserError: the position is of other images, or of another batch size or seed.
        """
        for name, mine in self._identity.items():
            if state[name] != mine:
                raise errors.UserError(
                    f"the saved position in the data has {name} {state[name]}, this "
                    f"run has {mine}"
                )
        self._rows.set_state(state["grain"])


def train_iterator(
    source: dataset.Dataset, *, batch_size: int, seed: int
) -> TrainIterator:
    """Endless batches, shuffled anew each epoch.

    The order depends on the seed and the number of images, on nothing else.

    Args:
      source: N images.
      batch_size: B <= N.
      seed: of the order, 0 to 2^32 - 1.

    Returns:
      An iterator over `image u8[B, H, W, 1]`, `label i32[B]`, `index i32[B]` (rows of
      the source), and `lung_box f32[B, 4]` if the source has any; with `get_state()`
      and `set_state(state)`.

    Raises:
      UserError: more images in a batch than there are.
    """
    return TrainIterator(source, batch_size=batch_size, seed=seed)


def eval_batches(
    source: dataset.Dataset, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """All images once, in order, in batches of one shape.

    Yields:
      What `train_iterator` yields, and `mask bool[B]`, False for the copies of image 0
      that fill the last batch.
    """
    for start in range(0, len(source), batch_size):
        index = np.arange(start, start + batch_size)
        mask = index < len(source)
        yield _batch(source, np.where(mask, index, 0)) | {"mask": mask}


def _batch(source: dataset.Dataset, index: np.ndarray) -> dict[str, np.ndarray]:
    batch = {
        "image": source.images[index],
        "label": source.labels[index],
        "index": index.astype(np.int32),
    }
    if source.lung_boxes is not None:
        batch["lung_box"] = source.lung_boxes[index]
    return batch
