"""What a checkpoint holds, and the jitted update that carries it from step to step."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hapre_jax import pretrained, random_views, sharding
from hapre_jax.config import Config, TrainConfig
from hapre_jax.method import Aux, Method


class TrainState(NamedTuple):
    """Plain arrays only. The key of a step is derived from the seed and the step."""

    step: jax.Array  # i32[], updates done
    params: dict
    model_state: dict
    opt_state: optax.OptState
    average: tuple[dict, dict]  # moving average of (params, model_state): what is used


def schedule(
    peak: float, train: TrainConfig, *, start: int = 0
) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of a step: 0 until `start`, linear rise, then as configured."""
    rise = train.lr_warmup_steps
    length = max(train.steps - start - rise, 1)

    def rate(count):
        since = count - start
        rising = since / max(rise, 1) if rise else jnp.where(since < 0, 0.0, 1.0)
        falling = 1.0
        if train.schedule == "cosine":
            progress = jnp.clip((since - rise) / length, 0.0, 1.0)
            falling = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * jnp.clip(rising, 0.0, 1.0) * falling

    return rate


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with its own learning rate for each network (paper, section 4.2).

    A policy has its own; all other networks have the task network's. Each network's
    gradient is clipped by itself. In the policy's warm-up its gradients are 0, which
    Adam counts: its bias correction is spent then, and the policy's first updates are
    up to twice as large as with an Adam that begins after it.
    """
    train = config.train

    def adam(rate, *, b2=0.999):
        clip = (
            _clip_each_network(train.clip_norm) if train.clip_norm else optax.identity()
        )
        return optax.chain(clip, optax.adam(rate, b2=b2))

    warmup = config.policy.warmup_steps
    return optax.multi_transform(
        {
            "task": adam(schedule(train.task_learning_rate, train)),
            # Policy gradients change their size as the policy narrows: a memory of a
            # hundred steps follows, one of a thousand would freeze it.
            "policy": adam(
                schedule(train.policy_learning_rate, train, start=warmup),
                b2=train.policy_adam_b2,
            ),
        },
        lambda params: {name: name if name == "policy" else "task" for name in params},
    )


def _clip_each_network(norm: float) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(norm)

    def update(gradients, params):
        del params
        return {
            name: clip.update(of_one, clip.init(of_one))[0]
            for name, of_one in gradients.items()
        }

    return optax.stateless(update)


def init(
    method: Method, optimizer: optax.GradientTransformation, config: Config
) -> TrainState:
    """The state before the first step."""
    side = config.data.image_size
    image = jnp.zeros((1, side, side, 1))

    @jax.jit
    def make(key):
        params, model_state = method.init(key, image)
        step = jnp.zeros((), jnp.int32)
        return TrainState(
            step,
            params,
            model_state,
            optimizer.init(params),
            average=(params, model_state),
        )

    # Copies, since the step donates its state, and no buffer may be donated twice; put
    # on a device explicitly, as restored states are, or all would compile twice.
    return jax.device_put(
        make(jax.random.key(config.seed)), jax.local_devices()[0], may_alias=False
    )


def start_from_files(
    state: TrainState, config: Config
) -> tuple[TrainState, tuple[str, ...]]:
    """The state before the first step with the weights of `*.pretrained`.

    Args:
      state: a new one, or its shapes: then this only checks the files.
      config: of the run.

    Returns:
      The state, and sentences on what could not be taken over, or is missing.

    Raises:
      UserError: see `pretrained.load`.
    """
    params, model_state = dict(state.params), dict(state.model_state)
    notes: tuple[str, ...] = ()
    task, policy, baseline = config.task, config.policy, config.baseline
    for name, field, path, net, norm in (
        ("task", "task.pretrained", task.pretrained, task.net, task.norm),
        ("policy", "policy.pretrained", policy.pretrained, policy.net, policy.norm),
        (
            "gate",
            "baseline.stage_one_pretrained",
            baseline.stage_one_pretrained,
            config.stage_one_net,
            task.norm,
        ),
    ):
        if name not in params:
            continue
        if not path:
            if model_state[name] and norm == "frozen":
                notes += (
                    f"the norms of network {name} are frozen, but there is no {field} "
                    "whose statistics they would keep: nothing is normalized",
                )
            continue
        weights, statistics = params[name], model_state[name]
        # Where a network is built on another one, the file is of the latter.
        is_trunk = "trunk" in weights
        if is_trunk:
            weights = weights["trunk"]
            statistics = {of: tree["trunk"] for of, tree in statistics.items()}
        loaded = pretrained.load(path, net, weights, statistics)
        if is_trunk:
            params[name] = {**params[name], "trunk": loaded.params}
            model_state[name] = {
                of: {**tree, "trunk": loaded.model_state[of]}
                for of, tree in model_state[name].items()
            }
        else:
            params[name], model_state[name] = loaded.params, loaded.model_state
        notes += loaded.notes
    if isinstance(state.step, jax.ShapeDtypeStruct):
        return state, notes
    return start_from(state, params, model_state), notes


def start_from(state: TrainState, params: dict, model_state: dict) -> TrainState:
    """The state before the first step with other variables, their average too."""
    # Two copies: the step donates its state.
    (params, model_state), average = (
        jax.device_put((params, model_state), jax.local_devices()[0], may_alias=False)
        for _ in range(2)
    )
    return state._replace(params=params, model_state=model_state, average=average)


def blank(method: Method, config: Config) -> TrainState:
    """Shapes and types of a run's state, to restore a checkpoint into."""
    optimizer = make_optimizer(config)
    return jax.eval_shape(lambda: init(method, optimizer, config))


def move_average(average, new, step: jax.Array, *, decay: float):
    """Exponential moving average of a tree; it forgets faster in the first steps.

    The effective decay is min(decay, (1 + step) / (10 + step)), so that the random
    initialization does not linger; 0 gives `new` itself.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, n: n + kept * (a - n), average, new)


def to_float(batch: dict) -> dict:
    """Stored pixels `u8` 0..255 as `f32` in [0, 1]; the rest of the batch as it is."""
    stored = {name: batch[name] for name in ("image", "lungs") if name in batch}
    return batch | {n: x.astype(jnp.float32) / 255 for n, x in stored.items()}


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh | None = None,
) -> Callable:
    """The step `(state, batch) -> (state, metrics)`; the state is donated.

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
        norms = {f"grad_norm/{k}": optax.tree.norm(g) for k, g in gradients.items()}
        norms |= {
            f"weight_norm/{k}": optax.tree.norm((params[k], aux.model_state[k]))
            for k in params
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
