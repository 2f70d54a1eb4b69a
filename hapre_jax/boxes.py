"""Geometry of key areas: boxes, their neighbors, masks and crops.

A box is `f32[4]`, `(ymin, xmin, ymax, xmax)`, half-open, in fractions of the image:
`(0, 0, 1, 1)` is the whole image. Functions take one box; `jax.vmap` them for many.
"""

import chex
import jax
import jax.numpy as jnp

from hapre_jax.errors import check_choice

# Numbers, not arrays: `jnp.array` them.
WHOLE = (0.0, 0.0, 1.0, 1.0)
# The trivial key area of a film whose subject is roughly centered.
CENTRAL_80 = (0.1, 0.1, 0.9, 0.9)

# Of products that resample images: TF32 on a GPU, float32 on a CPU. Its 11 bits are
# within a quarter of one of 255 gray levels, and networks read no more of an image.
RESAMPLING = jax.lax.Precision.HIGH


def yxyx_to_center(box: jax.Array) -> jax.Array:
    """Box `f32[4]` yxyx to `f32[4]` (center y, center x, height, width)."""
    chex.assert_shape(box, (4,))
    low, high = box[:2], box[2:]
    return jnp.concatenate([(low + high) / 2, high - low])


def center_to_yxyx(center: jax.Array) -> jax.Array:
    """Inverse of `yxyx_to_center`."""
    chex.assert_shape(center, (4,))
    middle, half = center[:2], center[2:] / 2
    return jnp.concatenate([middle - half, middle + half])


def clip(box: jax.Array, *, min_side: float, max_side: float = 1.0) -> jax.Array:
    """The nearest valid key area: sides bounded first, then moved inside the image.

    Moving keeps the sides, so a box that leaves the image is shifted, not cut.

    Args:
      box: `f32[4]` yxyx, may stick out of the image.
      min_side, max_side: bounds of both sides, 0 < min_side <= max_side <= 1.

    Raises:
      ValueError: the bounds are not in this order.
    """
    check_sides(min_side, max_side)
    y, x, height, width = yxyx_to_center(box)
    size = jnp.clip(jnp.stack([height, width]), min_side, max_side)
    middle = jnp.clip(jnp.stack([y, x]), size / 2, 1 - size / 2)
    return center_to_yxyx(jnp.concatenate([middle, size]))


def check_sides(min_side: float, max_side: float) -> None:
    """Raises `ValueError` unless 0 < min_side <= max_side <= 1; not of tracers."""
    if any(isinstance(side, jax.core.Tracer) for side in (min_side, max_side)):
        return
    if not 0 < min_side <= max_side <= 1:
        raise ValueError(
            f"min_side and max_side are {min_side} and {max_side}, but must be above 0 "
            "and up to 1, min_side no larger"
        )


def scale(
    box: jax.Array, factor: float, *, min_side: float, max_side: float = 1.0
) -> jax.Array:
    """Both sides times `factor` about the center, then `clip`ped.

    The paper's expand (`factor` = alpha) and shrink (1 / alpha), Algorithm 1 line 15.
    """
    center = yxyx_to_center(box)
    scaled = center_to_yxyx(center.at[2:].multiply(factor))
    return clip(scaled, min_side=min_side, max_side=max_side)


def neighbors(
    box: jax.Array,
    moves: str = "rescale",
    *,
    alpha: float,
    min_side: float,
    max_side: float = 1.0,
) -> jax.Array:
    """The valid boxes next to a box.

    Args:
      box: `f32[4]` yxyx.
      moves: "rescale" is the paper's two, expanded and shrunk; "shift" adds those moved
        up, down, left and right by alpha - 1 of the side; "stretch" adds to these the
        wider and the taller one, of the same area.
      alpha: > 1, by which sides are multiplied or divided.
      min_side, max_side: bounds of a valid box, see `clip`.

    Returns:
      `f32[n, 4]`; n is 2, 6 or 8.

    Raises:
      ValueError: `moves` is another word.
    """
    step = alpha - 1.0
    # (shift y, shift x) in sides; factors of (height, width)
    rescaled = [(0, 0, alpha, alpha), (0, 0, 1 / alpha, 1 / alpha)]
    shifted = [(-step, 0, 1, 1), (step, 0, 1, 1), (0, -step, 1, 1), (0, step, 1, 1)]
    stretched = [(0, 0, 1 / alpha, alpha), (0, 0, alpha, 1 / alpha)]
    known = {
        "rescale": rescaled,
        "shift": rescaled + shifted,
        "stretch": rescaled + shifted + stretched,
    }
    check_choice("moves", moves, known)
    center = yxyx_to_center(box)

    def move(change):
        middle = center[:2] + change[:2] * center[2:]
        moved = center_to_yxyx(jnp.concatenate([middle, center[2:] * change[2:]]))
        return clip(moved, min_side=min_side, max_side=max_side)

    return jax.vmap(move)(jnp.array(known[moves], center.dtype))


