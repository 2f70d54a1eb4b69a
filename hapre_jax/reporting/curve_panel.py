"""One small diagram of values over the training step, drawn with Pillow alone."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from hapre_jax.reporting import figures

# Okabe and Ito's darker colors, which can be read on white and told apart by people
# with any kind of color blindness.
TASK_COLOR, POLICY_COLOR, OTHER_COLOR = (0, 114, 178), (213, 94, 0), (0, 134, 98)
_BAND, _GRID = (250, 219, 196), (232, 234, 237)

_WIDTH, _HEIGHT = 330, 156  # of the plotted area, in pixels
_INSET = 7  # free pixels around the curves, so that no dot is cut
_LEFT, _ABOVE, _BELOW = 56, 54, 56  # tick labels; title and legend; axis
CELL = (_LEFT + _WIDTH, _ABOVE + _HEIGHT + _BELOW)
_SMOOTH = 3  # curves are drawn as many times larger, then averaged
# More points than these are averaged: noise would hide the curve.
_MOST_POINTS = 165


class Curve(NamedTuple):
    """One value over the steps."""

    label: str
    kind: str  # of the records: "train", or "validation", which has dots
    name: str  # in these records
    color: tuple[int, int, int]
    is_thin: bool = False


class Panel(NamedTuple):
    """What shares one pair of axes."""

    title: str
    curves: tuple[Curve, ...]
    shown: tuple[float, float] | None = None  # part of the vertical axis in any case
    level: tuple[float, str] | None = None  # a horizontal line and what it says
    band: tuple[str, str] | None = None  # names of its lower and its upper edge
    is_log: bool = False
    rings_best: bool = False  # around the last of the highest values


def points_of(records: list[dict], curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values `f64[n]` of a curve."""
    found = [
        (record["step"], record[curve.name])
        for record in records
        if record["kind"] == curve.kind and curve.name in record
    ]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values


def _thinned(points):
    """Means of neighboring points, where there are too many."""
    if len(points[0]) <= _MOST_POINTS:
        return points
    return tuple(
        np.array([part.mean() for part in np.array_split(axis, _MOST_POINTS)])
        for axis in points
    )


class _Axes(NamedTuple):
    """From steps and values to pixels of a plotted area."""

    steps: float
    low: float
    high: float

    def x(self, step):
        return _INSET + step / self.steps * (_WIDTH - 1 - 2 * _INSET)

    def y(self, value):
        share = (self.high - value) / (self.high - self.low)
        return _INSET + share * (_HEIGHT - 1 - 2 * _INSET)

    def line(self, points):
        """Corners of a curve in the enlarged drawing."""
        xs, ys = self.x(points[0]) * _SMOOTH, self.y(points[1]) * _SMOOTH
        return list(zip(xs.tolist(), ys.tolist(), strict=True))


