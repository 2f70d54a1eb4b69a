"""Hybrid pre-processing: several operations, one after the other, by one policy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from hapre_jax.operations import geometry
from hapre_jax.operations.operation import Operation


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """Operations applied in order; the policy is the product of theirs.

    An action holds those of the parts one after the other, and the logits are a tuple
    of theirs. The image keeps its full size until the last part with an area, so that
    an area is cut from all of its pixels; the parts after that see what the task
    network will.

    Attributes:
      parts: the operations; at most one may have an area.

    Raises:
      ValueError: more than one has an area, or there are no parts.
    """

    parts: tuple[Operation, ...]

    def __post_init__(self):
        areas = [
            jax.eval_shape(lambda part=part: part.area(part.identity()))
            for part in self.parts
        ]
        if not areas:
            raise ValueError("a hybrid needs parts, and there are none")
        if sum(area is not None for area in areas) > 1:
            raise ValueError(f"of {self.parts} more than one has an area")

    @property
    def has_gradient(self):
        return all(part.has_gradient for part in self.parts)

    def identity(self):
        return jnp.concatenate([part.identity() for part in self.parts])

    def logits_shape(self, grid):
        return tuple(part.logits_shape(grid) for part in self.parts)

    def mean(self, logits):
        pairs = zip(self.parts, logits, strict=True)
        return jnp.concatenate([part.mean(of) for part, of in pairs])

    def sample(self, key, mean, sigma, num):
        keys = jax.random.split(key, len(self.parts))
        drawn = [
            part.sample(k, m, sigma, num)
            for part, k, m in zip(self.parts, keys, self._split(mean), strict=True)
        ]
        return jnp.concatenate(drawn, axis=1)

    def log_prob(self, action, mean, sigma):
        return sum(
            part.log_prob(a, m, sigma) for part, a, m in self._each(action, mean)
        )

    def entropy(self, mean, sigma):
        return sum(part.entropy(m, sigma) for part, m in self._each(mean))

    def clip(self, action):
        return jnp.concatenate([part.clip(a) for part, a in self._each(action)])

    def random(self, key):
        keys = jax.random.split(key, len(self.parts))
        pairs = zip(self.parts, keys, strict=True)
        return jnp.concatenate([part.random(k) for part, k in pairs])

    def cost(self, action):
        return sum(part.cost(a) for part, a in self._each(action))

    def imitation_loss(self, logits, action, weight, gamma):
        triples = zip(self.parts, logits, self._split(action), strict=True)
        return sum(part.imitation_loss(z, a, weight, gamma) for part, z, a in triples)

    def metrics(self, actions, batch):
        logged: dict[str, jax.Array] = {}
        for part, of in self._each(actions):
            logged |= part.metrics(of, batch)
        return logged

    def neighbor_names(self):
        return self.parts[0].neighbor_names()

    def neighbors(self, action):
        """Those of each part, the others left as they are."""
        actions, found = self._split(action), []
        for index, part in enumerate(self.parts):
            for near in part.neighbors(actions[index]):
                changed = [*actions[:index], near, *actions[index + 1 :]]
                found.append(jnp.concatenate(changed))
        return jnp.stack(found) if found else jnp.zeros((0, *action.shape))

    def apply(self, image, action, size):
        areas = [
            index
            for index, (part, a) in enumerate(self._each(action))
            if part.area(a) is not None
        ]
        last = max(areas, default=0)
        for index, (part, a) in enumerate(self._each(action)):
            image = part.apply(image, a, image.shape[0] if index < last else size)
        return image

    def to_source(self, points, action):
        for part, a in reversed(list(self._each(action))):
            points = part.to_source(points, a)
        return points

    def from_source(self, points, action):
        for part, a in self._each(action):
            points = part.from_source(points, a)
        return points

    def is_seen(self, points, action):
        seen = jnp.ones(len(points), bool)
        for part, a in self._each(action):
            seen &= part.is_seen(points, a)
            points = part.from_source(points, a)
        return seen

    def area(self, action):
        for index, (part, own) in enumerate(self._each(action)):
            if (box := part.area(own)) is not None:
                if not index:
                    return box
                # One of what the parts before it show: of a turned film, maybe.
                before = Hybrid(self.parts[:index])
                shown = action[: self._ends[index - 1]]
                box = geometry.restore_boxes(before, box[None], shown)[0]
                return jnp.clip(box, 0.0, 1.0)
        return None

    def from_area(self, box):
        return jnp.concatenate([part.from_area(box) for part in self.parts])

    def parameters(self, action):
        found: dict[str, jax.Array] = {}
        for part, a in self._each(action):
            found |= part.parameters(a)
        return found

    @functools.cached_property
    def _ends(self):
        """Where in an action each part but the first begins."""
        shapes = [jax.eval_shape(part.identity).shape[0] for part in self.parts]
        return [sum(shapes[: index + 1]) for index in range(len(shapes) - 1)]

    def _split(self, action):
        return jnp.split(action, self._ends, axis=-1)

    def _each(self, *actions):
        """Each part with its own share of actions `f32[..., d]`."""
        return zip(self.parts, *map(self._split, actions), strict=True)
