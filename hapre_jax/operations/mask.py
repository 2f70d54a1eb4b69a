"""Mask: what lies outside of the area is hidden, and nothing moves."""

import dataclasses

import jax
import jax.numpy as jnp

from hapre_jax import boxes
from hapre_jax.operations.key_area import KeyArea


@dataclasses.dataclass(frozen=True)
class Mask(KeyArea):
    """Keeps one box of the image in its place; the rest is black."""

    def apply(self, image, action, size):
        image = jax.image.resize(image, (size, size, image.shape[-1]), "linear")
        return image * boxes.mask(action, size)[:, :, None]

    def to_source(self, points, action):
        del action
        return points

    def from_source(self, points, action):
        del action
        return points

    def is_seen(self, points, action):
        low, high = action[None, :2], action[None, 2:]
        return jnp.all((points >= low) & (points < high), axis=1)
