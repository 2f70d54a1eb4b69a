"""What cutout, cutmix and mixup share: training on changed images and mixed labels.

All three change the image that the task network sees, downscaled and normalized, as
their authors do: an image of mixed ones is not normalized again. Predictions are those
of the plain classifier.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from hapre_jax.method import Aux, Method, network_variables
from hapre_jax.methods import plain
from hapre_jax.tasks import Classification, apply_network, normalization, resize


class Films(NamedTuple):
    """Images as the task network sees them, with their labels."""

    image: jax.Array  # f32[B, S, S, C], normalized
    label: jax.Array  # i32[B]
    black: jax.Array  # f32[B, 1, 1, C], what a gray of 0 became


class Mixture(NamedTuple):
    """Images to train on, each of which may have two labels."""

    image: jax.Array  # f32[B, S, S, C], normalized
    label: jax.Array  # i32[B]
    other_label: jax.Array  # i32[B]
    share: jax.Array  # f32[] in 0..1, weight of `label`; `other_label` has the rest


def classifier(
    task: Classification, change: Callable, *, needs_partner: bool = False
) -> Method:
    """The plain classifier, trained on changed images.

    The loss is `share` times the cross-entropy of `label`, and the rest times that of
    `other_label`. One forward a step and image.

    Args:
      task: the task network.
      change: `(key, films, others) -> Mixture`, where both are `Films`; see `partners`.
      needs_partner: whether it looks at the others.
    """

    def films(batch):
        image = resize(batch["image"], task.image_size)
        mean, deviation = normalization(image, task.normalize)
        black = jnp.broadcast_to(-mean / deviation, (len(image), 1, 1, image.shape[-1]))
        return Films((image - mean) / deviation, batch["label"], black)

    def loss(params, model_state, average, batch, key, step):
        del average, step
        partner_key, change_key = jax.random.split(jax.random.fold_in(key, 1))
        here = films(batch)
        others = here
        if needs_partner:
            is_alone = len(here.label) == 1
            others = (
                films(batch["partner"]) if is_alone else partners(partner_key, here)
            )
        mixture = change(change_key, here, others)
        variables = network_variables("task", params, model_state)
        outputs, state = apply_network(
            task.network, variables, mixture.image, train=True, key=key
        )
        losses = mixture.share * task.loss(outputs, mixture.label)
        losses += (1 - mixture.share) * task.loss(outputs, mixture.other_label)
        task_loss = jnp.mean(losses)
        return task_loss, Aux({"task": state}, {"task_loss": task_loss})

    method = plain.classifier(task)
    return method._replace(loss=loss, needs_partner=needs_partner)


def partners(key: jax.Array, films: Films) -> Films:
    """The same films in a random order: the first is the first's partner, and so on.

    An image may be its own partner, in the mean one of a batch, as in the references. A
    batch of one therefore has its partner from a second, independently shuffled stream
    of the training images (`feed.TrainIterator`), whose position is the step too.
    """
    order = jax.random.permutation(key, len(films.label))
    return jax.tree.map(lambda array: array[order], films)


def random_square(key: jax.Array, side: jax.Array | int, *, size: int) -> jax.Array:
    """A square around a pixel drawn uniformly from the image; see `square`."""
    return square(jax.random.randint(key, (2,), 0, size), side, size=size)


def square(center: jax.Array, side: jax.Array | int, *, size: int) -> jax.Array:
    """Where a square lies in an image: `bool[S, S]`; what is outside of it is cut off.

    Args:
      center: `i32[2]`, y and x of a pixel; of an even side, the one after the middle.
      side: `i32[]`, pixels of a side, >= 0.
      size: S.
    """
    chex.assert_shape([center, jnp.asarray(side)], [(2,), ()])
    low = center - side // 2
    here = jnp.arange(size)[None]
    inside = (here >= low[:, None]) & (here < low[:, None] + side)
    return inside[0][:, None] & inside[1][None]
