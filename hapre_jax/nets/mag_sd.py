"""MA-Net, the network of MAG-SD: attention of two scales, and what it sees there.

Li et al., "Multiscale Attention Guided Network for COVID-19 Diagnosis Using Chest X-Ray
Images", 2021, as its released code builds it: the attention and the bilinear pooling of
WS-DAN (Hu et al., "See Better Before Looking Closer", 2019) with a second scale. The
article that has it as a baseline (Yuan et al. 2022) fixes none of its constants; where
not said otherwise they are the released code's.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets.layers import Norm, conv, tap
from hapre_jax.nets.output import Output, stages

_NORM_EPSILON = 1e-3  # of the attention's normalization; the trunk has 1e-5
_ROOT_EPSILON = 1e-12  # keeps the slope of the square root finite
_SCALE = 100.0  # norm of what the last layer sees
# PyTorch's start of a linear layer, uniform within 1 / sqrt(inputs): with features of
# norm 100 the first logits of ResNet-50 deviate by 0.2.
_HEAD_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class MANet(nn.Module):
    """A ResNet that classifies what several attention maps see of its last features.

    The parameters of the trunk lie beside those of `attention` and `head`, not below a
    name of their own, so that a file of torchvision's weights fits it as it fits a
    ResNet.

    Attributes:
      trunk: a ResNet without classes and with two stages or more; its last two are f3
        and f4.
      num_classes: K.
      maps: M, attention maps.
      norm: one of `layers.NORMS`. With "frozen" those of the attention, which come with
        no statistics, only scale and shift.
      dtype: of the trunk's and the attention's computation; pooling and head are
        float32, as are all parameters.
    """

    trunk: nn.Module
    num_classes: int
    maps: int = 32
    norm: str = "batch"
    dtype: Any = jnp.float32

    def setup(self):
        nn.share_scope(self, self.trunk)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits `f32[B, K]` and features of `image` f32[B, H, W, C].

        The feature "attention" has the maps `f32[B, h, w, M]`, all >= 0.
        """
        features = self.trunk(image, train=train).features
        fine, coarse = (features[stage] for stage in stages(features)[-2:])
        attend = TwoScaleAttention(self.maps, self.norm, self.dtype, name="attention")
        attention = attend(fine, coarse, train=train).astype(jnp.float32)
        attention = tap(self, "attention", attention)
        pooled = jax.vmap(bilinear_pool)(attention, coarse.astype(jnp.float32))
        head = nn.Dense(
            self.num_classes, use_bias=False, kernel_init=_HEAD_INIT, name="head"
        )
        return Output(head(pooled), features | {"attention": attention})


class TwoScaleAttention(nn.Module):
    """M attention maps: those of the last stage plus those of the one before it.

    Each is ReLU(norm(1x1 convolution)). Where the finer stage has an odd side, which
    the released code cannot add up, its last mean is of one place instead of two.
    """

    maps: int
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, fine: jax.Array, coarse: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, h, w, M]`.

        Args:
          fine: `[B, H, W, C']`; H is 2 h or 2 h - 1, W likewise.
          coarse: `[B, h, w, C]`.
          train: whether batch statistics normalize.
        """

        def attend(x, name):
            # The released code's start is not known; this one keeps the size of `x`,
            # which matters where nothing normalizes it (norm "frozen").
            x = conv(
                self.maps, 1, mode="fan_in", dtype=self.dtype, name=f"{name}_conv"
            )(x)
            norm = Norm(
                self.norm, self.dtype, epsilon=_NORM_EPSILON, name=f"{name}_norm"
            )
            return nn.relu(norm(x, train=train))

        return attend(coarse, "coarse") + halve(attend(fine, "fine"))


def halve(x: jax.Array) -> jax.Array:
    """Means of `x` [B, h, w, C] over 2 x 2 places, at an odd edge over what is left."""
    padding = [(0, side % 2) for side in x.shape[1:3]]
    return nn.avg_pool(x, (2, 2), (2, 2), padding=padding, count_include_pad=False)


def bilinear_pool(attention: jax.Array, feature: jax.Array) -> jax.Array:
    """What each attention map sees of a feature: bilinear attention pooling.

    The mean over places of map x channel, its signed square root, all divided by their
    norm, times 100.

    Args:
      attention: `f32[h, w, M]`.
      feature: `f32[h, w, C]`.

    Returns:
      `f32[M * C]`, map by map, of norm 100; 0 where no map sees anything.
    """
    height, width, _ = feature.shape
    seen = jnp.einsum("hwm,hwc->mc", attention, feature) / (height * width)
    root = (jnp.sign(seen) * jnp.sqrt(jnp.abs(seen) + _ROOT_EPSILON)).ravel()
    # Not the norm itself, which has no gradient at 0.
    square = jnp.maximum(jnp.sum(root**2), _ROOT_EPSILON**2)
    return _SCALE * root * jax.lax.rsqrt(square)
