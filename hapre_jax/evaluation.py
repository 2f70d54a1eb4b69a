"""Answers of a trained method to a split of films, and their scores."""

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hapre_jax import (
    boxes,
    metrics,
    probabilities,
    sharding,
)
from hapre_jax.config import Config
from hapre_jax.data import dataset as datasets
from hapre_jax.data import feed, labels
from hapre_jax.errors import UserError
from hapre_jax.method import Method, Prediction, to_float
from hapre_jax.predictions import Predictions
from hapre_jax.train_state import TrainState

# Framing of a film -> below which share of its side the longer side of the lungs is:
# between what phantoms of these qualities have.
_FRAMINGS = {"low": 0.6, "medium": 0.875, "high": np.inf}


class Evaluation(NamedTuple):
    """Scores of a split, and the answer for each of its N images."""

    scores: dict  # as in results.json: accuracy, macro_f1, ..., key_area
    predictions: Prediction  # NumPy arrays, first axis N
    table: Predictions  # in the classes of the scores


def make_predict(method: Method, mesh: Mesh | None = None) -> Callable:
    """The jitted `(params, model_state, batch of u8 pixels) -> Prediction`.

    With a mesh, each of its devices has the whole answer.
    """

    @jax.jit
    def predict(params, model_state, batch):
        predicted = method.predict(params, model_state, to_float(batch))
        return sharding.everywhere(predicted, mesh)

    return predict


def check_lungs(name: str, method: Method, source: datasets.Dataset) -> None:
    """Raises `UserError` where a method needs lung boxes that a split does not have."""
    if method.needs_lungs and not source.lungs_known.any():
        raise UserError(
            f"method {name} needs lung boxes, and of a split of this data set none is "
            "known"
        )


def without_answers(batch: dict) -> dict:
    """What of a batch a method may look at to predict."""
    return {name: batch[name] for name in ("image", "lung_box") if name in batch}


