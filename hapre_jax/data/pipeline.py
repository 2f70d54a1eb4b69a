"""From a data config to batches: read once, divide, shuffle, resume.

A source is opened, each of its films read once, to know that it can be read and where
its lungs are, and the films are divided. As 8-bit squares they are kept in memory, if
they fit: a batch is then a row lookup. If not, each batch is read from the films again,
by threads or processes, ahead of the step that will need it.
"""

import concurrent.futures
import csv
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hapre_jax import errors
from hapre_jax.config import DataConfig
from hapre_jax.data import dataset, degrade, images, sources, splits

_log = logging.getLogger(__name__)

# Of the same images. Not endless: the length of an endless grain.MapDataset overflows.
_EPOCHS = 1 << 30


class Unreadable(NamedTuple):
    """A film that was left out."""

    name: str
    reason: str


class _Example(NamedTuple):
    pixels: np.ndarray | None  # u8[S, S, 1]; None where films are read anew
    sha256: str
    lung_box: np.ndarray  # f32[4] in the stored frame, or NaN
    lesion_boxes: np.ndarray  # f32[n, 4] in the stored frame


def load(
    data: DataConfig,
    *,
    seed: int,
    splits_file: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_unreadable: Callable[[Sequence[Unreadable]], None] | None = None,
) -> dataset.Splits:
    """Opens a source and divides it.

    Args:
      data: which source, and how its images are stored and divided.
      seed: of the division, and of what is drawn or degraded.
      splits_file: the division to reuse; if there is none, it is written here once
        everything else has worked.
      progress: called with the number of images read and their total.
      on_unreadable: called with the films that were left out, if any.

    Raises:
      UserError: nothing to read, an unreadable image (`on_error="stop"`), a class
        without a readable or without a training image, an empty split, a division that
        tears a patient or a film apart, or images that are not those of `splits_file`.
    """
    source = sources.open_source(data, seed=seed)
    in_memory = len(source.records) * data.image_size**2 <= data.memory_gib * 2**30
    side, pixels = data.image_size, None
    if in_memory:
        pixels = np.empty((len(source.records), side, side, 1), np.uint8)
    kept, examples, failures = _examples(
        source, data, seed=seed, pixels=pixels, progress=progress
    )
    if failures and on_unreadable:
        on_unreadable(failures)
    records = [source.records[index] for index in kept]
    labels = np.array([record.label for record in records], np.int32)
    rows = [
        splits.Row(r.name, example.sha256, source.classes[r.label], r.group, "")
        for r, example in zip(records, examples, strict=True)
    ]
    is_saved = splits_file is not None and splits_file.exists()
    if splits_file is not None and is_saved:
        split = splits.recall(splits_file, rows)
    else:
        split = _divide(source, records, rows, labels, data, seed)
    rows = [row._replace(split=str(s)) for row, s in zip(rows, split, strict=True)]
    # A division that was published or edited by hand may tear them apart.
    splits.refuse_leaks(rows, groups=data.split_level == "group")
    _check_splits(source.classes, labels, split)
    _say_what_is_shared(rows)

    members = [np.flatnonzero(split == name) for name in splits.SPLITS]
    if pixels is not None:
        # In place, so that nothing is in memory twice: each split is a run of rows.
        _permute(pixels, [kept[index] for index in np.concatenate(members)])
    divided, start = [], 0
    for indices in members:
        end = start + len(indices)
        images_of_split: Any = (
            Stream(source, data, seed, [kept[index] for index in indices])
            if pixels is None
            else pixels[start:end]
        )
        divided.append(
            _dataset(source.classes, records, examples, indices, images_of_split)
        )
        start = end
    if splits_file is not None and not is_saved:
        splits.write(splits_file, rows)
    return dataset.Splits(*divided)


