"""Targets and answers under an operation, from where it takes its points alone."""

import chex
import jax
import jax.numpy as jnp

from hapre_jax.operations.operation import Operation


def is_inside(points: jax.Array) -> jax.Array:
    """Whether points `f32[n, 2]` lie in [0, 1]: `bool[n]`."""
    return jnp.all((points >= 0) & (points <= 1), axis=1)


def show_mask(
    operation: Operation, mask: jax.Array, action: jax.Array, size: int
) -> jax.Array:
    """A mask `f32[H, W, K]` as an operation shows it, `f32[S, S, K]`.

    Each pixel is the mean of the nearest values at n x n places in it: as many as there
    are pixels of the mask, or 2 x 2, so that a mask that is shown as it is stays as it
    is, and the whole image has the mean of its pixels. What is not seen is 0.
    """
    chex.assert_rank(mask, 3)
    n = max(2, round(mask.shape[0] / size))
    points = operation.to_source(_places(n * size), action)
    found = _sample(mask, points, order=0)
    found *= operation.is_seen(points, action)[:, None]
    return jnp.mean(found.reshape(size, n, size, n, -1), axis=(1, 3))


def restore(
    operation: Operation, answer: jax.Array, action: jax.Array, size: int
) -> jax.Array:
    """An answer `f32[S, S, K]` on what was shown, on the whole image: `f32[R, R, K]`.

    0 where the operation shows nothing. R is `size`.
    """
    chex.assert_rank(answer, 3)
    places = _places(size)
    found = _sample(answer, operation.from_source(places, action), order=1)
    is_seen = operation.is_seen(places, action)
    return jnp.where(is_seen[:, None], found, 0.0).reshape(size, size, -1)


def show_boxes(operation: Operation, boxes: jax.Array, action: jax.Array) -> jax.Array:
    """Boxes `f32[n, 4]` yxyx as they are seen: tight around their moved corners.

    They may stick out of what is seen, and be hidden in part or as a whole.
    """
    return _move(boxes, lambda points: operation.from_source(points, action))


def restore_boxes(
    operation: Operation, boxes: jax.Array, action: jax.Array
) -> jax.Array:
    """Boxes `f32[n, 4]` yxyx of what is seen, in the whole image."""
    return _move(boxes, lambda points: operation.to_source(points, action))


def _move(boxes, move):
    chex.assert_shape(boxes, (None, 4))
    corners = boxes[:, jnp.array([[0, 1], [0, 3], [2, 1], [2, 3]])]
    moved = move(corners.reshape(-1, 2)).reshape(-1, 4, 2)
    return jnp.concatenate([jnp.min(moved, axis=1), jnp.max(moved, axis=1)], axis=1)


def _places(size):
    """Centers `f32[S * S, 2]` of the pixels of a square, row by row."""
    line = (jnp.arange(size) + 0.5) / size
    grid = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), axis=-1)
    return grid.reshape(-1, 2)


def _sample(image, points, *, order):
    """Values `f32[n, K]` at points yx in [0, 1], 0 outside; nearest or bilinear."""
    sides = jnp.array(image.shape[:2], points.dtype)
    at = list((points * sides[None] - 0.5).T)

    def of_one(channel):
        return jax.scipy.ndimage.map_coordinates(channel, at, order, mode="nearest")

    values = jax.vmap(of_one, in_axes=-1, out_axes=-1)(image)
    return jnp.where(is_inside(points)[:, None], values, 0.0)
