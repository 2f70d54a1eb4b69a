"""From the bytes of a film to a square of gray levels.

A *geometry* says how a film of any shape becomes a square frame:

* `letterbox` keeps all of it and its proportions; black bars fill the square.
* `squash` keeps all of it and ignores its proportions (the paper: "scaled to 640x640").
* `cover` keeps its proportions and cuts the central square out of it. Only this one
  hides the aspect ratio, which gives the label away in some collections.
"""

import io
import logging
import re
import warnings
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from hapre_jax.data import dicom
from hapre_jax.errors import UserError, no_memory

_EXIF_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # another, and one of its values
# Of a film that a square is put around; larger ones are averaged first. The square has
# as many pixels as Pillow makes without a warning.
_MAX_SIDE = 9_400

# What is recognised, whatever the file is called. Not all that Pillow knows: it hands
# PostScript to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG2000")

_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # marks of JPEG (T.81 B.1)

_WARNS_OF_FILES = r"(PIL|pydicom|pylibjpeg|libjpeg|openjpeg)\b"

_SILENT = logging.NullHandler()

GEOMETRIES = ("letterbox", "squash", "cover")
# Icons, thumbnails and stripes are no films; one at 16 pixels shows nothing anyway.
MIN_SIDE = 16


def decode(data: bytes, *, size: int, geometry: str, name: str) -> np.ndarray:
    """The film in an image file as a square: `open_gray`, then `fit`.

    Args:
      data: a JPEG, PNG, BMP, TIFF or DICOM file.
      size: S, pixels of a side of the result.
      geometry: one of `GEOMETRIES`.
      name: of the file, for messages.

    Returns:
      `u8[S, S, 1]`, 0 black.

    Raises:
      UserError: truncated, not an image, or values of an unknown range.
    """
    return fit(open_gray(data, name=name), size=size, geometry=geometry)


def open_gray(data: bytes, *, name: str) -> Image.Image:
    """The luma of an image file at full size, upright, in Pillow's 8-bit mode L.

    Color becomes luma (ITU-R 601; equal channels keep their value), transparency is
    ignored, the EXIF orientation is applied, 16-bit values are divided by 257 so that
    65535 becomes 255. DICOM films: see `hapre_jax.data.dicom`.

    Raises:
      UserError: see `decode`.
    """
    ignore_warnings_of_files()
    if dicom.is_dicom(data, name):
        return dicom.open_gray(data, name=name)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format == "PNG":  # whose checksums of pixels Pillow does not look at
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        image.load()
        if image.format == "JPEG" and _is_cut(data):
            raise ValueError("its end is nothing but zeros")
        # Pillow inverts such films of 8 bits only.
        tags = getattr(image, "tag_v2", {})
        is_negative = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        image = ImageOps.exif_transpose(image)
        if not image.mode.startswith(("I", "F")):
            image = image.convert("L")
            # Of 16 bits with color or transparency Pillow keeps the upper 8.
            if _bits(data, tags) == 16:
                _check_range(np.asarray(image, np.uint16) * 257, name)
            return image
    except UserError:
        raise
    except MemoryError as error:  # says nothing of the file, which must not be skipped
        raise no_memory(name) from error
    # On damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error and
    # more; all of them mean the same to the user.
    except Exception as error:
        raise UserError(f"{name} cannot be read: {reason(error)}") from error
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" or low < 0 or high > 65535:
        raise UserError(
            f"{name} holds values from {low:g} to {high:g}: 8-bit and unsigned 16-bit "
            "images are accepted"
        )
    _check_range(values, name)
    gray = np.round(values / 257.0).astype(np.uint8)
    return Image.fromarray(255 - gray if is_negative else gray)


def check_size(image: Image.Image, *, name: str) -> None:
    """Raises `UserError` for an image that is too small to be a film."""
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"{name} has {image.width} x {image.height} pixels: films have at least "
            f"{MIN_SIDE} a side"
        )


