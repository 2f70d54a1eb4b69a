"""Makes an unprocessed film of a well-framed one: the paper's axis of quality.

Hospitals differ in what happens to a film before it is stored. `degrade` undoes the
framing: it shows the film smaller, off the center and rotated, in surroundings that
carry on from its border, with hands, arms, wires, blobs that look like lesions, a side
marker, the edges of a collimator, another exposure and noise. The lungs stay as they
were, and where they went is known exactly. Nothing depends on the diagnosis.

Not a physical simulation: what lies outside the film was never imaged.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from hapre_jax.data import dataset, images


@dataclasses.dataclass(frozen=True)
class Level:
    """How far a film is from a well-framed one; ranges are uniform."""

    frame: tuple[float, float]  # side of the new frame, in longer sides of the film
    rotation: float  # largest angle, degrees
    gamma: float  # exposure: gamma in [1 / (1 + g), 1 + g]
    objects: int  # most of each kind outside the lungs
    edge: float  # probability of a collimator's edge on a side
    noise: float  # largest deviation of a pixel, gray levels of [0, 1]


# The frames and the angle of `low` leave the lungs as small and as turned as the
# phantoms of quality `low` do; `medium` lies half way.
LEVELS = {
    "medium": Level((1.05, 1.4), 7, 0.25, 1, 0.25, 0.012),
    "low": Level((1.3, 2.5), 15, 0.5, 2, 0.5, 0.025),
}


_WHOLE = (0.0, 0.0, 1.0, 1.0)


class Degraded(NamedTuple):
    """A film in its new frame of S x S pixels."""

    image: np.ndarray  # u8[S, S]
    lung_box: np.ndarray  # f32[4] yxyx in [0, 1] of the frame; NaN where unknown
    boxes: np.ndarray  # f32[n, 4] yxyx in [0, 1] of the frame
    mask: np.ndarray | None = None  # u8[S, S], 255 in the lungs; None where unknown


def degrade(
    film: Image.Image,
    lungs: np.ndarray | None,
    *,
    level: Level,
    size: int,
    rng: np.random.Generator,
    boxes: np.ndarray = dataset.NO_BOXES,
) -> Degraded:
    """The film as another hospital might have stored it.

    Args:
      film: mode L, of any shape.
      lungs: `bool[H, W]`, True inside them, H and W those of the film or in the same
        ratio; None if unknown. Objects then keep clear of the film's central part.
      level: one of `LEVELS`, or another.
      size: S, pixels of a side of the frame.
      rng: decides everything: the same state gives the same pixels.
      boxes: `f32[n, 4]` yxyx in [0, 1] of the film, of lesions for example; they do
        not change the pixels.

    Returns:
      The frame, and in it the tight box of the lungs and those of the turned boxes.
    """
    side = size / rng.uniform(*level.frame)
    scale = side / max(film.size)
    width, height = (max(1, round(scale * pixels)) for pixels in film.size)
    small = film.resize((width, height), Image.Resampling.BILINEAR)
    angle = math.radians(rng.uniform(-level.rotation, level.rotation))
    cos, sin = math.cos(angle), math.sin(angle)

    def place(reach):
        return size / 2 + rng.uniform(-1, 1) * max(size / 2 - reach, 0.0)

    center_y = place((abs(cos) * height + abs(sin) * width) / 2)
    center_x = place((abs(cos) * width + abs(sin) * height) / 2)
    line = np.arange(size, dtype=np.float32) + 0.5
    dy, dx = (line - center_y)[:, None], line - center_x
    # Pixels of the film; a turn by the angle, clockwise as it is seen.
    v = (cos * dy - sin * dx + height / 2).astype(np.float32)
    u = (sin * dy + cos * dx + width / 2).astype(np.float32)

    image = _surroundings(small, v, u, size)
    core = _core(lungs, height, width)
    clear = (v < core[0]) | (v > core[2]) | (u < core[1]) | (u > core[3])
    for draw, strength in ((_arm, 0.55), (_hand, 0.55), (_blob, 0.3), (_wire, 0.35)):
        for _ in range(rng.integers(level.objects + 1)):
            shape = _clear_of_lungs(draw, clear, size, rng)
            # What lies on top of each other absorbs one after the other.
            image += rng.uniform(0.6, 1) * strength * shape * (1 - image)

    gamma = (1 + level.gamma * rng.uniform()) ** float(rng.choice([-1, 1]))
    image = np.clip(image, 0, 1) ** gamma * rng.uniform(0.75, 1)
    grain = rng.standard_normal(image.shape, np.float32)
    image += rng.uniform(0.2, 1) * level.noise * grain

    def place_box(outline):
        """Tight box in the frame of points `f64[2, n]`, yx in [0, 1] of the film."""
        y, x = (outline.T * (height, width) - (height / 2, width / 2)).T
        turned = np.stack((cos * y + sin * x + center_y, cos * x - sin * y + center_x))
        return np.concatenate((turned.min(1), turned.max(1))) / size

    field = _field(place_box(_corners(_WHOLE)), level.edge, size, rng)
    # Shutters are drawn black; a film without them is white where no ray came.
    outside = rng.uniform(0, 0.05) if rng.uniform() < 0.7 else rng.uniform(0.85, 1)
    image = field * image + (1 - field) * outside
    if level.objects and rng.uniform() < 0.8:
        plate = _clear_of_lungs(_marker, clear, size, rng)
        image += plate * (0.95 - image)

    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    lung_box = dataset.NOWHERE
    if lungs is not None and lungs.any():
        lung_box = np.clip(place_box(_outline(lungs)), 0, 1).astype(np.float32)
    placed = np.array([place_box(_corners(box)) for box in boxes], np.float32)
    boxes = np.clip(placed.reshape(-1, 4), 0, 1)
    boxes = boxes[np.all(boxes[:, :2] < boxes[:, 2:], axis=1)]  # others left the film
    mask = None if lungs is None else _place_mask(lungs, v / height, u / width)
    return Degraded(pixels, lung_box, boxes, mask)


def _surroundings(film, v, u, size):
    """The film, carried on over its border: the farther, the smoother and darker."""
    height, width = film.height, film.width
    beyond = np.hypot(
        np.maximum(np.maximum(-v, v - height), 0),
        np.maximum(np.maximum(-u, u - width), 0),
    )
    blurs = [0.0, 0.01 * size, 0.04 * size, 0.12 * size]
    # Full smoothness a sixth of the frame away; streaks of the border end before.
    step = np.minimum(beyond / (size / 6), 1) * (len(blurs) - 1)
    result = np.zeros(v.shape, np.float32)
    for index, radius in enumerate(blurs):
        smooth = film.filter(ImageFilter.GaussianBlur(radius)) if radius else film
        weight = np.maximum(1 - np.abs(step - index), 0)
        result += weight * _sample(np.asarray(smooth, np.float32) / 255, v, u)
    # Beside the chest there is air soon, above and below it the body goes on.
    sideways = np.maximum(np.maximum(-u, u - width), 0) / size
    along = np.maximum(np.maximum(-v, v - height), 0) / size
    return result * np.exp(-((sideways / 0.25) ** 2) - (along / 0.6) ** 2)


def _place_mask(lungs, v, u):
    """`u8[S, S]`, 255 in the lungs, at places of the film in [0, 1]."""
    rows, columns = lungs.shape
    values = _sample(lungs.astype(np.float32), v * rows, u * columns)
    is_inside = (v >= 0) & (v < 1) & (u >= 0) & (u < 1)
    return np.round(255 * values * is_inside).astype(np.uint8)


def _sample(pixels, v, u):
    """Bilinear, with the border's values outside."""
    y = np.clip(v - 0.5, 0, pixels.shape[0] - 1)
    x = np.clip(u - 0.5, 0, pixels.shape[1] - 1)
    top, left = y.astype(np.int32), x.astype(np.int32)
    bottom = np.minimum(top + 1, pixels.shape[0] - 1)
    right = np.minimum(left + 1, pixels.shape[1] - 1)
    y, x = y - top, x - left
    upper = (1 - x) * pixels[top, left] + x * pixels[top, right]
    lower = (1 - x) * pixels[bottom, left] + x * pixels[bottom, right]
    return (1 - y) * upper + y * lower


