"""Where the task network of a trained run looks when it answers a film."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hapre_jax import boxes, heatmap
from hapre_jax.config import Config
from hapre_jax.framework import resize
from hapre_jax.methods import METHODS, plain
from hapre_jax.tasks import normalize

SIZE = 64  # cells of a side of a map of the whole film
# Those whose task network classifies the whole film or its key area by itself.
EXPLAINED = (
    "hapre",
    "plain",
    "random_crop",
    "random_aug",
    "cutout",
    "cutmix",
    "mixup",
    "drl_da",
)
# After which the classifier sees a part of a film, or all of it, as it is.
_OPERATIONS = ("key_area", "none")


def is_of_film(config: Config) -> bool:
    """Whether where a run's classifier looks is a place in the film as it is."""
    return config.method != "hapre" or config.policy.operation in _OPERATIONS


def make(config: Config, num_classes: int) -> Callable | None:
    """A run's `(params, model_state, batch) -> (heat, Prediction)`, or None.

    `heat` f32[B, 64, 64] is the Grad-CAM of the class that is answered, at the last
    features of the task network; of a key area it is put back into its place. `batch`
    is as for `Method.predict`. There is none for methods whose answer is more than that
    of one network, nor for operations that turn, mask or recolor what it sees.
    """
    if config.method not in EXPLAINED or not is_of_film(config):
        return None
    method = METHODS[config.method](config, num_classes)
    task = plain.classification(config, num_classes)

    def explain(params, model_state, batch):
        found = method.predict(params, model_state, batch)
        variables = {"params": params["task"], **model_state["task"]}

        def explain_one(image, area, answer):
            if found.action is None:
                seen = resize(image[None], task.image_size)[0]
            else:
                seen = boxes.crop_and_resize(image, area, size=task.image_size)
            seen = normalize(seen, task.normalize)
            outputs = jax.eval_shape(
                lambda image: task.network.apply(variables, image, train=False),
                seen[None],
            )
            feature = max(outputs.features)
            heat = heatmap.grad_cam(task.network, variables, seen, answer, feature)
            return heatmap.paste(heat, area, size=SIZE)

        areas = found.action
        if areas is None:
            count = batch["image"].shape[0]
            areas = jnp.broadcast_to(jnp.array(boxes.WHOLE), (count, 4))
        answers = jnp.argmax(found.probabilities, axis=1)
        return jax.vmap(explain_one)(batch["image"], areas, answers), found

    return explain
