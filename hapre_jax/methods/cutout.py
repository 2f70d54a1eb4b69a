"""Cutout: training on images with a hole.

Reference: DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks
with Cutout", 2017, a row of the paper's Table 2. From there: one square hole in each
image, around a pixel drawn uniformly from the whole image and cut at its border; a fill
of 0 after normalization, which is the mean gray; the label stays.

The paper (Yuan et al. 2022) says that the pixel values of the hole "are set as 0",
which may be this 0 or black: `baseline.cutout_fill`. Black is what a gray of 0 becomes
by the normalization of the image without a hole, so the rest of the image does not
change. The paper gives no size. `baseline.cutout_side` is 0.5 as the reference's 16 of
CIFAR-10's 32 pixels, whose other sizes are 8 and 20; cut at the border, the hole takes
a fifth of an image in the mean. An odd side stays odd; the reference's loses a pixel.

Cost: one forward and backward a step and image, as plain; the hole is nothing beside.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from hapre_jax.config import Config
from hapre_jax.method import Method
from hapre_jax.methods import augment, plain


def make(config: Config, num_classes: int) -> Method:
    """The plain classifier, trained on images with a hole."""
    task = plain.classification(config, num_classes)
    side = max(1, round(config.baseline.cutout_side * task.image_size))
    is_black = config.baseline.cutout_fill == "black"

    def change(key, films, others):
        del others
        keys = jax.random.split(key, len(films.label))
        fill = films.black if is_black else jnp.zeros_like(films.black)
        cut = functools.partial(cut_hole, side=side)
        image = jax.vmap(cut)(keys, films.image, fill)
        return augment.Mixture(image, films.label, films.label, jnp.ones(()))

    return augment.classifier(task, change)


def cut_hole(
    key: jax.Array, image: jax.Array, fill: jax.Array, *, side: int
) -> jax.Array:
    """An image with a square hole at a random place.

    Args:
      key: PRNG key.
      image: `f32[S, S, C]`.
      fill: `f32[1, 1, C]`, what the hole shows.
      side: of the hole, in pixels.
    """
    chex.assert_rank([image, fill], 3)
    hole = augment.random_square(key, side, size=image.shape[0])
    return jnp.where(hole[:, :, None], fill, image)