def _core(lungs, height, width):
    """Yxyx in pixels of the film that objects keep clear of."""
    if lungs is None or not lungs.any():
        box = np.array((0.1, 0.1, 0.9, 0.9))
    else:
        box = images.tight_box(lungs) / np.array(lungs.shape * 2)
    return box * np.array((height, width) * 2)


def _outline(mask):
    """`f64[2, n]`, yx in [0, 1]: the corners of the outermost pixels of each row."""
    rows = np.flatnonzero(mask.any(1))
    first, last = mask[rows].argmax(1), mask.shape[1] - mask[rows, ::-1].argmax(1)
    y = np.concatenate([rows, rows, rows + 1, rows + 1]) / mask.shape[0]
    x = np.concatenate([first, last, first, last]) / mask.shape[1]
    return np.stack((y, x))


def _corners(box):
    """`f64[2, 4]`, yx of a box."""
    top, left, bottom, right = map(float, box)
    return np.array(((top, top, bottom, bottom), (left, right, left, right)))


def _clear_of_lungs(draw: Callable, clear, size, rng):
    """`f32[S, S]` of an object that covers next to nothing of the lungs, or of none."""
    for _ in range(6):
        shape = _soft(draw, size, rng)
        if draw is _wire or shape[~clear].sum() < 0.02 * shape.sum():
            return shape
    return np.zeros_like(shape)


