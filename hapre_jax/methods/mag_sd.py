"""MAG-SD: attention that augments its own images, and a soft distance between them.

Reference: Li et al., "Multiscale Attention Guided Network for COVID-19 Diagnosis Using
Chest X-Ray Images", IEEE JBHI 2021, a row of the paper's Table 2. The paper (Yuan et
al. 2022) says no more of it than "multi-scale and attention techniques", "attention
guided augmentations" and "a soft distance regularization", and fixes no number. What
is done here, and each number, is that of the authors' released code unless it is
listed below; the network is `nets.mag_sd`. The equations of Li et al. were not
compared with their code.

A step: the network classifies the image as it is (raw). Of its attention maps three are
drawn for each image, and each makes one view: where map A attends, the image is
magnified and mixed in; where B attends it is dimmed; where C attends is pasted
somewhere else. The loss is the cross-entropy of the raw image plus the mean absolute
differences between the answers on the three views and a soft target. The cross-entropy
of the views is not learned, as in the released code. Predictions are of the raw image.

Cost a step and image: four forwards and backwards of the task network, of which plain
has one. They are four passes in training mode one after the other, each normalized by
its own batch statistics and each moving the running ones, as the original's; one pass
over all views together would normalize magnified, dimmed and patched images with the
statistics of their mixture.

Where this differs from the released code:
- The optimizer is the trainer's Adam. Theirs is SGD with Nesterov momentum 0.9, weight
  decay 5e-4 and rate 1e-3, divided by 10 after 75 and 125 of 150 epochs; batches of 16.
- Images are those of the data set, without their CLAHE, color jitter, rotation by up to
  120 degrees, random resized crop and flips.
- The trunk is any ResNet (theirs: ResNet-50), and its stem for one channel starts from
  the sum of ImageNet's over colors where there is a file of weights, not anew.
- Views are made of the image that the task network sees, as theirs: a magnified part
  has no more detail, although the stored image would. Gray levels are normalized
  before, so "dimmed" is the mean gray and not black, and views are not normalized
  again; theirs are normalized column by column.
- A map that is 0 everywhere attends nowhere: its box is the whole image, and nothing is
  dimmed. The threshold is a share of the resized map's largest value.
- The box that is pasted is rounded to whole pixels.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from hapre_jax import boxes, nets
from hapre_jax.config import Config
from hapre_jax.method import Aux, Method
from hapre_jax.methods import plain
from hapre_jax.tasks import Classification, apply_network, normalize, resize

# Bounds between which a threshold is drawn, in shares of the map's largest value.
_THRESHOLDS = {"mixed": (0.4, 0.6), "dimmed": (0.2, 0.5), "patched": (0.4, 0.6)}
_MARGIN = 0.1  # around a box, on each side, in sides of the image
_KEPT = 0.6  # share of the image as it is in a mixed view
_DIMMED = 0.001  # added to the factors 0 and 1 of a dimmed view
_CONFIDENT = 0.7  # least probability of an answer that is a target
_SMOOTHING = 0.01  # what a class that is not the label's has of a smoothed label
_EPSILON = 1e-12  # WS-DAN's; the released code's was not read


class Views(NamedTuple):
    """An image as its attention augments it, each `f32[S, S, C]`."""

    mixed: jax.Array
    dimmed: jax.Array
    patched: jax.Array


def make(config: Config, num_classes: int) -> Method:
    """MAG-SD with the config's ResNet as trunk."""
    settings = config.task
    trunk = plain.backbone(config, settings)
    network = nets.MANet(
        trunk,
        num_classes,
        maps=config.baseline.attention_maps,
        norm=settings.norm,
        dtype=settings.dtype,
    )
    task = Classification(network, settings.image_size, settings.normalize)

    def loss(params, model_state, average, batch, key, step):
        del average, step
        label = batch["label"]

        def classify(state, image):
            variables = {"params": params["task"], **state}
            return apply_network(network, variables, image, train=True)

        image = normalize(resize(batch["image"], task.image_size), task.normalize)
        raw, state = classify(model_state["task"], image)
        keys = jax.random.split(key, len(image))
        views = jax.vmap(augment)(keys, image, raw.features["attention"])
        target = jax.vmap(soft_target)(raw.logits, label)
        distances = {}
        for name, view in views._asdict().items():
            output, state = classify(state, view)
            distance = jax.vmap(soft_distance)(target, output.logits)
            distances[f"distance_{name}"] = jnp.mean(distance)
        task_loss = jnp.mean(task.loss(raw, label))
        metrics = {"task_loss": task_loss, **distances}
        return task_loss + sum(distances.values()), Aux({"task": state}, metrics)

    return plain.classifier(task)._replace(loss=loss, has_one_network=False)


