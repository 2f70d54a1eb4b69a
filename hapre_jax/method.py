"""What the trainer, the evaluation and the tables know of a method: pure functions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Aux(NamedTuple):
    """What a loss gives besides its value."""

    model_state: dict  # as a `Method`'s, with new BatchNorm statistics
    # f32[] each, for the log: means over all images, so that those of parts and steps
    # may be averaged. What is known of some images alone is 0 for the others, and
    # "NAME/known" the share of these: NAME over it is the mean over them.
    metrics: dict[str, jax.Array]


class Prediction(NamedTuple):
    """What a method says of images it has never seen."""

    # f32[B, K] of a classifier; of another task what its `Task` answers.
    probabilities: jax.Array
    # What of the film is kept, f32[B, 4] yxyx: the key area, as the policy's valid mean
    # action has it; None where nothing is cut.
    area: jax.Array | None = None
    entropy: jax.Array | None = None  # of the policy at its final width, f32[B], nats
    policy_map: jax.Array | None = None  # sigmoid of the policy's map, f32[B, g, g]
    # What else the mean action sets, in units that a reader knows: f32[B] each.
    parameters: dict[str, jax.Array] | None = None


class Method(NamedTuple):
    """A way to train a task network, as pure functions.

    `params` and `model_state` hold one sub-tree a network: "task", and "policy" where
    there is one; the model state also what `prepare` learned. `average` is a pair of
    both, averaged over the last steps. `batch` holds "image" f32[B, H, W, C] in [0, 1],
    "label" i32[B], "index" i32[B] (rows of the training split), "lung_box" f32[B, 4] in
    a data set with known lungs, and what a task asks for: "lungs" f32[B, H, W, 1] in
    [0, 1], the lung masks, or "boxes" f32[B, M, 4], lesion boxes, NaN where an image
    has fewer. `predict` gets the image and the lung box only. A batch of one has a
    "partner", another such batch, where the method needs one.
    """

    init: Callable  # (key, image) -> (params, model_state)
    loss: Callable  # (params, model_state, average, batch, key, step) -> (f32[], Aux)
    predict: Callable  # (params, model_state, batch) -> Prediction
    task_losses: Callable  # (params, model_state, batch, areas [B, 4]) -> f32[B]
    needs_lungs: bool = False  # only of use where the batch has "lung_box"
    needs_partner: bool = False  # mixes images; of a batch of one with its "partner"
    # The task network alone gives the answer, to the key area or the whole film.
    has_one_network: bool = False
    # What is learned before the first step, from the plain classifier's averages:
    # (params, model_state, training batches, validation split, progress) -> a part of
    # the model state.
    prepare: Callable | None = None


def network_variables(name: str, params: dict, model_state: dict) -> dict:
    """Flax variables of one network of a `Method`, by name."""
    return {"params": params[name], **model_state[name]}


def of_networks(params: dict, model_state: dict) -> tuple[dict, dict]:
    """A pair like these, without what of the model state `prepare` learned."""
    return params, {name: model_state[name] for name in params}


def split_variables(variables: dict) -> tuple[dict, dict]:
    """Flax variables of each network as (parameters, all that is not learned)."""
    params = {name: tree["params"] for name, tree in variables.items()}
    state = {
        name: {k: v for k, v in tree.items() if k != "params"}
        for name, tree in variables.items()
    }
    return params, state


def to_float(batch: dict) -> dict:
    """Stored pixels `u8` 0..255 as `f32` in [0, 1]; the rest of the batch as it is.

    Raises:
      ValueError: pixels are of another type, whose range nobody knows.
    """
    stored = {name: batch[name] for name in ("image", "lungs") if name in batch}
    for name, pixels in stored.items():
        if pixels.dtype != jnp.uint8:
            raise ValueError(
                f"{name} is of {pixels.dtype}, but stored pixels are uint8, 0 to 255"
            )
    return batch | {n: x.astype(jnp.float32) / 255 for n, x in stored.items()}