def _is_cut(jpeg: bytes) -> bool:
    """Whether zeros stand in for the end of a scan, as a copy that broke off leaves.

    Decoders make a gray area of them. What ends without zeros Pillow sees itself; zeros
    after the mark of the end are nothing missing.
    """
    return jpeg.endswith(bytes(16)) and jpeg.rfind(_END) < jpeg.rfind(_SCAN)


def _bits(data: bytes, tags: Mapping) -> int:
    """Bits of a channel that a PNG or a TIFF says it has; 8 of other files."""
    if data.startswith(b"\x89PNG"):
        return data[24]  # of the header, which comes first
    return max(tags.get(_BITS_PER_SAMPLE, (8,)))


def _check_range(values: np.ndarray, name: str) -> None:
    """Raises `UserError` of a detector's 10, 12 or 14 bits in 16.

    They would come out dark, in few gray levels.
    """
    high = values.max()
    if 0 < high < 16384:
        raise UserError(
            f"{name} holds 16-bit values of at most {high:g}: scale them to 0..65535"
        )
    # A marker may be as bright as 16 bits are, the film have 12 all the same.
    most, others = np.percentile(values, 99), values[values < high].max(initial=0)
    if 0 < most < 4096 or 0 < others < 16384:
        raise UserError(
            f"{name} holds 16-bit values, 99 % of them of at most {most:g}, and all "
            f"but the brightest of at most {others:g}: scale the film's to 0..65535"
        )


def reason(error: Exception) -> str:
    """What Pillow or pydicom says of a file, as one short line."""
    # Pillow names the object in memory where it cannot identify a file.
    return "not an image" if "BytesIO" in str(error) else dicom.reason(error)


def ignore_warnings_of_files() -> None:
    """Keeps from the user what libraries warn of: broken metadata, many pixels.

    A file is read or it is refused by name; there is nothing in between to act upon.
    Once set, the filters stay: `warnings.catch_warnings` changes those of all threads.
    """
    for category in (UserWarning, Image.DecompressionBombWarning):
        ignored = ("ignore", None, category, re.compile(_WARNS_OF_FILES), 0)
        # Setting it again would make Python forget what it has warned of already.
        if ignored not in warnings.filters:
            warnings.filterwarnings("ignore", "", category, _WARNS_OF_FILES)
    # What Pillow logs of a damaged file it also raises.
    logging.getLogger("PIL").addHandler(_SILENT)


def stored(encoded: bytes, image: Image.Image) -> bytes:
    """What keeps a film: its file if that is a plain gray one, else a PNG of it.

    Args:
      encoded: the file; may be empty.
      image: what `open_gray` made of it.
    """
    if encoded[:2] in (b"\xff\xd8", b"\x89P"):  # JPEG or PNG
        original = Image.open(io.BytesIO(encoded))
        turned = original.getexif().get(_EXIF_ORIENTATION, 1) != 1
        if original.format in ("JPEG", "PNG") and original.mode == "L" and not turned:
            return encoded
    return png(image)


def png(image: Image.Image) -> bytes:
    """A PNG file of an image."""
    buffer = io.BytesIO()
    # Three times as fast as Pillow's default, for an eighth more bytes.
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def fit(image: Image.Image, *, size: int, geometry: str) -> np.ndarray:
    """A mode L image as a square `u8[S, S, 1]`, bilinear and antialiased.

    `open_gray` makes such an image of a file. Another mode is a `ValueError`.

    Not decoded at reduced scale (`Image.draft`) first: that shifts a 1024-pixel film
    at 224 pixels by 0.6 gray levels in the mean, and each file is read only once.
    """
    if image.mode != "L":
        raise ValueError(f"the image is of mode {image.mode}, but must be L, gray")
    resized = _square(image, geometry).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)[:, :, None]


def shape(image: Image.Image, geometry: str) -> Image.Image:
    """A film as a geometry shows it, without the bars of `letterbox`."""
    if geometry == "squash":
        image = _bounded(image)
        return image.resize((max(image.size),) * 2, Image.Resampling.BILINEAR)
    return _square(image, geometry) if geometry == "cover" else image


