"""The data sets by name, and which films of them a config asks for."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np

from hapre_jax.config import DataConfig
from hapre_jax.data import (
    dataset,
    folder,
    nih_chest_xray,
    ped_pneumonia,
    phantom,
    prepared,
    rsna_pneumonia,
)
from hapre_jax.errors import UserError

_log = logging.getLogger(__name__)

_SOURCES: dict[str, Callable[[DataConfig, int], dataset.Source]] = {
    "phantom": lambda data, seed: phantom.source(
        (data.train_images, data.validation_images, data.test_images),
        seed=seed,
        quality=data.quality,
        size=data.image_size,
    ),
    "ped_pneumonia": lambda data, seed: ped_pneumonia.source(data.root),
    "rsna_pneumonia": lambda data, seed: rsna_pneumonia.source(
        data.root, labels=data.rsna_labels
    ),
    "nih_chest_xray": lambda data, seed: nih_chest_xray.source(data.root),
    "folder": lambda data, seed: folder.source(data.root),
}


def open_source(data: DataConfig, *, seed: int) -> dataset.Source:
    """The films that a config asks for, from their files or as `prepare` stored them.

    Args:
      data: which data set, where it is and which of its films.
      seed: of the phantoms, and of the films that `data.draw` draws.

    Raises:
      UserError: nothing to read, or no film that fits.
    """
    source = _open(data, seed)
    if any(record.view != record.view.upper() for record in source.records):
        records = [r._replace(view=r.view.upper()) for r in source.records]
        source = dataclasses.replace(source, records=records)
    if data.bare_groups and data.name == "ped_pneumonia":
        records = [
            record._replace(group=ped_pneumonia.bare_group(record.group))
            for record in source.records
        ]
        source = dataclasses.replace(source, records=records)
    if data.view != "all":
        kept = [i for i, r in enumerate(source.records) if r.view == data.view]
        if not kept:
            raise UserError(f"{source.name} has no film of view {data.view}")
        if others := len(source.records) - len(kept):
            _log.warning(
                f"{others} films are left out, of other views than {data.view}"
            )
        source = _take(source, kept)
    if data.draw:
        source = _take(source, draw(source, data.draw, seed=seed))
    return source


def _open(data: DataConfig, seed: int) -> dataset.Source:
    if data.name == "phantom" or not data.root:
        return open_originals(data, seed=seed)
    variant = data.rsna_labels if data.name == "rsna_pneumonia" else ""
    try:
        stored = prepared.find(data.root, data.name, variant)
    except UserError as other:
        # Originals may lie beside what was prepared of other labels.
        try:
            return open_originals(data, seed=seed)
        except UserError:
            raise other from None
    return prepared.source(stored) if stored else open_originals(data, seed=seed)


def open_originals(data: DataConfig, *, seed: int) -> dataset.Source:
    """All films of a data set, from their files.

    Raises:
      UserError: nothing to read.
    """
    return _SOURCES[data.name](data, seed)


def draw(source: dataset.Source, counts: Sequence[int], *, seed: int) -> list[int]:
    """Indices of records drawn at random, class by class.

    Args:
      source: K classes.
      counts: K numbers of films.
      seed: another seed draws others.

    Raises:
      UserError: not K counts, or more than there are.
    """
    labels = np.array([record.label for record in source.records])
    there = np.bincount(labels, minlength=len(source.classes))
    if len(counts) != len(there) or (np.array(counts) > there).any():
        listed = ", ".join(
            f"{n} {name}" for n, name in zip(there, source.classes, strict=True)
        )
        raise UserError(f"data.draw is {tuple(counts)}, but {source.name} has {listed}")
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    return sorted(np.concatenate(chosen).tolist())


def _take(source: dataset.Source, rows: Sequence[int]) -> dataset.Source:
    return dataclasses.replace(
        source,
        records=[source.records[row] for row in rows],
        read=functools.partial(_read_row, source.read, rows),
        facts=None if source.facts is None else [source.facts[row] for row in rows],
    )


def _read_row(
    read: Callable[[int], dataset.Film], rows: Sequence[int], index: int
) -> dataset.Film:
    return read(rows[index])
