"""Zoom: the area is magnified, and its context is kept, squeezed around it."""

import dataclasses

import jax.numpy as jnp

from hapre_jax.operations.key_area import KeyArea


@dataclasses.dataclass(frozen=True)
class Zoom(KeyArea):
    """Shows the box on `share` of each side, and all the rest on what is left.

    A box that has a larger share of the image already keeps it.

    Attributes:
      share: of a side of what is seen. Not stated in the paper; three quarters leave
        the context visible and magnify lungs of half a side by 1.5.
    """

    share: float = 0.75

    def apply(self, image, action, size):
        rows, columns = (
            self._weights(action[axis::2], image.shape[axis], size) for axis in (0, 1)
        )
        return jnp.einsum("sh,hwc,tw->stc", rows, image, columns)

    def to_source(self, points, action):
        return jnp.stack(
            [
                _piecewise(points[:, axis], *self._edges(*action[axis::2]))
                for axis in (0, 1)
            ],
            axis=1,
        )

    def from_source(self, points, action):
        return jnp.stack(
            [
                _piecewise(points[:, axis], *self._edges(*action[axis::2])[::-1])
                for axis in (0, 1)
            ],
            axis=1,
        )

    def _edges(self, low, high):
        """Of the box along an axis: in what is seen, and in the image."""
        width = jnp.maximum(high - low, self.share)
        rest = 1 - (high - low)
        # A box without a rest has no place to choose.
        start = jnp.where(rest > 1e-6, (1 - width) * low / jnp.maximum(rest, 1e-6), 0.0)
        return (start, start + width), (low, high)

    def _weights(self, ends, pixels, size):
        """Shares `f32[S, H]` of pixels in what is seen: means over what each covers.

        At least over a pixel's width, which interpolates where there are no more.
        """
        edges = jnp.arange(size + 1) / size
        edges = _piecewise(edges, *self._edges(*ends)) * pixels
        middle = (edges[1:] + edges[:-1]) / 2
        half = jnp.maximum(edges[1:] - edges[:-1], 1.0) / 2
        middle = jnp.clip(middle, half, pixels - half)
        line = jnp.arange(pixels)[None]
        covered = jnp.clip(
            jnp.minimum((middle + half)[:, None], line + 1)
            - jnp.maximum((middle - half)[:, None], line),
            0.0,
        )
        return covered / (2 * half)[:, None]


def _piecewise(t, knots, values):
    """Linear between (0, 0), the two knots and (1, 1)."""
    (a, b), (low, high) = knots, values

    def part(start, end):
        return jnp.clip((t - start) / jnp.maximum(end - start, 1e-6), 0.0, 1.0)

    return low * part(0.0, a) + (high - low) * part(a, b) + (1 - high) * part(b, 1.0)
