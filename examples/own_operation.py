"""An operation of your own: a shift, which brings things to where they are expected.

python examples/own_operation.py

Bars, upright or lying, somewhere in the image. The task network is linear in the
pixels, so that it confuses bars that may be anywhere; the policy learns to move them,
from the loss of the classifier alone.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax import (
    config,
    framework,
    image_ops,
    nets,
    operations,
    optimization,
    tasks,
    train_state,
    train_step,
)
from hapre_jax.method import to_float


@dataclasses.dataclass(frozen=True)
class Shift(operations.Numbers):
    """Moves the image down and to the right; what was outside is black.

    Attributes:
      max_shift: share of a side that 1 stands for.
    """

    max_shift: float = 0.35
    count = 2  # numbers in [-1, 1] that the policy network gives; 0 changes nothing

    def change(self, image, numbers):
        pixels = self.max_shift * numbers * image.shape[0]
        return image_ops.translate(image, pixels)

    # Where what is seen was before: for masks, boxes and answers on the whole image.

    def to_source(self, points, action):
        return points - self.max_shift * action[None]

    def from_source(self, points, action):
        return points + self.max_shift * action[None]

    # For logs, results.json and, where the truth is known, its error.

    def parameters(self, action):
        down, right = self.max_shift * action
        return {"shift_down": down, "shift_right": right}


SIDE = 16


def draw(count: int, seed: int) -> dict[str, np.ndarray]:
    """A batch of bars: "image" u8[count, 16, 16, 1], "label" and "index"."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count).astype(np.int32)
    middles = rng.integers(5, 12, (count, 2))
    images = rng.integers(0, 60, (count, SIDE, SIDE, 1)).astype(np.uint8)
    for image, label, (y, x) in zip(images, labels, middles, strict=True):
        reach = np.array([3, 0]) if label else np.array([0, 3])
        image[y - reach[0] : y + reach[0] + 1, x - reach[1] : x + reach[1] + 1] = 220
    index = np.arange(count, dtype=np.int32)
    return {"image": images, "label": labels, "index": index}


class Linear(nn.Module):
    """Two logits, linear in the pixels."""

    @nn.compact
    def __call__(self, image, *, train):
        flat = image.reshape(len(image), -1)
        return nets.Output(nn.Dense(2)(flat), {})


def main(steps: int = 400) -> dict[str, float]:
    """Trains with and without the operation; prints and returns test accuracies."""
    accuracies = {}
    for name, operation in {"none": operations.Numbers(), "shift": Shift()}.items():
        settings = config.Config(
            data=config.DataConfig(image_size=SIDE),
            policy=config.PolicyConfig(
                image_size=SIDE, grid=8, width=16, warmup_steps=steps // 4
            ),
            train=config.TrainConfig(
                steps=steps, lr_warmup_steps=10, policy_learning_rate=5e-3
            ),
        )
        trunk = nets.NETS["resnet8"](num_classes=0, norm="group")
        shape = operation.logits_shape(8)
        method = framework.make(
            tasks.Classification(Linear(), SIDE),
            nets.PolicyNet(trunk, grid=8, width=16, shape=shape),
            operation,
            settings,
        )
        optimizer = optimization.make_optimizer(settings)
        now = train_state.init(method, optimizer, settings)
        step_fn = train_step.make_step(method, optimizer, settings)
        films = draw(2000, seed=0)
        rng = np.random.default_rng(1)
        for _ in range(steps):
            rows = rng.integers(2000, size=32)
            now, _ = step_fn(now, {key: of[rows] for key, of in films.items()})
        test = draw(500, seed=2)
        found = jax.jit(method.predict)(*now.average, to_float(test))
        answers = jnp.argmax(found.probabilities, axis=1)
        accuracies[name] = float(np.mean(answers == test["label"]))
        print(f"{name}: accuracy {accuracies[name]:.2f}")
    return accuracies


if __name__ == "__main__":
    main()
