"""VGG-16/19 as torchvision builds them, without normalization.

Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax.nets.layers import conv, tap
from hapre_jax.nets.output import Output

_WIDTHS = (64, 128, 256, 512, 512)
_POOLED = 7  # a side of what the classifier sees, whatever the image's size
_HIDDEN = 4096
_DROPOUT = 0.5


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
    """Means of `x` [B, h, w, C] over `size` x `size` windows that cover it.

    As `torch.nn.AdaptiveAvgPool2d`: window i goes from floor(i h / size) to
    ceil((i + 1) h / size), so windows overlap where h is no multiple of `size`.
    """

    def weights(side):
        first = [i * side // size for i in range(size)]
        last = [-(-(i + 1) * side // size) for i in range(size)]
        place = np.arange(side)
        inside = (place >= np.c_[first]) & (place < np.c_[last])
        return jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)

    return jnp.einsum("ih,jw,bhwc->bijc", weights(x.shape[1]), weights(x.shape[2]), x)


class VGG(nn.Module):
    """A plain stack of 3x3 convolutions; H and W of at least 32 pixels.

    Features are the stages before their max-pool.

    Attributes:
      num_classes: K; 0 for a trunk without its 120 million parameters of classifier.
      stage_sizes: convolutions in each stage.
      norm: taken as by the other networks and unused: there is nothing to normalize.
      dtype: of the computation; parameters are float32.
      rematerialize: whether a gradient computes the inside of each stage again, see
        `resnet.ResNet`.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    norm: str = "batch"
    dtype: Any = jnp.float32
    rematerialize: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits `f32[B, K]` and stage features of `image` f32[B, H, W, C]."""

        def run(module, x, stage):
            del module  # for Flax: the layers are its own
            for index in range(1, self.stage_sizes[stage - 1] + 1):
                name = f"stage{stage}_conv{index}"
                width = _WIDTHS[stage - 1]
                convolve = conv(width, 3, use_bias=True, dtype=self.dtype, name=name)
                x = nn.relu(convolve(x))
            return x

        if self.rematerialize:
            run = nn.remat(run, static_argnums=2)
        x = image.astype(self.dtype)
        features = {}
        for stage in range(1, len(self.stage_sizes) + 1):
            x = run(self, x, stage)
            x = features[f"stage{stage}"] = tap(self, f"stage{stage}", x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        if not self.num_classes:
            return Output(jnp.zeros((x.shape[0], 0)), features)
        x = adaptive_average_pool(x, _POOLED).reshape(x.shape[0], -1)
        dense = functools.partial(
            nn.Dense, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype
        )
        for index in (1, 2):
            x = nn.relu(dense(_HIDDEN, name=f"hidden{index}")(x))
            x = nn.Dropout(_DROPOUT, deterministic=not train)(x)
        x = x.astype(jnp.float32)
        return Output(dense(self.num_classes, dtype=None, name="head")(x), features)


vgg16 = functools.partial(VGG, stage_sizes=(2, 2, 3, 3, 3))
vgg19 = functools.partial(VGG, stage_sizes=(2, 2, 4, 4, 4))
