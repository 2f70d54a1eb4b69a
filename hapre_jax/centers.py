"""Boxes as a detector of middles has them: the loss of a map, and the boxes in it.

Zhou, Wang, Krähenbühl, "Objects as Points", 2019. A map is `f32[g, g, 5]`: logit of a
middle, its place in the cell (y, x), log height and log width in fractions of the
image. Boxes that are not there are NaN.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from hapre_jax import boxes as box_functions

# Weight of place and size beside the middles; 1 and 0.1 in the reference, whose sizes
# are in pixels. Logarithms are of order one, as places are.
_PLACE_WEIGHT = 1.0
# Of a side in fractions of the image: a box without extent has no logarithm.
_SMALLEST = 1e-3


def loss(found: jax.Array, boxes: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """Focal loss of the middles, and absolute errors of place and size.

    Args:
      found: `f32[g, g, 5]`.
      boxes: `f32[M, 4]` yxyx, NaN where there is none; a side of less than 1e-3 counts
        as one of 1e-3.
      gamma: of the focal loss.

    Returns:
      `f32[]`, >= 0, the sum over cells; place and size count where boxes are.
    """
    chex.assert_shape(boxes, (None, 4))
    grid = found.shape[0]
    is_there = jnp.isfinite(boxes[:, 0])
    known = jnp.where(is_there[:, None], boxes, jnp.array([[0.0, 0.0, 1.0, 1.0]]))
    center = jax.vmap(box_functions.yxyx_to_center)(known)
    at, sizes = center[:, :2] * grid, jnp.maximum(center[:, 2:], _SMALLEST)
    cell = jnp.clip(at.astype(jnp.int32), 0, grid - 1)
    # A soft peak, so that a cell beside the middle is less wrong: a cell wide.
    line = jnp.arange(grid) + 0.5
    distance = (line[None, :, None] - at[:, :1, None]) ** 2
    distance += (line[None, None] - at[:, 1:, None]) ** 2
    peaks = jnp.exp(-distance / 2) * is_there[:, None, None]
    peaks = peaks.at[jnp.arange(len(boxes)), cell[:, 0], cell[:, 1]].set(
        is_there.astype(peaks.dtype)
    )
    target = jnp.max(peaks, axis=0, initial=0.0)
    middles = optax.sigmoid_focal_loss(found[..., 0], target, alpha=None, gamma=gamma)
    there = found[cell[:, 0], cell[:, 1], 1:]
    expected = jnp.concatenate([at - cell, jnp.log(sizes)], axis=1)
    errors = jnp.sum(jnp.abs(there - expected), axis=1)
    return jnp.sum(middles) + _PLACE_WEIGHT * jnp.sum(jnp.where(is_there, errors, 0.0))


def decode(found: jax.Array, *, count: int) -> tuple[jax.Array, jax.Array]:
    """The most probable middles that no neighbor beats.

    Args:
      found: `f32[g, g, 5]`.
      count: n, boxes to give, at most as many as there are cells.

    Returns:
      Boxes `f32[n, 4]` yxyx and their probabilities `f32[n]`, falling.

    Raises:
      ValueError: there are fewer cells.
    """
    chex.assert_shape(found, (None, None, 5))
    if count > found.shape[0] * found.shape[1]:
        raise ValueError(
            f"count is {count}, but a map of {found.shape} has fewer cells"
        )
    grid = found.shape[0]
    scores = jax.nn.sigmoid(found[..., 0])
    padded = jnp.pad(scores, 1)
    around = [padded[y : y + grid, x : x + grid] for y in range(3) for x in range(3)]
    is_peak = scores >= jnp.max(jnp.stack(around), axis=0)
    best, cells = jax.lax.top_k(jnp.where(is_peak, scores, 0.0).reshape(-1), count)
    cell = jnp.stack([cells // grid, cells % grid], axis=1)
    numbers = found.reshape(-1, 5)[cells, 1:]
    middle = (cell + numbers[:, :2]) / grid
    size = jnp.exp(jnp.clip(numbers[:, 2:], -6.0, 0.0))
    center = jnp.concatenate([middle, size], axis=1)
    return jax.vmap(box_functions.center_to_yxyx)(center), best
