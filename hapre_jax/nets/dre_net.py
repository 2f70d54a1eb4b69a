"""Both networks of DRE-Net: a pyramid with attention, and one that looks at parts.

`methods.dre_net` says where each comes from. The article that has DRE-Net as a baseline
(Yuan et al. 2022) fixes none of their constants.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hapre_jax.nets.layers import conv, tap
from hapre_jax.nets.output import Output, stages

_PROPOSAL_WIDTH = 128  # of the released code, as of NTS-Net
_PROPOSAL_STRIDES = (1, 2, 2)


class PyramidNet(nn.Module):
    """A feature pyramid on a trunk, with an attention and a classifier on each level.

    The pyramid is that of Lin et al., "Feature Pyramid Networks", 2017: from the
    coarsest stage to the finest a 1x1 convolution plus the coarser level, enlarged by
    repetition; a 3x3 convolution smooths each level; nothing is rectified. The logits
    are the mean of the levels'. Attention starts even, as the mean over places.

    Attributes:
      trunk: a network returning `Output`, with 0 classes: its logits are unused.
      num_classes: K.
      width: channels of the pyramid; 256 in the reference, 32 by default as in
        `PolicyNet`, so that on a ResNet-8 it does not cost most.
      dtype: of the pyramid's computation; attention and classifiers are float32, as are
        all parameters.
    """

    trunk: nn.Module
    num_classes: int
    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        """Logits `f32[B, K]` and features of `image` f32[B, H, W, C].

        Beside the trunk's there are "pyramid1".. `f32[B, h, w, width]`, a level for
        each stage.
        """
        features = self.trunk(image, train=train).features
        levels: dict[str, jax.Array] = {}
        logits: list[jax.Array] = []
        merged: jax.Array | None = None
        for stage in reversed(stages(features)):
            # A 1x1 convolution with a bias.
            lateral = nn.Dense(self.width, dtype=self.dtype, name=f"lateral_{stage}")(
                features[stage]
            )
            if merged is not None:
                lateral += jax.image.resize(merged, lateral.shape, "nearest")
            merged = lateral
            smooth = nn.Conv(
                self.width, (3, 3), dtype=self.dtype, name=f"smooth_{stage}"
            )
            name = stage.replace("stage", "pyramid")
            levels[name] = level = tap(self, name, smooth(merged))
            level = level.astype(jnp.float32)
            # No bias: a softmax does not see it.
            score = nn.Dense(
                1,
                use_bias=False,
                kernel_init=nn.initializers.zeros,
                name=f"attention_{stage}",
            )(level)
            pooled = jax.vmap(attention_pool)(level, score[..., 0])
            logits.append(nn.Dense(self.num_classes, name=f"head_{stage}")(pooled))
        return Output(jnp.mean(jnp.stack(logits), axis=0), features | levels)


def attention_pool(feature: jax.Array, score: jax.Array) -> jax.Array:
    """Mean of the places of a feature, weighted by the softmax of their scores.

    Args:
      feature: `f32[h, w, C]`.
      score: `f32[h, w]`; where all are equal, the result is the mean.

    Returns:
      `f32[C]`.
    """
    weights = nn.softmax(score, axis=(0, 1))
    return jnp.einsum("hw,hwc->c", weights, feature)


class Reading(NamedTuple):
    """What `PartNet` says of the images, and what led to it."""

    logits: jax.Array  # f32[B, K] of everything together
    whole_logits: jax.Array  # f32[B, K] of the whole image
    part_logits: jax.Array  # f32[B, P, K] of each part
    choice: Any  # what `look` said of its choice


class PartNet(nn.Module):
    """One ResNet for the whole image, for parts of it and for a detail at full size.

    A proposal network scores places by the last features of the whole image; it sends
    no gradient to the trunk. What is cut at which places is up to the caller. The last
    features of parts, whole and detail, averaged over their places, are classified
    together. Each of the three passes normalizes by its own batch's statistics.

    Attributes:
      trunk: a ResNet with K classes: its head is the whole image's classifier.
      num_classes: K.
      dtype: of the proposal network's computation; scores and classifiers are float32,
        as are all parameters.
    """

    trunk: nn.Module
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, look: Callable, *, train: bool) -> Reading:
        """Reads `image` f32[B, H, W, C].

        `look` gets scores `f32[B, h, w]` of three grids, the first as fine as the
        trunk's last features, each next one half as fine, rounded up. It gives the
        parts `f32[B, P, H', W', C]`, the detail `f32[B, H'', W'', C]` and what
        `Reading.choice` becomes.
        """
        whole = self.trunk(image, train=train)
        last = whole.features[stages(whole.features)[-1]]
        propose = ProposalNet(self.dtype, name="proposal")
        parts, detail, choice = look(propose(jax.lax.stop_gradient(last)))
        batch, count = parts.shape[:2]

        def pool(feature):
            return jnp.mean(feature.astype(jnp.float32), axis=(1, 2))

        def see(image):
            features = self.trunk(image, train=train).features
            return pool(features[stages(features)[-1]])

        detail_feature = see(detail)
        part_features = see(parts.reshape(-1, *parts.shape[2:]))
        part_logits = nn.Dense(self.num_classes, name="part_head")(part_features)
        together = jnp.concatenate(
            [part_features.reshape(batch, -1), pool(last), detail_feature], axis=1
        )
        return Reading(
            nn.Dense(self.num_classes, name="joint_head")(together),
            whole.logits,
            part_logits.reshape(batch, count, self.num_classes),
            choice,
        )


class ProposalNet(nn.Module):
    """Scores of places on three grids, each half as fine as the one before."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feature: jax.Array) -> tuple[jax.Array, ...]:
        """Scores `f32[B, h, w]`, `f32[B, h / 2, w / 2]`, .. of features of h x w."""
        scores = []
        x = feature
        for level, stride in enumerate(_PROPOSAL_STRIDES, 1):
            convolve = conv(
                _PROPOSAL_WIDTH,
                3,
                stride,
                use_bias=True,
                dtype=self.dtype,
                name=f"conv{level}",
            )
            x = nn.relu(convolve(x))
            score = nn.Dense(1, name=f"score{level}")(x.astype(jnp.float32))
            scores.append(score[..., 0])
        return tuple(scores)
