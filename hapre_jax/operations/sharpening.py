"""Denoising and sharpening: the two directions of one number."""

import dataclasses

import jax
import jax.numpy as jnp

from hapre_jax.operations.numbers import Numbers


@dataclasses.dataclass(frozen=True)
class Sharpening(Numbers):
    """Differences to a smoothed image times a factor: 0 is smooth, above 1 sharper.

    It acts on what the task network sees, since the pixels of a film are finer than
    what is left of them there.

    Attributes:
      strength: factor above 1 that 1 stands for; -1 stands for the smoothed image.
    """

    strength: float = 3.0
    count = 1

    def parameters(self, action):
        return {"sharpness": self._factor(action)}

    def change(self, image, numbers):
        # Binomial, twice: a Gaussian of about one pixel.
        rows = jnp.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        smooth = image
        for axis in (0, 1):
            smooth = _smooth(smooth, rows, axis)
        factor = self._factor(numbers)
        return jnp.clip(smooth + factor * (image - smooth), 0.0, 1.0)

    def _factor(self, numbers):
        number = numbers[0]
        return 1 + jnp.where(number > 0, self.strength * number, number)


def _smooth(image: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Weighted mean along an axis, with the border's values outside."""
    reach = len(weights) // 2
    width = [(reach, reach) if i == axis else (0, 0) for i in range(image.ndim)]
    padded = jnp.pad(image, width, mode="edge")
    side = image.shape[axis]
    return sum(
        weight * jax.lax.slice_in_dim(padded, start, start + side, axis=axis)
        for start, weight in enumerate(weights)
    )
