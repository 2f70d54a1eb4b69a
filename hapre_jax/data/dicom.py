"""DICOM files: what is one, which are refused, and the film in the others.

What its stored values look like is said by `dicom_levels`.
"""

import importlib
import io
import re
import struct
import textwrap
import zlib
from typing import Any

import numpy as np
from PIL import Image

from hapre_jax.data import dicom_levels
from hapre_jax.errors import UserError, no_memory

EXTENSIONS = (".dcm", ".dicom")

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PREFIX = b"DICM"  # from byte 128 on
HEAD = 132  # bytes of a file that `is_dicom` looks at

# Of one file. Four times what 16 bits of 5,000 x 6,000 pixels take; a small file that
# unpacks to more is made to fill the memory.
MAX_BYTES = 1 << 28
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
        gray = dicom_levels.gray(film, stored)
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
