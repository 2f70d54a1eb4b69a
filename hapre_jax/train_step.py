"""The jitted update, a pure function that carries a state from step to step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hapre_jax import random_views, sharding
from hapre_jax.config import Config
from hapre_jax.method import Aux, Method, to_float
from hapre_jax.train_state import TrainState

# Numbers of an array that is not worth a kernel of its own on a GPU.
_SMALL = 4096


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh | None = None,
) -> Callable:
    """The step `(state, batch) -> (state, metrics)`; the state is donated.

    The batch is as a `Method`'s, but with stored pixels: "image" `u8[B, H, W, C]`. That
    labels are in 0..K-1 is not checked.

    A `functools.partial` of the jitted `(root, state, batch)`: the key data that the
    seed gives is an argument, so that what is compiled for one seed serves them all.
    With `train.steps_per_call` > 1 it takes a tuple of so many batches, and each of its
    metrics is `f32[steps]`.

    `metrics` has the loss's own, and the norms of each network's gradient and of its
    new weights and statistics: where all are finite, so is the new state. With
    `train.on_nonfinite` at skip, the state keeps all but its step where one is not.
    Over the devices of a mesh, state and batch lie as `sharding` puts them.
    """

    def step(root, state, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(root), state.step)
        view_key, loss_key = jax.random.split(key)
        batch = random_views.draw(to_float(batch), view_key, config.data)
        if "partner" in batch:  # see `Method`; its views are its own
            partner_key = jax.random.fold_in(view_key, 1)
            batch["partner"] = random_views.draw(
                to_float(batch["partner"]), partner_key, config.data
            )
        gradients, aux = _gradients(
            method.loss, state, batch, loss_key, parts=config.train.parts
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = _computed_once((params, opt_state))
        norms = {f"grad_norm/{k}": norm(g) for k, g in gradients.items()}
        norms |= {
            f"weight_norm/{k}": norm((params[k], aux.model_state[k])) for k in params
        }
        average = move_average(
            state.average,
            (params, aux.model_state),
            state.step,
            decay=config.train.average_decay,
        )
        metrics = sharding.everywhere(aux.metrics | norms, mesh)
        new = TrainState(state.step + 1, params, aux.model_state, opt_state, average)
        if config.train.on_nonfinite == "skip":
            is_finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
            kept = jax.tree.map(
                lambda old, new: jnp.where(is_finite, new, old), state, new
            )
            new = kept._replace(step=state.step + 1)
        return sharding.keep_state(new, mesh), metrics

    def several(root, state, batches):
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)
        return jax.lax.scan(functools.partial(step, root), state, stacked)

    is_single = config.train.steps_per_call == 1
    jitted = jax.jit(step if is_single else several, donate_argnums=1)
    # Data, as a key cannot be put on the devices of several processes.
    root = jax.random.key_data(jax.random.key(config.seed))
    if mesh is not None:
        root = sharding.put_state(root, mesh)
    return functools.partial(jitted, root)


def _gradients(loss, state, batch, key, *, parts):
    """Gradients and `Aux` of a batch: the means over its parts, one after the other."""
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(
            state.params, state.model_state, state.average, batch, key, state.step
        )

    def add(carried, part):
        total, model_state = carried
        index, images = part
        gradients, aux = gradient(
            state.params,
            model_state,
            state.average,
            images,
            jax.random.fold_in(key, index),
            state.step,
        )
        return (jax.tree.map(jnp.add, total, gradients), aux.model_state), aux.metrics

    # Image i goes to part i % parts, so that each device has an equal share of each.
    divided = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch
    )
    start = jax.tree.map(jnp.zeros_like, state.params), state.model_state
    (total, model_state), metrics = jax.lax.scan(
        add, start, (jnp.arange(parts), divided)
    )
    gradients = jax.tree.map(lambda x: x / parts, total)
    metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
    return gradients, Aux(model_state, metrics)


def _computed_once(tree):
    """The same tree; XLA computes large arrays of it no second time for other uses.

    For these it would need, and copy, all that an optimizer's update overwrites.
    """
    leaves, structure = jax.tree.flatten(tree)
    large = [i for i, leaf in enumerate(leaves) if leaf.size > _SMALL]
    held = jax.lax.optimization_barrier([leaves[i] for i in large])
    for i, leaf in zip(large, held, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def norm(tree) -> jax.Array:
    """Euclidean norm `f32[]` of all numbers of a tree of arrays.

    As `optax.tree.norm`, but the many small arrays of a network are squared together: a
    GPU takes as long for each as for all.
    """
    leaves = jax.tree.leaves(tree)
    small = [leaf.ravel() for leaf in leaves if leaf.size <= _SMALL]
    together = [jnp.concatenate(small)] if small else []
    large = [leaf for leaf in leaves if leaf.size > _SMALL]
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in (*together, *large)))


def move_average(average, new, step: jax.Array, *, decay: float):
    """Exponential moving average of a tree; it forgets faster in the first steps.

    The effective decay is min(decay, (1 + step) / (10 + step)), so that the random
    initialization does not linger; 0 gives `new` itself.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, n: n + kept * (a - n), average, new)
