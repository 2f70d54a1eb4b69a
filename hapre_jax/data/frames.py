"""A film as it is stored: a square of gray levels, and where its boxes lie in it."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hapre_jax.config import DataConfig
from hapre_jax.data import dataset, degrade, images


class Example(NamedTuple):
    """A film in its square frame of S = `image_size` pixels."""

    pixels: np.ndarray | None  # u8[S, S, 1]; None where films are read anew
    sha256: str
    lung_box: np.ndarray  # f32[4] in the stored frame, or NaN
    lesion_boxes: np.ndarray  # f32[n, 4] in the stored frame
    corrections: tuple[tuple[str, float], ...] = ()  # of a film that is not degraded
    mask: np.ndarray | None = (
        None  # u8[S, S, 1], 255 in the lungs, where they are known
    )


def present(film: dataset.Film, data: DataConfig, *, seed: int) -> Example:
    """A film as it is stored: square, degraded if asked for, its boxes moved along."""
    image, facts, geometry = film.image, film.facts, data.geometry
    if data.degrade == "none":
        pixels = images.fit(image, size=data.image_size, geometry=geometry)
        mask = None
        if film.lungs is not None:
            inside = Image.fromarray((film.lungs == 255).astype(np.uint8) * 255)
            mask = images.fit(inside, size=data.image_size, geometry=geometry)
        return framed(facts, geometry)._replace(pixels=pixels, mask=mask)
    lungs, boxes = film.lungs, facts.lesion_boxes
    if geometry == "cover":
        boxes = _frame_boxes(boxes, facts, geometry)
    if lungs is not None:
        # Chosen first: between pixels of a mask there is nothing to interpolate.
        lungs = np.asarray(images.shape(Image.fromarray(lungs == 255), geometry))
    degraded = degrade.degrade(
        images.shape(image, geometry),
        lungs,
        level=degrade.LEVELS[data.degrade],
        size=data.image_size,
        # By content: a film looks the same whatever it is called.
        rng=np.random.default_rng((seed, int(facts.sha256[:16], 16))),
        boxes=boxes,
    )
    return Example(
        degraded.image[:, :, None],
        facts.sha256,
        degraded.lung_box,
        degraded.boxes,
        mask=None if degraded.mask is None else degraded.mask[:, :, None],
    )


def framed(facts: dataset.Facts, geometry: str) -> Example:
    """All but the pixels of a film that is not degraded."""
    lung_box = _frame_boxes(facts.lung_box[None], facts, geometry)
    lesions = _frame_boxes(facts.lesion_boxes, facts, geometry)
    return Example(
        None,
        facts.sha256,
        lung_box[0] if len(lung_box) else dataset.NOWHERE,
        lesions,
        facts.corrections,
    )


def _frame_boxes(boxes, facts, geometry):
    """Boxes of the film in the square frame, without those that it does not show."""
    sides = np.array((facts.height, facts.width) * 2, np.float32)
    framed = [
        images.frame_box(box * sides, facts.height, facts.width, geometry)
        for box in boxes
    ]
    shown = [box for box in framed if dataset.is_known(box)]
    return np.array(shown, np.float32).reshape(-1, 4)


class LazyImages:
    """The stored squares of some films, read when asked for: `u8[N, S, S, 1]`.

    Takes an index, a slice or an array of indices, as an array in memory would.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, source: dataset.Source, data: DataConfig, seed: int, rows: np.ndarray
    ):
        self._source, self._data, self._seed = source, data, seed
        self._rows = rows
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
        pixels = present(self._source.read(row), self._data, seed=self._seed).pixels
        assert pixels is not None
        return pixels
