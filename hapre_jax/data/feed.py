"""Batches of a split: shuffled and endless to train on, each image once to score.

Images that are not in memory are read by threads or processes, ahead of the step that
will need them. The order depends on the seed alone, and starts at any position.
"""

import functools
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from hapre_jax.data import dataset, frames
from hapre_jax.errors import UserError

# Of the same images. Not endless: the length of an endless grain.MapDataset overflows.
_EPOCHS = 1 << 30
# Between the seeds of a batch's order and of its partner's: far from seeds in use.
_OTHER_SEED = 1 << 31
# For a program to save what it has; what Slurm gives by default (KillWait).
_GRACE_SECONDS = 30


def check_batch_size(batch_size: int, images: int, shards: int) -> None:
    """Raises `UserError` where batches are of more images than there are, or uneven."""
    if batch_size > images:
        raise UserError(
            f"train.batch_size {batch_size} is more than the {images} training images"
        )
    if batch_size % shards:
        raise UserError(
            f"train.batch_size {batch_size} cannot be divided among {shards} processes"
        )


class TrainIterator:
    """Endless batches, shuffled anew each epoch.

    The order depends on the seed and the number of images, on nothing else: batch
    number `start` is the same whatever was taken before, by whatever threads,
    processes or shards.

    It iterates over `image u8[b, H, W, 1]`, `label i32[b]`, `index i32[b]` (rows of the
    source), and `lung_box f32[b, 4]`, `lungs u8[b, H, W, 1]` and `boxes f32[b, M, 4]`
    if the source has any; b is B divided by the number of shards. A batch raises
    `UserError` where an image has become unreadable.

    Attributes:
      identity: of what the order depends on, of JSON's types.
    """

    def __init__(
        self,
        source: dataset.Dataset,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        threads: int = 0,
        processes: int = 0,
        shard: tuple[int, int] = (0, 1),
        partners: bool = False,
    ):
        """Begins to read.

        Args:
          source: N images.
          batch_size: B <= N, of all shards together.
          seed: of the order, 0 to 2^32 - 1.
          start: batches that were taken already.
          threads, processes: that read images which are not in memory; see
            `DataConfig`.
          shard: index and number of the processes that share each batch.
          partners: each batch has another one, "partner", of the same number in an
            order of its own, which depends on the seed alone too.

        Raises:
          UserError: see `check_batch_size`.
        """
        import grain  # slow to import, and only needed to train

        index, count = shard
        check_batch_size(batch_size, len(source), count)
        self.identity = {
            "batch_size": batch_size,
            "seed": seed,
            "images": len(source),
            "films": _digest(source.names),
        }

        # What is shuffled is rows. Each process takes its part of each batch, so that
        # together they have the batches that a single one would have.
        def shuffled(seed):
            rows = grain.MapDataset.source(np.arange(len(source))).seed(seed).shuffle()
            batches = rows.repeat(_EPOCHS).batch(batch_size)[start:]
            return batches.map(functools.partial(_part, index, count))

        rows = shuffled(seed)
        if partners:
            others = shuffled((seed + _OTHER_SEED) % 2**32)
            batches = rows.map_with_index(
                functools.partial(_batch_and_partner, source, others)
            )
        else:
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
            # Older versions did not know which films there were, only how many.
            if identity.get(name, mine) != mine:
                if name == "films":
                    raise UserError(
                        "the training films are others, or in another order, than "
                        "those of the checkpoint: restore them, or choose another "
                        "--workdir"
                    )
                raise UserError(
                    f"the saved position in the data has {name} {identity[name]}, this "
                    f"run has {mine}"
                )

    def close(self) -> None:
        """Ends the threads and processes that read."""
        self._batches.close()


def _digest(names: Sequence[str]) -> str:
    """Short, and other for other names or another order."""
    text = "\0".join(names).encode("utf-8", "surrogateescape")  # as the system has them
    return hashlib.sha256(text).hexdigest()[:16]


def eval_batches(
    source: dataset.Dataset,
    batch_size: int,
    *,
    threads: int = 0,
    processes: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
    """All images once, in order, in batches of one shape.

    Args:
      source: N images.
      batch_size: B.
      threads, processes, shard: as in `TrainIterator`.

    Yields:
      What `TrainIterator` does, and `mask bool[b]`, False for the copies of image 0
      that fill the last batch.
    """
    import grain

    count = -(-len(source) // batch_size) * batch_size
    rows = grain.MapDataset.source(np.arange(count)).batch(batch_size)
    rows = rows.map(functools.partial(_part, *shard))
    batches = rows.map(functools.partial(_padded_batch, source))
    delivered = _deliver(batches, source, threads, processes)
    try:
        yield from delivered
    finally:
        delivered.close()


def _deliver(batches, source: dataset.Dataset, threads: int, processes: int):
    """Iterates over a `grain.MapDataset` of batches, in order, reading ahead."""
    import grain

    if not isinstance(source.images, frames.LazyImages):
        threads = processes = 0  # nothing to wait for
    # Whole batches are read ahead, one a thread, and one that waits.
    options = grain.ReadOptions(
        num_threads=0 if processes else threads, prefetch_buffer_size=threads + 1
    )
    batches = batches.to_iter_dataset(options)
    if processes:
        _mark_flags_as_parsed()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(processes), worker_init_fn=_end_with_parent
        )
    return iter(batches)


def _end_with_parent(index: int, count: int) -> None:
    """Ends a worker whose program has ended, and not before.

    Of a program that was killed it would wait for the next request forever. Ctrl-C and
    a cluster tell all processes of a program to stop at once: the program itself ends
    its workers, after it has saved what it has.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave(number, frame):
        threading.Timer(_GRACE_SECONDS, os._exit, (1,)).start()

    signal.signal(signal.SIGTERM, leave)

    def wait():
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _mark_flags_as_parsed():
    """Grain reads absl's flags, which only an absl program parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _part(index: int, count: int, rows: np.ndarray) -> np.ndarray:
    """The rows of a batch that shard `index` of `count` reads."""
    return rows.reshape(count, -1)[index]


def _batch(source: dataset.Dataset, index: np.ndarray) -> dict[str, np.ndarray]:
    batch = {
        "image": source.images[index],
        "label": source.labels[index],
        "index": index.astype(np.int32),
    }
    if source.lungs_known.any():
        batch["lung_box"] = source.lung_boxes[index]
    if source.masks is not None:
        batch["lungs"] = source.masks[index]
    if source.boxes is not None:
        batch["boxes"] = source.boxes[index]
    return batch


def _batch_and_partner(source: dataset.Dataset, others, position: int, index):
    """A batch, and as its partner the batch at the same position of `others`."""
    return _batch(source, index) | {"partner": _batch(source, others[position])}


def _padded_batch(source: dataset.Dataset, index: np.ndarray) -> dict[str, np.ndarray]:
    mask = index < len(source)
    return _batch(source, np.where(mask, index, 0)) | {"mask": mask}
