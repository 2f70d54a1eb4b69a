"""The picture of where networks look, side by side (the paper's Fig. 5)."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from hapre_jax import heatmap
from hapre_jax.data.dataset import Dataset
from hapre_jax.explain import Looks
from hapre_jax.reporting import figures

_FILM, _GAP, _TOP = 200, 10, 70  # pixels


def draw(source: Dataset, found: Mapping[str, Looks], *, count: int) -> Image.Image:
    """A film a row, the first ones of each class; a run a column.

    Args:
      source: N films, with the true lungs where they are known.
      found: name of a run -> where it looks in these N films.
      count: most films to show.

    Returns:
      An RGB picture.
    """
    rows = figures.first_of_each_class(source.labels, count)
    side = _FILM + _GAP
    title = "Where each network looks; below, the true class and the answers"
    columns = _GAP + (len(found) + 1) * side
    width = max(columns, round(figures.font(15).getlength(title)) + 2 * _GAP)
    size = (width, _TOP + len(rows) * (side + 22))
    picture = Image.new("RGB", size, figures.SHEET)
    pen = ImageDraw.Draw(picture)
    pen.text((_GAP, 10), title, figures.DIM, figures.font(15))
    has_lungs = source.lungs_known.any()
    heads = ["film, lungs dashed" if has_lungs else "film", *found]
    for column, head in enumerate(heads):
        text = figures.shortened(head, figures.font(17), _FILM)
        pen.text((_GAP + column * side, 38), text, figures.TEXT, figures.font(17))
    for line, row in enumerate(rows):
        y = _TOP + line * (side + 22)
        pixels = np.asarray(source.images[row])
        lungs = source.lung_boxes[row]
        film = figures.film_with_boxes(pixels, None, lungs, size=_FILM)
        picture.paste(film, (_GAP, y))
        name = source.classes[source.labels[row]]
        pen.text((_GAP, y + _FILM + 3), name, figures.TEXT, figures.font(15))
        for column, looks in enumerate(found.values(), 1):
            x = _GAP + column * side
            mapped = heatmap.overlay(pixels / np.float32(255), looks.heat[row])
            area = None if looks.areas is None else looks.areas[row]
            pasted = figures.film_with_boxes(np.asarray(mapped), area, size=_FILM)
            picture.paste(pasted, (x, y))
            answer = looks.answers[row]
            is_right = answer == source.labels[row]
            color = figures.TEXT if is_right else figures.WRONG_COLOR
            text = source.classes[answer]
            pen.text((x, y + _FILM + 3), text, color, figures.font(15))
    return picture