def augment(key: jax.Array, image: jax.Array, maps: jax.Array) -> Views:
    """The three views of an image; no gradient.

    Args:
      key: PRNG key.
      image: `f32[S, S, C]`, normalized gray levels.
      maps: `f32[h, w, M]`, its attention, >= 0.
    """
    chex.assert_rank([image, maps], 3)
    image, maps = jax.lax.stop_gradient((image, maps))
    map_key, threshold_key, place_key = jax.random.split(key, 3)
    chosen = maps[:, :, draw_maps(map_key, maps, count=len(Views._fields))]
    shape = (*image.shape[:2], chosen.shape[-1])
    chosen = jnp.moveaxis(jax.image.resize(chosen, shape, "linear"), -1, 0)
    low, high = jnp.array([_THRESHOLDS[name] for name in Views._fields]).T
    thresholds = jax.random.uniform(threshold_key, low.shape, minval=low, maxval=high)
    masks = Views(*jax.vmap(attended)(chosen, thresholds))
    place = jax.random.uniform(place_key, (2,))
    return Views(
        mix(image, pad(boxes.bounding_box(masks.mixed))),
        dim(image, masks.dimmed),
        patch(image, pad(boxes.bounding_box(masks.patched)), place),
    )


def draw_maps(key: jax.Array, maps: jax.Array, *, count: int) -> jax.Array:
    """Indices `i32[count]` of maps `f32[h, w, M]`, drawn with replacement.

    The probability of a map is proportional to the root of its sum.
    """
    chex.assert_rank(maps, 3)
    weights = jnp.sqrt(jnp.sum(maps, (0, 1))) + _EPSILON
    return jax.random.categorical(key, jnp.log(weights), shape=(count,))


def attended(attention: jax.Array, threshold: jax.Array) -> jax.Array:
    """Where a map is at least `threshold` times its largest value: `bool[H, W]`.

    Args:
      attention: `f32[H, W]`, >= 0; of zeros only, nothing is attended.
      threshold: `f32[]` in 0..1.
    """
    chex.assert_rank(attention, 2)
    return (attention >= threshold * jnp.max(attention)) & (attention > 0)


def pad(box: jax.Array) -> jax.Array:
    """A box with the margin around it, cut at the border of the image."""
    chex.assert_shape(box, (4,))
    margins = jnp.array([-_MARGIN, -_MARGIN, _MARGIN, _MARGIN])
    return jnp.clip(box + margins, 0.0, 1.0)


def mix(image: jax.Array, box: jax.Array) -> jax.Array:
    """Attention mix-up: an image `f32[S, S, C]` and its `box`, magnified, over it."""
    crop = boxes.crop_and_resize(image, box, size=image.shape[0])
    return _KEPT * image + (1 - _KEPT) * crop


def dim(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention dimming: almost nothing of an image where `mask` bool[S, S] is true."""
    factor = jnp.where(mask, 0.0, 1.0) + _DIMMED
    return image * factor[:, :, None]


def patch(image: jax.Array, box: jax.Array, place: jax.Array) -> jax.Array:
    """Attention patching: a box of an image, pasted elsewhere in it.

    Args:
      image: `f32[H, W, C]`.
      box: `f32[4]` yxyx inside the image, rounded to whole pixels.
      place: `f32[2]` in [0, 1), where it goes among all pixels at which it fits; (0, 0)
        is the top left.
    """
    chex.assert_rank(image, 3)
    chex.assert_shape([box, place], [(4,), (2,)])
    sides = jnp.array(image.shape[:2], box.dtype)
    low = jnp.round(box[:2] * sides)
    size = jnp.round(box[2:] * sides) - low
    start = jnp.floor(place * (sides - size + 1))
    low, size, start = (x.astype(jnp.int32) for x in (low, size, start))

    def source(axis):
        """For each row or column: whether it is covered, and what it shows then."""
        here = jnp.arange(image.shape[axis])
        inside = (here >= start[axis]) & (here < start[axis] + size[axis])
        return inside, jnp.where(inside, here - start[axis] + low[axis], here)

    (in_rows, rows), (in_columns, columns) = source(0), source(1)
    inside = in_rows[:, None] & in_columns[None, :]
    return jnp.where(inside[:, :, None], image[rows][:, columns], image)


def soft_target(logits: jax.Array, label: jax.Array) -> jax.Array:
    """What the answers on the views should be: `f32[K]`; no gradient.

    The raw image's probabilities, where they are right and sure; else a smoothed label,
    whose sum is, as in the released code, not 1 but 0.99.

    Args:
      logits: `f32[K]` of the raw image.
      label: `i32[]`.
    """
    chex.assert_rank([logits, label], [1, 0])
    probabilities = jax.nn.softmax(logits)
    is_right = jnp.argmax(logits) == label
    is_sure = jnp.max(probabilities) >= _CONFIDENT
    is_label = jnp.arange(len(logits)) == label
    smoothed = jnp.where(is_label, 1 - len(logits) * _SMOOTHING, _SMOOTHING)
    target = jnp.where(is_right & is_sure, probabilities, smoothed)
    return jax.lax.stop_gradient(target)


def soft_distance(target: jax.Array, logits: jax.Array) -> jax.Array:
    """Mean absolute difference `f32[]` of probabilities to a target, both of K."""
    chex.assert_rank([target, logits], 1)
    return jnp.mean(jnp.abs(target - jax.nn.softmax(logits)))
