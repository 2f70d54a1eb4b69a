"""What the framework needs to know of a pre-processing operation."""

from typing import Any, Protocol

import jax


class Operation(Protocol):
    """One kind of pre-processing, for one image; the caller `vmap`s.

    An action is a flat `f32[d]` array. The *mean* action is what the policy network's
    logits say and is never clipped; every other function takes and gives actions that
    need not be valid, and `clip` makes them so.
    """

    @property
    def has_gradient(self) -> bool:
        """Whether `mean` has one; without it a policy can only imitate."""

    def identity(self) -> jax.Array:
        """The action that leaves the image as it is."""

    def logits_shape(self, grid: int) -> tuple:
        """What it reads of an image's policy output.

        `(g, g)`, a map; `(g, g, n)`, n maps; `(n,)`, n numbers; or, of several
        operations, a tuple of such shapes. The logits are of the same structure, and
        start at zero.
        """

    def mean(self, logits: Any) -> jax.Array:
        """The policy's mean action from its logits; the identity from zeros."""

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

    def imitation_loss(
        self, logits: Any, action: jax.Array, weight: jax.Array, gamma: float
    ) -> jax.Array:
        """Pulls the policy to an action, times a weight `f32[]`.

        No gradient flows into the action and the weight. `gamma` is that of the focal
        loss, where the logits are a map.
        """

    def metrics(self, actions: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """What to log of valid mean actions `f32[B, d]`, as `method.Aux` has it."""

    def neighbors(self, action: jax.Array) -> jax.Array:
        """The valid actions next to an action, tried beside it: `f32[n, d]`.

        The paper's expanded and shrunk area, of any operation.
        """

    def neighbor_names(self) -> tuple[str, ...]:
        """What the log calls the first of them; others are not counted there."""

    def apply(self, image: jax.Array, action: jax.Array, size: int) -> jax.Array:
        """What the task network sees: `f32[H, W, C]` to `f32[S, S, C]`."""

    def to_source(self, points: jax.Array, action: jax.Array) -> jax.Array:
        """Where in the image lies what is seen at points `f32[n, 2]`.

        Points are yx in fractions of the image, and of what is seen.
        """

    def from_source(self, points: jax.Array, action: jax.Array) -> jax.Array:
        """Inverse of `to_source`; may lie outside of what is seen."""

    def is_seen(self, points: jax.Array, action: jax.Array) -> jax.Array:
        """Whether the task sees points `f32[n, 2]` of the image: `bool[n]`."""

    def area(self, action: jax.Array) -> jax.Array | None:
        """The area `f32[4]` yxyx of the image that it is about, if there is one.

        Of a hybrid it is one of what the parts before it leave of the image.
        """

    def from_area(self, box: jax.Array) -> jax.Array:
        """The action of an area, and nothing else; only of use where there is one."""

    def parameters(self, action: jax.Array) -> dict[str, jax.Array]:
        """Its other settings `f32[]` by name, in units that a reader knows."""
