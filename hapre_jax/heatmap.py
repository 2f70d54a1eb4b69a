"""Where a network looks: class activation maps and their pictures.

Both maps are unbatched, of one image and one class, at any named feature of any network
in `nets`; `jax.vmap` them.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from hapre_jax import boxes


def cam(feature: jax.Array, weights: jax.Array) -> jax.Array:
    """Class activation map: the channels, weighted as the classifier weighs them.

    Args:
      feature: `f32[h, w, C]`, such as `Output.features["stage4"]` of one image.
      weights: `f32[C]`, a class's column of the layer on the mean of the feature, such
        as `params["head"]["kernel"][:, label]`.

    Returns:
      `f32[h, w]`; its mean plus the bias is the class's logit, so it has both signs.
      Zhou et al., "Learning Deep Features for Discriminative Localization", 2016.
    """
    chex.assert_rank([feature, weights], [3, 1])
    chex.assert_equal(feature.shape[-1], weights.shape[0])
    return feature @ weights


def grad_cam(
    network: Any, variables: dict, image: jax.Array, label: jax.Array, feature: str
) -> jax.Array:
    """Gradient-weighted class activation map at any feature of any network.

    Args:
      network: Linen module of `nets` that returns `Output`.
      variables: its parameters and statistics.
      image: `f32[H, W, C]`, normalized as the network was trained.
      label: which of an image's logits: `i32[]` class; of a map, `i32[2]` cell (row,
        column), and `i32[3]` with its channel.
      feature: name in `Output.features`.

    Returns:
      `f32[h, w]` at least 0: the rectified sum of the channels, each weighted by the
      mean over places of the logit's gradient. Selvaraju et al., "Grad-CAM", 2017.

    Raises:
      ValueError: the network has no such feature, or no such logit.
    """
    chex.assert_rank(image, 3)
    batch = image[None]
    output = jax.eval_shape(
        lambda image: network.apply(variables, image, train=False), batch
    )
    if feature not in output.features:
        known = ", ".join(sorted(output.features))
        raise ValueError(f"the network has no feature {feature!r}, but {known}")
    if not isinstance(label, jax.core.Tracer):
        index, sizes = np.atleast_1d(label), output.logits.shape[1:]
        if len(index) != len(sizes) or not all((index >= 0) & (index < sizes)):
            raise ValueError(f"label is {label}, but there are {sizes} logits")
    shape = output.features[feature]

    def logit(perturbation):
        # A feature is of the network itself or of a trunk inside of it: only one reads.
        own = {feature: perturbation}
        perturbations = own | {"trunk": own}
        output = network.apply(
            {**variables, "perturbations": perturbations}, batch, train=False
        )
        index = tuple(jnp.atleast_1d(label))
        return output.logits[(0, *index)], output.features[feature][0]

    zeros = jnp.zeros(shape.shape, shape.dtype)
    gradient, value = jax.grad(logit, has_aux=True)(zeros)
    # Of a network in bfloat16 too.
    gradient, value = (x.astype(jnp.float32) for x in (gradient[0], value))
    return jax.nn.relu(cam(value, jnp.mean(gradient, axis=(0, 1))))


def paste(heat: jax.Array, area: jax.Array, *, size: int) -> jax.Array:
    """The map of a key area as one of the whole image: 0 outside of the area.

    The map is stretched over the area, as is usual. Cells of a ResNet lie a little
    further up and left than that: convolutions of stride 2 begin at the first pixel, so
    that a cell of s pixels is about a place (s - 1) / 2 pixels before its middle.

    Args:
      heat: `f32[h, w]`, of what the network saw of the image.
      area: `f32[4]` yxyx that it saw.
      size: S, cells of a side of the result.

    Returns:
      `f32[S, S]`, bilinear inside of the area.
    """
    chex.assert_rank([heat, area], [2, 1])
    shape = jnp.array(heat.shape, heat.dtype)
    factor = size * (area[2:] - area[:2]) / shape
    pasted = jax.image.scale_and_translate(
        heat, (size, size), (0, 1), factor, size * area[:2], "linear", antialias=False
    )
    return pasted * boxes.mask(area, size)


def energy_inside(heat: jax.Array, box: jax.Array) -> jax.Array:
    """Share `f32[]` of a map `f32[S, S]` that lies in a box `f32[4]`; 0 of none.

    Values below 0 count as 0.

    Wang et al., "Score-CAM", 2020: the energy-based pointing game.
    """
    chex.assert_rank([heat, box], [2, 1])
    heat = jnp.maximum(heat, 0)
    total = jnp.sum(heat)
    inside = jnp.sum(heat * boxes.mask(box, len(heat)))
    return jnp.where(total > 0, inside / jnp.where(total > 0, total, 1.0), 0.0)


def points_inside(heat: jax.Array, box: jax.Array) -> jax.Array:
    """Whether the center of the hottest cell of `f32[S, S]` lies in a box `f32[4]`.

    Zhang et al., "Top-Down Neural Attention by Excitation Backprop", 2018: the pointing
    game, here without its tolerance of some pixels. An even map points nowhere.
    """
    chex.assert_rank([heat, box], [2, 1])
    row, column = jnp.unravel_index(jnp.argmax(heat), heat.shape)
    point = (jnp.stack([row, column]) + 0.5) / len(heat)
    is_inside = jnp.all((point >= box[:2]) & (point < box[2:]))
    return is_inside & (jnp.max(heat) > jnp.min(heat))


def overlay(
    image: np.ndarray, heat: np.ndarray, *, opacity: float = 0.5
) -> Image.Image:
    """The picture of a map over its image: black over red and yellow to white.

    Args:
      image: `f32[H, W]` or `f32[H, W, 1]` in [0, 1].
      heat: `f32[h, w]`; values below 0 count as 0, the largest is the brightest.
      opacity: share of the map in each pixel, in [0, 1], where it is hottest; a cold
        place shows the image alone.

    Returns:
      An RGB picture of W x H pixels.
    """
    chex.assert_type(image, float)  # levels in 0..255 would all become white
    height, width = image.shape[:2]
    gray = np.asarray(image, np.float32).reshape(height, width, 1)
    heat = np.maximum(np.asarray(heat, np.float32), 0)
    heat = heat / max(float(heat.max()), np.finfo(np.float32).tiny)
    resized = Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)
    heat = np.clip(np.asarray(resized), 0, 1)[..., None]
    # Three ramps one after the other, so that hotter is also brighter.
    colors = np.clip(3 * heat - np.arange(3, dtype=np.float32), 0, 1)
    share = opacity * np.sqrt(heat)
    mixed = (1 - share) * gray + share * colors
    return Image.fromarray(np.round(255 * np.clip(mixed, 0, 1)).astype(np.uint8))
