"""Prioritized experience replay (Schaul et al., 2016) as pure functions on arrays.

A memory is a ring: when it is full, the newest transition replaces the oldest one.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# Schaul et al.: how much priority counts (alpha), and their small constant, so that a
# transition whose error became 0 can be drawn again.
_ALPHA = 0.6
_MIN_PRIORITY = 1e-6


class Transition(NamedTuple):
    """One step of an episode; in a memory and in a batch, with a leading axis."""

    state: jax.Array  # f32[...]
    action: jax.Array  # i32[]
    reward: jax.Array  # f32[]
    next_state: jax.Array  # f32[...], of no meaning after the last step
    is_last: jax.Array  # bool[]


class Memory(NamedTuple):
    """The last R transitions."""

    transitions: Transition  # first axis R
    priorities: jax.Array  # f32[R], 0 where nothing is stored yet
    added: jax.Array  # i32[], all that were ever added


class Sample(NamedTuple):
    """B transitions drawn from a memory."""

    transitions: Transition  # first axis B
    rows: jax.Array  # i32[B], where they are stored
    weights: jax.Array  # f32[B] in (0, 1], against the bias of drawing by priority


def empty(state: jax.Array, *, size: int) -> Memory:
    """A memory for `size` transitions between states like `state` f32[...]."""
    transition = Transition(
        state,
        jnp.zeros((), jnp.int32),
        jnp.zeros(()),
        state,
        jnp.zeros((), bool),
    )
    stored = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), transition)
    return Memory(stored, jnp.zeros(size), jnp.zeros((), jnp.int32))


def add(memory: Memory, transition: Transition) -> Memory:
    """Stores a transition with the highest priority, so that it is drawn soon."""
    row = memory.added % len(memory.priorities)
    highest = jnp.max(memory.priorities)
    priority = jnp.where(memory.added == 0, 1.0, highest)
    return Memory(
        jax.tree.map(lambda all, x: all.at[row].set(x), memory.transitions, transition),
        memory.priorities.at[row].set(priority),
        memory.added + 1,
    )


def draw(key: jax.Array, memory: Memory, *, count: int, beta: jax.Array) -> Sample:
    """Draws transitions, with replacement, with probability priority^0.6 / sum.

    Args:
      key: PRNG key.
      memory: with at least one transition.
      count: B.
      beta: `f32[]`, how much of the bias the weights (R p)^-beta / max take back.
    """
    chex.assert_rank([memory.priorities, beta], [1, 0])
    scaled = memory.priorities**_ALPHA
    probabilities = scaled / jnp.sum(scaled)
    # Log of 0 is -inf: an empty place is never drawn.
    rows = jax.random.categorical(key, jnp.log(probabilities), shape=(count,))
    stored = jnp.sum(memory.priorities > 0, dtype=probabilities.dtype)
    weights = (stored * probabilities[rows]) ** -beta
    taken = jax.tree.map(lambda all: all[rows], memory.transitions)
    return Sample(taken, rows, weights / jnp.max(weights))


def reprioritize(memory: Memory, rows: jax.Array, errors: jax.Array) -> Memory:
    """Gives the transitions `rows` i32[B] the size of `errors` f32[B] as priority."""
    chex.assert_equal_shape([rows, errors])
    priorities = jnp.abs(errors) + _MIN_PRIORITY
    return memory._replace(priorities=memory.priorities.at[rows].set(priorities))
