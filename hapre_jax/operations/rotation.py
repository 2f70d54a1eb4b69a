"""Rotation about the center of the image."""

import dataclasses

import jax
import jax.numpy as jnp

from hapre_jax import image_ops
from hapre_jax.operations.numbers import Numbers


@dataclasses.dataclass(frozen=True)
class Rotation(Numbers):
    """Turns the image counterclockwise; what was outside of it is black.

    Attributes:
      max_angle: degrees that 1 stands for.
    """

    max_angle: float = 45.0
    count = 1

    def parameters(self, action):
        return {"rotation": self.max_angle * action[0]}

    def change(self, image, numbers):
        degrees = self.max_angle * numbers[0]
        channels = jnp.moveaxis(image, -1, 0)[..., None]
        turned = jax.vmap(lambda channel: image_ops.rotate(channel, degrees))(channels)
        return jnp.moveaxis(turned[..., 0], 0, -1)

    def to_source(self, points, action):
        return self._turn(points, -self.max_angle * action[0])

    def from_source(self, points, action):
        return self._turn(points, self.max_angle * action[0])

    def _turn(self, points, degrees):
        """Points yx, counterclockwise as it is seen, y pointing down."""
        angle = jnp.deg2rad(degrees)
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        y, x = (points - 0.5).T
        turned = jnp.stack([cosine * y - sine * x, sine * y + cosine * x], axis=1)
        return turned + 0.5
