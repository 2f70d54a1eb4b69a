"""ResNet-18/34/50 as torchvision builds them, and small ones for CPUs.

He et al., "Deep Residual Learning for Image Recognition", 2016; the bottleneck has its
stride in the 3x3 convolution (torchvision's v1.5). For CPUs there are ResNet-8,
ResNet-14 and ResNet-20, the 6n + 2 layer networks of the paper's CIFAR section with n =
1 to 3, and ResNet-10, one block a stage at a quarter of the width, which costs the same
on 128 pixels as ResNet-8 on 32, and is too coarse for 32.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets import layers
from hapre_jax.nets.attention import CBAM, DANetHead
from hapre_jax.nets.layers import Norm, stem_pool, tap
from hapre_jax.nets.output import Output


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; CBAM, if asked for, on the former."""

    features: int
    stride: int = 1
    norm: str = "batch"
    dtype: Any = jnp.float32
    cbam: bool = False
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(layers.conv, dtype=self.dtype)
        norm = functools.partial(Norm, self.norm, self.dtype)
        joined = functools.partial(layers.normalized, train=train)
        conv1 = conv(self.features, 3, self.stride, name="conv1")
        y = nn.relu(joined(conv1, norm(name="norm1"), x))
        y = joined(conv(self.features, 3, name="conv2"), norm(name="norm2"), y)
        if self.cbam:
            y = CBAM(self.norm, self.dtype, name="cbam")(y, train=train)
        if x.shape != y.shape:
            shortcut = conv(self.features, 1, self.stride, name="downsample_conv")
            x = joined(shortcut, norm(name="downsample_norm"), x)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, strided 3x3 and 1x1 convolutions and a shortcut; 4 x `features` channels."""

    features: int
    stride: int = 1
    norm: str = "batch"
    dtype: Any = jnp.float32
    cbam: bool = False
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(layers.conv, dtype=self.dtype)
        norm = functools.partial(Norm, self.norm, self.dtype)
        joined = functools.partial(layers.normalized, train=train)
        y = nn.relu(joined(conv(self.features, 1, name="conv1"), norm(name="norm1"), x))
        conv2 = conv(self.features, 3, self.stride, name="conv2")
        y = nn.relu(joined(conv2, norm(name="norm2"), y))
        y = joined(conv(4 * self.features, 1, name="conv3"), norm(name="norm3"), y)
        if self.cbam:
            y = CBAM(self.norm, self.dtype, name="cbam")(y, train=train)
        if x.shape != y.shape:
            shortcut = conv(4 * self.features, 1, self.stride, name="downsample_conv")
            x = joined(shortcut, norm(name="downsample_norm"), x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network over one image size; any H, W of at least 1 pixel a stride.

    Attributes:
      num_classes: K; 0 for a trunk without a head.
      stage_sizes: blocks in each stage.
      block: `BasicBlock` or `Bottleneck`.
      width: channels of the first stage, doubled at each next one.
      small_stem: one 3x3 convolution at full resolution instead of the 7x7 stride 2
        convolution and max-pool that ImageNet sizes need.
      attention: `cbam`, in each block; `danet`, as the head; or `none`.
      norm: one of `layers.NORMS`.
      dtype: of the computation; parameters are float32.
      rematerialize: whether a gradient computes the inside of each block again
        instead of keeping it (Chen et al., "Training Deep Nets with Sublinear Memory
        Cost", 2016).
    """

    num_classes: int
    stage_sizes: Sequence[int]
    block: type[nn.Module] = BasicBlock
    width: int = 64
    small_stem: bool = False
    attention: str = "none"
    norm: str = "batch"
    dtype: Any = jnp.float32
    rematerialize: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits `f32[B, K]` and stage features of `image` f32[B, H, W, C]."""

        def run(block, x):
            return block(x, train=train)

        if self.rematerialize:
            run = nn.remat(run)
        x = image.astype(self.dtype)
        kernel, stride = (3, 1) if self.small_stem else (7, 2)
        stem = layers.conv(
            self.width, kernel, stride, dtype=self.dtype, name="stem_conv"
        )
        norm = Norm(self.norm, self.dtype, name="stem_norm")
        x = nn.relu(layers.normalized(stem, norm, x, train=train))
        if not self.small_stem:
            x = stem_pool(x)
        features = {}
        for stage, blocks in enumerate(self.stage_sizes, 1):
            for index in range(blocks):
                block = self.block(
                    self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and index == 0 else 1,
                    norm=self.norm,
                    dtype=self.dtype,
                    cbam=self.attention == "cbam",
                    name=f"stage{stage}_block{index + 1}",
                )
                x = run(block, x)
            x = features[f"stage{stage}"] = tap(self, f"stage{stage}", x)
        if self.attention == "danet" and self.num_classes:
            danet = DANetHead(self.num_classes, self.norm, self.dtype, name="danet")
            logits, auxiliary = danet(x, train=train)
            return Output(logits, features, auxiliary)
        return Output(layers.head(self.num_classes, x), features)


resnet8 = functools.partial(ResNet, stage_sizes=(1, 1, 1), width=16, small_stem=True)
resnet14 = functools.partial(ResNet, stage_sizes=(2, 2, 2), width=16, small_stem=True)
resnet20 = functools.partial(ResNet, stage_sizes=(3, 3, 3), width=16, small_stem=True)
resnet10 = functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), width=16)
resnet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2))
resnet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3))
resnet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
