"""What the films of a training look like, and whether another film looks like them.

A film is compared by its gray levels at 16 x 16 pixels, mean 0 and deviation 1. No
network is involved: a network is as sure of a photograph of a cat as of a film.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hapre_jax.data.dataset import Images

FILE = "appearance.json"  # of a run: what `describe` says of its training films
_CELLS = 16
# Flags are for what hardly any film of the training would get: one in two hundred.
_SHARE = 0.005
_MAX_IMAGES = 1000  # of a training that are looked at
# Of a film's height and width; chest films are nearer to square.
_MAX_ASPECT = 2.0

INVERTED = "inverted"
UNLIKE = "unlike the training films"
FLAT = "hardly any contrast"
ASPECT = "unusual shape"


def describe(images: Images) -> dict[str, Any]:
    """The typical film of a training split, and how far its films are from it.

    Args:
      images: `u8[N, S, S, 1]`.

    Returns:
      Of JSON's types: "mean", a list of 256 numbers; "correlation" and "contrast", the
      smallest that all but one in two hundred films have.
    """
    count = len(images)
    rows = np.arange(count)
    if count > _MAX_IMAGES:
        rows = np.sort(np.random.default_rng(0).permutation(count)[:_MAX_IMAGES])
    small = np.stack([_shrink(images[row]) for row in rows])
    contrast = small.std(axis=1)
    mean = np.mean([_normalize(cells) for cells in small], axis=0)
    correlation = [_correlate(cells, mean) for cells in small]
    return {
        "mean": mean.tolist(),
        "correlation": float(np.quantile(correlation, _SHARE)),
        "contrast": float(np.quantile(contrast, _SHARE)),
    }


def is_description(value: Any) -> bool:
    """Whether a value of JSON is what `describe` gives."""
    try:
        numbers = [*value["mean"], value["correlation"], value["contrast"]]
        return len(numbers) == _CELLS**2 + 2 and bool(np.isfinite(numbers).all())
    except (KeyError, TypeError):
        return False


def flags(
    pixels: np.ndarray, typical: dict[str, Any], *, shape: Sequence[int]
) -> list[str]:
    """What is odd about a film; empty where nothing is.

    Args:
      pixels: `u8[S, S, 1]`, the stored square.
      typical: see `describe`.
      shape: height and width of the film itself.
    """
    found = []
    if max(shape) > _MAX_ASPECT * min(shape):
        found.append(ASPECT)
    cells = _shrink(pixels)
    if cells.std() < 0.5 * typical["contrast"]:
        return [*found, FLAT]
    correlation = _correlate(cells, np.array(typical["mean"]))
    if correlation < typical["correlation"]:
        # Of an inverted film the negative is like the others.
        is_inverted = -correlation > max(typical["correlation"], 0.25)
        found.append(INVERTED if is_inverted else UNLIKE)
    return found


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """Gray levels `f64[256]` in [0, 1]."""
    image = Image.fromarray(np.asarray(pixels)[:, :, 0])
    small = image.resize((_CELLS, _CELLS), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() / 255


def _normalize(cells: np.ndarray) -> np.ndarray:
    return (cells - cells.mean()) / max(cells.std(), 1e-6)


def _correlate(cells: np.ndarray, mean: np.ndarray) -> float:
    return float(np.mean(_normalize(cells) * _normalize(mean)))
