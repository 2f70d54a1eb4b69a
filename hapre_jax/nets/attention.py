"""Attention of the paper's Tables 2 and 4: CBAM in each block, DANet as a head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets.layers import Norm, conv

_CBAM_REDUCTION = 16
_DANET_DROPOUT = 0.1


class CBAM(nn.Module):
    """Convolutional block attention: first of channels, then of places.

    Woo et al., "CBAM: Convolutional Block Attention Module", 2018, as its authors'
    code builds it: the places' normalization starts with factor 0, so that both gates
    start at about one half.
    """

    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`x` [B, h, w, C] times two gates in (0, 1)."""
        channels = x.shape[-1]
        # A network narrower than 16 channels keeps one.
        hidden = max(channels // _CBAM_REDUCTION, 1)
        reduce = nn.Dense(hidden, dtype=self.dtype, name="reduce")
        expand = nn.Dense(channels, dtype=self.dtype, name="expand")
        gate = sum(
            expand(nn.relu(reduce(pool(x, axis=(1, 2)))))
            for pool in (jnp.mean, jnp.max)
        )
        x = x * nn.sigmoid(gate)[:, None, None, :]
        places = jnp.stack([jnp.max(x, axis=-1), jnp.mean(x, axis=-1)], axis=-1)
        places = conv(1, 7, dtype=self.dtype, name="spatial_conv")(places)
        places = Norm(
            self.norm,
            self.dtype,
            momentum=0.99,
            scale_init=nn.initializers.zeros,
            name="spatial_norm",
        )(places, train=train)
        return x * nn.sigmoid(places)


def position_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Each place's mean of all places' values, weighted by how alike they are.

    Args:
      query: `f32[h, w, D]`.
      key: `f32[h, w, D]`.
      value: `f32[h, w, C]`.

    Returns:
      `f32[h, w, C]`. Fu et al., "Dual Attention Network", 2019, Eq. 1: no 1 / sqrt(D).
      Of bfloat16 too, the softmax is taken in float32.
    """
    height, width, channels = value.shape
    flat = (height * width, -1)
    energy = _product(query.reshape(flat), key.reshape(flat).T)
    weights = nn.softmax(energy).astype(value.dtype)
    return (weights @ value.reshape(flat)).reshape(height, width, channels)


def channel_attention(x: jax.Array) -> jax.Array:
    """Each channel's mean of all channels, weighted by how unlike they are.

    Args:
      x: `f32[h, w, C]`.

    Returns:
      `f32[h, w, C]`. The softmax is of the largest energy of a row less the energy, as
      in the authors' code; Eq. 3 of the paper has the opposite sign. Of bfloat16 too,
      it is taken in float32.
    """
    flat = x.reshape(-1, x.shape[-1])
    energy = _product(flat.T, flat)
    energy = jnp.max(energy, axis=-1, keepdims=True) - energy
    return (flat @ nn.softmax(energy).T.astype(x.dtype)).reshape(x.shape)


def _product(a, b):
    # Of hundreds of places the sums reach hundreds, where bfloat16 has steps of 1.
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


class DANetHead(nn.Module):
    """Logits of the sum of position and channel attention on the last features.

    Fu et al., "Dual Attention Network for Scene Segmentation", 2019, for one label an
    image: the classifiers of places are averaged over the image, which is the same as
    classifying the mean. Stride 32 is kept; the paper's dilated stride 8 makes the
    position attention of a 640-pixel image 6,400 x 6,400.
    """

    num_classes: int
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Logits `f32[B, K]` of `x` [B, h, w, C]; in training, those of both parts."""
        inner = x.shape[-1] // 4

        def mix(x, name):
            x = conv(inner, 3, dtype=self.dtype, name=f"{name}_conv")(x)
            norm = Norm(self.norm, self.dtype, name=f"{name}_norm")
            return nn.relu(norm(x, train=train))

        def project(x, features, name):
            return nn.Conv(features, (1, 1), dtype=self.dtype, name=name)(x)

        def add(x, attended, name):
            factor = self.param(name, nn.initializers.zeros, ())
            return x + factor.astype(self.dtype) * attended

        place = mix(x, "position_in")
        attended = jax.vmap(position_attention)(
            project(place, inner // 8, "query"),
            project(place, inner // 8, "key"),
            project(place, inner, "value"),
        )
        place = mix(add(place, attended, "position_gamma"), "position_out")
        channel = mix(x, "channel_in")
        attended = jax.vmap(channel_attention)(channel)
        channel = mix(add(channel, attended, "channel_gamma"), "channel_out")

        def classify(x, name):
            pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
            # Whole channels are dropped, so before or after the mean is the same.
            pooled = nn.Dropout(_DANET_DROPOUT, deterministic=not train)(pooled)
            return nn.Dense(self.num_classes, name=name)(pooled)

        fused = classify(place + channel, "head")
        parts = (classify(place, "position_head"), classify(channel, "channel_head"))
        return fused, parts if train else ()
