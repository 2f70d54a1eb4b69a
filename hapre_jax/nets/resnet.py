"""ResNet-18/34/50 as torchvision builds them, and small ones for CPUs.

He et al., "Deep Residual Learning for Image Recognition", 2016; the bottleneck has its
stride in the 3x3 convolution (torchvision's v1.5). For CPUs there are ResNet-8, the
6n + 2 layer network of the paper's CIFAR section with n = 1, and ResNet-10, one block a
stage at a quarter of the width, which costs the same on 128 pixels as ResNet-8 on 32.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets.output import Output

NORMS = ("batch", "frozen", "group")


class Norm(nn.Module):
    """Normalization with affine parameters and statistics in float32.

    `batch`: torchvision's BatchNorm (momentum 0.1 there is 0.9 here), except that the
    running variance is the biased one of each batch. `frozen`: the same parameters,
    but the stored statistics are used in training too, as batches of one image need.
    `group`: GroupNorm with 8 channels a group, no statistics.
    """

    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.kind == "group":
            # 8 channels a group: as many groups as fit ResNet-8's narrowest stage
            # twice; Wu and He, "Group Normalization", find 8 to 32 alike.
            return nn.GroupNorm(num_groups=None, group_size=8, dtype=self.dtype)(x)
        return nn.BatchNorm(
            use_running_average=self.kind == "frozen" or not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            name="BatchNorm",
        )(x)


def _conv(features, kernel, stride=1, *, dtype, name):
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        # torchvision's kaiming_normal_(mode="fan_out", nonlinearity="relu").
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        name=name,
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    stride: int = 1
    norm: str = "batch"
    dtype: Any = jnp.float32
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(_conv, dtype=self.dtype)
        norm = functools.partial(Norm, self.norm, self.dtype)
        y = conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = conv(self.features, 3, name="conv2")(y)
        y = norm(name="norm2")(y, train=train)
        if x.shape != y.shape:
            x = conv(self.features, 1, self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_norm")(x, train=train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, strided 3x3 and 1x1 convolutions and a shortcut; 4 x `features` channels."""

    features: int
    stride: int = 1
    norm: str = "batch"
    dtype: Any = jnp.float32
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(_conv, dtype=self.dtype)
        norm = functools.partial(Norm, self.norm, self.dtype)
        y = conv(self.features, 1, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = conv(self.features, 3, self.stride, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y, train=train))
        y = conv(4 * self.features, 1, name="conv3")(y)
        y = norm(name="norm3")(y, train=train)
        if x.shape != y.shape:
            x = conv(4 * self.features, 1, self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_norm")(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network over one image size; any H, W of at least 1 pixel a stride.

    Attributes:
      num_classes: K.
      stage_sizes: blocks in each stage.
      block: `BasicBlock` or `Bottleneck`.
      width: channels of the first stage, doubled at each next one.
      small_stem: one 3x3 convolution at full resolution instead of the 7x7 stride 2
        convolution and max-pool that ImageNet sizes need.
      norm: one of `NORMS`.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    block: type[nn.Module] = BasicBlock
    width: int = 64
    small_stem: bool = False
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits `f32[B, K]` and stage features of `image` f32[B, H, W, C]."""
        x = image.astype(self.dtype)
        kernel, stride = (3, 1) if self.small_stem else (7, 2)
        x = _conv(self.width, kernel, stride, dtype=self.dtype, name="stem_conv")(x)
        x = nn.relu(Norm(self.norm, self.dtype, name="stem_norm")(x, train=train))
        if not self.small_stem:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        features = {}
        for stage, blocks in enumerate(self.stage_sizes, 1):
            for index in range(blocks):
                x = self.block(
                    self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and index == 0 else 1,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{index + 1}",
                )(x, train=train)
            features[f"stage{stage}"] = x
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return Output(nn.Dense(self.num_classes, name="head")(pooled), features)


resnet8 = functools.partial(ResNet, stage_sizes=(1, 1, 1), width=16, small_stem=True)
resnet10 = functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), width=16)
resnet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2))
resnet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3))
resnet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