def write_unreadable(path: pathlib.Path, films: Sequence[Unreadable]) -> None:
    """Lists films that were left out, and why, as CSV with the columns path,reason."""
    with open(
        path, "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        csv.writer(file).writerows([("path", "reason"), *films])


def _present(film: dataset.Film, data: DataConfig, *, seed: int) -> _Example:
    """A film as it is stored: square, degraded if asked for, its boxes moved along."""
    image, facts, geometry = film.image, film.facts, data.geometry
    if data.degrade == "none":
        pixels = images.fit(image, size=data.image_size, geometry=geometry)
        return _framed(facts, geometry)._replace(pixels=pixels)
    lungs, boxes = film.lungs, facts.lesion_boxes
    if geometry == "cover":
        boxes = _frame_boxes(boxes, facts, geometry)
    if lungs is not None:
        lungs = np.asarray(images.shape(Image.fromarray(lungs), geometry)) == 255
    degraded = degrade.degrade(
        images.shape(image, geometry),
        lungs,
        level=degrade.LEVELS[data.degrade],
        size=data.image_size,
        # By content: a film looks the same whatever it is called.
        rng=np.random.default_rng((seed, int(facts.sha256[:16], 16))),
        boxes=boxes,
    )
    return _Example(
        degraded.image[:, :, None], facts.sha256, degraded.lung_box, degraded.boxes
    )


def _framed(facts: dataset.Facts, geometry: str) -> _Example:
    """All but the pixels of a film that is not degraded."""
    lung_box = _frame_boxes(facts.lung_box[None], facts, geometry)
    lesions = _frame_boxes(facts.lesion_boxes, facts, geometry)
    return _Example(
        None,
        facts.sha256,
        lung_box[0] if len(lung_box) else dataset.NOWHERE,
        lesions,
    )


def _frame_boxes(boxes, facts, geometry):
    """Boxes of the film in the square frame, without those that it does not show."""
    sides = np.array((facts.height, facts.width) * 2, np.float32)
    framed = [
        images.frame_box(box * sides, facts.height, facts.width, geometry)
        for box in boxes
    ]
    shown = [box for box in framed if np.isfinite(box).all()]
    return np.array(shown, np.float32).reshape(-1, 4)


class Stream:
    """The stored squares of some films, read when asked for: `u8[N, S, S, 1]`.

    Takes an index, a slice or an array of indices, as an array in memory would.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, source: dataset.Source, data: DataConfig, seed: int, rows: Sequence[int]
    ):
        self._source, self._data, self._seed = source, data, seed
        self._rows = np.asarray(rows)
        self.shape = (len(rows), data.image_size, data.image_size, 1)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = self._rows[index]
        if np.ndim(rows) == 0:
            return self._read(int(rows))
        squares = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for square, row in zip(squares, rows, strict=True):
            square[...] = self._read(int(row))
        return squares

    def _read(self, row: int) -> np.ndarray:
        pixels = _present(self._source.read(row), self._data, seed=self._seed).pixels
        assert pixels is not None
        return pixels


def _examples(
    source: dataset.Source,
    data: DataConfig,
    *,
    seed: int,
    pixels: np.ndarray | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[int], list[_Example], list[Unreadable]]:
    """Indices of the readable records, their examples, in order, and the others.

    The squares go to the rows of `pixels`, where films are kept in memory.
    """
    if source.facts is not None and pixels is None and data.degrade == "none":
        framed = [_framed(facts, data.geometry) for facts in source.facts]
        return list(range(len(framed))), framed, []

    def attempt(index):
        try:
            example = _present(source.read(index), data, seed=seed)
        except errors.UserError as error:
            return error
        if pixels is not None:
            pixels[index] = example.pixels
        return example._replace(pixels=None)

    kept, examples, failures = [], [], []
    total = len(source.records)
    pool = concurrent.futures.ThreadPoolExecutor(data.threads) if data.threads else None
    try:
        results = (pool.map if pool else map)(attempt, range(total))
        for index, result in enumerate(results):
            if isinstance(result, errors.UserError):
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
            raise errors.UserError(f"class {name!r} has no readable image{reason}")
    if failures:
        named = errors.listing([name for name, _ in failures])
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
        raise errors.UserError(
            f"data.official_split is true, but {source.name} names no test images"
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
        raise errors.UserError(f"no image is left for {', '.join(empty)}")
    for label, name in enumerate(classes):
        if not (labels[split == "train"] == label).any():
            raise errors.UserError(
                f"class {name!r} has no training image: its {(labels == label).sum()} "
                "image(s) all went to validation or test"
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


def _permute(array: np.ndarray, first: Sequence[int]) -> None:
    """Moves the rows `first` to the front, in their order, without a second array."""
    order = np.concatenate([first, np.setdiff1d(np.arange(len(array)), first)])
    order = order.astype(np.int64)
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


def _dataset(classes, records, examples, indices, pixels) -> dataset.Dataset:
    """One split, with `pixels` as its images."""
    boxes = np.stack([examples[index].lung_box for index in indices])
    lesions = tuple(examples[index].lesion_boxes for index in indices)
    views = tuple(records[index].view for index in indices)
    return dataset.Dataset(
        images=pixels,
        labels=np.array([records[index].label for index in indices], np.int32),
        names=tuple(records[index].name for index in indices),
        groups=tuple(records[index].group for index in indices),
        classes=classes,
        lung_boxes=None if np.isnan(boxes).all() else boxes,
        lesion_boxes=lesions if any(map(len, lesions)) else None,
        views=views if any(views) else (),
        hashes=tuple(examples[index].sha256 for index in indices),
    )


class TrainIterator:
    """Endless shuffled batches from any position on: see `train_iterator`."""

    def __init__(
        self,
        source: dataset.Dataset,
        *,
        batch_size: int,
        seed: int,
        start: int,
        threads: int,
        processes: int,
        shard: tuple[int, int],
    ):
        import grain  # slow to import, and only needed to train

        index, count = shard
        if batch_size > len(source):
            raise errors.UserError(
                f"train.batch_size {batch_size} is more than the {len(source)} "
                "training images"
            )
        if batch_size % count:
            raise errors.UserError(
                f"train.batch_size {batch_size} cannot be divided among {count} "
                "processes"
            )
        self.identity = {"batch_size": batch_size, "seed": seed, "images": len(source)}
        # What is shuffled is rows. Each process takes every count-th, so that together
        # they have the batches that a single one would have.
        rows = grain.MapDataset.source(np.arange(len(source))).seed(seed).shuffle()
        rows = rows.repeat(_EPOCHS)[index::count].batch(batch_size // count)[start:]
        batches = rows.map(functools.partial(_batch, source))
        self._batches = _deliver(batches, source, threads, processes)

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def check(self, identity: dict) -> None:
        """Checks that a saved position is one in these batches.

        Args:
          identity: that of the iterator whose position was saved.

        Raises:
          UserError: it was of other images, or of another batch size or seed.
        """
        for name, mine in self.identity.items():
            if identity[name] != mine:
                raise errors.UserError(
                    f"the saved position in the data has {name} {identity[name]}, this "
                    f"run has {mine}"
                )

    def close(self) -> None:
        """Ends the threads and processes that read."""
        self._batches.close()


def train_iterator(
    source: dataset.Dataset,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    threads: int = 0,
    processes: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> TrainIterator:
    """Endless batches, shuffled anew each epoch.

    The order depends on the seed and the number of images, on nothing else: batch
    number `start` is the same whatever was taken before, by whatever threads,
    processes or shards.

    Args:
      source: N images.
      batch_size: B <= N, of all shards together.
      seed: of the order, 0 to 2^32 - 1.
      start: batches that were taken already.
      threads, processes: that read images which are not in memory; see `DataConfig`.
      shard: index and number of the processes that share each batch.

    Returns:
      An iterator over `image u8[b, H, W, 1]`, `label i32[b]`, `index i32[b]` (rows of
      the source), and `lung_box f32[b, 4]` if the source has any; b is B divided by the
      number of shards.

    Raises:
      UserError: more images in a batch than there are, or b is no integer. A batch
        raises it where an image has become unreadable.
    """
    return TrainIterator(
        source,
        batch_size=batch_size,
        seed=seed,
        start=start,
        threads=threads,
        processes=processes,
        shard=shard,
    )


def eval_batches(
    source: dataset.Dataset, batch_size: int, *, threads: int = 0, processes: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """All images once, in order, in batches of one shape.

    Args:
      source: N images.
      batch_size: B.
      threads, processes: as in `train_iterator`.

    Yields:
      What `train_iterator` yields, and `mask bool[B]`, False for the copies of image 0
      that fill the last batch.
    """
    import grain

    count = -(-len(source) // batch_size) * batch_size
    rows = grain.MapDataset.source(np.arange(count)).batch(batch_size)
    batches = rows.map(functools.partial(_padded_batch, source))
    delivered = _deliver(batches, source, threads, processes)
    try:
        yield from delivered
    finally:
        delivered.close()


def _deliver(batches, source: dataset.Dataset, threads: int, processes: int):
    """Iterates over a `grain.MapDataset` of batches, in order, reading ahead."""
    import grain

    if not isinstance(source.images, Stream):
        threads = processes = 0  # nothing to wait for
    # Whole batches are read ahead, one a thread, and one that waits.
    options = grain.ReadOptions(
        num_threads=0 if processes else threads, prefetch_buffer_size=threads + 1
    )
    batches = batches.to_iter_dataset(options)
    if processes:
        _mark_flags_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(processes))
    return iter(batches)


def _mark_flags_as_parsed():
    """Grain reads absl's flags, which only an absl program parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _batch(source: dataset.Dataset, index: np.ndarray) -> dict[str, np.ndarray]:
    batch = {
        "image": source.images[index],
        "label": source.labels[index],
        "index": index.astype(np.int32),
    }
    if source.lung_boxes is not None:
        batch["lung_box"] = source.lung_boxes[index]
    return batch


def _padded_batch(source: dataset.Dataset, index: np.ndarray) -> dict[str, np.ndarray]:
    mask = index < len(source)
    return _batch(source, np.where(mask, index, 0)) | {"mask": mask}
