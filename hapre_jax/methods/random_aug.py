"""Random augmentation: training on images changed by a few operations drawn for each.

A row of the paper's Table 2, of which the paper (Yuan et al. 2022) says only that it
"randomly applies various commonly used augmentation methods to each image". Which ones,
how many and how strong is `baseline.random_aug`:

- "chest", our choice, from what is usual for chest X-rays: rotation by up to 15
  degrees, translation by up to 10 % of the side in both directions, magnification by
  0.9 to 1.1, brightness and contrast times 0.8 to 1.2, and a horizontal flip of
  probability 1/2. Bilinear; what comes in from outside is black. COVID-Net trains with
  10 degrees, 10 %, 0.85 to 1.15, 0.9 to 1.1 and flips; TorchXRayVision with 45 degrees,
  15 % and 0.85 to 1.15. Each is drawn at most once for an image, so these bounds hold.
- "randaugment": Cubuk et al., "RandAugment: Practical Automated Data Augmentation with
  a Reduced Search Space", 2020, with torchvision's 14 operations, ranges and defaults:
  2 operations (`baseline.random_aug_operations`, of "chest" too), drawn with
  replacement, of magnitude 9 on a scale of 0 to 30 (`baseline.random_aug_magnitude`).
  Pixels are the nearest ones. On gray images "color" does nothing, as "identity".

They act on the image that the task network sees, after it was downscaled and before it
is normalized. With `task.normalize` image, the normalization undoes what brightness and
contrast do, but for what is clipped and for images of little contrast.

Predictions are those of the plain classifier. Cost: one forward and backward a step
and image, as plain. Which operation an image gets is only known on the device, and
under `jax.vmap` a `jax.lax.switch` computes all branches for every image and keeps one
of each: per image, 2 x 6 or 2 x 14 operations instead of 2. They are elementwise,
gathers of up to four pixels, and one histogram: on a CPU at 32 and 128 pixels, about
1 % of the time of ResNet-8's forward and backward.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from hapre_jax import image_ops
from hapre_jax.config import Config
from hapre_jax.method import Method
from hapre_jax.methods import plain
from hapre_jax.tasks import resize

# Name to operation: `(image f32[H, W, 1], draw f32[2]) -> f32[H, W, 1]`, where the draw
# is uniform in [-1, 1).
Operations = dict[str, Callable[[jax.Array, jax.Array], jax.Array]]

_STRONGEST = 30  # of RandAugment's scale


def make(config: Config, num_classes: int) -> Method:
    """The plain classifier, trained on images changed at random."""
    task = plain.classification(config, num_classes)
    settings = config.baseline
    is_chest = settings.random_aug == "chest"
    change = functools.partial(
        apply_random,
        operations=chest(task.image_size)
        if is_chest
        else randaugment(settings.random_aug_magnitude, task.image_size),
        count=settings.random_aug_operations,
        replace=not is_chest,
    )

    def show(batch, key):
        image = resize(batch["image"], task.image_size)
        if key is None:
            return image
        return jax.vmap(change)(jax.random.split(key, len(image)), image)

    return plain.classifier(task, show)


def apply_random(
    key: jax.Array,
    image: jax.Array,
    *,
    operations: Operations,
    count: int,
    replace: bool,
) -> jax.Array:
    """An image after some operations drawn at random, one after the other.

    Args:
      key: PRNG key.
      image: `f32[H, W, 1]` in [0, 1].
      operations: to draw from, with equal probability.
      count: of the operations drawn; at most those that there are, if each is drawn
        once.
      replace: whether one may be drawn again.
    """
    chex.assert_shape(image, (None, None, 1))
    choice_key, draw_key = jax.random.split(key)
    chosen = jax.random.choice(choice_key, len(operations), (count,), replace=replace)
    draws = jax.random.uniform(draw_key, (count, 2), image.dtype, minval=-1.0)
    branches = [
        lambda image, draw, change=change: change(image, draw).astype(image.dtype)
        for change in operations.values()
    ]

    # A loop, so that the branches are compiled once.
    def apply(image, drawn):
        return jax.lax.switch(drawn[0], branches, image, drawn[1]), None

    return jax.lax.scan(apply, image, (chosen, draws))[0]


def chest(side: int) -> Operations:
    """Operations usual for chest films, of `side` pixels."""
    ops = image_ops
    return {
        "rotate": lambda image, draw: ops.rotate(image, 15 * draw[0]),
        "translate": lambda image, draw: ops.translate(image, 0.1 * side * draw),
        "scale": lambda image, draw: ops.zoom(image, 1 + 0.1 * draw[0]),
        "brightness": lambda image, draw: ops.brightness(image, 1 + 0.2 * draw[0]),
        "contrast": lambda image, draw: ops.contrast(image, 1 + 0.2 * draw[0]),
        "flip": lambda image, draw: jnp.where(draw[0] < 0, ops.mirror(image), image),
    }


def randaugment(magnitude: int, side: int) -> Operations:
    """RandAugment as in torchvision, of a magnitude 0 to 30, for `side` pixels.

    Half of the time, the effect of an operation that has a sign is reversed.
    """
    share = magnitude / _STRONGEST
    slope, degrees, change = 0.3 * share, 30 * share, 0.9 * share
    pixels = int(150 / 331 * side * share)
    bits = 8 - round(magnitude / (_STRONGEST / 4))
    axis_y, axis_x = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    ops = image_ops
    rotate, translate, shear = (
        functools.partial(operation, interpolation="nearest")
        for operation in (ops.rotate, ops.translate, ops.shear)
    )

    def sign(draw):
        return jnp.where(draw[0] < 0, -1.0, 1.0)

    def enhance(operation):
        return lambda image, draw: operation(image, 1 + sign(draw) * change)

    return {
        "identity": lambda image, draw: image,
        "shear_x": lambda image, draw: shear(image, sign(draw) * slope * axis_x),
        "shear_y": lambda image, draw: shear(image, sign(draw) * slope * axis_y),
        "translate_x": lambda image, draw: translate(
            image, sign(draw) * pixels * axis_x
        ),
        "translate_y": lambda image, draw: translate(
            image, sign(draw) * pixels * axis_y
        ),
        "rotate": lambda image, draw: rotate(image, sign(draw) * degrees),
        "brightness": enhance(ops.brightness),
        "color": lambda image, draw: image,
        "contrast": enhance(ops.contrast),
        "sharpness": enhance(ops.sharpness),
        "posterize": lambda image, draw: ops.posterize(image, bits=bits),
        "solarize": lambda image, draw: ops.solarize(image, 1 - share),
        "autocontrast": lambda image, draw: ops.autocontrast(image),
        "equalize": lambda image, draw: ops.equalize(image),
    }
