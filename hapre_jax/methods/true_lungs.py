"""The classifier that is told where the lungs are: what a perfect key area is worth.

No method of the paper: an upper bound, for films whose lung box is known (phantoms, and
films with lung masks). One forward a step and image.
"""

import functools

import jax
import jax.numpy as jnp

from hapre_jax import boxes
from hapre_jax.config import Config
from hapre_jax.method import Method
from hapre_jax.methods import plain
from hapre_jax.tasks import crop

# Shortest side of what is shown, share of the image: a thinner lung box is widened.
_MIN_SIDE = 0.05


def make(config: Config, num_classes: int) -> Method:
    """The plain classifier of the lung box, times `baseline.lung_scale`."""
    task = plain.classification(config, num_classes)
    place = functools.partial(
        boxes.scale, factor=config.baseline.lung_scale, min_side=_MIN_SIDE
    )

    def show(batch, key):
        del key
        lungs = batch["lung_box"]
        known = jnp.isfinite(lungs).all(axis=1, keepdims=True)
        # A film whose lungs are not known is shown whole.
        whole = jnp.broadcast_to(jnp.array(boxes.WHOLE), lungs.shape)
        areas = jnp.where(known, jax.vmap(place)(lungs), whole)
        return crop(batch["image"], areas, task.image_size)

    method = plain.classifier(task, show)
    return method._replace(needs_lungs=True, has_one_network=False)
