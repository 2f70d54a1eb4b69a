"""Pre-processing operations: what an action is, what it does, what lies next to it."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from hapre_jax import boxes, policy

# Weight of the squared distance to the bounds beside an objective of order one: a mean
# a tenth of the image out costs 0.03, as much as a typical advantage is worth.
_BOUND_WEIGHT = 3.0


class Operation(Protocol):
    """One kind of pre-processing, for one image; the caller `vmap`s.

    An action is a flat `f32[...]` array of fixed shape. The *mean* action is what the
    policy network's logits say and is never clipped; every other function takes and
    gives actions that need not be valid, and `clip` makes them so.
    """

    def identity(self) -> jax.Array:
        """The action that leaves the image as it is."""

    def mean(self, logits: jax.Array) -> jax.Array:
        """The policy's mean action from its logits `f32[g, g]`."""

    def sample(self, key: jax.Array, mean: jax.Array, sigma: jax.Array, num: int):
        """`num` exploratory actions around the mean, differentiable in it."""

    def log_prob(self, action: jax.Array, mean: jax.Array, sigma: jax.Array):
        """Log density of a sampled action, differentiable in the mean."""

    def entropy(self, mean: jax.Array, sigma: jax.Array) -> jax.Array:
        """Entropy of the policy, in nats."""

    def clip(self, action: jax.Array) -> jax.Array:
        """The nearest valid action."""

    def random(self, key: jax.Array) -> jax.Array:
        """A valid action that knows nothing of the image."""

    def cost(self, action: jax.Array) -> jax.Array:
        """What to save on where the task does not care: `f32[]` in [0, 1]."""

    def as_map(self, action: jax.Array, grid: int) -> jax.Array:
        """The map `f32[g, g]` in [0, 1] whose `mean` is the action."""

    def bound_loss(self, mean: jax.Array) -> jax.Array:
        """Pulls a mean that is not valid back to where actions make a difference."""

    def metrics(self, actions: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """What to log of valid mean actions `f32[B, ...]`: name to `f32[]`."""

    def neighbors(self, action: jax.Array) -> jax.Array:
        """The valid actions next to an action, tried beside it: `f32[n, ...]`."""

    def apply(self, image: jax.Array, action: jax.Array, size: int) -> jax.Array:
        """What the task network sees: `f32[H, W, C]` to `f32[S, S, C]`."""


@dataclasses.dataclass(frozen=True)
class KeyArea:
    """Key region selection (HAPre-KRS): keep one box of the image, yxyx.

    Attributes:
      alpha: how much expand and shrink scale the sides; > 1.
      min_side, max_side: bounds of a valid key area's sides.
      moves: which neighbors are tried, see `boxes.neighbors`.
      readout: how a box is read off the logits: "moments", or "max_sum", which has no
        gradient.
    """

    alpha: float = 1.25
    min_side: float = 0.25
    max_side: float = 1.0
    moves: str = "rescale"
    readout: str = "moments"

    def identity(self):
        return jnp.array(boxes.WHOLE)

    def mean(self, logits):
        if self.readout == "max_sum":
            return policy.max_sum_box(logits)
        return policy.mean_box(logits)

    def sample(self, key, mean, sigma, num):
        return policy.sample_pathwise(key, mean, sigma=sigma, num_samples=num)

    def log_prob(self, action, mean, sigma):
        return policy.log_prob(action, mean, sigma=sigma)

    def entropy(self, mean, sigma):
        return policy.entropy(mean, sigma=sigma)

    def clip(self, action):
        return boxes.clip(action, min_side=self.min_side, max_side=self.max_side)

    def random(self, key):
        size_key, place_key = jax.random.split(key)
        bounds = {"minval": self.min_side, "maxval": self.max_side}
        size = jax.random.uniform(size_key, (2,), **bounds)
        low = (1 - size) * jax.random.uniform(place_key, (2,))
        return jnp.concatenate([low, low + size])

    def cost(self, action):
        return boxes.area(action)

    def as_map(self, action, grid):
        return boxes.mask(action, grid)

    def bound_loss(self, mean):
        # A mean past the bounds draws actions that are all clipped to the same box:
        # no advantage, no gradient, no way back. Squared distance to the valid box.
        return _BOUND_WEIGHT * jnp.sum(
            (mean - jax.lax.stop_gradient(self.clip(mean))) ** 2
        )

    def metrics(self, actions, batch):
        logged = {"side": jnp.mean(jnp.sqrt(jax.vmap(boxes.area)(actions)))}
        if "lung_box" in batch:  # NaN where the lungs are not known
            known = jnp.isfinite(batch["lung_box"][:, 0])
            ious = jax.vmap(boxes.iou)(actions, batch["lung_box"])
            logged["lung_iou"] = jnp.sum(jnp.where(known, ious, 0.0)) / jnp.maximum(
                jnp.sum(known), 1
            )
        return logged

    def neighbors(self, action):
        return boxes.neighbors(
            action,
            self.moves,
            alpha=self.alpha,
            min_side=self.min_side,
            max_side=self.max_side,
        )

    def apply(self, image, action, size):
        return boxes.crop_and_resize(image, action, size=size)
