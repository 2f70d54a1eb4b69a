"""DICOM films as the gray levels that a radiologist is shown.

The order is the standard's (PS3.3 C.11, PS3.4 N.2): stored values, modality LUT or
rescale, VOI LUT or window, and only then the inversion of MONOCHROME1. A film without
a window is given one by its own percentiles, since stored values have no fixed scale.
"""

import importlib
import io
import math
import re
import struct
import textwrap
import zlib
from typing import Any

import numpy as np
from PIL import Image

from hapre_jax.errors import UserError, no_memory

EXTENSIONS = (".dcm", ".dicom")

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PREFIX = b"DICM"  # from byte 128 on
HEAD = 132  # bytes of a file that `is_dicom` looks at

# Of one file. Four times what 16 bits of 5,000 x 6,000 pixels take; a small file that
# unpacks to more is made to fill the memory.
MAX_BYTES = 1 << 28
# Of a film without a window. Not the extremes: burned-in letters are brighter than
# any tissue, and a few dead pixels are darker.
_PERCENTILES = (0.5, 99.5)
# As Pillow refuses images: a forged header must not claim all of the memory.
_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
# Markers: start and size of a codestream (T.800 A.4, A.5), starts of a frame (T.81 B.1,
# T.87 C.1).
_JPEG_2000_SIZE = b"\xff\x4f\xff\x51"
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# Millimeters between rows and between columns, or how one relates to the other.
_SPACINGS = (
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
)
_ROUNDING = 0.01  # of a ratio: 0.14 and 0.139 mm are the same detector
_LONGEST_REASON = 200  # pydicom quotes the bytes that it cannot understand


def is_dicom(data: bytes, name: str) -> bool:
    """Whether a file is one, or says by its name that it is."""
    return data[128:132] == _PREFIX or name.lower().endswith(EXTENSIONS)


def open_gray(data: bytes, *, name: str) -> Image.Image:
    """The film in a DICOM file at full size, in Pillow's 8-bit mode L, 0 black.

    Pixels that are not square are made square, as large as their longer side.

    Args:
      data: the file, of any transfer syntax that pydicom has a decoder for.
      name: of the file, for messages.

    Raises:
      UserError: not a DICOM file, no image in it, several frames, color, damaged, a
        compression that needs another package, or pydicom is not installed.
    """
    film = _read(data, name)
    try:
        if "PixelData" not in film:
            raise UserError(f"{name} holds no image (no pixel data)")
        _check(film, name)
        if film.file_meta.TransferSyntaxUID.is_encapsulated:
            _check_code(film, name)
        stored = film.pixel_array
        if stored.ndim != 2:
            raise ValueError(f"it holds the pixels of {len(stored)} films")
        gray = _gray(film, stored)
    except UserError:
        raise
    except MemoryError as error:
        raise no_memory(name) from error
    except Exception as error:
        raise UserError(f"{name} cannot be read: {reason(error)}") from error
    image = Image.fromarray(gray)
    aspect = _aspect(film)
    if abs(aspect - 1) < _ROUNDING:
        return image
    # The finer axis gives way: a damaged ratio must not fill the memory.
    height, width = round(image.height * min(aspect, 1)), image.width / max(aspect, 1)
    return image.resize(
        (max(round(width), 1), max(height, 1)), Image.Resampling.BILINEAR
    )


def read_header(data: bytes, *, name: str) -> Any:
    """The data set of a gray film, as pydicom reads it, without its pixels.

    Raises:
      UserError: see `open_gray`; damage behind the header is not noticed.
    """
    film = _read(data, name, stop_before_pixels=True)
    _check(film, name)
    return film


def _read(data: bytes, name: str, **options: Any) -> Any:
    pydicom = import_pydicom(name)
    if data[128:132] != _PREFIX:
        raise UserError(f"{name} is not a DICOM file: it lacks the prefix DICM")
    try:
        _check_deflated(data)
        return pydicom.dcmread(io.BytesIO(data), **options)
    except MemoryError as error:
        raise no_memory(name) from error
    except Exception as error:  # many kinds, as with Pillow: see images.open_gray
        raise UserError(f"{name} is not a DICOM file: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What a library says of a file, as one short line without objects in memory."""
    said = re.sub(r" ?<[^<>]* at 0x\w+>", "", str(error)) or type(error).__name__
    return textwrap.shorten(said, _LONGEST_REASON, placeholder=" ...")


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


def _check_deflated(data: bytes) -> None:
    """Raises `ValueError` where the deflated transfer syntax hides too many bytes."""
    length = int.from_bytes(data[140:144], "little")  # of the header that follows
    start = 144 + length
    if _DEFLATED in data[144:start]:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
            data[start:], MAX_BYTES + 1
        )
        if len(unpacked) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MiB")


