"""U-Net: one logit a pixel.

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", 2015; with padding, so that the answer has the image's size, and with
normalization, both as is usual since.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets import layers
from hapre_jax.nets.layers import Norm, tap
from hapre_jax.nets.output import Output


class UNet(nn.Module):
    """Two convolutions a level, down to a 2^(levels - 1)-th of the size, and up again.

    Attributes:
      num_classes: K, structures to find; a pixel may be of several.
      levels: the image's sides must be multiples of 2^(levels - 1). 5 in the paper.
      width: channels of the first level, doubled at each next one. 64 in the paper.
      norm: one of `layers.NORMS`.
      dtype: of the computation; parameters and logits are float32.
      rematerialize: whether a gradient computes each level's inside again, see
        `resnet.ResNet`.
    """

    num_classes: int = 1
    levels: int = 3
    width: int = 16
    norm: str = "batch"
    dtype: Any = jnp.float32
    rematerialize: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits `f32[B, H, W, K]` and features of `image` f32[B, H, W, C]."""
        factor = 2 ** (self.levels - 1)
        if image.shape[1] % factor or image.shape[2] % factor:
            raise ValueError(f"sides {image.shape[1:3]} are no multiples of {factor}")

        def convolve(module, x, features, name):
            del module  # for Flax: the layers are its own
            for index in (1, 2):
                conv = layers.conv(
                    features, 3, dtype=self.dtype, name=f"{name}_conv{index}"
                )
                norm = Norm(self.norm, self.dtype, name=f"{name}_norm{index}")
                x = nn.relu(norm(conv(x), train=train))
            return x

        if self.rematerialize:
            convolve = nn.remat(convolve, static_argnums=(2, 3))
        x, features = image.astype(self.dtype), {}
        for level in range(self.levels):
            if level:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            name = f"down{level + 1}"
            x = convolve(self, x, self.width * 2**level, name)
            x = features[name] = tap(self, name, x)
        for level in reversed(range(self.levels - 1)):
            skipped = features[f"down{level + 1}"]
            x = jax.image.resize(x, (*skipped.shape[:3], x.shape[3]), "nearest")
            name = f"up{level + 1}"
            x = jnp.concatenate([skipped, x], axis=-1)
            x = convolve(self, x, self.width * 2**level, name)
            x = features[name] = tap(self, name, x)
        logits = nn.Conv(self.num_classes, (1, 1), name="logits")
        return Output(logits(x.astype(jnp.float32)), features)
