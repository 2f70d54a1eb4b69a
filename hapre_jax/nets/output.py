"""What every network returns."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

_STAGE = "stage"


class Output(NamedTuple):
    """Predictions and what led to them; unused features cost nothing under jit."""

    logits: Any  # f32[B, K]; of a policy network as its operation reads them
    features: dict[str, jax.Array]  # [B, h, w, channels], "stage1".. of a trunk
    # More f32[B, K] that learn the same labels, in training only (DANet).
    auxiliary: tuple[jax.Array, ...] = ()


def stages(features: Iterable[str]) -> list[str]:
    """Names of a trunk's stages among those of features, from fine to coarse."""
    found = [name for name in features if name.startswith(_STAGE)]
    return sorted(found, key=lambda name: int(name.removeprefix(_STAGE)))