def batch_size(config: Config, shares: int = 1) -> int:
    """How many films are sure to fit into memory at once.

    They are four times those of a training step, which also keeps all activations and
    tries several key areas of each.

    Args:
      config: of the run.
      shares: number of devices that a batch is split over now; in training, it was
        split as `train.devices` says, where that is a number.
    """
    train = config.train
    trained = train.devices // train.model_devices or shares
    return max(1, 4 * train.batch_size * shares // (train.parts * trained))


def answers(
    predict: Callable,
    state: TrainState,
    source: datasets.Dataset,
    config: Config,
    mesh: Mesh | None = None,
) -> Generator[tuple[slice, Prediction], None, None]:
    """What a state says of a split, batch by batch: rows, and NumPy arrays of them.

    Args:
      predict: of `make_predict`, or another function of the same arguments, to any tree
        of arrays whose first axis is the images.
      state: the trained networks.
      source: the split.
      config: of the run; gives the batch size.
      mesh: of the state and of `predict`, whose devices share each batch.
    """
    shares = 1 if mesh is None else mesh.shape["data"]
    size = min(batch_size(config, shares), len(source))
    size = -(-size // shares) * shares
    batches = feed.eval_batches(
        source,
        size,
        threads=config.data.threads,
        processes=config.data.processes,
        shard=(0, 1) if mesh is None else sharding.share(mesh),
    )
    for start, batch in zip(itertools.count(0, size), batches, strict=False):
        seen = without_answers(batch)
        if mesh is not None:
            seen = sharding.put_batch(seen, mesh)
        found = jax.device_get(predict(*state.average, seen))
        # What fills the last batch comes last.
        rows = slice(start, min(start + size, len(source)))
        yield rows, jax.tree.map(lambda x, n=rows.stop - start: x[:n], found)


def evaluate(
    predict: Callable,
    state: TrainState,
    source: datasets.Dataset,
    *,
    config: Config,
    classes: Sequence[str] | None = None,
    mean_box: np.ndarray | None = None,
    temperature: float | None = None,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Predicts a whole split and scores it from one confusion matrix.

    Args:
      predict: of `make_predict`.
      state: the trained networks.
      source: the split.
      config: of the run; gives the batch size and the bounds of a key area.
      classes: that the networks tell apart; those of the split by default. Others are
        scored in the label space that both have in common.
      mean_box: `f32[4]`, mean lung box of the training split, a trivial key area.
      temperature: of the run, see `probabilities.fit_temperature`; if it is known, the
        calibration error that is left with it is a score.
      mesh: of the state and of `predict`, whose devices share each batch.

    Raises:
      UserError: the two have no label space in common.
    """
    space = labels.common(classes or source.classes, source.classes)
    told = labels.projection(classes or source.classes, space)
    truth = labels.projection(source.classes, space).argmax(1)[source.labels]
    chunks = [found for _, found in answers(predict, state, source, config, mesh)]
    predicted = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
    table = Predictions(
        names=source.names,
        groups=source.groups,
        views=source.views or ("",) * len(source),
        classes=tuple(space),
        labels=truth.astype(np.int32),
        probabilities=predicted.probabilities @ told,
        key_areas=predicted.area,
    )
    matrix = _confusion_matrix(truth, table.answers, space)
    scaled = None
    if temperature is not None:
        told_scaled = probabilities.at_temperature(predicted.probabilities, temperature)
        scaled = probabilities.calibration_error(
            probabilities.reliability(told_scaled @ told, table.labels)
        )
    scores = {
        "n": len(source),
        "classes": list(space),
        **metrics.summary(matrix),
        **probabilities.summary(table.probabilities, table.labels),
        "scaled_calibration_error": scaled,
        "confusion_matrix": np.asarray(matrix).tolist(),
        "views": _score_groups(source.views, truth, table.answers, space),
        "framings": _score_groups(_framings(source), truth, table.answers, space),
        **score_actions(predicted, source, config=config, mean_box=mean_box),
    }
    return Evaluation(scores, predicted, table)


def score_actions(
    found: Any,
    source: datasets.Dataset,
    *,
    config: Config,
    mean_box: np.ndarray | None = None,
) -> dict:
    """How the policy's mean actions were, whatever the task: key areas, parameters.

    Args:
      found: `Prediction` of the N images of the split, NumPy arrays.
      source: the split, with what is known of its films.
      config: gives the bounds of a key area.
      mean_box: `f32[4]`, mean lung box of the training split.
    """
    key_area = None
    if found.area is not None:
        key_area = score_key_areas(
            found.area,
            source.lung_boxes,
            config=config,
            lesion_boxes=source.lesion_boxes,
            mean_box=mean_box,
        )
        # Of areas that a policy chose; Two-Stage has some without one.
        if found.entropy is not None:
            key_area["entropy"] = float(np.mean(found.entropy))
            # A policy starts with logits of zero, a half in each cell.
            key_area["map_change"] = float(np.mean(np.abs(found.policy_map - 0.5)))
    parameters = {
        name: score_parameter(values, source.corrections.get(name))
        for name, values in (found.parameters or {}).items()
    }
    return {"key_area": key_area, "parameters": parameters}


def _confusion_matrix(truth, answers, space) -> jax.Array:
    return metrics.confusion_matrix(
        jnp.asarray(truth), jnp.asarray(answers), num_classes=len(space)
    )


def _score_groups(names, truth, answers, space) -> dict[str, dict]:
    """Scores of the films of each view, or of each framing; "" is unknown.

    A view may go with the label, as the sick are filmed in bed: a class that a group
    has no film of, nor an answer, does not count there.
    """
    scored = {}
    for name in sorted(set(names)):
        rows = np.array(names) == name
        matrix = _confusion_matrix(truth[rows], answers[rows], space)
        scored[name or "unknown"] = {"n": int(rows.sum()), **metrics.summary(matrix)}
    return scored


def _framings(source: datasets.Dataset) -> list[str]:
    """How well each film is framed, by the longer side of its lungs; "" is unknown.

    Empty where the lungs of none are known.
    """
    if not source.lungs_known.any():
        return []
    sides = np.max(source.lung_boxes[:, 2:] - source.lung_boxes[:, :2], axis=1)
    names = (*_FRAMINGS, "")  # NaN is above all bounds
    return [names[at] for at in np.digitize(sides, list(_FRAMINGS.values()))]


def score_key_areas(
    areas: np.ndarray,
    lung_boxes: np.ndarray,
    *,
    config: Config,
    lesion_boxes: Sequence[np.ndarray] | None = None,
    mean_box: np.ndarray | None = None,
) -> dict:
    """How well key areas find the lungs, beside areas that look at no image.

    Args:
      areas: `f32[N, 4]` yxyx, valid key areas.
      lung_boxes: `f32[N, 4]`, NaN where unknown; if all are, there are no lung scores.
      config: gives the bounds of a key area.
      lesion_boxes: N arrays `f32[n, 4]`; or None: no lesion score.
      mean_box: `f32[4]`, mean lung box of the training split.
    """
    bounds = {"min_side": config.policy.min_side, "max_side": config.policy.max_side}
    at_bound = jax.vmap(lambda box: boxes.is_at_bound(box, **bounds))(areas)
    sides = np.sqrt(np.prod(areas[:, 2:] - areas[:, :2], axis=1))
    result = {
        "lung_iou": None,
        "lung_coverage": None,
        "lesion_coverage": _lesion_coverage(areas, lesion_boxes),
        "trivial_iou": {"whole": None, "central80": None, "mean_box": None},
        "side_fraction": float(np.mean(sides)),
        "at_bound": float(np.mean(at_bound)),
        # Key areas that hardly differ between images were not read off the image.
        "displacement": float(
            np.mean(np.std((areas[:, :2] + areas[:, 2:]) / 2, axis=0))
        ),
    }
    known = datasets.is_known(lung_boxes)
    if not known.any():
        return result
    truth = jnp.asarray(lung_boxes[known])

    def mean_iou(area):
        area = jnp.broadcast_to(jnp.asarray(area, jnp.float32), truth.shape)
        return float(jnp.mean(jax.vmap(boxes.iou)(area, truth)))

    result["lung_iou"] = mean_iou(areas[known])
    result["lung_coverage"] = float(
        jnp.mean(jax.vmap(boxes.coverage)(jnp.asarray(areas[known]), truth))
    )
    result["trivial_iou"] = {
        "whole": mean_iou(boxes.WHOLE),
        "central80": mean_iou(boxes.CENTRAL_80),
        "mean_box": None if mean_box is None else mean_iou(mean_box),
    }
    return result


def score_parameter(found: np.ndarray, truth: np.ndarray | None) -> dict:
    """How an operation's parameter was set, and how near to what undoes the harm.

    A task does not say what upright is, only that films should be alike; so beside the
    mean absolute error there is the one that is left when one constant is added to what
    was found in all films.

    Args:
      found: `f32[N]`, see `Operation.parameters`.
      truth: `f32[N]`, of `Dataset.corrections`; None where it is not known.
    """
    scored: dict[str, float | None] = {
        "mean": float(np.mean(found)),
        "std": float(np.std(found)),
        "error": None,
        "error_but_for_a_constant": None,
        "error_untouched": None,
        "correlation": None,
    }
    if truth is None:
        return scored
    missing = truth - found
    but_for_a_constant = np.abs(missing - np.median(missing))
    scored["error"] = float(np.mean(np.abs(missing)))
    scored["error_but_for_a_constant"] = float(np.mean(but_for_a_constant))
    # Where nothing is done: what is to be beaten.
    scored["error_untouched"] = float(np.mean(np.abs(truth)))
    # In float32 the deviation of equal numbers is not always 0.
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if np.ptp(found) > 0 and np.ptp(truth) > 0:
        scored["correlation"] = float(np.corrcoef(found, truth)[0, 1])
    return scored


def _lesion_coverage(areas, lesion_boxes) -> float | None:
    """Mean share of an image's lesion boxes inside its key area, over sick images."""
    counts = [len(of) for of in lesion_boxes or ()]
    if not any(counts):
        return None
    image = np.repeat(np.arange(len(areas)), counts)
    shares = jax.vmap(boxes.coverage)(
        jnp.asarray(areas[image]), jnp.asarray(np.concatenate(lesion_boxes))
    )
    sums = np.bincount(image, shares, minlength=len(areas))
    sick = np.array(counts) > 0
    return float(np.mean(sums[sick] / np.array(counts)[sick]))


def mean_lung_box(source: datasets.Dataset) -> np.ndarray | None:
    """Mean lung box `f32[4]` of a split, or None where no lungs are known."""
    known = source.lungs_known
    return source.lung_boxes[known].mean(axis=0) if known.any() else None