def _check(film: Any, name: str) -> None:
    """Raises `UserError` where the header promises anything but one gray film."""
    frames = int(film.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UserError(f"{name} holds {frames} frames: one film is accepted")
    for tag in ("PhotometricInterpretation", "SamplesPerPixel", "Rows", "Columns"):
        if film.get(tag) is None:
            raise UserError(f"{name} does not say its {tag}")
    kind = film.PhotometricInterpretation
    if kind not in ("MONOCHROME1", "MONOCHROME2") or film.SamplesPerPixel != 1:
        raise UserError(
            f"{name} is {kind}, {film.SamplesPerPixel} sample(s) a pixel: only "
            "MONOCHROME1 and MONOCHROME2 are gray films"
        )
    high, stored = film.get("HighBit"), film.get("BitsStored")
    if None not in (high, stored) and high != stored - 1:
        raise UserError(
            f"{name} has its {stored} bits below bit {high + 1} (HighBit {high}): only "
            f"a HighBit of {stored - 1} is read"
        )
    if film.Rows * film.Columns > _MAX_PIXELS:
        raise UserError(
            f"{name} says it has {film.Rows} x {film.Columns} pixels: at most "
            f"{_MAX_PIXELS} are read"
        )
    syntax = film.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UserError(f"{name} does not say its TransferSyntaxUID")
    if syntax.is_encapsulated:
        pixels = importlib.import_module("pydicom.pixels")
        if not pixels.get_decoder(syntax).is_available:
            raise UserError(
                f"{name} is compressed as {syntax.name}, which needs a decoder: "
                "pip install 'hapre_jax[dicom]'"
            )


def _check_code(film: Any, name: str) -> None:
    """Raises `UserError` where what is compressed is larger than said, or has no end.

    Decoders believe a size, and take minutes and gigabytes before they fail.
    """
    encaps = importlib.import_module("pydicom.encaps")
    code = encaps.get_frame(film.PixelData, 0, number_of_frames=1)
    # Decoders make gray areas of what is missing. Fragments are filled to even lengths.
    is_jpeg = code.startswith(b"\xff\xd8")  # or JPEG-LS
    if is_jpeg and not code.rstrip(b"\0\xff ").endswith(b"\xff\xd9"):
        raise UserError(f"{name} is cut: its compressed pixels have no end")
    rows, columns = _coded_shape(code)
    if rows > film.Rows or columns > film.Columns:
        raise UserError(
            f"{name} says it has {film.Rows} x {film.Columns} pixels, and {rows} x "
            f"{columns} where they are compressed"
        )


def _coded_shape(code: bytes) -> tuple[int, int]:
    """Rows and columns by the header of JPEG, JPEG-LS or JPEG 2000, else zeros."""
    try:
        size = code.find(
            _JPEG_2000_SIZE, 0, 1024
        )  # some devices put a JP2 header first
        if size >= 0:
            right, bottom, left, top = struct.unpack_from(">4I", code, size + 8)
            return bottom - top, right - left
        place = 2
        while code[place : place + 1] == b"\xff":
            marker, length = struct.unpack_from(">BH", code, place + 1)
            if marker in _JPEG_FRAMES:
                return struct.unpack_from(">HH", code, place + 5)
            place += 1 if marker == 0xFF else 2 + length  # 0xFF also fills
    except struct.error:  # too short, which decoders say as well
        pass
    return 0, 0


def _gray(film: Any, stored: np.ndarray) -> np.ndarray:
    """`u8[H, W]`, 0 black, of the stored values.

    Each value is looked up: numbers of 64 bits for all pixels would take gigabytes.
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
    gray = np.empty(stored.shape, np.uint8)
    for row, of_row in zip(gray, places, strict=True):
        row[:] = table[of_row]
    return gray


def _gray_levels(film: Any, stored: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`u8[N]`, 0 black, of N stored values that so many pixels have."""
    with np.errstate(all="ignore"):  # a damaged slope overflows
        gray = _presented(film, stored, counts)
    if not np.isfinite(gray).all():
        raise ValueError("its rescale or window is no number")
    return np.round(255 * gray).astype(np.uint8)


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
    gray = None
    if film.get("VOILUTSequence"):
        gray = _looked_up(values, film)
    # Some devices write a width of 0 or 1 where there is no window.
    elif center is not None and width is not None and width > narrowest:
        gray = window(values, center=center, width=width, function=function)
    # No window, or one beside all values, which shows nothing.
    if gray is None or (np.ptp(gray[shown]) == 0 and np.ptp(inside) > 0):
        low, high = (_percentile(inside, counts[shown], p) for p in _PERCENTILES)
        gray = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    # Two ways to say the same; films of mode DX say both.
    inverse = film.get("PresentationLUTShape") == "INVERSE"
    if inverse or film.PhotometricInterpretation == "MONOCHROME1":
        gray = 1 - gray
    return np.where(padding, 0.0, np.clip(gray, 0, 1))


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
    """`bool[H, W]`: pixels outside the film proper (PS3.3 C.7.5.1.1.2)."""
    first = film.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    last = film.get("PixelPaddingRangeLimit")
    last = first if last is None else last
    if stored.dtype.kind == "i":  # it may be written without its sign
        over = 2 ** (8 * stored.dtype.itemsize)
        first, last = (n - over if n >= over // 2 else n for n in (first, last))
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _aspect(film: Any) -> float:
    """Height over width of a pixel (PS3.3 10.7.1, C.7.6.3.1.7); 1 if it is not said."""
    for name in _SPACINGS:
        try:
            row, column = (float(value) for value in film.get(name) or ())
        except (ValueError, TypeError):  # not there, or damaged, which is no reason
            continue
        if 0 < row < np.inf and 0 < column < np.inf:
            return row / column
    return 1.0


def _first(value: Any) -> float | None:
    """The first of several windows; they are alternatives for the eye."""
    if value is None or value == "":
        return None
    return float(value[0] if hasattr(value, "__getitem__") else value)


def import_pydicom(name: str) -> Any:
    """The module pydicom, an optional dependency.

    Raises:
      UserError: it is not installed, but the file `name` needs it.
    """
    try:
        return importlib.import_module("pydicom")
    except ImportError as error:
        raise UserError(
            f"{name} is a DICOM file, which needs pip install 'hapre_jax[dicom]'"
        ) from error
