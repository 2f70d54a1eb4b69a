"""What every network returns."""

from typing import NamedTuple

import jax


class Output(NamedTuple):
    """Predictions and what led to them; unused features cost nothing under jit."""

    logits: jax.Array  # f32[B, K]; of a policy network f32[B, g, g]
    features: dict[str, jax.Array]  # "stage1".. the last: f32[B, h, w, channels]
    # More f32[B, K] that learn the same labels, in training only (DANet).
    auxiliary: tuple[jax.Array, ...] = ()
