"""Dueling Q-network (Wang et al., 2016) on a feature map."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class DuelingNet(nn.Module):
    """Values of actions: Q = V + A - mean(A), from three convolutions and two streams.

    Widths are those of the code that DRL-DA descends from: without padding, 10 x 10
    features become 4 x 4 x 32, a vector of 512.

    Attributes:
      num_actions: A.
    """

    num_actions: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Q `f32[B, A]` of features `f32[B, 10, 10, C]`."""
        x = features
        for width in (256, 64, 32):
            x = nn.relu(nn.Conv(width, (3, 3), padding="VALID")(x))
        x = x.reshape(len(x), -1)
        value = nn.Dense(1)(nn.relu(nn.Dense(512)(x)))
        advantage = nn.Dense(self.num_actions)(nn.relu(nn.Dense(512)(x)))
        return value + advantage - jnp.mean(advantage, axis=1, keepdims=True)
