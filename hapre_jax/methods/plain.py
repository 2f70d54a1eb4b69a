"""The plain classifier: the whole image, downscaled to what the task network sees.

Reference: the row "ResNet" of the paper's tables. One forward a step and image.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hapre_jax import nets
from hapre_jax.config import Config, PolicyConfig, TaskConfig
from hapre_jax.method import Aux, Method, Prediction, network_variables, split_variables
from hapre_jax.tasks import Classification, crop, resize


def backbone(
    config: Config, settings: TaskConfig | PolicyConfig, num_classes: int = 0
) -> Any:
    """The network that a section of a config names, a Linen module of `nets`.

    Args:
      config: of the run.
      settings: its section.
      num_classes: K of the head; 0 for none, where it is the trunk of another network.
    """
    return nets.NETS[settings.net](
        num_classes=num_classes,
        norm=settings.norm,
        dtype=settings.dtype,
        rematerialize=config.train.rematerialize,
    )


def classification(config: Config, num_classes: int) -> Classification:
    """The task network of a config, the same for every method."""
    network = backbone(config, config.task, num_classes)
    return Classification(network, config.task.image_size, config.task.normalize)


def make(config: Config, num_classes: int) -> Method:
    """The baseline that sees what every other method starts from."""
    return classifier(classification(config, num_classes))


def classifier(task: Classification, show: Callable | None = None) -> Method:
    """A method that trains a task network on what `show` makes of each image.

    Args:
      task: the task network.
      show: `(batch, key) -> f32[B, S, S, C]`; the key is None where images are not to
        be varied at random, as in a prediction. By default, the whole images.
    """
    if show is None:

        def show(batch, key):
            del key
            return resize(batch["image"], task.image_size)

    def init(key, image):
        return split_variables({"task": task.init(key, resize(image, task.image_size))})

    def loss(params, model_state, average, batch, key, step):
        del average, step
        variables = network_variables("task", params, model_state)
        inputs = show(batch, jax.random.fold_in(key, 1))
        outputs, state = task.apply(variables, inputs, train=True, key=key)
        task_loss = jnp.mean(task.loss(outputs, batch["label"]))
        return task_loss, Aux({"task": state}, {"task_loss": task_loss})

    def predict(params, model_state, batch):
        variables = network_variables("task", params, model_state)
        outputs, _ = task.apply(variables, show(batch, None), train=False)
        return Prediction(task.probabilities(outputs))

    def task_losses(params, model_state, batch, areas):
        """Losses on boxes `f32[B, 4]`, whatever the network was trained on."""
        crops = crop(batch["image"], areas, task.image_size)
        variables = network_variables("task", params, model_state)
        outputs, _ = task.apply(variables, crops, train=False)
        return task.loss(outputs, batch["label"])

    return Method(init, loss, predict, task_losses, has_one_network=True)
