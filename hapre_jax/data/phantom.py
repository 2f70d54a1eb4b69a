"""Procedural chest phantoms: images whose lungs and lesions are known exactly.

Not a physical simulation. A phantom has what decides whether a key area matters: lungs
that fill part of the frame, three classes that differ only *inside* the lungs, and
look-alikes outside. Every texture lives in body coordinates, so it gets finer as the
lungs get smaller, and a film downscaled as a whole loses it.

Classes: `normal`; `bacterial`, one focal consolidation; `viral`, a fine interstitial
texture all over both lungs. In the *variants* every film has a band, as a collapsed
plate of lung makes one, and the class is one that the film's rotation, or its exposure,
makes hard to tell: the band's course, how dense it is, or both. What was done to each
film is known, and so what would undo it.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from hapre_jax.data import dataset, images

CLASSES = ("normal", "bacterial", "viral")
_COURSES = ("rising", "level", "falling")  # from left to right, as seen
_DENSITIES = ("faint", "dense")
CLASSES_OF = {
    "disease": CLASSES,
    "course": _COURSES,
    "density": _DENSITIES,
    "both": tuple(f"{course} {how}" for course in _COURSES for how in _DENSITIES),
}


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well a phantom was pre-processed; ranges are uniform."""

    lung_side: tuple[float, float]  # longer side of the lungs, share of the frame
    rotation: float  # largest angle, degrees
    centering: float  # largest displacement, share of the room that is left
    gamma: float  # exposure: gamma in [1 / (1 + g), 1 + g]
    clutter: int  # most objects of each kind outside the lungs
    finding: str = "disease"  # what the classes tell apart, a key of `CLASSES_OF`


QUALITIES = {
    "high": Quality((0.90, 0.96), 2, 1.0, 0.1, 0),
    "medium": Quality((0.60, 0.85), 8, 0.7, 0.25, 2),
    "low": Quality((0.35, 0.60), 20, 0.9, 0.5, 4),
}
# Turned farther than courses differ, exposed so that the faint and the dense have the
# same gray; framed well enough that the whole film serves.
VARIANTS = {
    "rotated": Quality((0.68, 0.74), 40, 0.3, 0.0, 0, "course"),
    "exposed": Quality((0.68, 0.74), 0, 0.3, 1.5, 0, "density"),
    "rotated_exposed": Quality((0.68, 0.74), 40, 0.3, 1.5, 0, "both"),
}

# Chosen so that a small network fed the whole `low` film at 32 pixels finds the classes
# hard, and fed the lungs at 32 pixels finds them easy: the interstitial texture has two
# to three pixels a wave in the second case, about one in the first.
_CONSOLIDATION = 0.32  # amplitude, gray levels of [0, 1]
_CONSOLIDATION_RADIUS = (0.07, 0.10)  # in sides of the lungs
# Of a band: amplitude of the faint and of the dense, half length and half thickness in
# body coordinates, angles of the courses and how far off they may be, in degrees.
_BAND_DENSITIES = (0.30, 0.40)
_BAND = (0.42, 0.10)
_BAND_ANGLES = (-45.0, 0.0, 45.0)
_BAND_SPREAD = 5.0
_INTERSTITIAL = 0.09  # amplitude, gray levels
_INTERSTITIAL_WAVES = (11.0, 14.0)  # waves across the lungs
_NOISE = 0.012  # deviation of a pixel, gray levels


@dataclasses.dataclass(frozen=True)
class Phantom:
    """One film."""

    image: np.ndarray  # u8[H, W]
    label: int  # index into the `CLASSES_OF` its quality's finding
    lung_box: np.ndarray  # f32[4] yxyx in [0, 1], tight around both lungs
    lesion_box: np.ndarray  # f32[4] yxyx; consolidation or band, or all NaN
    rotation: float  # degrees counterclockwise that put the body upright
    gamma: float  # power that undoes the exposure's
    lungs: np.ndarray  # bool[H, W], the lungs


