"""The reward landscape: a picture with a panel for each class, numbers, a table."""

import pathlib
from typing import Any

import numpy as np
import rich.table
from PIL import Image, ImageDraw

from hapre_jax import json_file, reward_landscape
from hapre_jax.reporting import figures
from hapre_jax.reward_landscape import Landscape

_EMPTY = (228,) * 3
# Blue over white to orange: lower and higher than what the cell is compared with.
_DIVERGING = np.array([(33, 102, 172), (247, 247, 247), (224, 120, 20)], np.float64)
_CELL_WIDTH, _CELL_HEIGHT = 58, 34
_PANELS_IN_A_ROW = 4


def save(landscape: Landscape, file: pathlib.Path, *, step: int) -> None:
    """Writes a picture to a `.png` file, and its numbers beside it as `.json`.

    Args:
      landscape: see `reward_landscape.measure`.
      file: the picture.
      step: of the state that was measured.
    """
    figures.save(draw(landscape), file)
    values = {name: _jsonable(value) for name, value in landscape._asdict().items()}
    json_file.write(file.with_suffix(".json"), {"step": step, **values})


def _jsonable(value: Any) -> Any:
    """Arrays as lists, with null for NaN, which JSON does not know."""
    if not isinstance(value, np.ndarray):
        return value
    found = value.astype(object)
    found[np.isnan(value)] = None
    return found.tolist()


def table(landscape: Landscape) -> rich.table.Table:
    """The losses over all images: zooms down, shifts across."""
    around = "lungs" if landscape.reference == "lungs" else "policy's key area"
    caption = f"whole image {landscape.whole[-1]:.2f}"
    if landscape.policy is not None:
        caption += f", policy's key area {landscape.policy[-1]:.2f}"
    result = rich.table.Table(
        title=f"Mean loss on boxes around the {around}, {landscape.counts[-1]} images",
        caption=caption,
    )
    result.add_column("side \\ shift", justify="right")
    for shift in landscape.shifts:
        result.add_column(f"{shift:+.2f}" if shift else "0", justify="right")
    best = reward_landscape.lowest(landscape)
    for row, zoom in enumerate(landscape.zooms):
        texts = [f"{loss:.2f}" for loss in landscape.losses[-1, row]]
        if row == best[0]:
            texts[best[1]] = f"[bold]{texts[best[1]]}[/bold]"
        result.add_row(f"{zoom:.2f}", *texts)
    return result


