"""What a policy network learns from the losses of actions tried on one image."""

import chex
import jax
import jax.numpy as jnp

from hapre_jax import losses

# Weight of the squared distance to the bounds beside an objective of order one, not
# stated in the paper: a box whose center is a tenth of the image out costs 0.06, twice
# what a typical advantage is worth.
_BOUND_WEIGHT = 3.0


def paper_loss(
    logits: jax.Array, target: jax.Array, reward: jax.Array, *, gamma: float = 2.0
) -> jax.Array:
    """Focal loss to the map of the optimal key area, times the reward (paper, Eq. 3).

    Reward-weighted imitation, not an unbiased policy gradient: a weight that is never
    negative cannot push the policy away from a box.

    Args:
      logits: `f32[g, g]` of the policy network.
      target: `f32[g, g]` in [0, 1], `boxes.mask` of BB_optimal; no gradient.
      reward: `f32[]`, R of `rewards.paper_reward`; no gradient.
      gamma: of the focal loss.
    """
    chex.assert_rank([logits, target, reward], [2, 2, 0])
    target, reward = jax.lax.stop_gradient((target, reward))
    return losses.focal_loss(logits, target, gamma=gamma) * reward


def reinforce_loss(log_probs: jax.Array, task_losses: jax.Array) -> jax.Array:
    """REINFORCE with the mean over an image's samples as baseline (paper, Eq. 2).

    The reward of an action is minus its task loss, and its advantage is relative to
    the mean over the image's own samples. With antithetic pairs this estimates the
    gradient with respect to the center of the box without bias. With respect to its
    size, the part due to shifts that scale with the sides is shrunk by 1 - 2 / n, as
    the two samples of a pair share their baseline.

    Args:
      log_probs: `f32[n]`, `policy.log_prob` of each sampled box.
      task_losses: `f32[n]`, task loss of each; no gradient.
    """
    chex.assert_rank([log_probs, task_losses], 1)
    chex.assert_equal_shape([log_probs, task_losses])
    advantages = jax.lax.stop_gradient(jnp.mean(task_losses) - task_losses)
    return -jnp.mean(log_probs * advantages)


def elite(task_losses: jax.Array, mean_loss: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best candidate and how much it beats the mean action, to imitate it so much.

    Args:
      task_losses: `f32[n]`, task loss of each candidate.
      mean_loss: `f32[]`, task loss of the policy's mean action; a candidate that is not
        better has weight 0.

    Returns:
      Index `i32[]` and weight `f32[]` >= 0, without gradient.
    """
    chex.assert_rank([task_losses, mean_loss], [1, 0])
    best = jnp.argmin(task_losses)
    improvement = jnp.maximum(mean_loss - task_losses[best], 0.0)
    return best, jax.lax.stop_gradient(improvement)


def bound_loss(mean: jax.Array, valid: jax.Array) -> jax.Array:
    """Pulls a mean action that is not valid back to the nearest that is: `f32[]`.

    A mean past the bounds draws actions that are all clipped to the same one: no
    advantage, no gradient, no way back.

    Args:
      mean: `f32[d]`, the policy's mean action.
      valid: `f32[d]`, the same clipped; no gradient.
    """
    chex.assert_equal_shape([mean, valid])
    return _BOUND_WEIGHT * jnp.sum((mean - jax.lax.stop_gradient(valid)) ** 2)
