"""How the key areas of a few fixed images moved in training, as a picture."""

import pathlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hapre_jax import log
from hapre_jax.data.dataset import Dataset
from hapre_jax.reporting import figures

KIND = "key_areas"  # of the records in metrics.jsonl

_IMAGES = 6
_MOST_COLUMNS = 8
_FILM = 160  # pixels of a side
_GAP, _MARGIN = 12, 26
_LABELS = 96  # pixels that the names of the classes take
_TOP = 152
_CAPTION = 22
# The title and the legend need as much where there are few columns.
_LEAST_WIDTH = 760


def record(labels: np.ndarray, areas: np.ndarray) -> dict[str, Any]:
    """What to log at a validation of the key areas `f32[N, 4]` of its images."""
    shown = areas[figures.first_of_each_class(labels, _IMAGES)]
    return {"boxes": np.round(shown.astype(float), 4).tolist()}


def draw(source: Dataset, records: list[dict]) -> Image.Image:
    """The first images of each class, a row each, with a column for each validation.

    Args:
      source: the validation split, with the true lungs where they are known.
      records: of `metrics.jsonl`; of many validations some are chosen evenly.

    Returns:
      An RGB picture.
    """
    validations = _chosen([r for r in records if r["kind"] == KIND])
    rows = figures.first_of_each_class(source.labels, _IMAGES)
    lungs = source.lung_boxes[rows]
    has_lungs = bool(source.lungs_known[rows].any())

    columns, row_height = len(validations), _FILM + _GAP + _CAPTION * has_lungs
    width = 2 * _MARGIN + _LABELS + columns * (_FILM + _GAP) - _GAP
    height = _TOP + len(rows) * row_height - _GAP + _MARGIN
    sheet = Image.new("RGB", (max(width, _LEAST_WIDTH), height), figures.SHEET)
    pen = ImageDraw.Draw(sheet)
    _header(pen, has_lungs)
    left = _MARGIN + _LABELS
    for column, validation in enumerate(validations):
        center = left + column * (_FILM + _GAP) + _FILM // 2
        text = f"step {validation['step']:,}"
        pen.text((center, _TOP - 12), text, figures.TEXT, figures.font(16), anchor="ms")
    for line, row in enumerate(rows):
        y = _TOP + line * row_height
        name = source.classes[int(source.labels[row])]
        name = figures.shortened(name, figures.font(16), _LABELS - 10)
        place = (_MARGIN, y + _FILM // 2)
        pen.text(place, name, figures.TEXT, figures.font(16), anchor="lm")
        areas = np.array([v["boxes"][line] for v in validations], np.float32)
        _film_row(sheet, left, y, source.images[int(row)], areas, lungs[line])
    return sheet


def draw_run(workdir: pathlib.Path, source: Dataset) -> None:
    """Draws `key_areas_over_time.png` of a run's folder; `source` as in `draw`."""
    records = log.read(workdir / "metrics.jsonl")
    if any(record["kind"] == KIND for record in records):  # a run may have lost them
        figures.save(draw(source, records), workdir / "key_areas_over_time.png")


def _chosen(records):
    """At most some of the records, evenly, the first and the last among them."""
    count = min(len(records), _MOST_COLUMNS)
    places = np.linspace(0, len(records) - 1, count).round().astype(int)
    return [records[place] for place in places]


def _header(pen, has_lungs):
    title = "How the key areas moved in training"
    pen.text((_MARGIN, 22), title, figures.TEXT, figures.font(24))
    note = "The first validation images of each class, none picked by hand."
    if has_lungs:
        note += " IoU: overlap of the two boxes."
    pen.text((_MARGIN, 56), note, figures.DIM, figures.font(15))
    figures.box_legend(pen, _MARGIN, 86, has_lungs)


def _film_row(sheet, left, y, pixels, areas, lungs):
    """One film with its key area at each validation."""
    overlaps = figures.lung_overlaps(areas, np.tile(lungs, (len(areas), 1)))
    pen = ImageDraw.Draw(sheet)
    for column, area in enumerate(areas):
        x = left + column * (_FILM + _GAP)
        film = figures.film_with_boxes(pixels, area, lungs, size=_FILM)
        sheet.paste(film, (x, y))
        if np.isfinite(overlaps[column]):
            place = (x + _FILM // 2, y + _FILM + 16)
            text = f"IoU {overlaps[column]:.2f}"
            pen.text(place, text, figures.DIM, figures.font(15), anchor="ms")