def tight_box(mask: np.ndarray) -> np.ndarray:
    """`f32[4]` yxyx in pixels, half-open, of a `bool[H, W]`; NaN if none is True."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return np.full(4, np.nan, np.float32)
    return np.array((rows[0], columns[0], rows[-1] + 1, columns[-1] + 1), np.float32)


def frame_box(box: np.ndarray, height: int, width: int, geometry: str) -> np.ndarray:
    """A box in pixels of the upright film, in fractions of the square frame.

    Args:
      box: `f32[4]` yxyx in pixels, half-open; NaN stays NaN.
      height, width: of the film, in pixels.
      geometry: one of `GEOMETRIES`.

    Returns:
      `f32[4]` yxyx in [0, 1], clipped to the frame; all NaN if nothing of it is left.
    """
    origin, extent = _origin_and_extent(height, width, geometry)
    mapped = np.clip((np.asarray(box) - origin) / extent, 0, 1).astype(np.float32)
    if not (mapped[:2] < mapped[2:]).all():
        mapped[:] = np.nan
    return mapped


def film_box(box: np.ndarray, height: int, width: int, geometry: str) -> np.ndarray:
    """A box in fractions of the square frame, in pixels of the upright film.

    Undoes `frame_box`, but for what lies outside of the film: that is cut off.

    Args:
      box: `f32[4]` yxyx in [0, 1].
      height, width: of the film, in pixels.
      geometry: one of `GEOMETRIES`.

    Returns:
      `f32[4]` yxyx; of no extent where the box shows nothing of the film.
    """
    origin, extent = _origin_and_extent(height, width, geometry)
    pixels = np.asarray(box) * extent + origin
    return np.clip(pixels, 0, (height, width) * 2).astype(np.float32)


def cut(
    image: Image.Image, box: np.ndarray, *, size: int, geometry: str
) -> Image.Image:
    """A box of a mode L film as a square of `size` pixels, from all of its pixels.

    Args:
      image: the film, upright.
      box: `f32[4]` yxyx, in fractions of the square frame.
      size: pixels of a side.
      geometry: one of `GEOMETRIES`.
    """
    framed = _square(image, geometry)
    y0, x0, y1, x1 = (float(edge) for edge in box)
    edges = (
        x0 * framed.width,
        y0 * framed.height,
        x1 * framed.width,
        y1 * framed.height,
    )
    return framed.resize((size, size), Image.Resampling.BILINEAR, box=edges)


def _square(image: Image.Image, geometry: str) -> Image.Image:
    """What the square frame shows, still as large and, of `squash`, as oblong."""
    if geometry == "letterbox":
        image = _bounded(image)
    top, left, bottom, right = _frame(image.height, image.width, geometry)
    if geometry == "squash":
        return image
    return image.crop((left, top, right, bottom))  # beyond the border: black


def _bounded(image: Image.Image) -> Image.Image:
    """The film, or a smaller one where a square around it would fill the memory."""
    factor = -(-max(image.size) // _MAX_SIDE)
    return image.reduce(factor) if factor > 1 else image


def _origin_and_extent(
    height: int, width: int, geometry: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of the square frame in pixels of the film, `f64[4]` yxyx each."""
    top, left, bottom, right = _frame(height, width, geometry)
    origin = np.array((top, left, top, left), np.float64)
    return origin, np.array((bottom - top, right - left) * 2, np.float64)


def _frame(height: int, width: int, geometry: str) -> tuple[int, int, int, int]:
    """What the square frame shows, yxyx in pixels of the film; may be larger."""
    if geometry not in GEOMETRIES:
        accepted = ", ".join(GEOMETRIES)
        raise UserError(f"geometry {geometry!r} is none of {accepted}")
    if geometry == "squash":
        return 0, 0, height, width
    side = max(height, width) if geometry == "letterbox" else min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return top, left, top + side, left + side
