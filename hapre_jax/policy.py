"""A Gaussian policy over key areas, read off one grid of logits.

The policy network gives logits `z[g, g]`; `p = sigmoid(z)` says how likely a cell
belongs to the key area. `mean_box` reads a box off that map by its moments, and the
policy is a Gaussian of width sigma in (relative shift, log size) around it. An action
is an unclipped box: keep it for `log_prob`, and `boxes.clip` it before cropping. All
functions take one image; `jax.vmap` them for a batch.
"""

import math

import chex
import jax
import jax.numpy as jnp

from hapre_jax import boxes


def mean_box(logits: jax.Array) -> jax.Array:
    """The box with the moments of the map sigmoid(logits).

    Center = mean of each marginal, half side = sqrt(3) times its standard deviation,
    the width of a cell included. So a uniform map is the whole image, and the mask of
    a rectangle of whole cells is read back exactly. Never clipped: a clipped mean has
    no gradient at the image's border.

    Args:
      logits: `f32[g, g]`.

    Returns:
      `f32[4]` yxyx.
    """
    chex.assert_rank(logits, 2)
    # Moments need the map up to a factor only: normalizing by the largest log value
    # keeps a map of very negative logits from underflowing to 0 / 0.
    log_map = jax.nn.log_sigmoid(logits)
    weights = jnp.exp(log_map - jax.lax.stop_gradient(jnp.max(log_map)))
    weights = weights / jnp.sum(weights)

    def moments(marginal):
        cells = marginal.shape[0]
        centers = jnp.arange(0.5, cells) / cells
        mean = jnp.sum(marginal * centers)
        variance = jnp.sum(marginal * (centers - mean) ** 2) + 1 / (12 * cells**2)
        return mean, jnp.sqrt(12 * variance)

    y, height = moments(jnp.sum(weights, axis=1))
    x, width = moments(jnp.sum(weights, axis=0))
    return boxes.center_to_yxyx(jnp.stack([y, x, height, width]))


def max_sum_box(logits: jax.Array) -> jax.Array:
    """The box of whole cells inside of which the logits sum up to most.

    Its edges jump where the logits change, so it has no gradient. Of several boxes with
    the same sum the largest, so that logits of zero are the whole image.

    Args:
      logits: `f32[g, g]`.

    Returns:
      `f32[4]` yxyx.
    """
    grid = logits.shape[0]
    chex.assert_shape(logits, (grid, grid))
    if logits.dtype.itemsize < 4:  # which cannot tell sums of many cells apart
        logits = logits.astype(jnp.float32)
    integral = jnp.pad(jnp.cumsum(jnp.cumsum(logits, 0), 1), ((1, 0), (1, 0)))
    low, high = jnp.triu_indices(grid + 1, 1)  # edges of an interval of cells
    rows = integral[high] - integral[low]
    sums = rows[:, high] - rows[:, low]  # intervals of rows, intervals of columns
    cells = jnp.outer(high - low, high - low)
    # Sums of the same cells differ by rounding.
    is_best = sums >= jnp.max(sums) - 1e-5 * (1 + jnp.max(jnp.abs(sums)))
    row, column = jnp.unravel_index(
        jnp.argmax(jnp.where(is_best, cells, 0)), cells.shape
    )
    edges = jnp.stack([low[row], low[column], high[row], high[column]])
    return edges.astype(logits.dtype) / grid


def anchor_box(logits: jax.Array) -> jax.Array:
    """The mean of the boxes that the cells propose, each as much as it is sure of it.

    Every cell is an anchor: it says how likely the key area is centered on it, and the
    height and width of that area. Unlike a map's moments, which spread as far as the
    area is large, center and size have logits of their own. Zeros are the whole image.

    Args:
      logits: `f32[g, g, 3]`: log weight of a cell, log height, log width.

    Returns:
      `f32[4]` yxyx, never clipped, as of `mean_box`.
    """
    chex.assert_shape(logits, (None, None, 3))
    weights = jax.nn.softmax(logits[..., 0], axis=(0, 1))
    rows, columns = ((jnp.arange(cells) + 0.5) / cells for cells in weights.shape)
    y = jnp.sum(jnp.sum(weights, axis=1) * rows)
    x = jnp.sum(jnp.sum(weights, axis=0) * columns)
    size = jnp.exp(jnp.sum(weights[..., None] * logits[..., 1:], axis=(0, 1)))
    return boxes.center_to_yxyx(jnp.stack([y, x, *size]))


def standardize(action: jax.Array, mean: jax.Array, *, sigma: float) -> jax.Array:
    """`f32[4]`: shift relative to the mean's sides, log ratio of sides; in sigmas."""
    center, mean_center = boxes.yxyx_to_center(action), boxes.yxyx_to_center(mean)
    shift = (center[:2] - mean_center[:2]) / mean_center[2:]
    return jnp.concatenate([shift, jnp.log(center[2:] / mean_center[2:])]) / sigma


def action(noise: jax.Array, mean: jax.Array, *, sigma: float) -> jax.Array:
    """Inverse of `standardize`: the unclipped box that lies `noise` sigmas off."""
    chex.assert_shape([noise, mean], (4,))
    center = boxes.yxyx_to_center(mean)
    middle = center[:2] + sigma * noise[:2] * center[2:]
    size = center[2:] * jnp.exp(sigma * noise[2:])
    return boxes.center_to_yxyx(jnp.concatenate([middle, size]))


def sample(
    key: jax.Array, mean: jax.Array, *, sigma: float, num_samples: int
) -> jax.Array:
    """Unclipped boxes drawn around `mean` in antithetic pairs.

    Sample k and k + num_samples / 2 lie on opposite sides of the mean, which cancels
    the part of the loss that is even around it from the gradient estimate.

    Args:
      key: PRNG key.
      mean: `f32[4]` yxyx.
      sigma: width in relative shift and log size, > 0.
      num_samples: even.

    Returns:
      `f32[num_samples, 4]`, no gradient to `mean` (the score function carries it).
    """
    drawn = sample_pathwise(key, mean, sigma=sigma, num_samples=num_samples)
    return jax.lax.stop_gradient(drawn)


def sample_pathwise(
    key: jax.Array, mean: jax.Array, *, sigma: float, num_samples: int
) -> jax.Array:
    """The boxes of `sample`, differentiable in the mean: reparameterized."""
    if num_samples % 2:
        raise ValueError(f"num_samples must be even, got {num_samples}")
    half = jax.random.normal(key, (num_samples // 2, 4), mean.dtype)
    noise = jnp.concatenate([half, -half])
    return jax.vmap(lambda n: action(n, mean, sigma=sigma))(noise)


def log_prob(sampled: jax.Array, mean: jax.Array, *, sigma: float) -> jax.Array:
    """Log density `f32[]` of an unclipped box.

    The density is over (center y, center x, log height, log width), hence the two
    log-sides of the mean, by which shifts are scaled.
    """
    noise = standardize(sampled, mean, sigma=sigma)
    sides = mean[2:] - mean[:2]
    normalizer = 4 * jnp.log(sigma) + 2 * math.log(2 * math.pi)
    return -0.5 * jnp.sum(noise**2) - normalizer - jnp.sum(jnp.log(sides))


def entropy(mean: jax.Array, *, sigma: float) -> jax.Array:
    """Differential entropy `f32[]` in nats of the density of `log_prob`."""
    chex.assert_shape(mean, (4,))
    sides = mean[2:] - mean[:2]
    return (
        2 * math.log(2 * math.pi * math.e)
        + 4 * jnp.log(sigma)
        + jnp.sum(jnp.log(sides))
    )