def make(
    index: int, *, seed: int = 0, quality: str = "low", size: int = 128
) -> Phantom:
    """The phantom of an index: the same arguments give the same pixels.

    Args:
      index: >= 0; the K classes take turns, so any run of K indices is balanced.
      seed: another seed is another hospital's worth of films.
      quality: a key of `QUALITIES` or of `VARIANTS`.
      size: pixels of a side of the (square) frame.

    Returns:
      A `Phantom`.
    """
    qualities = QUALITIES | VARIANTS
    if quality not in qualities:
        raise ValueError(f"quality {quality!r} is not one of {sorted(qualities)}")
    spec = qualities[quality]
    rng = np.random.default_rng((seed, index))
    classes = CLASSES_OF[spec.finding]
    label = index % len(classes)

    # Body coordinates: lungs in [-1, 1] x [-1, 1], y down.
    side = rng.uniform(*spec.lung_side)
    aspect = rng.uniform(0.85, 1.1)  # height over width of the chest
    half_y, half_x = min(aspect, 1.0) * side / 2, min(1 / aspect, 1.0) * side / 2
    angle = math.radians(rng.uniform(-spec.rotation, spec.rotation))
    cos, sin = math.cos(angle), math.sin(angle)

    def place(reach):
        room = max(0.5 - reach, 0.0)
        return 0.5 + rng.uniform(-1, 1) * spec.centering * room

    y = place(cos * half_y + abs(sin) * half_x)
    x = place(cos * half_x + abs(sin) * half_y)
    # Everything below is float32: scalars are Python floats, which do not promote.
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    dy, dx = (line - y)[:, None], line - x
    v = (cos * dy - sin * dx) / half_y
    u = (sin * dy + cos * dx) / half_x

    lungs, inside = _lungs(u, v, rng)
    image = _torso(u, v, rng)
    for _ in range(rng.integers(spec.clutter + 1)):
        image += _blob(u, v, *_outside(rng), _radius(rng), _CONSOLIDATION, rng)
    for _ in range(rng.integers(min(spec.clutter, 1) + 1)):
        y, x = _outside(rng)
        patch = rng.uniform(0.5, 1.2) * np.exp(
            -(((u - x) / 0.7) ** 4 + ((v - y) / 0.7) ** 4)
        )
        image += patch * _INTERSTITIAL * _reticulum(u, v, rng)
    image = image * (1 - 0.68 * lungs) + _bones(u, v, inside, rng)

    lesion_box: np.ndarray = np.full(4, np.nan, np.float32)
    if spec.finding != "disease" or classes[label] == "bacterial":
        radius, sign = _radius(rng), float(rng.choice([-1, 1]))
        amplitude = _CONSOLIDATION
        # The heart hides the lower part of its side.
        y = rng.uniform(-0.55, 0.6 if sign < 0 else -0.1)
        x = sign * rng.uniform(0.35, 0.65)
        if spec.finding == "disease":
            shape = _blob(u, v, y, x, radius, 1.0, rng) * lungs
        else:
            shape, amplitude = _band(spec.finding, label, u - x, v - y, rng)
            shape *= lungs
        image += amplitude * shape
        lesion_box = images.tight_box(shape > 0.5) / np.float32(size)
    elif classes[label] == "viral":
        image += lungs * _INTERSTITIAL * _reticulum(u, v, rng)

    for _ in range(rng.integers(spec.clutter + 1)):
        _hand_or_marker(image, line, inside, rng)
    image += _NOISE * rng.standard_normal(image.shape, np.float32)
    gamma = (1 + spec.gamma * rng.uniform()) ** float(rng.choice([-1, 1]))
    image = np.clip(image, 0, 1) ** gamma
    if spec.finding == "disease":  # in a variant, all is to be undone by the gamma
        image *= rng.uniform(0.8, 1.0)
    pixels = np.round(255 * image).astype(np.uint8)
    lung_box = images.tight_box(lungs > 0.5) / np.float32(size)
    return Phantom(
        pixels,
        label,
        lung_box,
        lesion_box,
        math.degrees(angle),
        1 / gamma,
        inside > 0.5,
    )


