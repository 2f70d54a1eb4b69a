"""An anchor-free detector: each cell says whether an object's middle lies in it.

Zhou, Wang, Krähenbühl, "Objects as Points", 2019 (CenterNet), on the same pyramid as
the policy network's.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets.layers import tap, top_down
from hapre_jax.nets.output import Output


class CenterNet(nn.Module):
    """Five numbers a cell: a logit, where in the cell, and how large.

    Attributes:
      trunk: a network returning `Output`, with 0 classes.
      grid: g, cells a side.
      width: channels of the pyramid. 64 in the reference.
      prior: probability of an object that each cell says at first, as Lin et al.,
        "Focal Loss for Dense Object Detection", 2017.
      dtype: of the computation; parameters and logits are float32.
    """

    trunk: nn.Module
    grid: int = 16
    width: int = 32
    prior: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits `f32[B, g, g, 5]`: of the middle, its place, log height and width."""
        features = self.trunk(image, train=train).features
        merged = top_down(features, grid=self.grid, width=self.width, dtype=self.dtype)
        merged = tap(self, "pyramid", merged)

        def bias(key, shape, dtype=jnp.float32):
            del key
            odds = self.prior / (1 - self.prior)
            return jnp.zeros(shape, dtype).at[0].set(jnp.log(odds))

        small = nn.initializers.normal(0.01)
        head = nn.Conv(5, (1, 1), kernel_init=small, bias_init=bias, name="logits")
        return Output(head(merged.astype(jnp.float32)), features | {"pyramid": merged})
