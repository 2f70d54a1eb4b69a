"""The policy network: a ResNet trunk, a top-down pyramid and one grid of logits."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets.output import Output


class PolicyNet(nn.Module):
    """Says for each cell of a grid whether it belongs to the key area.

    The trunk's stages are merged top down (Lin et al., "Feature Pyramid Networks",
    2017) from the coarsest to the coarsest one that still has `grid` cells a side, so
    that each cell sees the whole image. The last convolution starts at zero: the map
    is uniform and the first key area is the whole image.

    Attributes:
      trunk: a network returning `Output`, with 0 classes: its logits are unused.
      grid: g, cells a side.
      width: channels of the pyramid. Not stated in the paper; 32 costs about as much as
        a ResNet-8 trunk.
      dtype: of the computation; parameters and logits are float32.
    """

    trunk: nn.Module
    grid: int = 16
    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits `f32[B, g, g]` and features of `image` f32[B, H, W, C]."""
        features = self.trunk(image, train=train).features
        top, *rest = sorted(features, reverse=True)
        merged = self._lateral(top, features[top])
        for stage in rest:
            if merged.shape[1] >= self.grid:
                break
            finer = self._lateral(stage, features[stage])
            merged = finer + jax.image.resize(merged, finer.shape, "nearest")
        merged = nn.relu(merged)
        shape = (merged.shape[0], self.grid, self.grid, merged.shape[-1])
        merged = jax.image.resize(merged, shape, "linear")
        merged = nn.relu(
            nn.Conv(self.width, (3, 3), dtype=self.dtype, name="mix")(merged)
        )
        logits = nn.Conv(1, (1, 1), kernel_init=nn.initializers.zeros, name="logits")(
            merged.astype(jnp.float32)
        )
        return Output(logits[..., 0], features | {"pyramid": merged})

    def _lateral(self, stage, x):
        return nn.Conv(self.width, (1, 1), dtype=self.dtype, name=f"lateral_{stage}")(x)
