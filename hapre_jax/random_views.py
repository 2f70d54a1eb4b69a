"""Random views of training images, with the masks and boxes that belong to them."""

import math

import jax
import jax.numpy as jnp

from hapre_jax.config import DataConfig
from hapre_jax.errors import check_choice


def draw(batch: dict, key: jax.Array, data: DataConfig) -> dict:
    """A view of each image of a batch, as `data.flip` and `data.zoom_out` say.

    Args:
      batch: as of `flip`.
      key: PRNG key.
      data: the settings.
    """
    batch = flip(batch, key, axis=data.flip, probability=data.flip_probability)
    return zoom_out(batch, jax.random.fold_in(key, 2), most=data.zoom_out)


def flip(batch: dict, key: jax.Array, *, axis: str, probability: float) -> dict:
    """Flips each image of a batch, its mask and its boxes, with a probability.

    Args:
      batch: "image" f32[B, H, W, C]; where there are, "lungs" f32[B, H, W, K],
        "lung_box" f32[B, 4] and "boxes" f32[B, M, 4].
      key: PRNG key.
      axis: "none", "vertical" (upside down) or "horizontal".
      probability: of a flip.

    Raises:
      ValueError: the axis is another word.
    """
    check_choice("axis", axis, ("none", "vertical", "horizontal"))
    if axis == "none":
        return batch
    chosen = jax.random.uniform(key, (len(batch["image"]),)) < probability
    first = 0 if axis == "vertical" else 1  # position of the axis in a box

    def flip_image(image, chosen):
        return jnp.where(chosen, jnp.flip(image, first), image)

    def flip_boxes(boxes, chosen):
        low, high = boxes[..., first], boxes[..., first + 2]
        flipped = boxes.at[..., first].set(1 - high).at[..., first + 2].set(1 - low)
        return jnp.where(chosen, flipped, boxes)

    return _map(batch, flip_image, flip_boxes, chosen)


def zoom_out(batch: dict, key: jax.Array, *, most: float) -> dict:
    """Shrinks each image of a batch into a black frame, where it lies at random.

    So do films come that were exposed from further away, or badly centered: what a
    model of well-framed films never sees.

    Args:
      batch: as of `flip`.
      key: PRNG key.
      most: largest factor, >= 1; the logarithm of that of an image is uniform. 1 leaves
        images as they are.
    """
    if most == 1:
        return batch
    size_key, place_key = jax.random.split(key)
    count = len(batch["image"])
    sides = jnp.exp(-math.log(most) * jax.random.uniform(size_key, (count,)))
    corners = (1 - sides[:, None]) * jax.random.uniform(place_key, (count, 2))

    def zoom_image(image, place):
        side, corner = place
        pixels = jnp.array(image.shape[:2], jnp.float32)
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), jnp.tile(side, 2), corner * pixels, "linear"
        )

    def zoom_boxes(boxes, place):
        side, corner = place
        return boxes * side + jnp.broadcast_to(jnp.tile(corner, 2), boxes.shape)

    return _map(batch, zoom_image, zoom_boxes, (sides, corners))


def _map(batch, of_images, of_boxes, drawn):
    changes = dict.fromkeys(("image", "lungs"), of_images)
    changes |= dict.fromkeys(("lung_box", "boxes"), of_boxes)
    return batch | {
        name: jax.vmap(change)(batch[name], drawn)
        for name, change in changes.items()
        if name in batch
    }
