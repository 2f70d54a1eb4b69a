"""Double Q-learning (van Hasselt et al., 2016) as pure functions on arrays."""

import chex
import jax
import jax.numpy as jnp


def explore(key: jax.Array, values: jax.Array, epsilon: jax.Array) -> jax.Array:
    """An action `i32[]`: the most valuable, or with probability epsilon any one.

    Args:
      key: PRNG key.
      values: `f32[A]`, Q of each action.
      epsilon: `f32[]` in 0..1.
    """
    chex.assert_rank([values, epsilon], [1, 0])
    chance_key, action_key = jax.random.split(key)
    anything = jax.random.randint(action_key, (), 0, len(values))
    is_random = jax.random.uniform(chance_key) < epsilon
    return jnp.where(is_random, anything, jnp.argmax(values)).astype(jnp.int32)


def td_error(
    values: jax.Array,
    action: jax.Array,
    reward: jax.Array,
    next_values: jax.Array,
    next_target_values: jax.Array,
    is_last: jax.Array,
    *,
    discount: float,
) -> jax.Array:
    """What an action was worth, less what was thought: `f32[]`.

    The next action is the best one for the network that learns, and its worth is what
    the slower target network thinks of it. The gradient reaches `values` alone.

    Args:
      values: `f32[A]`, Q of the state.
      action: `i32[]`, taken in it.
      reward: `f32[]`, that followed.
      next_values: `f32[A]`, Q of the next state.
      next_target_values: `f32[A]`, the target network's.
      is_last: `bool[]`, whether there is no next state.
      discount: of what comes later, 0 to 1.
    """
    chex.assert_rank([values, next_values, next_target_values], 1)
    chex.assert_rank([action, reward, is_last], 0)
    later = next_target_values[jnp.argmax(next_values)]
    target = reward + discount * jnp.where(is_last, 0.0, later)
    return jax.lax.stop_gradient(target) - values[action]
