"""The paper's reward: from task losses alone, per image, without branches."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Reward(NamedTuple):
    """What lines 7-23 of Algorithm 1 decide for one image."""

    reward: jax.Array  # f32[], R of Eq. 6 and 8, >= 0: weighs the detection loss
    # i32[], BB_optimal: 0 the detected box, 1 expanded, 2 shrunk, then other neighbors
    choice: jax.Array
    d1: jax.Array  # f32[], Eq. 5, negative where the key area helps
    d2: jax.Array  # f32[], Eq. 7; equal to d1 where d1 < 0, where the paper has no D2


def paper_reward(
    loss_original: jax.Array,
    loss_detected: jax.Array,
    *loss_neighbors: jax.Array,
    balance: float = 0.5,
) -> Reward:
    """Reward and optimal key area of one image (paper, Eq. 5-8, Algorithm 1).

    Kept as published: R is a weight, never negative, *smaller* for a better crop
    (e^D), and it jumps from 1 to 0 where D2 reaches 0 from below. The first neighbor
    wins a tie. No gradient flows into the losses.

    Args:
      loss_original: `f32[]`, task loss of the whole image (L_ori).
      loss_detected: `f32[]`, of the policy's key area (L_aug).
      loss_neighbors: `f32[]` each, at least one. The paper has two: that area times
        alpha and times 1 / alpha (L_exp, L_shr).
      balance: lambda of Eq. 7, in [0, 1]. Not stated in the paper; 0.5 weighs the gain
        of the neighbor and the loss of the detected box alike.

    Raises:
      ValueError: there is no neighbor.
    """
    if not loss_neighbors:
        raise ValueError("the reward needs the loss of at least one neighbor")
    losses = (loss_original, loss_detected, *loss_neighbors)
    chex.assert_rank(losses, 0)
    stacked = jax.lax.stop_gradient(jnp.stack(losses))
    original, detected, neighbors = stacked[0], stacked[1], stacked[2:]
    d1 = detected - original
    helped = d1 < 0
    d2 = balance * (jnp.min(neighbors) - detected) + (1 - balance) * d1
    d2 = jnp.where(helped, d1, d2)
    # exp only of what is negative: the other branch must not overflow.
    reward = jnp.where(d2 < 0, jnp.exp(jnp.minimum(d2, 0.0)), d2)
    choice = jnp.where(helped, 0, 1 + jnp.argmin(neighbors))
    return Reward(reward, choice, d1, d2)
