"""Mixup: training on weighted sums of two images, and of their labels.

Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, a row
of the paper's Table 2. From there: lambda ~ Beta(a, a), one a batch; the image is
lambda times itself plus 1 - lambda times its partner, both normalized; the loss is
lambda times the cross-entropy of its label and 1 - lambda times that of the partner's.
Partners are a random order of the batch (`augment.partners`); a batch of one has its
partner from a second stream of the training images.

The paper (Yuan et al. 2022) mixes "two random samples according to a pre-defined
ratio" and gives none. `baseline.mixup_alpha` is 0.2 as the reference's for ImageNet
(0.1 to 0.4; 1 for CIFAR), under which most mixtures are nearly one of the two images. A
fixed lambda, as the paper's words may mean, is `baseline.mixup_ratio`.

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
    """The plain classifier, trained on sums of two images."""
    task = plain.classification(config, num_classes)
    alpha, ratio = config.baseline.mixup_alpha, config.baseline.mixup_ratio

    def change(key, films, others):
        if ratio is None:
            share = jax.random.beta(key, alpha, alpha)
        else:
            share = jnp.asarray(ratio, jnp.float32)
        image = mix(films.image, others.image, share)
        return augment.Mixture(image, films.label, others.label, share)

    return augment.classifier(task, change, needs_partner=True)


def mix(image: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
    """`share` f32[] of an image and the rest of another of the same shape."""
    chex.assert_equal_shape([image, other])
    return share * image + (1 - share) * other