def source(
    counts: Sequence[int], *, seed: int, quality: str, size: int
) -> dataset.Source:
    """The phantoms of the first indices, as a source that is divided already.

    Args:
      counts: of training, validation and test films.
      seed, quality, size: see `make`.
    """
    names = [f"phantom-{seed}-{index}" for index in range(sum(counts))]
    splits = np.repeat(("train", "validation", "test"), counts)
    classes = CLASSES_OF[(QUALITIES | VARIANTS)[quality].finding]
    records = [
        dataset.Record(name, index % len(classes), name, official=str(split))
        for index, (name, split) in enumerate(zip(names, splits, strict=True))
    ]
    read = functools.partial(_film, seed=seed, quality=quality, size=size)
    return dataset.Source("phantom", classes, records, read, is_divided=True)


def _film(index: int, *, seed: int, quality: str, size: int) -> dataset.Film:
    drawn = make(index, seed=seed, quality=quality, size=size)
    image = Image.fromarray(drawn.image)
    known = dataset.is_known(drawn.lesion_box)
    facts = dataset.Facts(
        hashlib.sha256(drawn.image.tobytes()).hexdigest(),
        size,
        size,
        drawn.lung_box,
        drawn.lesion_box[None] if known else dataset.NO_BOXES,
        (("rotation", drawn.rotation), ("log2_gamma", math.log2(drawn.gamma))),
    )
    return dataset.Film(image, b"", facts, np.uint8(255) * drawn.lungs)


def _band(finding, label, u, v, rng):
    """Shape in [0, 1] and amplitude of the band of a class, its middle at (0, 0)."""
    course, density = divmod(label, len(_DENSITIES))
    if finding == "course":
        course, density = label, int(rng.integers(len(_DENSITIES)))
    elif finding == "density":
        course, density = int(rng.integers(len(_COURSES))), label
    degrees = _BAND_ANGLES[course] + rng.uniform(-_BAND_SPREAD, _BAND_SPREAD)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along, across = cos * u + sin * v, cos * v - sin * u
    distance = (along / _BAND[0]) ** 2 + (across / _BAND[1]) ** 2
    return np.exp(-distance * np.sqrt(distance)), _BAND_DENSITIES[density]


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def _lungs(u, v, rng):
    """Soft masks in [0, 1]: the lungs less the heart's shadow, and the lungs' hull."""
    both = np.zeros_like(u)
    for sign in (-1, 1):
        # Bent inwards at the apex, wide at the base, flat on the diaphragm.
        middle = sign * (0.55 + 0.06 * v)
        half = 0.40 * np.sqrt(np.clip(1 - (np.clip(-v, 0, 1)) ** 2.2, 0.02, 1))
        sides = 1 - ((u - middle) / half) ** 2
        dome = 0.93 - 0.25 * (u - middle) ** 2 / 0.16
        both += (
            _sigmoid(14 * sides) * _sigmoid(22 * (dome - v)) * _sigmoid(30 * (v + 1))
        )
    heart_x, heart_size = rng.uniform(0.12, 0.22), rng.uniform(0.85, 1.1)
    heart = _sigmoid(
        12 * (1 - (((u - heart_x) / 0.36) ** 2 + ((v - 0.45) / 0.42) ** 2) / heart_size)
    )
    hull = np.clip(both, 0, 1)
    return hull * (1 - 0.75 * heart), hull


