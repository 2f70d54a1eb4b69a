"""Tasks: a task network, what it is trained on and how its answers are read."""

import dataclasses
import functools
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import optax

from hapre_jax import boxes, centers, losses
from hapre_jax.errors import check_choice
from hapre_jax.operations import geometry
from hapre_jax.operations.operation import Operation

# Mean and deviation of ImageNet's channels in [0, 1] (torchvision's checkpoints expect
# them); a one-channel image uses their average.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Deviation, in gray levels of [0, 1], below which a crop counts as empty: keeps the
# noise of a uniform background from being blown up to full contrast.
_MIN_STD = 0.05


class Task(Protocol):
    """What the framework needs to know of a task; variables are Flax collections."""

    @property
    def image_size(self) -> int:
        """S, pixels of a side of what the task network sees."""

    def init(self, key: jax.Array, image: jax.Array) -> dict:
        """Variables for images like `image` f32[B, S, S, C]."""

    def apply(self, variables: dict, image: jax.Array, *, train: bool, key=None):
        """Outputs for `image` f32[B, S, S, C] and the new model state.

        `key` is for dropout, where the network has some; needed in training.
        """

    def target(self, batch: dict) -> jax.Array:
        """What is to be answered, of whole images: first axis B."""

    def show_target(self, target: jax.Array, operation: Operation, action: jax.Array):
        """One image's target as an action leaves it."""

    def loss(self, outputs: Any, target: jax.Array) -> jax.Array:
        """Loss of each example, `f32[B]`, to targets as they are shown."""

    def whole_loss(
        self, outputs: Any, target: jax.Array, operation: Operation, actions: jax.Array
    ) -> jax.Array:
        """Loss `f32[B]` of answers brought back to whole images: it judges actions.

        `target` is that of the whole images. An action that leaves out what is to be
        found must pay for it.
        """

    def whole_answers(
        self, outputs: Any, operation: Operation, actions: jax.Array
    ) -> jax.Array:
        """What the task answers of the whole images: probabilities, first axis B."""


def normalize(image: jax.Array, how: str) -> jax.Array:
    """Gray levels as a network wants them.

    Args:
      image: `f32[..., H, W, C]` in [0, 1].
      how: "image": each image to mean 0 and nearly to deviation 1, so that exposure
        matters little: it is divided by its deviation + 0.05, lest the noise of an even
        image become contrast; "fixed": ImageNet's mean and deviation.

    Raises:
      ValueError: `how` is another word.
    """
    mean, deviation = normalization(image, how)
    return (image - mean) / deviation


def normalization(image: jax.Array, how: str) -> tuple[jax.Array, jax.Array]:
    """What `normalize` subtracts from an image and then divides it by.

    Both have the rank of the image, and broadcast to it.
    """
    chex.assert_rank(image, {3, 4, 5})
    chex.assert_type(image, float)
    check_choice("how", how, ("image", "fixed"))
    if how == "image":
        axes = (-3, -2, -1)
        variance = jnp.var(image, axes, keepdims=True)
        is_flat = variance == 0  # where a root has no gradient
        deviation = jnp.where(is_flat, 0.0, jnp.sqrt(jnp.where(is_flat, 1.0, variance)))
        return jnp.mean(image, axes, keepdims=True), deviation + _MIN_STD
    mean, std = jnp.array(_IMAGENET_MEAN), jnp.array(_IMAGENET_STD)
    if image.shape[-1] == 1:
        mean, std = jnp.mean(mean, keepdims=True), jnp.mean(std, keepdims=True)
    shape = (1,) * (image.ndim - 1) + (-1,)
    return mean.reshape(shape), std.reshape(shape)


def resize(image: jax.Array, size: int) -> jax.Array:
    """Whole images `f32[B, H, W, C]` at `f32[B, size, size, C]`, antialiased."""
    chex.assert_rank(image, 4)
    shape = (image.shape[0], size, size, image.shape[-1])
    return jax.image.resize(image, shape, "linear")


def crop(image: jax.Array, areas: jax.Array, size: int) -> jax.Array:
    """Boxes `f32[B, 4]` yxyx of images `f32[B, H, W, C]`: `f32[B, size, size, C]`."""
    return jax.vmap(functools.partial(boxes.crop_and_resize, size=size))(image, areas)


def apply_network(
    network: Any, variables: dict, image: jax.Array, *, train: bool, key=None
):
    """Output of a Linen module and its new state, empty where it has none."""
    random = {} if key is None else {"rngs": {"dropout": key}}
    output, state = network.apply(
        variables, image, train=train, mutable=["batch_stats"], **random
    )
    return output, dict(state)


class _OfNetwork:
    """What tasks of one `network` that sees images by `normalize` have in common."""

    network: Any
    normalize: str

    def init(self, key, image):
        return self.network.init(key, normalize(image, self.normalize), train=False)

    def apply(self, variables, image, *, train, key=None):
        image = normalize(image, self.normalize)
        return apply_network(self.network, variables, image, train=train, key=key)


