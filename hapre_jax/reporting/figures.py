"""Pictures of a run, drawn with Pillow alone."""

import functools
import hashlib
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hapre_jax import atomic, boxes
from hapre_jax.data import files
from hapre_jax.data.dataset import NOWHERE, Dataset, is_known
from hapre_jax.method import Prediction

# Orange, sky blue and a light purple of Okabe and Ito's palette, which people with any
# kind of color blindness can tell apart; the boxes differ in their lines too.
KEY_AREA_COLOR = (230, 159, 0)
LUNGS_COLOR = (86, 180, 233)
WRONG_COLOR = (240, 140, 190)

# The sheet is dark, as a light box is around films: bright margins hide dark lungs.
SHEET, _FRAME = (18, 21, 26), (58, 64, 74)
TEXT, DIM = (236, 239, 244), (150, 158, 170)
_FILM, _CROP = 220, 140  # pixels of a side
# Three columns keep the text legible at the width of a README, about 900 pixels.
_COLUMNS = 3
_INNER, _GAP, _MARGIN = 8, 26, 26

PAPER, INK, PALE = (255, 255, 255), (31, 35, 40), (101, 109, 118)


def key_area_sheet(
    source: Dataset, predictions: Prediction, *, count: int = 12
) -> Image.Image:
    """What the policy keeps of the first images of each class, and what is answered.

    Args:
      source: N images, with the true lungs where they are known.
      predictions: NumPy arrays of the same N images, with key areas.
      count: most images to show.

    Returns:
      An RGB picture.
    """
    note = "The first images of each class, none picked by hand. p: probability."
    title = "What is kept of each film, and that part enlarged"
    rows = first_of_each_class(source.labels, count)
    return _sheet(source, predictions, rows, title, note)


