"""The policy network: a ResNet trunk, a top-down pyramid, and logits read off it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets.layers import tap, top_down
from hapre_jax.nets.output import Output

# Places of a side that numbers are read off. Not stated in the paper, whose policy has
# no numbers: enough to tell the top of a chest from its base, and left from right.
_PLACES = 4


class PolicyNet(nn.Module):
    """Says what the policy reads its mean action from: maps, numbers or several.

    A map says for each cell of a grid whether it belongs to the key area; of three, the
    cell proposes an area.

    The trunk's stages are merged by `layers.top_down`, so that each cell sees the whole
    image. Numbers are read off the pyramid's means over 4 x 4 places, by a hidden
    layer. The last layers start at zero: a map is uniform and the first key area is the
    whole image.

    Attributes:
      trunk: a network returning `Output`, with 0 classes: its logits are unused.
      grid: g, cells a side.
      width: channels of the pyramid. Not stated in the paper; 32 costs about as much as
        a ResNet-8 trunk.
      shape: of an image's logits, `Operation.logits_shape`; None for a map (g, g).
      dtype: of the computation; parameters and logits are float32.
    """

    trunk: nn.Module
    grid: int = 16
    width: int = 32
    dtype: Any = jnp.float32
    shape: Any = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits and features of `image` f32[B, H, W, C].

        Logits are `f32[B, g, g]`, or `[B, *shape]`, or a tuple of such arrays.
        """
        features = self.trunk(image, train=train).features
        merged = top_down(features, grid=self.grid, width=self.width, dtype=self.dtype)
        merged = tap(self, "pyramid", merged)
        features = features | {"pyramid": merged}
        merged = merged.astype(jnp.float32)
        asked = self.shape or (self.grid, self.grid)
        if isinstance(asked[0], int):
            return Output(self._logits(merged, asked, "logits"), features)
        logits = tuple(
            self._logits(merged, of, f"logits_{index}")
            for index, of in enumerate(asked)
        )
        return Output(logits, features)

    def _logits(self, merged, shape, name):
        zeros = nn.initializers.zeros
        if len(shape) > 1:
            channels = shape[2] if len(shape) == 3 else 1
            maps = nn.Conv(channels, (1, 1), kernel_init=zeros, name=name)(merged)
            return maps if len(shape) == 3 else maps[..., 0]
        if not shape[0]:
            return jnp.zeros((merged.shape[0], 0))
        side = min(_PLACES, self.grid)
        pooled = jax.image.resize(
            merged, (merged.shape[0], side, side, merged.shape[-1]), "linear"
        )
        hidden = nn.Dense(self.width, name=f"{name}_hidden")(
            pooled.reshape(merged.shape[0], -1)
        )
        return nn.Dense(shape[0], kernel_init=zeros, name=name)(nn.relu(hidden))
