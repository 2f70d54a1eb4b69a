"""What a checkpoint holds: the state of a training, before its first step and on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hapre_jax import optimization, pretrained
from hapre_jax.config import Config
from hapre_jax.method import Method


class TrainState(NamedTuple):
    """Plain arrays only. The key of a step is derived from the seed and the step."""

    step: jax.Array  # i32[], updates done
    params: dict
    model_state: dict
    opt_state: optax.OptState
    average: tuple[dict, dict]  # moving average of (params, model_state): what is used


def init(
    method: Method,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    image: jax.Array | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      method: see `Method`.
      optimizer: see `optimization.make_optimizer`.
      config: of the run.
      image: `f32[1, H, W, C]` of the shape of the films; by default a gray square of
        `data.image_size`.
    """
    side = config.data.image_size
    if image is None:
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


def blank(
    method: Method, config: Config, *, image: jax.Array | None = None
) -> TrainState:
    """Shapes and types of a run's state, to restore a checkpoint into; see `init`."""
    optimizer = optimization.make_optimizer(config)
    return jax.eval_shape(lambda: init(method, optimizer, config, image=image))