def _soft(draw, size, rng):
    """Draws white on black at twice the resolution, in units of the frame."""
    canvas = Image.new("L", (2 * size, 2 * size))
    radius = draw(ImageDraw.Draw(canvas), 2 * size, rng)
    canvas = canvas.filter(ImageFilter.GaussianBlur(radius))
    small = canvas.resize((size, size), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def _limb(draw, start, end, width, fill):
    """A line with round ends; all in pixels."""
    draw.line((*start, *end), fill=fill, width=max(1, round(width)))
    for x, y in (start, end):
        r = width / 2
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _arm(draw, size, rng):
    angle, length = rng.uniform(0.9, 2.2), rng.uniform(0.3, 0.8) * size
    x, y = rng.choice([rng.uniform(-0.1, 0.15), rng.uniform(0.85, 1.1)]), rng.uniform()
    start = np.array((x, y)) * size
    end = start + length * _way(angle)
    width = rng.uniform(0.07, 0.13) * size
    _limb(draw, start, end, width, 150)
    _limb(draw, start, end, 0.3 * width, 235)  # the bone
    return 0.008 * size


def _hand(draw, size, rng):
    palm = np.array(rng.uniform(-0.05, 1.05, 2)) * size
    reach = rng.uniform(0.045, 0.075) * size
    heading = rng.uniform(0, 2 * math.pi)
    _limb(draw, palm, palm - 3 * reach * _way(heading), 1.2 * reach, 120)  # forearm
    _limb(draw, palm, palm + 0.3 * reach * _way(heading), 1.8 * reach, 140)
    for angle, length in ((-0.5, 1.9), (-0.2, 2.2), (0.1, 2.2), (0.4, 1.9), (1.1, 1.4)):
        end = palm + length * reach * _way(heading + angle + rng.uniform(-0.05, 0.05))
        _limb(draw, palm, end, 0.45 * reach, 140)
        _limb(draw, palm, end, 0.14 * reach, 230)
    return 0.005 * size


def _way(angle):
    return np.array((math.cos(angle), math.sin(angle)))


def _blob(draw, size, rng):
    x, y = rng.uniform(0.02, 0.98, 2) * size
    height, width = rng.uniform(0.02, 0.05, 2) * size
    draw.ellipse((x - width, y - height, x + width, y + height), fill=255)
    return 0.02 * size


def _wire(draw, size, rng):
    """A lead or a tube, which may cross the lungs as real ones do."""
    corners = rng.uniform(-0.1, 1.1, (4, 2)) * size
    t = np.linspace(0, 1, 40)[:, None]
    bezier = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    curve = sum(weight * corner for weight, corner in zip(bezier, corners, strict=True))
    width = rng.uniform(0.004, 0.009) * size
    draw.line([tuple(point) for point in curve], fill=255, width=max(1, round(width)))
    if rng.uniform() < 0.5:  # an electrode at its end
        (x, y), r = curve[-1], 2.5 * width
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return 0.001 * size


def _marker(draw, size, rng):
    """The letter that says which side of the body is which."""
    x, y = rng.uniform(0.03, 0.9, 2) * size
    font = ImageFont.load_default(rng.uniform(0.05, 0.08) * size)
    draw.text((x, y), str(rng.choice(["L", "R"])), fill=255, font=font)
    return 0.001 * size


def _field(film, probability, size, rng):
    """`f32[S, S]`, 1 where rays came: the collimator's edges lie outside the film."""
    limits = []
    for edge, border in zip(film, (0, 0, 1, 1), strict=True):
        # At the border if there is no edge; else up to nine tenths of the way in.
        share = rng.uniform(0, 0.9) if rng.uniform() < probability else -1.0
        limits.append(
            border + share * (edge - border) if share >= 0 else 3 * border - 1
        )
    tilt = math.radians(rng.uniform(-3, 3))
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    y = line[:, None] + math.tan(tilt) * (line - 0.5)
    x = line - math.tan(tilt) * (line[:, None] - 0.5)

    def inside(distance):  # an edge is about two pixels wide
        return np.clip(distance * size / 2 + 0.5, 0, 1)

    top, left, bottom, right = limits
    vertical = inside(y - top) * inside(bottom - y)
    return (vertical * inside(x - left) * inside(right - x)).astype(np.float32)
