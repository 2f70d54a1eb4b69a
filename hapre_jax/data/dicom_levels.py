"""Stored values of a DICOM film as the gray levels that a radiologist is shown.

The order is the standard's (PS3.3 C.11, PS3.4 N.2): stored values, modality LUT or
rescale, VOI LUT or window, and only then the inversion of MONOCHROME1. A film without
a window is given one by its own percentiles, since stored values have no fixed scale.
"""

import importlib
import math
from typing import Any

import numpy as np

from hapre_jax.errors import UserError

# Of a film without a window. Not the extremes: burned-in letters are brighter than
# any tissue, and a few dead pixels are darker.
_PERCENTILES = (0.5, 99.5)


def gray(film: Any, stored: np.ndarray) -> np.ndarray:
    """Gray levels of a film as a radiologist is shown it, `u8[H, W]`, 0 black.

    Each value is looked up: numbers of 64 bits for all pixels would take gigabytes.

    Args:
      film: the data set, as pydicom has read it; of several VOI LUTs the first is used,
        and its descriptor is changed.
      stored: integers `[H, W]`, its pixels.

    Raises:
      ValueError: the rescale or the window is no number.
      UserError: see `window`.
    """
    if stored.dtype.itemsize > 2:
        found, places, counts = np.unique(
            stored, return_inverse=True, return_counts=True
        )
        return _gray_levels(film, found, counts)[places].reshape(stored.shape)
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    stored = np.ascontiguousarray(stored, stored.dtype.newbyteorder("="))
    places = stored.view(unsigned)
    number = 2 ** (8 * unsigned.itemsize)
    # A row at a time, as they are counted and looked up by indices of 64 bits.
    counts = np.zeros(number, np.int64)
    for row in places:
        counts += np.bincount(row, minlength=number)
    there = np.flatnonzero(counts)
    table = np.zeros(number, np.uint8)
    found = there.astype(unsigned).view(stored.dtype)
    table[there] = _gray_levels(film, found, counts[there])
    result = np.empty(stored.shape, np.uint8)
    for row, of_row in zip(result, places, strict=True):
        row[:] = table[of_row]
    return result


def _gray_levels(film: Any, stored: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`u8[N]`, 0 black, of N stored values that so many pixels have."""
    with np.errstate(all="ignore"):  # a damaged slope overflows
        levels = _presented(film, stored, counts)
    if not np.isfinite(levels).all():
        raise ValueError("its rescale or window is no number")
    return np.round(255 * levels).astype(np.uint8)


def _presented(film: Any, stored: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The same as `f64[N]` in [0, 1]."""
    pixels = importlib.import_module("pydicom.pixels")
    slope, intercept = (
        _first(film.get(name)) for name in ("RescaleSlope", "RescaleIntercept")
    )
    if film.get("ModalityLUTSequence"):
        values = pixels.apply_modality_lut(stored, film)
    elif slope == 0:
        raise ValueError("its rescale slope is 0")
    else:  # one of them may be there without a value
        values = stored * (1 if slope is None else slope) + (intercept or 0)
    padding = _padding(film, stored)
    shown = ~padding | padding.all()
    inside = values[shown]
    center, width = _first(film.get("WindowCenter")), _first(film.get("WindowWidth"))
    function = str(film.get("VOILUTFunction") or "LINEAR").upper()
    narrowest = 1 if function == "LINEAR" else 0
    levels = None
    if film.get("VOILUTSequence"):
        levels = _looked_up(values, film)
    # Some devices write a width of 0 or 1 where there is no window.
    elif center is not None and width is not None and width > narrowest:
        levels = window(values, center=center, width=width, function=function)
    # No window, or one beside all values, which shows nothing.
    if levels is None or (np.ptp(levels[shown]) == 0 and np.ptp(inside) > 0):
        low, high = (_percentile(inside, counts[shown], p) for p in _PERCENTILES)
        levels = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    # Two ways to say the same; films of mode DX say both.
    inverse = film.get("PresentationLUTShape") == "INVERSE"
    if inverse or film.PhotometricInterpretation == "MONOCHROME1":
        levels = 1 - levels
    return np.where(padding, 0.0, np.clip(levels, 0, 1))


def _percentile(values: np.ndarray, counts: np.ndarray, percent: float) -> float:
    """As NumPy's of all pixels, by values that so many pixels have.

    NumPy's own weights do not interpolate.
    """
    order = np.argsort(values)
    last = np.cumsum(counts[order]) - 1  # place of the last pixel of each value
    place = percent / 100 * last[-1]
    at = np.searchsorted(last, (math.floor(place), math.ceil(place)))
    lower, upper = values[order][at].astype(np.float64)
    return lower + (upper - lower) * (place - math.floor(place))


def _looked_up(values: np.ndarray, film: Any) -> np.ndarray:
    """Gray levels of the first VOI LUT (PS3.3 C.11.2.1.1), its white 1.

    White is the largest number of its bits; or of as many as its entries have, where a
    device has written other bits, as those of the stored values.
    """
    pixels = importlib.import_module("pydicom.pixels")
    count, first, bits = film.VOILUTSequence[0].LUTDescriptor
    # Entries are read one by one, and as 16 bits: pydicom 3.0 counts places in the type
    # of the entries, in which the 256th of 8 bits is the first.
    film.VOILUTSequence[0].LUTDescriptor = [count, 0, 16]
    count = count or 2**16  # 0 stands for that number
    table = pixels.apply_voi_lut(np.arange(count), film, index=0).astype(np.float64)
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # files without types of their own hold it without its sign
    places = np.clip(np.rint(values).astype(np.int64) - first, 0, count - 1)
    used = max(int(table.max()), 1).bit_length()
    return table[places] / (2.0 ** (bits if used in (bits, bits - 1) else used) - 1)


def _padding(film: Any, stored: np.ndarray) -> np.ndarray:
    """`bool[N]`: values of pixels outside the film proper (PS3.3 C.7.5.1.1.2)."""
    first = film.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    last = film.get("PixelPaddingRangeLimit")
    last = first if last is None else last
    if stored.dtype.kind == "i":  # it may be written without its sign
        over = 2 ** (8 * stored.dtype.itemsize)
        first, last = (n - over if n >= over // 2 else n for n in (first, last))
    return (stored >= min(first, last)) & (stored <= max(first, last))


def window(
    values: np.ndarray, *, center: float, width: float, function: str = "LINEAR"
) -> np.ndarray:
    """Gray levels of a DICOM window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
      values: after the modality LUT, any shape.
      center: in units of the values.
      width: above 1 for `LINEAR`, above 0 for the others.
      function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.

    Returns:
      `f64` in [0, 1], of the shape of the values.

    Raises:
      UserError: another function.
    """
    values = values.astype(np.float64)
    if function == "SIGMOID":
        # exp does not overflow: beyond 40 the level is 0 or 1 in 8 bits anyway.
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -40, 40)))
    if function == "LINEAR":
        # The standard's half pixel: both ends of a window are values inside it.
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise UserError(
            f"VOI LUT function {function!r} is none of LINEAR, LINEAR_EXACT, SIGMOID"
        )
    return np.clip((values - center) / width + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    """The first of several windows; they are alternatives for the eye."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__getitem__") else value)
