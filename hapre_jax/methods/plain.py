"""The plain classifier: the whole image, downscaled to what the task network sees."""

import functools

import jax
import jax.numpy as jnp

from hapre_jax import boxes, nets
from hapre_jax.config import Config
from hapre_jax.framework import Aux, Method, Prediction, resize, split_variables
from hapre_jax.tasks import Classification


def classification(config: Config, num_classes: int) -> Classification:
    """The task network of a config, the same for every method."""
    network = nets.NETS[config.task.net](
        num_classes=num_classes, norm=config.task.norm, dtype=config.task.dtype
    )
    return Classification(network, config.task.image_size, config.task.normalize)


def make(config: Config, num_classes: int) -> Method:
    """The baseline that sees what every other method starts from."""
    task = classification(config, num_classes)

    def init(key, image):
        return split_variables({"task": task.init(key, resize(image, task.image_size))})

    def apply(params, model_state, image, *, train, key=None):
        variables = {"params": params["task"], **model_state["task"]}
        image = resize(image, task.image_size)
        return task.apply(variables, image, train=train, key=key)

    def loss(params, model_state, average, batch, key, step):
        del average, step
        outputs, state = apply(params, model_state, batch["image"], train=True, key=key)
        task_loss = jnp.mean(task.loss(outputs, batch["label"]))
        return task_loss, Aux({"task": state}, {"task_loss": task_loss})

    def predict(params, model_state, image):
        outputs, _ = apply(params, model_state, image, train=False)
        return Prediction(task.probabilities(outputs))

    def task_losses(params, model_state, batch, actions):
        """Losses on boxes `f32[B, 4]`, which the network was not trained on."""
        crop = functools.partial(boxes.crop_and_resize, size=task.image_size)
        crops = jax.vmap(crop)(batch["image"], actions)
        variables = {"params": params["task"], **model_state["task"]}
        outputs, _ = task.apply(variables, crops, train=False)
        return task.loss(outputs, batch["label"])

    return Method(init, loss, predict, task_losses)
