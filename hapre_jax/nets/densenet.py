"""DenseNet-121/169 as torchvision builds them.

Huang et al., "Densely Connected Convolutional Networks", 2017, with bottleneck layers
and compression (DenseNet-BC).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets.layers import Norm, conv, head, stem_pool, tap
from hapre_jax.nets.output import Output

_GROWTH = 32  # channels that a layer adds
_BOTTLENECK = 4 * _GROWTH
_STEM = 64


class DenseLayer(nn.Module):
    """1x1 and 3x3 convolutions, whose output is appended to the input."""

    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = x
        for i, (features, kernel) in enumerate(((_BOTTLENECK, 1), (_GROWTH, 3)), 1):
            y = nn.relu(Norm(self.norm, self.dtype, name=f"norm{i}")(y, train=train))
            y = conv(
                features, kernel, mode="fan_in", dtype=self.dtype, name=f"conv{i}"
            )(y)
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """A densely connected network; H and W of at least 29 pixels.

    Features are the blocks' outputs, the last one normalized and rectified: what the
    head averages.

    Attributes:
      num_classes: K; 0 for a trunk without a head.
      block_sizes: layers in each block.
      norm: one of `layers.NORMS`.
      dtype: of the computation; parameters are float32.
      rematerialize: whether a gradient computes the inside of each layer again, see
        `resnet.ResNet`.
    """

    num_classes: int
    block_sizes: Sequence[int]
    norm: str = "batch"
    dtype: Any = jnp.float32
    rematerialize: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits `f32[B, K]` and stage features of `image` f32[B, H, W, C]."""
        convolve = functools.partial(conv, mode="fan_in", dtype=self.dtype)

        def activate(x, name):
            return nn.relu(Norm(self.norm, self.dtype, name=name)(x, train=train))

        def run(layer, x):
            return layer(x, train=train)

        if self.rematerialize:
            run = nn.remat(run)
        x = convolve(_STEM, 7, 2, name="stem_conv")(image.astype(self.dtype))
        x = stem_pool(activate(x, "stem_norm"))
        features = {}
        for block, layers in enumerate(self.block_sizes, 1):
            for index in range(1, layers + 1):
                layer = DenseLayer(
                    self.norm, self.dtype, name=f"block{block}_layer{index}"
                )
                x = run(layer, x)
            last = block == len(self.block_sizes)
            if last:
                x = activate(x, "final_norm")
            x = features[f"stage{block}"] = tap(self, f"stage{block}", x)
            if not last:
                x = activate(x, f"transition{block}_norm")
                x = convolve(x.shape[-1] // 2, 1, name=f"transition{block}_conv")(x)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        return Output(head(self.num_classes, x), features)


densenet121 = functools.partial(DenseNet, block_sizes=(6, 12, 24, 16))
densenet169 = functools.partial(DenseNet, block_sizes=(6, 12, 32, 32))
