"""Gray levels: gamma, contrast and window."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from hapre_jax.operations.numbers import Numbers

# Gray level of [0, 1] below which a power is a straight line to black: the gradient of
# black to a power below 1 is infinite. Half a level of 8 bits.
_DARKEST = 0.5 / 255
# Not stated in the paper, which has no such operations. More than the gamma of 0.4 to
# 2.5 by which phantoms are exposed.
_MOST = 3.0


def _factor(number: jax.Array, most: float) -> jax.Array:
    """From 1 / `most` to `most` as a number goes from -1 to 1; 1 at 0."""
    return jnp.exp(math.log(most) * number)


@dataclasses.dataclass(frozen=True)
class Gamma(Numbers):
    """Gray levels to a power: below 1 it brightens an under-exposed film.

    Attributes:
      max_gamma: the largest power; the smallest is 1 / max_gamma.
    """

    max_gamma: float = _MOST
    count = 1

    def parameters(self, action):
        return {"log2_gamma": math.log2(self.max_gamma) * action[0]}

    def change(self, image, numbers):
        power = _factor(numbers[0], self.max_gamma)
        line = jnp.maximum(image, 0.0) * _DARKEST ** (power - 1)
        return jnp.where(
            image < _DARKEST, line, jnp.clip(image, _DARKEST, 1.0) ** power
        )


@dataclasses.dataclass(frozen=True)
class Contrast(Numbers):
    """Differences to the mean gray times a factor.

    Attributes:
      max_contrast: the largest factor; the smallest is 1 / max_contrast.
    """

    max_contrast: float = _MOST
    count = 1

    def parameters(self, action):
        return {"log2_contrast": math.log2(self.max_contrast) * action[0]}

    def change(self, image, numbers):
        mean = jnp.mean(image)
        changed = mean + _factor(numbers[0], self.max_contrast) * (image - mean)
        return jnp.clip(changed, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Window(Numbers):
    """Level and width, as a radiologist sets them: grays of the window fill [0, 1].

    Attributes:
      max_shift: the farthest that the window's middle moves from middle gray. By 0.4
        the narrowest window reaches the ends of all grays.
      max_width: the widest window, in widths of all grays; the narrowest is
        1 / max_width.
    """

    max_shift: float = 0.4
    max_width: float = _MOST
    count = 2

    def parameters(self, action):
        return {
            "window_level": 0.5 + self.max_shift * action[0],
            "window_width": _factor(action[1], self.max_width),
        }

    def change(self, image, numbers):
        window = self.parameters(numbers)
        inside = (image - window["window_level"]) / window["window_width"] + 0.5
        return jnp.clip(inside, 0.0, 1.0)