def draw_panel(
    picture: Image.Image,
    x: int,
    y: int,
    panel: Panel,
    records: list[dict],
    steps: int,
    warmup_steps: int,
) -> None:
    """Draws a panel of the size `CELL`.

    Args:
      picture: to draw on.
      x, y: the upper left corner.
      panel: what to draw.
      records: of `metrics.jsonl`.
      steps: end of the horizontal axis.
      warmup_steps: marked by a vertical line, if inside the axis.
    """
    curves = []
    for curve in panel.curves:
        at, values = points_of(records, curve)
        if panel.is_log:
            # Of zero, the policy's gradient in the warm-up, there is no logarithm.
            at, values = at[values > 0], np.log10(values[values > 0])
        if len(at):
            curves.append((curve, _thinned((at, values))))
    edges = []
    for name in panel.band or ():
        edge = points_of(records, panel.curves[0]._replace(name=name))
        edges += [_thinned(edge)] if len(edge[0]) else []
    axes, ticks = _axes(panel, [points for _, points in curves] + edges, steps)

    pen = ImageDraw.Draw(picture)
    pen.text((x + _LEFT, y + 20), panel.title, figures.INK, figures.font(17), "ls")
    _legend(pen, x + _LEFT, y + 36, panel, [curve for curve, _ in curves], edges)
    left, top = x + _LEFT, y + _ABOVE
    plot = _plot(axes, ticks, panel, curves, edges, warmup_steps)
    picture.paste(plot, (left, top))
    for tick, text in ticks:
        place = (left - 8, top + round(axes.y(tick)))
        pen.text(place, text, figures.INK, figures.font(14), anchor="rm")
    for tick, _ in round_numbers(0.0, float(steps)):
        if not tick.is_integer():  # of a run of a few steps
            continue
        place = (left + round(axes.x(tick)), top + _HEIGHT + 12)
        pen.text(place, f"{tick:,.0f}", figures.INK, figures.font(14), anchor="mm")
    place = (left + _WIDTH // 2, top + _HEIGHT + 30)
    pen.text(place, "training step", figures.PALE, figures.font(14), anchor="mm")


def _axes(panel, drawn, steps):
    """Axes that hold all that is drawn, and the ticks of the vertical one."""
    values = np.concatenate([points[1] for points in drawn] + [panel.shown or ()])
    if not len(values):
        values = np.zeros(1)
    low, high = float(values.min()), float(values.max())
    if panel.is_log:
        low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
        every = -(-(high - low) // 4)
        decades = range(low, high + 1, every)
        return _Axes(steps, low, high), [(t, f"{10.0**t:g}") for t in decades]
    # What does not change is a line in the middle, not noise at full height.
    if high - low < 1e-3 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    return _Axes(steps, low, high), round_numbers(low, high)


def round_numbers(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """Round numbers in [low, high], at most some, and their texts."""
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        size * m for m in (1, 2, 5, 10, 20) if (high - low) / (size * m) <= most - 1
    )
    decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(n * step, f"{n * step:,.{decimals}f}") for n in range(first, last + 1)]


def _plot(axes, ticks, panel, curves, edges, warmup_steps):
    size = (_WIDTH * _SMOOTH, _HEIGHT * _SMOOTH)
    plot = Image.new("RGB", size, figures.PAPER)
    pen = ImageDraw.Draw(plot)
    for tick, _ in ticks:
        _horizontal(pen, axes.y(tick), _GRID)
    if edges:
        low, high = (axes.line(edge) for edge in edges)
        if len(low) > 1:
            pen.polygon(low + high[::-1], fill=_BAND)
    if 0 < warmup_steps < axes.steps:
        x = round(axes.x(warmup_steps)) * _SMOOTH
        pen.rectangle((x, 0, x + _SMOOTH - 1, size[1]), fill=figures.PALE)
    if panel.level:
        _horizontal(pen, axes.y(panel.level[0]), figures.PALE)
    for curve, points in curves:
        corners = axes.line(points)
        width = (1 if curve.is_thin else 2) * _SMOOTH
        pen.line(corners, fill=curve.color, width=width, joint="curve")
        if (curve.kind == "validation" or len(corners) == 1) and not curve.is_thin:
            for corner in corners:
                pen.circle(corner, 3 * _SMOOTH, fill=curve.color)
        if panel.rings_best:
            best = corners[-1 - int(np.argmax(points[1][::-1]))]
            pen.circle(best, 6 * _SMOOTH, outline=figures.INK, width=2 * _SMOOTH)
    pen.rectangle((0, 0, _SMOOTH - 1, size[1]), fill=figures.PALE)
    pen.rectangle((0, size[1] - _SMOOTH, *size), fill=figures.PALE)
    return plot.reduce(_SMOOTH)


def _horizontal(pen, y, color):
    top = round(y) * _SMOOTH
    pen.rectangle((0, top, _WIDTH * _SMOOTH, top + _SMOOTH - 1), fill=color)


def _legend(pen, x, y, panel, curves, edges):
    entries = [(c.label, c.color, 1 if c.is_thin else 3) for c in curves if c.label]
    if edges:
        entries.append(("10 to 90 % of a batch", _BAND, 11))
    if panel.level:
        entries.append((panel.level[1], figures.PALE, 1))
    for text, color, thickness in entries:
        top = y - thickness // 2
        pen.rectangle((x, top, x + 17, top + thickness - 1), fill=color)
        pen.text((x + 24, y), text, figures.INK, figures.font(14), anchor="lm")
        x += 24 + round(figures.font(14).getlength(text)) + 18
