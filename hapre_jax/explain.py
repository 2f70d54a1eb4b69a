"""Where the task network of a trained run looks when it answers a film."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax import boxes, evaluation, heatmap, methods, nets
from hapre_jax.config import Config
from hapre_jax.data import dataset as datasets
from hapre_jax.method import network_variables, to_float
from hapre_jax.methods import plain
from hapre_jax.tasks import normalize, resize
from hapre_jax.train_state import TrainState

SIZE = 64  # cells of a side of a map of the whole film
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
    method = methods.make(config, num_classes)
    if not method.has_one_network or not is_of_film(config):
        return None
    task = plain.classification(config, num_classes)

    def explain(params, model_state, batch):
        found = method.predict(params, model_state, batch)
        variables = network_variables("task", params, model_state)

        def explain_one(image, area, answer):
            if found.area is None:
                seen = resize(image[None], task.image_size)[0]
            else:
                seen = boxes.crop_and_resize(image, area, size=task.image_size)
            seen = normalize(seen, task.normalize)
            outputs = jax.eval_shape(
                lambda image: task.network.apply(variables, image, train=False),
                seen[None],
            )
            feature = nets.stages(outputs.features)[-1]
            heat = heatmap.grad_cam(task.network, variables, seen, answer, feature)
            return heatmap.paste(heat, area, size=SIZE)

        areas = found.area
        if areas is None:
            count = batch["image"].shape[0]
            areas = jnp.broadcast_to(jnp.array(boxes.WHOLE), (count, 4))
        answers = jnp.argmax(found.probabilities, axis=1)
        return jax.vmap(explain_one)(batch["image"], areas, answers), found

    return explain


class Looks(NamedTuple):
    """Where a run looks in N films."""

    heat: np.ndarray  # f32[N, 64, 64] >= 0, of the whole film
    answers: np.ndarray  # i32[N]
    areas: np.ndarray | None  # f32[N, 4], where it has key areas


def look(config: Config, state: TrainState, source: datasets.Dataset) -> Looks:
    """Maps of the films of a split.

    Args:
      config: of a run that `make` explains.
      state: its trained networks, whole on this process.
      source: the split, of at least one film.
    """
    explain = make(config, len(source.classes))
    assert explain is not None

    @jax.jit
    def see(params, model_state, batch):
        return explain(params, model_state, to_float(batch))

    parts = [seen for _, seen in evaluation.answers(see, state, source, config)]
    heat, found = jax.tree.map(lambda *of: np.concatenate(of), *parts)
    return Looks(heat, found.probabilities.argmax(1).astype(np.int32), found.area)


def score(looks: Looks, lung_boxes: np.ndarray) -> dict[str, float] | None:
    """Means over films of known lungs; None where there are none.

    Args:
      looks: of N films.
      lung_boxes: `f32[N, 4]`, NaN where unknown.
    """
    known = datasets.is_known(lung_boxes)
    if not known.any():
        return None
    heat, lungs = jnp.asarray(looks.heat[known]), jnp.asarray(lung_boxes[known])
    points = jax.vmap(heatmap.points_inside)(heat, lungs)
    energy = jax.vmap(heatmap.energy_inside)(heat, lungs)
    share = jax.vmap(boxes.area)(lungs)
    return {
        "pointing": float(jnp.mean(points)),
        "energy": float(jnp.mean(energy)),
        "lungs": float(jnp.mean(share)),
        "films": int(known.sum()),
    }