def area(box: jax.Array) -> jax.Array:
    """Area `f32[]` of a box; 0 for an empty or inverted one."""
    chex.assert_shape(box, (4,))
    return jnp.prod(jnp.maximum(box[2:] - box[:2], 0.0))


def intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    """Area `f32[]` that boxes `a` and `b` share."""
    chex.assert_shape([a, b], (4,))
    return area(jnp.concatenate([jnp.maximum(a[:2], b[:2]), jnp.minimum(a[2:], b[2:])]))


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union `f32[]` in [0, 1]; 0 where both boxes are empty.

    And 0 with a box of NaN, which is not known: leave these out of a mean.
    """
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1.0), 0.0)


def coverage(box: jax.Array, target: jax.Array) -> jax.Array:
    """Share `f32[]` of `target` that lies inside `box`; 0 for an empty target."""
    whole = area(target)
    return jnp.where(
        whole > 0, intersection(box, target) / jnp.where(whole > 0, whole, 1.0), 0.0
    )


def is_at_bound(
    box: jax.Array, *, min_side: float, max_side: float = 1.0, tolerance: float = 1e-3
) -> jax.Array:
    """Whether a side of the box is at `min_side` or `max_side`: `bool[]`."""
    chex.assert_shape(box, (4,))
    sides = box[2:] - box[:2]
    return jnp.any((sides <= min_side + tolerance) | (sides >= max_side - tolerance))


def mask(box: jax.Array, grid: int) -> jax.Array:
    """The box as a map `f32[g, g]` in [0, 1]: the share of each cell it covers."""
    chex.assert_shape(box, (4,))
    edges = jnp.arange(grid + 1) / grid

    def cover(low, high):
        return jnp.clip(
            jnp.minimum(edges[1:], high) - jnp.maximum(edges[:-1], low), 0.0
        )

    rows, columns = cover(box[0], box[2]), cover(box[1], box[3])
    return rows[:, None] * columns[None, :] * grid**2


def bounding_box(mask: jax.Array) -> jax.Array:
    """The smallest box `f32[4]` yxyx around a mask `bool[H, W]`; of none, the whole."""
    chex.assert_rank(mask, 2)
    chex.assert_type(mask, bool)  # shares would be above 0 nearly everywhere

    def bounds(is_inside):
        """First and last of `bool[n]`, as shares of n."""
        side = len(is_inside)
        first = jnp.argmax(is_inside)
        last = side - jnp.argmax(is_inside[::-1])
        return first / side, last / side

    top, bottom = bounds(jnp.any(mask, axis=1))
    left, right = bounds(jnp.any(mask, axis=0))
    # Without a mask, both searches end where they start: at 0 and at 1.
    return jnp.stack([top, left, bottom, right])


def crop_and_resize(image: jax.Array, box: jax.Array, *, size: int) -> jax.Array:
    """The box of an image at `size` x `size` pixels, bilinear and antialiased.

    Equals Pillow's `resize((size, size), BILINEAR, box=...)` on mode F, is
    differentiable with respect to the box, and compiles once for all boxes.

    Args:
      image: `f32[H, W, C]`.
      box: `f32[4]` yxyx with positive sides.
      size: S, pixels of a side of the result.

    Returns:
      `f32[S, S, C]`.
    """
    chex.assert_rank(image, 3)
    chex.assert_shape(box, (4,))
    if box.dtype.itemsize < 4:  # in bfloat16 there are no pixels beyond 256
        box = box.astype(jnp.float32)
    pixels = jnp.array(image.shape[:2], box.dtype)
    low, high = box[:2] * pixels, box[2:] * pixels
    factor = size / (high - low)
    return jax.image.scale_and_translate(
        image,
        (size, size, image.shape[2]),
        (0, 1),
        factor,
        -low * factor,
        "linear",
        antialias=True,
        precision=RESAMPLING,
    )
