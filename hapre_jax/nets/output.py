"""What every network returns."""

from typing import Any, NamedTuple

import jax


class Output(NamedTuple):
    """Predictions and what led to them; unused features cost nothing under jit."""

    logits: Any  # f32[B, K]; of a policy network as its operation reads them
    features: dict[str, jax.Array]  # [B, h, w, channels], "stage1".. of a trunk
    # More f32[B, K] that learn the same labels, in training only (DANet).
    auxiliary: tuple[jax.Array, ...] = ()
