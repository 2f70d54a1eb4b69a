"""A task of your own: a number instead of a class, with the key area as operation.

python examples/own_task.py

How large is the consolidation? A network that sees the whole phantom at 24 pixels finds
that hard; behind a learned key area the same network sees it larger.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax import (
    config,
    framework,
    nets,
    operations,
    optimization,
    tasks,
    train_state,
    train_step,
)
from hapre_jax.data import phantom
from hapre_jax.method import to_float


@dataclasses.dataclass(frozen=True)
class Regression:
    """One number an image, squared error."""

    network: Any
    image_size: int

    def init(self, key, image):
        return self.network.init(key, tasks.normalize(image, "image"), train=False)

    def apply(self, variables, image, *, train, key=None):
        image = tasks.normalize(image, "image")
        return tasks.apply_network(self.network, variables, image, train=train, key=key)

    def target(self, batch):
        return batch["number"]

    # A number is of the whole image, whatever is shown of it. A mask or a box would be
    # moved here, see tasks.Segmentation and operations.geometry.

    def show_target(self, target, operation, action):
        return target

    def loss(self, outputs, target):
        return (outputs.logits[:, 0] - target) ** 2

    def whole_loss(self, outputs, target, operation, actions):
        return self.loss(outputs, target)

    def whole_answers(self, outputs, operation, actions):
        return outputs.logits[:, 0]


def draw(count: int, first: int) -> dict[str, np.ndarray]:
    """A batch of phantoms; "number" is the lesion's side, mean 0 and deviation 1."""
    films = [phantom.make(3 * (first + i) + 1, size=64) for i in range(count)]
    sides = np.sqrt([np.prod(f.lesion_box[2:] - f.lesion_box[:2]) for f in films])
    return {
        "image": np.stack([film.image for film in films])[..., None],
        "number": np.float32((sides - 0.1) / 0.03),
        "index": np.arange(count, dtype=np.int32),
    }


def main(steps: int = 400, films: int = 800) -> dict[str, float]:
    """Trains with and without a key area; prints and returns mean squared errors."""
    train, test, errors = draw(films, 0), draw(films // 4, films), {}
    for name, operation in {
        "whole image": operations.Numbers(),
        "key area": operations.KeyArea(),
    }.items():
        settings = config.Config(
            data=config.DataConfig(image_size=64),
            train=config.TrainConfig(steps=steps, batch_size=16),
            policy=config.PolicyConfig(warmup_steps=steps // 3, train_crops=2),
        )
        trunk = nets.NETS["resnet8"](num_classes=0, norm="group")
        method = framework.make(
            Regression(nets.NETS["resnet8"](num_classes=1), 24),
            nets.PolicyNet(trunk, shape=operation.logits_shape(16)),
            operation,
            settings,
        )
        optimizer = optimization.make_optimizer(settings)
        now = train_state.init(method, optimizer, settings)
        step_fn = train_step.make_step(method, optimizer, settings)
        rng = np.random.default_rng(0)
        for _ in range(steps):
            rows = rng.integers(films, size=16)
            now, _ = step_fn(now, {key: of[rows] for key, of in train.items()})
        found = jax.jit(method.predict)(*now.average, to_float(test))
        errors[name] = float(jnp.mean((found.probabilities - test["number"]) ** 2))
        print(f"{name}: mean squared error {errors[name]:.2f}")
    print(f"the mean of all: {np.var(test['number']):.2f}")
    return errors


if __name__ == "__main__":
    main()
