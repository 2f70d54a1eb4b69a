"""How a function under `vmap` sees its batch: as one, or not if none needs it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def as_one_batch(function: Callable) -> Callable:
    """The same function of a batch `[N, ...]`, which under `vmap` sees all as one.

    `vmap` adds an axis to each operation of a network instead, and XLA cannot join a
    convolution on a GPU with what follows it across the change of shape.

    Args:
      function: of one array, to a tree of arrays `[N, ...]`, each element of its own.
        What it closes over is neither mapped nor differentiated.
    """

    @jax.custom_batching.custom_vmap
    def one(x):
        return function(x)

    @one.def_vmap
    def of_all(axis_size, is_batched, x):
        del is_batched
        results = function(x.reshape(-1, *x.shape[2:]))
        split = jax.tree.map(lambda y: y.reshape(axis_size, -1, *y.shape[1:]), results)
        return split, jax.tree.map(lambda y: True, split)

    return one


def compute_if_any_needs(function: Callable) -> Callable:
    """The same function of `(needed, *arguments)`, or zeros where it is not needed.

    Under `vmap` a condition becomes a selection, which computes both sides. Here the
    elements decide together: all are computed where `needed`, `bool[]`, is true of one
    of them, and none where it is of none.

    Args:
      function: of arrays, to one array. Its gradient is not asked for.
    """

    def compute(needed, function, *arguments):
        result = jax.eval_shape(function, *arguments)
        zeros = jnp.zeros(result.shape, result.dtype)
        return jax.lax.cond(needed, function, lambda *_: zeros, *arguments)

    @jax.custom_batching.custom_vmap
    def one(needed, *arguments):
        return compute(needed, function, *arguments)

    @one.def_vmap
    def of_all(axis_size, is_batched, needed, *arguments):
        axes = [0 if each else None for each in is_batched[1:]]
        together = jax.vmap(function, axes, axis_size=axis_size)
        return compute(jnp.any(needed), together, *arguments), True

    return one
