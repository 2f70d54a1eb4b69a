"""CutMix: training on images with a part of another one, and on both labels.

Reference: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with
Localizable Features", ICCV 2019, and its released code; a row of the paper's Table 2.
From there: lambda ~ Beta(b, b) with b = 1 (`baseline.cutmix_beta`); a box of sqrt(1 -
lambda) of the image's sides, rounded down to pixels, around a pixel drawn uniformly
from the whole image and cut at its border; what lies there in the partner is pasted;
lambda becomes the share of the image that is left, exactly; the loss is lambda times
the cross-entropy of the image's label and 1 - lambda times that of the partner's. One
lambda and one box a batch. Partners are a random order of the batch
(`augment.partners`); a batch of one has its partner from a second stream of the
training images. An odd side stays odd; the reference's loses a pixel.

The paper (Yuan et al. 2022) gives no number, and says that a cut area is filled with
"the same area in another data", nothing of labels: they are mixed as the reference
mixes them. `baseline.cutmix_probability`, that a batch is mixed at all, is 1 as the
reference's for ImageNet, whose images are nearer in size to films than CIFAR's, for
which it has 0.5.

Cost: one forward and backward a step and image, as plain. At batch 1 two images are
read for each step.
"""

import chex
import jax
import jax.numpy as jnp

from hapre_jax.config import Config
from hapre_jax.method import Method
from hapre_jax.methods import augment, plain


def make(config: Config, num_classes: int) -> Method:
    """The plain classifier, trained on images with a part of another."""
    task = plain.classification(config, num_classes)
    settings = config.baseline

    def change(key, films, others):
        box = random_box(
            key,
            size=task.image_size,
            beta=settings.cutmix_beta,
            probability=settings.cutmix_probability,
        )
        image = jax.vmap(paste, (0, 0, None))(films.image, others.image, box)
        return augment.Mixture(image, films.label, others.label, kept(box))

    return augment.classifier(task, change, needs_partner=True)


def random_box(
    key: jax.Array, *, size: int, beta: float, probability: float
) -> jax.Array:
    """Where to paste: `bool[S, S]`, true inside a square that is cut at the border.

    Args:
      key: PRNG key.
      size: S.
      beta: both parameters of the Beta distribution of the share of the image that is
        kept, before the square is cut.
      probability: that there is a square at all.
    """
    share_key, chance_key, place_key = jax.random.split(key, 3)
    share = jax.random.beta(share_key, beta, beta)
    side = jnp.floor(size * jnp.sqrt(1 - share)).astype(jnp.int32)
    is_mixed = jax.random.uniform(chance_key) < probability
    side = jnp.where(is_mixed, side, 0)
    return augment.random_square(place_key, side, size=size)


def paste(image: jax.Array, other: jax.Array, box: jax.Array) -> jax.Array:
    """An image `f32[S, S, C]` that shows another one where `box` bool[S, S] is true."""
    chex.assert_equal_shape([image, other])
    chex.assert_rank([image, box], [3, 2])
    return jnp.where(box[:, :, None], other, image)


def kept(box: jax.Array) -> jax.Array:
    """Share `f32[]` of an image outside of `box` bool[S, S]."""
    chex.assert_rank(box, 2)
    return 1 - jnp.mean(box, dtype=jnp.float32)
