"""What a checkpoint holds: the state of a training, before its first step and on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hapre_jax import optimization
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