@dataclasses.dataclass(frozen=True)
class Classification(_OfNetwork):
    """One label an image; cross-entropy.

    Attributes:
      network: Linen module returning `nets.Output` with logits `f32[B, K]`.
      image_size: S.
      normalize: see `normalize`.
    """

    network: Any
    image_size: int
    normalize: str = "image"

    def loss(self, outputs, target):
        """Cross-entropy, and in training those of auxiliary logits with weight 1."""
        cross_entropy = jax.vmap(losses.cross_entropy)
        return sum(
            (cross_entropy(logits, target) for logits in outputs.auxiliary),
            start=cross_entropy(outputs.logits, target),
        )

    def probabilities(self, outputs):
        """`f32[B, K]`."""
        return jax.nn.softmax(outputs.logits)

    # A label is of the whole image, whatever is shown of it.

    def target(self, batch):
        return batch["label"]

    def show_target(self, target, operation, action):
        del operation, action
        return target

    def whole_loss(self, outputs, target, operation, actions):
        del operation, actions
        return self.loss(outputs, target)

    def whole_answers(self, outputs, operation, actions):
        del operation, actions
        return self.probabilities(outputs)


@dataclasses.dataclass(frozen=True)
class Segmentation(_OfNetwork):
    """Masks of one or several structures; cross-entropy of pixels and soft Dice loss.

    What is left outside of a key area is answered by "nothing there", and counts: an
    action is judged by the Dice of the answer on the whole image.

    Attributes:
      network: Linen module returning `nets.Output` with logits `f32[B, S, S, K]`.
      image_size: S.
      whole_size: R, pixels of a side at which answers on whole images are given.
      normalize: see `normalize`.
    """

    network: Any
    image_size: int
    whole_size: int
    normalize: str = "image"

    def target(self, batch):
        """`f32[B, H, W, K]` in [0, 1]."""
        return batch["lungs"]

    def show_target(self, target, operation, action):
        return geometry.show_mask(operation, target, action, self.image_size)

    def loss(self, outputs, target):
        """Mean cross-entropy of the pixels, plus Dice loss; weights 1 as is usual."""
        pixels = optax.sigmoid_binary_cross_entropy(outputs.logits, target)
        dice = jax.vmap(losses.dice_loss)(jax.nn.sigmoid(outputs.logits), target)
        return jnp.mean(pixels, axis=(1, 2, 3)) + dice

    def whole_answers(self, outputs, operation, actions):
        """Probabilities `f32[B, R, R, K]`."""

        def restore(answer, action):
            return geometry.restore(operation, answer, action, self.whole_size)

        return jax.vmap(restore)(jax.nn.sigmoid(outputs.logits), actions)

    def whole_loss(self, outputs, target, operation, actions):
        """Dice loss alone: the cross-entropy of what is not seen would be infinite."""
        answers = self.whole_answers(outputs, operation, actions)
        target = jax.image.resize(target, answers.shape, "linear")
        return jax.vmap(losses.dice_loss)(answers, target)


# What a box that an action leaves out costs the action: about the loss of one whose
# middle is thought a thousandth probable.
_MISSED = 7.0


@dataclasses.dataclass(frozen=True)
class Detection(_OfNetwork):
    """Boxes of one kind of objects, by their middles.

    A box whose middle an operation does not show is not to be found there, and the
    action pays for it.

    Attributes:
      network: Linen module returning `nets.Output` with logits `f32[B, g, g, 5]`.
      image_size: S.
      count: n, boxes that are answered of each image.
      normalize: see `normalize`.
    """

    network: Any
    image_size: int
    count: int = 5
    normalize: str = "image"

    def target(self, batch):
        """`f32[B, M, 4]` yxyx, NaN where there are fewer than M."""
        return batch["boxes"]

    def show_target(self, target, operation, action):
        shown = geometry.show_boxes(operation, target, action)
        middle = (target[:, :2] + target[:, 2:]) / 2
        is_seen = operation.is_seen(middle, action)
        return jnp.where(is_seen[:, None], jnp.clip(shown, 0.0, 1.0), jnp.nan)

    def loss(self, outputs, target):
        return jax.vmap(centers.loss)(outputs.logits, target)

    def whole_loss(self, outputs, target, operation, actions):
        def show(target, action):
            return self.show_target(target, operation, action)

        shown = jax.vmap(show)(target, actions)
        is_lost = jnp.isfinite(target[..., 0]) & jnp.isnan(shown[..., 0])
        return self.loss(outputs, shown) + _MISSED * jnp.sum(is_lost, axis=1)

    def whole_answers(self, outputs, operation, actions):
        """`f32[B, n, 5]`: probability, then the box in the whole image."""

        def answer(found, action):
            boxes, scores = centers.decode(found, count=self.count)
            boxes = geometry.restore_boxes(operation, boxes, action)
            return jnp.concatenate([scores[:, None], boxes], axis=1)

        return jax.vmap(answer)(outputs.logits, actions)
