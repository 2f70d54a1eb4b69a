"""Operations whose action is a few numbers, and a factored Gaussian policy over them.

Each number lies in [-1, 1], and 0 leaves the image as it is. The policy network gives
the mean of each; the policy is a Gaussian of width sigma around it. `Numbers` itself
changes nothing (`none`, with no number): an operation of this kind says how many
numbers it has and what they do, in `change`.
"""

import math

import chex
import jax
import jax.numpy as jnp

from hapre_jax.operations import geometry

# Not stated in the paper, which has no such operation: an eighth of the range, as much
# as expanding by 1.25 moves each edge of a whole image.
_STEP = 0.25


class Numbers:
    """Base of operations on numbers; itself the operation that does nothing."""

    count = 0
    has_gradient = True

    def change(self, image: jax.Array, numbers: jax.Array) -> jax.Array:
        """The image `f32[S, S, C]` as numbers `f32[count]` in [-1, 1] change it."""
        del numbers
        return image

    def parameters(self, action):
        del action
        return {}

    def identity(self):
        return jnp.zeros(self.count)

    def logits_shape(self, grid):
        del grid
        return (self.count,)

    def mean(self, logits):
        chex.assert_shape(logits, (self.count,))
        return logits

    def sample(self, key, mean, sigma, num):
        if num % 2:
            raise ValueError(f"num must be even, got {num}")
        half = jax.random.normal(key, (num // 2, self.count), mean.dtype)
        # Antithetic pairs, as of `policy.sample`.
        return mean[None] + sigma * jnp.concatenate([half, -half])

    def log_prob(self, action, mean, sigma):
        chex.assert_shape([action, mean], (self.count,))
        noise = (action - mean) / sigma
        normalizer = jnp.log(sigma) + 0.5 * math.log(2 * math.pi)
        return -0.5 * jnp.sum(noise**2) - self.count * normalizer

    def entropy(self, mean, sigma):
        chex.assert_shape(mean, (self.count,))
        of_one = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(sigma)
        return self.count * of_one

    def clip(self, action):
        return jnp.clip(action, -1.0, 1.0)

    def random(self, key):
        return jax.random.uniform(key, (self.count,), minval=-1.0)

    def cost(self, action):
        del action
        return jnp.zeros(())

    def imitation_loss(self, logits, action, weight, gamma):
        # The log likelihood of a Gaussian of unit width, up to a constant.
        del gamma
        action, weight = jax.lax.stop_gradient((action, weight))
        return 0.5 * jnp.sum((self.mean(logits) - action) ** 2) * weight

    def metrics(self, actions, batch):
        del batch
        settings = jax.vmap(self.parameters)(actions)
        means = {name: jnp.mean(values) for name, values in settings.items()}
        spread = {f"{name}_std": jnp.std(values) for name, values in settings.items()}
        return means | spread

    def neighbor_names(self):
        return ()

    def neighbors(self, action):
        steps = _STEP * jnp.eye(self.count)
        moved = jnp.concatenate([action[None] + steps, action[None] - steps])
        return self.clip(moved)

    def apply(self, image, action, size):
        chex.assert_type(image, float)  # levels in 0..255 would all become white
        image = jax.image.resize(image, (size, size, image.shape[-1]), "linear")
        return self.change(image, action)

    def to_source(self, points, action):
        del action
        return points

    def from_source(self, points, action):
        del action
        return points

    def is_seen(self, points, action):
        return geometry.is_inside(self.from_source(points, action))

    def area(self, action):
        del action

    def from_area(self, box):
        del box
        return self.identity()