def draw(landscape: Landscape) -> Image.Image:
    """Mean loss of the task network against zoom and shift, a panel for each class.

    A cell is blue where the loss is lower than on the whole image, orange where it is
    higher; all panels have the same scale, which the picture says. The lowest cell of
    a panel is outlined.

    Args:
      landscape: see `reward_landscape.measure`.

    Returns:
      An RGB picture; its width depends on the numbers of classes and shifts.
    """
    zooms, shifts = len(landscape.zooms), len(landscape.shifts)
    order = [len(landscape.classes), *range(len(landscape.classes))]
    columns = min(_PANELS_IN_A_ROW, len(order))
    lines = -(-len(order) // columns)
    axis, labels, gap, margin, top = 34, 50, 26, 26, 122
    width = labels + shifts * _CELL_WIDTH
    height = 32 + zooms * _CELL_HEIGHT + 104
    full_width = max(2 * margin + axis + columns * (width + gap) - gap, 900)
    explanation = figures.wrapped(
        _how_to_read(landscape), figures.font(16), full_width - 2 * margin
    )
    bottom = top + lines * height
    size = (full_width, bottom + 24 * len(explanation) + margin)
    picture = Image.new("RGB", size, figures.PAPER)
    pen = ImageDraw.Draw(picture)

    changes = landscape.losses - landscape.whole[:, None, None]
    largest = np.max(np.abs(changes), where=np.isfinite(changes), initial=0.0)
    # Not below 0.1 nats, or noise would look like structure; not above 1, or one
    # hopeless box would make all others pale.
    limit = float(np.clip(largest, 0.1, 1.0))
    title = "Reward landscape: on which boxes is the task network good?"
    pen.text((margin, 20), title, figures.INK, figures.font(24))
    _color_scale(pen, margin, 70, limit)

    around = _around(landscape)
    for place, row in enumerate(order):
        x = margin + axis + place % columns * (width + gap)
        y = top + place // columns * height
        if place % columns == 0:
            middle = y + 32 + zooms * _CELL_HEIGHT // 2
            text = f"side of the box / side of {around}"
            _vertical_text(picture, margin + 10, middle, text)
        _panel(pen, x, y, labels, landscape, row, changes[row] / limit)
        name = "the lungs" if landscape.reference == "lungs" else "the key area"
        text = f"horizontal shift / width of {name}"
        center = x + labels + shifts * _CELL_WIDTH // 2
        y += 32 + zooms * _CELL_HEIGHT + 34
        pen.text((center, y), text, figures.PALE, figures.font(15), anchor="mm")
        text = f"whole image {_number(landscape.whole[row])}"
        if landscape.policy is not None:
            text += f"   policy's key area {_number(landscape.policy[row])}"
        pen.text((center, y + 26), text, figures.INK, figures.font(15), anchor="mm")
    for line, text in enumerate(explanation):
        pen.text((margin, bottom + 24 * line), text, figures.INK, figures.font(16))
    return picture


def _panel(draw, x, y, labels, landscape, row, strength):
    losses = landscape.losses[row]
    is_all = row == len(landscape.classes)
    name = "all classes" if is_all else landscape.classes[row]
    count = f"   {figures.counted(landscape.counts[row])}"
    x += labels
    room = losses.shape[1] * _CELL_WIDTH - figures.font(15).getlength(count)
    name = figures.shortened(name, figures.font(18), room)
    draw.text((x, y + 20), name, figures.INK, figures.font(18), anchor="ls")
    end = x + figures.font(18).getlength(name)
    draw.text((end, y + 20), count, figures.PALE, figures.font(15), anchor="ls")
    y += 32

    for (i, j), loss in np.ndenumerate(losses):
        left, top = x + j * _CELL_WIDTH, y + i * _CELL_HEIGHT
        fill = diverging_color(strength[i, j])
        # One pixel of paper between cells.
        right, bottom = left + _CELL_WIDTH - 2, top + _CELL_HEIGHT - 2
        draw.rectangle((left, top, right, bottom), fill=fill)
        center = (left + _CELL_WIDTH // 2, top + _CELL_HEIGHT // 2)
        # Luma (ITU-R 601) tells whether dark text can be read.
        dark = np.dot(fill, (0.299, 0.587, 0.114)) < 120
        color = figures.PAPER if dark else figures.INK
        draw.text(center, _number(loss), color, figures.font(16), anchor="mm")
    if np.isfinite(losses).any():
        i, j = reward_landscape.lowest(landscape, row)
        left, top = x + j * _CELL_WIDTH, y + i * _CELL_HEIGHT
        frame = (left - 2, top - 2, left + _CELL_WIDTH, top + _CELL_HEIGHT)
        draw.rectangle(frame, outline=(0, 0, 0), width=3)
    for i, zoom in enumerate(landscape.zooms):
        place = (x - 8, y + i * _CELL_HEIGHT + _CELL_HEIGHT // 2)
        draw.text(place, f"{zoom:.2f}", figures.INK, figures.font(15), anchor="rm")
    for j, shift in enumerate(landscape.shifts):
        place = (x + j * _CELL_WIDTH + _CELL_WIDTH // 2, y + len(losses) * _CELL_HEIGHT)
        text = f"{shift:+.2f}" if shift else "0"
        draw.text(
            (place[0], place[1] + 12), text, figures.INK, figures.font(15), anchor="mm"
        )


def diverging_color(strength: float) -> tuple[int, int, int]:
    """Blue at -1 and below, near white at 0, orange at 1 and above, gray for NaN."""
    if np.isnan(strength):
        return _EMPTY
    red, green, blue = (
        round(float(np.interp(strength, (-1, 0, 1), channel)))
        for channel in _DIVERGING.T
    )
    return red, green, blue


def _color_scale(draw, x, y, limit):
    left = f"{-limit:.2f}"
    draw.text((x, y + 10), left, figures.INK, figures.font(15), anchor="lm")
    x += round(figures.font(15).getlength(left)) + 8
    length = 180
    for offset in range(length):
        color = diverging_color(2 * offset / (length - 1) - 1)
        draw.line((x + offset, y, x + offset, y + 20), fill=color)
    x += length + 8
    right = f"+{limit:.2f}    loss, less the loss on the whole image, in nats"
    draw.text((x, y + 10), right, figures.INK, figures.font(15), anchor="lm")


def _around(landscape):
    known = landscape.reference == "lungs"
    return "the true lungs" if known else "the policy's key area"


def _how_to_read(landscape):
    text = (
        "Each number is the mean loss of the trained task network on boxes placed "
        f"around {_around(landscape)}: made smaller (upper rows) or larger (lower "
        "rows), and moved left or right; a box that would stick out of the image is "
        "moved inside. Blue is better than the whole image, orange is worse; the black "
        "frame marks the best box. Rewards are made of these losses, so they pull a "
        "policy towards blue."
    )
    if landscape.reference == "lungs":
        return text + (
            " If the lungs (row 1.00, column 0) are not blue, the task network cannot "
            "use them yet, and no honest reward leads a policy there."
        )
    return text + (
        " The true lungs are not known here: whether the policy found them, these "
        "numbers do not say."
    )


def _vertical_text(picture, x, y, text):
    size = (round(figures.font(15).getlength(text)) + 4, 24)
    label = Image.new("RGB", size, figures.PAPER)
    ImageDraw.Draw(label).text(
        (2, 12), text, figures.PALE, figures.font(15), anchor="lm"
    )
    label = label.rotate(90, expand=True)
    picture.paste(label, (x - label.width // 2, y - label.height // 2))


def _number(value):
    return "-" if np.isnan(value) else f"{value:.2f}"
