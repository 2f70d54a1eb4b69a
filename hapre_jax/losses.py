"""Losses on logits: unreduced over examples, safe for large logits."""

import chex
import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy of one example (paper, section 3.1).

    Args:
      logits: `f32[K]`.
      label: `i32[]` in 0..K-1, which is not checked: of another number the loss is
        NaN, or that of a class counted from the end.

    Returns:
      `f32[]` in nats, >= 0; log(K) for equal logits.
    """
    chex.assert_rank([logits, label], [1, 0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def focal_loss(
    logits: jax.Array, target: jax.Array, *, gamma: float = 2.0
) -> jax.Array:
    """Pixel-wise focal loss, the mean over cells (paper, Eq. 4).

    For a cell with probability p = sigmoid(logit) and target t the loss is
    `e^gamma * (-t log(p) - (1 - t) log(1 - p))` with `e = t (1 - p) + (1 - t) p`, the
    chance of being wrong; `gamma = 0` is binary cross-entropy. The paper sums over
    cells; the mean does not change the minimum and keeps learning rates independent
    of the grid.

    Args:
      logits: `f32[...]`, any shape, finite for any finite logit.
      target: same shape, in [0, 1]; a fraction is a cell partly covered. With gamma > 0
        the minimum is not at p = t then, but nearer to 0 or 1: who imitates a box moves
        its edges to the nearest cells.
      gamma: focusing parameter, >= 0. The paper does not give it; 2 is the value of
        Lin et al., "Focal Loss for Dense Object Detection", 2017.

    Returns:
      `f32[]`, >= 0.
    """
    chex.assert_equal_shape([logits, target])
    return jnp.mean(optax.sigmoid_focal_loss(logits, target, alpha=None, gamma=gamma))


def dice_loss(probabilities: jax.Array, target: jax.Array) -> jax.Array:
    """1 - soft Dice coefficient, the mean over structures.

    `1 - (2 sum(p t) + 1) / (sum(p^2) + sum(t^2) + 1)`, as in Milletari et al.,
    "V-Net", 2016, and with 1, a pixel, so that nothing found where there is nothing
    costs nothing.

    Args:
      probabilities: `f32[H, W, K]` in [0, 1].
      target: same shape, in [0, 1].

    Returns:
      `f32[]` in [0, 1].
    """
    chex.assert_rank([probabilities, target], 3)
    chex.assert_equal_shape([probabilities, target])
    chex.assert_type([probabilities, target], float)
    # Sums over pixels are beyond the numbers of half precision.
    probabilities, target = (x.astype(jnp.float32) for x in (probabilities, target))
    shared = jnp.sum(probabilities * target, axis=(0, 1))
    both = jnp.sum(probabilities**2, axis=(0, 1)) + jnp.sum(target**2, axis=(0, 1))
    return jnp.mean(1 - (2 * shared + 1) / (both + 1))


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean `f32[]` of values `f32[N]` of weight 1, not of those of weight 0."""
    chex.assert_rank(values, 1)
    chex.assert_equal_shape([values, weights])
    return jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), 1.0)
