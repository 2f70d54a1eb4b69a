"""Training on random crops: the cheap alternative to learning where to look.

Reference: the random resized crop of Szegedy et al. 2015 ("Going deeper with
convolutions", section 6), as in torchvision. Here a shape that does not fit is
shortened, not drawn anew. One forward a step and image; predictions see the whole
image.
"""

import functools
import math

import jax
import jax.numpy as jnp

from hapre_jax.config import Config
from hapre_jax.method import Method
from hapre_jax.methods import plain
from hapre_jax.tasks import crop, resize

# Height to width, of the reference.
_RATIOS = (3 / 4, 4 / 3)


def make(config: Config, num_classes: int) -> Method:
    """The plain classifier, with a random part of each image in training."""
    task = plain.classification(config, num_classes)
    draw = functools.partial(random_box, min_area=config.baseline.crop_area)

    def show(batch, key):
        if key is None:
            return resize(batch["image"], task.image_size)
        areas = jax.vmap(draw)(jax.random.split(key, len(batch["image"])))
        return crop(batch["image"], areas, task.image_size)

    return plain.classifier(task, show)


def random_box(key: jax.Array, *, min_area: float) -> jax.Array:
    """A box `f32[4]` yxyx inside the image.

    Its area is uniform from `min_area` to 1, the logarithm of its ratio uniform too; a
    side that would be longer than the image is the image's.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = jax.random.uniform(area_key, minval=min_area, maxval=1.0)
    low, high = map(math.log, _RATIOS)
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=low, maxval=high))
    size = jnp.minimum(jnp.sqrt(jnp.stack([area * ratio, area / ratio])), 1.0)
    corner = (1 - size) * jax.random.uniform(place_key, (2,))
    return jnp.concatenate([corner, corner + size])