def _torso(u, v, rng):
    """Soft tissue: shoulders, trunk, belly and arms on dark air."""
    trunk = _sigmoid(9 * (1.35 + 0.12 * v - np.abs(u)))
    neck = _sigmoid(8 * (v + 1.25 - 0.9 * (np.abs(u) - 0.35)))
    arms = _sigmoid(12 * (0.28 - np.abs(np.abs(u) - 1.75 - rng.uniform(-0.2, 0.3) * v)))
    body = np.clip(trunk * neck + 0.8 * arms, 0, 1)
    belly = _sigmoid(5 * (v - 1.0))
    smooth = sum(
        rng.uniform(0.02, 0.05)
        * np.sin(rng.uniform(1, 3) * u + rng.uniform(1, 3) * v + rng.uniform(0, 6.3))
        for _ in range(3)
    )
    gas = sum(
        _blob(u, v, rng.uniform(1.3, 2.6), rng.uniform(-1, 1), 0.25, -0.25, rng)
        for _ in range(2)
    )
    return 0.04 + body * (0.58 + 0.08 * belly + smooth + gas)


def _bones(u, v, inside, rng):
    """Spine, ribs over the lungs and clavicles."""
    spine = 0.14 * np.exp(-((u / 0.11) ** 2)) * (0.8 + 0.2 * np.sin(14 * v))
    count, phase = rng.uniform(4.2, 5.2), rng.uniform(0, 1)
    arcs = np.sin(np.pi * (count * (v + 0.35 * u**2) + phase)) ** 6
    clavicle = np.exp(-(((v + 0.88 - 0.15 * np.abs(u)) / 0.05) ** 2))
    clavicle *= _sigmoid(20 * (0.9 - np.abs(u)))
    return spine + 0.09 * arcs * inside + 0.1 * clavicle


def _reticulum(u, v, rng):
    """A net of fine bright lines, mean about 0: three plane waves of random heading."""
    field = 0.0
    for offset in (0, 1, 2):
        heading = rng.uniform(0, math.pi / 3) + offset * math.pi / 3
        # The lungs are two units wide, so n waves across them are n * pi radians.
        wave = math.pi * rng.uniform(*_INTERSTITIAL_WAVES)
        bend = 0.25 * np.sin(2.5 * u + rng.uniform(0, 6.3))
        field = field + np.cos(
            wave * (math.cos(heading) * u + math.sin(heading) * (v + 0.3 * bend))
            + rng.uniform(0, 6.3)
        )
    return field / 2.0


def _radius(rng):
    return 2 * rng.uniform(*_CONSOLIDATION_RADIUS)  # of the side; two units wide


def _blob(u, v, y, x, radius, amplitude, rng):
    stretch = rng.uniform(0.8, 1.25)
    distance = ((u - x) / (radius * stretch)) ** 2 + ((v - y) * stretch / radius) ** 2
    return amplitude * np.exp(-distance * np.sqrt(distance))


def _outside(rng) -> tuple[float, float]:
    """A place (y, x) in the body but clear of the lungs, in body coordinates."""
    side = rng.integers(3)
    if side == 0:
        return rng.uniform(1.4, 3.0), rng.uniform(-1.2, 1.2)  # belly
    sign = -1 if side == 1 else 1
    return rng.uniform(-1.0, 2.0), sign * rng.uniform(1.4, 2.2)  # flanks and arms


def _hand_or_marker(image, line, inside, rng):
    """Draws a bright finger or a lettered plate in place, clear of the lungs."""
    y, x = rng.uniform(0.03, 0.97, 2)
    if rng.uniform() < 0.5:
        angle, length = rng.uniform(0, math.pi), rng.uniform(0.08, 0.2)
        width = rng.uniform(0.015, 0.03)
    else:
        angle, length, width = 0.0, rng.uniform(0.03, 0.05), rng.uniform(0.02, 0.04)
    dy, dx = (line - y)[:, None], line - x
    along = math.cos(angle) * dx + math.sin(angle) * dy
    across = math.cos(angle) * dy - math.sin(angle) * dx
    shape = _sigmoid(150 * (length - np.abs(along))) * _sigmoid(
        150 * (width - np.abs(across))
    )
    shape *= inside < 0.05
    image *= 1 - shape
    image += shape * rng.uniform(0.7, 0.95)