def mistakes_sheet(
    source: Dataset, predictions: Prediction, *, count: int = 12
) -> Image.Image | None:
    """The wrong answers that were given with most confidence; None without any.

    Args:
      source: N images, with the true lungs where they are known.
      predictions: NumPy arrays of the same N images, with key areas or without.
      count: most images to show.

    Returns:
      An RGB picture.
    """
    probabilities = np.asarray(predictions.probabilities)
    rows = worst_mistakes(probabilities, source.labels)[:count]
    if not len(rows):
        return None
    note = "The most confident wrong answers of the test split. p: probability."
    return _sheet(source, predictions, rows, "The worst mistakes", note)


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows `i[n]` of wrong answers, the most confident first.

    Args:
      probabilities: `f[N, K]`.
      labels: `i[N]`.
    """
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]


def _sheet(source, predictions, shown, title, note) -> Image.Image:
    """Films of the rows `shown` with their key areas, crops and answers.

    Of a method without key areas the crops are the whole films.
    """
    areas = predictions.area
    overlaps = np.full(len(source), np.nan, np.float32)
    if areas is not None:
        overlaps = lung_overlaps(np.asarray(areas), source.lung_boxes)

    cell_width = _FILM + _INNER + _CROP
    top = 122
    lines = -(-len(shown) // _COLUMNS)
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + _COLUMNS * cell_width + (_COLUMNS - 1) * _GAP,
            top + lines * _FILM + (lines - 1) * _GAP + _MARGIN,
        ),
        SHEET,
    )
    draw = ImageDraw.Draw(sheet)
    _sheet_header(draw, title, note, overlaps, has_areas=areas is not None)
    for place, row in enumerate(shown):
        x = _MARGIN + place % _COLUMNS * (cell_width + _GAP)
        y = top + place // _COLUMNS * (_FILM + _GAP)
        # The legend of boxes comes with key areas alone.
        area, lungs = None, NOWHERE
        if areas is not None:
            area, lungs = areas[row], source.lung_boxes[row]
        sheet.paste(film_with_boxes(source.images[row], area, lungs), (x, y))
        sheet.paste(_crop(source.images[row], area), (x + _FILM + _INNER, y))
        probabilities = predictions.probabilities[row]
        answer, label = int(np.argmax(probabilities)), int(source.labels[row])
        color = TEXT if answer == label else WRONG_COLOR
        x, y = x + _FILM + _INNER, y + _CROP
        _caption(draw, x, y + 24, "true", source.classes[label], TEXT)
        _caption(draw, x, y + 47, "answer", source.classes[answer], color)
        numbers = f"p {probabilities[answer]:.2f}"
        if np.isfinite(overlaps[row]):
            numbers += f"    IoU {overlaps[row]:.2f}"
        draw.text((x, y + 70), numbers, TEXT, font(16), anchor="ls")
    return sheet


def film_with_boxes(
    pixels: np.ndarray,
    area: np.ndarray | None,
    lungs: np.ndarray = NOWHERE,
    *,
    size: int = _FILM,
) -> Image.Image:
    """An image `u8[H, W, C]` as a square with its key area and, dashed, its lungs.

    There may be no area, and lungs that are not known are not drawn.
    """
    film = _picture(pixels).resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(film)
    draw.rectangle((0, 0, size - 1, size - 1), outline=_FRAME)
    if area is not None:
        left, top, right, bottom = _inclusive(area, size)
        # A dark line on both sides sets the color off from bright bone.
        halo = (left - 1, top - 1, right + 1, bottom + 1)
        draw.rectangle(halo, outline=(0, 0, 0), width=5)
        draw.rectangle((left, top, right, bottom), outline=KEY_AREA_COLOR, width=3)
    if is_known(lungs):
        # On top: where the two boxes agree, the solid line shows between the dashes.
        _dashed(draw, _inclusive(lungs, size), LUNGS_COLOR)
    return film


def lung_overlaps(areas: np.ndarray, lung_boxes: np.ndarray) -> np.ndarray:
    """IoU `f32[N]` of key areas with the true lungs, NaN where these are unknown."""
    lungs = jnp.asarray(np.nan_to_num(lung_boxes))
    ious = np.asarray(jax.vmap(boxes.iou)(jnp.asarray(areas), lungs))
    return np.where(is_known(lung_boxes), ious, np.float32(np.nan))


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of the first image of each class, then of the second ones, and so on."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return np.lexsort((labels, rank))[:count]


def _sheet_header(draw, title, note, overlaps, *, has_areas):
    draw.text((_MARGIN, 22), title, TEXT, font(24))
    has_lungs = bool(np.isfinite(overlaps).any())
    if has_lungs:
        known = overlaps[np.isfinite(overlaps)]
        note += (
            " IoU: overlap of the two boxes, at most 1; on average "
            f"{known.mean():.2f} over {counted(len(known))}."
        )
    draw.text((_MARGIN, 56), note, DIM, font(15))

    x = box_legend(draw, _MARGIN, 86, has_lungs) if has_areas else _MARGIN
    _legend(draw, x, 86, "wrong answer", WRONG_COLOR)


def box_legend(draw: ImageDraw.ImageDraw, x: int, y: int, has_lungs: bool) -> int:
    """Says which box is which; returns where the next entry may start."""
    draw.rectangle((x, y, x + 26, y + 16), outline=KEY_AREA_COLOR, width=3)
    x = _legend(draw, x + 36, y, "key area", TEXT)
    if has_lungs:
        _dashed(draw, (x, y, x + 26, y + 16), LUNGS_COLOR)
        x = _legend(draw, x + 36, y, "true lungs, never trained on", TEXT)
    return x


def _legend(draw, x, y, text, color):
    draw.text((x, y + 8), text, color, font(16), anchor="lm")
    return round(x + font(16).getlength(text)) + 36


def _caption(draw, x, y, label, text, color):
    indent = 54
    draw.text((x, y), label, DIM, font(15), anchor="ls")
    text = shortened(text, font(16), _CROP - indent)
    draw.text((x + indent, y), text, color, font(16), anchor="ls")


def _crop(pixels, area):
    """The key area, or the whole film, as a square."""
    film = _picture(pixels)
    seen = np.asarray(boxes.WHOLE if area is None else area, float)
    y_low, x_low, y_high, x_high = np.clip(seen, 0.0, 1.0)
    box = (
        x_low * film.width,
        y_low * film.height,
        x_high * film.width,
        y_high * film.height,
    )
    crop = film.resize((_CROP, _CROP), Image.Resampling.BICUBIC, box=box)
    ImageDraw.Draw(crop).rectangle(
        (0, 0, _CROP - 1, _CROP - 1),
        outline=_FRAME if area is None else KEY_AREA_COLOR,
        width=2,
    )
    return crop


def _picture(pixels):
    gray = pixels.shape[-1] == 1
    return Image.fromarray(pixels[..., 0] if gray else pixels).convert("RGB")


def _inclusive(box, size):
    """A yxyx box in fractions as the pixels (left, top, right, bottom) it ends with."""
    top, left, bottom, right = (round(float(edge) * size) for edge in box)
    return left, top, max(right - 1, left), max(bottom - 1, top)


def _dashed(draw, box, color, *, width=2, dash=7, space=5):
    left, top, right, bottom = box
    for start in range(left, right + 1, dash + space):
        end = min(start + dash - 1, right)
        draw.rectangle((start, top, end, top + width - 1), fill=color)
        draw.rectangle((start, bottom - width + 1, end, bottom), fill=color)
    for start in range(top, bottom + 1, dash + space):
        end = min(start + dash - 1, bottom)
        draw.rectangle((left, start, left + width - 1, end), fill=color)
        draw.rectangle((right - width + 1, start, right, end), fill=color)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of a text that is to be no wider than `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """A text with dots for the end that would go past `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def counted(images: int) -> str:
    """As "1 image" or "1,200 images"."""
    return f"{images:,} image{'s' if images != 1 else ''}"


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The one typeface of all pictures, in pixels."""
    loaded = ImageFont.load_default(size)
    assert isinstance(loaded, ImageFont.FreeTypeFont)  # Pillow was built with FreeType
    return loaded


def picture_name(name: str, taken: dict[str, int]) -> str:
    """Posix path of a picture made of a film: never one that leaves its folder.

    Args:
      name: posix path of the film.
      taken: names that others have, in lower case, as some systems do not tell "A" from
        "a"; and how many have wanted each. This one is added.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    # A folder must not be called as the picture of a film beside it may be.
    parts[:-1] = [f"{p}_" if p.endswith(".png") else p for p in parts[:-1]]
    lengths = [len(os.fsencode(part)) for part in parts]
    # What all file systems take, and an ending; a zip may have longer names.
    if sum(lengths) > 1000 or max(lengths, default=0) > 200:
        parts = [hashlib.sha256(os.fsencode(name)).hexdigest()]
    *parts, base = parts or ["film"]
    # Numbers are no extension: files are called by UIDs, such as 1.2.840.10008.
    known = base.lower().endswith(files.EXTENSIONS)
    stem = pathlib.PurePath(base).stem if known else base
    wanted = path = "/".join([*parts, f"{stem}.png"])
    while path.lower() in taken:
        taken[wanted.lower()] += 1
        path = "/".join([*parts, f"{stem}-{taken[wanted.lower()]}.png"])
    taken[path.lower()] = 1
    return path


def save(picture: Image.Image, path: pathlib.Path) -> None:
    """Writes a PNG at once: an interrupted program leaves the old one or the new."""
    with atomic.replacing(path) as partial:
        picture.save(partial, format="PNG")
