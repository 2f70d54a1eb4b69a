"""The key area: one box of the image is kept (HAPre-KRS)."""

import dataclasses

import jax
import jax.numpy as jnp

from hapre_jax import boxes, policy, policy_gradient
from hapre_jax.errors import check_choice
from hapre_jax.operations import geometry


@dataclasses.dataclass(frozen=True)
class KeyArea:
    """Key region selection (HAPre-KRS): keep one box of the image, yxyx.

    Attributes:
      alpha: how much expand and shrink scale the sides; > 1.
      min_side, max_side: bounds of a valid key area's sides.
      moves: which neighbors are tried, see `boxes.neighbors`.
      readout: how a box is read off the logits: "moments" of a map; "max_sum" of one,
        which has no gradient; or "anchors", see `policy.anchor_box`.

    Raises:
      ValueError: alpha or the bounds are not in their ranges.
    """

    alpha: float = 1.25
    min_side: float = 0.25
    max_side: float = 1.0
    moves: str = "rescale"
    readout: str = "moments"

    def __post_init__(self):
        if not self.alpha > 1:
            raise ValueError(f"alpha is {self.alpha}, but must be above 1")
        boxes.check_sides(self.min_side, self.max_side)

    @property
    def has_gradient(self):
        return self.readout != "max_sum"

    def identity(self):
        return jnp.array(boxes.WHOLE)

    def logits_shape(self, grid):
        return (grid, grid, 3) if self.readout == "anchors" else (grid, grid)

    def mean(self, logits):
        read = {
            "moments": policy.mean_box,
            "max_sum": policy.max_sum_box,
            "anchors": policy.anchor_box,
        }
        check_choice("readout", self.readout, read)
        return read[self.readout](logits)

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
        size = jax.random.uniform(
            size_key, (2,), minval=self.min_side, maxval=self.max_side
        )
        low = (1 - size) * jax.random.uniform(place_key, (2,))
        return jnp.concatenate([low, low + size])

    def cost(self, action):
        return boxes.area(action)

    def as_map(self, action, grid):
        """The map `f32[g, g]` in [0, 1] whose `mean` is the action, of whole cells."""
        return boxes.mask(action, grid)

    def imitation_loss(self, logits, action, weight, gamma):
        if self.readout == "anchors":
            # No map to compare: the log likelihood of a Gaussian of unit width around
            # the mean, up to what does not depend on the distance.
            action, weight = jax.lax.stop_gradient((action, weight))
            distance = policy.standardize(action, self.mean(logits), sigma=1.0)
            return 0.5 * jnp.sum(distance**2) * weight
        target = self.as_map(action, logits.shape[0])
        return policy_gradient.paper_loss(logits, target, weight, gamma=gamma)

    def metrics(self, actions, batch):
        logged = {"side": jnp.mean(jnp.sqrt(jax.vmap(boxes.area)(actions)))}
        if "lung_box" in batch:  # NaN where the lungs are not known
            known = jnp.isfinite(batch["lung_box"][:, 0])
            ious = jax.vmap(boxes.iou)(actions, batch["lung_box"])
            logged["lung_iou"] = jnp.mean(jnp.where(known, ious, 0.0))
            logged["lung_iou/known"] = jnp.mean(known)
        return logged

    def neighbor_names(self):
        return ("expanded", "shrunk")

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

    def to_source(self, points, action):
        return action[None, :2] + points * (action[2:] - action[:2])[None]

    def from_source(self, points, action):
        return (points - action[None, :2]) / (action[2:] - action[:2])[None]

    def is_seen(self, points, action):
        return geometry.is_inside(self.from_source(points, action))

    def area(self, action):
        return action

    def from_area(self, box):
        return box

    def parameters(self, action):
        return {}
