"""The reward landscape: how a task network's loss depends on the box it sees.

A policy can only find the lungs if the task network is better on them than elsewhere,
which that learns from boxes that the policy proposes. Look here first when a policy
does not learn.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax import boxes, evaluation, train_state
from hapre_jax.data import dataset as datasets
from hapre_jax.data import feed
from hapre_jax.errors import UserError
from hapre_jax.method import Method, to_float

# Neighbouring rows differ by one expansion of the key area (`policy.alpha`). From boxes
# that cut the lungs to where lungs of half a frame have become the whole image.
ZOOMS = tuple(1.25**power for power in range(-2, 5))
# At half a width one of the two lungs has left a box of zoom 1; finer steps would be
# narrower than a policy, whose width is 0.15 or more.
SHIFTS = (-0.5, -0.25, 0.0, 0.25, 0.5)

# Enough for a standard error of about 0.05 nats; with 35 cells the forward passes are a
# few percent of those of a short training.
_MAX_IMAGES = 256
_BATCH_SIZE = 64  # forward passes of more take no less time
# Keeps boxes of tiny lungs from being empty; no sensible key area is smaller.
_MIN_SIDE = 0.02
# Two losses that differ by less, relative to the loss on the whole image, count as the
# same: it is the noise of some hundred images.
_MARGIN = 0.05
_TIE = 1e-6  # nats; losses that differ by less are of the same boxes
# A best box within these, against the true lungs, counts as being at the lungs.
_AT_REFERENCE = 1.3


class Landscape(NamedTuple):
    """Mean losses in nats, NaN for a class without images.

    The first axis is the K classes and, last, all images together.
    """

    losses: np.ndarray  # f32[K + 1, Z, X]
    zooms: np.ndarray  # f32[Z], side of the box / side of the reference box
    shifts: np.ndarray  # f32[X], horizontal shift / width of the reference box
    classes: tuple[str, ...]
    counts: np.ndarray  # i64[K + 1], images
    reference: str  # boxes lie around the true "lungs" or the key area of the "policy"
    whole: np.ndarray  # f32[K + 1], on the whole image
    policy: (
        np.ndarray | None
    )  # f32[K + 1], on the policy's key area, where there is one


def place(reference: jax.Array, zoom: jax.Array, shift: jax.Array) -> jax.Array:
    """The reference box `f32[4]` scaled about its center, shifted, inside the image.

    Sides of more than 1 become 1; a box that sticks out is moved, not cut.
    """
    y, x, height, width = boxes.yxyx_to_center(reference)
    center = jnp.stack([y, x + shift * width, zoom * height, zoom * width])
    return boxes.clip(boxes.center_to_yxyx(center), min_side=_MIN_SIDE)


def measure(
    method: Method,
    state: train_state.TrainState,
    source: datasets.Dataset,
    *,
    zooms: tuple[float, ...] = ZOOMS,
    shifts: tuple[float, ...] = SHIFTS,
    batch_size: int = _BATCH_SIZE,
    max_images: int = _MAX_IMAGES,
) -> Landscape:
    """Mean loss of the averaged task network on boxes around the true lungs.

    Where the lungs are known of no image, the boxes lie around the policy's key areas.

    Args:
      method: of the run.
      state: the trained networks.
      source: N images; those of unknown lungs are left out if others are known.
      zooms, shifts: the boxes, see `place`.
      batch_size: most images in a forward pass.
      max_images: most images to measure on; of more, a fixed random choice.

    Raises:
      UserError: neither lungs nor a policy to place boxes around.
    """
    known = source.lungs_known
    reference = "lungs" if known.any() else "policy"
    rows = np.flatnonzero(known) if known.any() else np.arange(len(source))
    if len(rows) > max_images:
        # Random, since phantoms take turns in their classes; fixed, to compare runs.
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:max_images])
    source = source.take(rows)

    predict = evaluation.make_predict(method)
    place_each = jax.jit(jax.vmap(place, in_axes=(0, None, None)))

    @jax.jit
    def task_losses(params, model_state, batch, actions):
        return method.task_losses(params, model_state, to_float(batch), actions)

    parts = []
    for batch in feed.eval_batches(source, min(batch_size, _BATCH_SIZE, len(source))):
        inputs = {"image": jnp.asarray(batch["image"]), "label": batch["label"]}
        seen = evaluation.without_answers(batch) | {"image": inputs["image"]}
        area = predict(*state.average, seen).area
        if reference == "lungs":
            around = jnp.asarray(batch["lung_box"])
        elif area is not None:
            around = area
        else:
            raise UserError(
                "a reward landscape needs known lungs or a policy: this data set has "
                "no lung boxes, and this method no policy"
            )
        whole = jnp.broadcast_to(jnp.array(boxes.WHOLE), around.shape)
        cells = [place_each(around, zoom, shift) for zoom in zooms for shift in shifts]
        tried = [whole, whole if area is None else area, *cells]
        # One compiled function of one shape, called for each cell.
        losses = [task_losses(*state.average, inputs, actions) for actions in tried]
        parts.append(np.asarray(jnp.stack(losses))[:, batch["mask"]])

    means, counts = _class_means(
        np.concatenate(parts, axis=1), source.labels, len(source.classes)
    )
    return Landscape(
        losses=means[:, 2:].reshape(len(means), len(zooms), len(shifts)),
        zooms=np.array(zooms, np.float32),
        shifts=np.array(shifts, np.float32),
        classes=source.classes,
        counts=counts,
        reference=reference,
        whole=means[:, 0],
        policy=None if area is None else means[:, 1],
    )


def _class_means(losses, labels, num_classes):
    """Means `f32[K + 1, A]` of losses `f32[A, N]`, of all images last, and counts."""
    chosen = [labels == label for label in range(num_classes)] + [labels >= 0]
    counts = np.array([rows.sum() for rows in chosen])
    means = np.full((num_classes + 1, len(losses)), np.nan, np.float32)
    for row, (rows, count) in enumerate(zip(chosen, counts, strict=True)):
        if count:
            means[row] = losses[:, rows].mean(axis=1, dtype=np.float64)
    return means, counts


def lowest(landscape: Landscape, row: int = -1) -> tuple[int, int]:
    """Zoom and shift of the lowest loss of a row of `losses`, by number.

    Of equals, as where boxes were moved inside and are the same, the least shift, and
    then the zoom nearest to 1.
    """
    losses = landscape.losses[row]
    ties = np.argwhere(losses <= np.nanmin(losses) + _TIE)
    shifts, zooms = np.abs(landscape.shifts), np.abs(np.log(landscape.zooms))
    zoom, shift = min(ties, key=lambda at: (shifts[at[1]], zooms[at[0]]))
    return int(zoom), int(shift)


def best_zoom(landscape: Landscape) -> float | None:
    """The size of a box about the lungs, in lungs, on which the loss is lowest.

    A policy that follows the loss goes there, not to the lungs. None where the boxes
    lie around a policy's key areas.
    """
    if landscape.reference != "lungs":
        return None
    centered = landscape.losses[-1, :, np.abs(landscape.shifts).argmin()]
    return float(landscape.zooms[np.nanargmin(centered)])


def overlap(areas: np.ndarray, lung_boxes: np.ndarray, zoom: float) -> float:
    """Mean IoU of key areas `f32[N, 4]` with the lung boxes, scaled by `zoom`.

    Boxes `f32[N, 4]` of NaN, of unknown lungs, do not count.
    """
    known = datasets.is_known(lung_boxes)
    scaled = jax.vmap(place, (0, None, None))(
        jnp.asarray(lung_boxes[known]), jnp.asarray(zoom), jnp.zeros(())
    )
    return float(jnp.mean(jax.vmap(boxes.iou)(jnp.asarray(areas[known]), scaled)))


def verdict(landscape: Landscape) -> str:
    """What the landscape of all images means for a policy, in plain sentences."""
    losses, whole = landscape.losses[-1], float(landscape.whole[-1])
    row, column = lowest(landscape)
    best = float(losses[row, column])
    zoom, shift = float(landscape.zooms[row]), float(landscape.shifts[column])
    lungs = landscape.reference == "lungs"
    name = "lungs" if lungs else "policy's key area"
    at = losses[
        np.abs(np.log(landscape.zooms)).argmin(), np.abs(landscape.shifts).argmin()
    ]
    direction = "right" if shift > 0 else "left"
    moved = f", moved {direction} by {abs(shift):.2f} of their width" if shift else ""
    found = (
        f"The loss is lowest, {best:.2f}, on boxes {zoom:.2f} times as large as the "
        f"{name}{moved}; it is {at:.2f} on the {name} and {whole:.2f} on the whole "
        "image."
    )
    near = abs(math.log(zoom)) <= math.log(_AT_REFERENCE) and abs(shift) <= 0.25
    if best > (1 - _MARGIN) * whole:
        return found + (
            " The task network is not better on any of these boxes than on the whole "
            f"image: it has not learned to use the {name}, and rewards from it leave a "
            "policy at the whole image."
        )
    if near or at <= best + _MARGIN * whole:
        return found + (
            f" The task network profits from the {name}, and rewards from it lead a "
            f"policy {'there' if lungs else 'to stay there'}."
        )
    if at < (1 - _MARGIN) * whole:
        return found + (
            f" The task network profits from the {name}, but more from the boxes where "
            "the loss is lowest, and rewards from it lead a policy to those."
        )
    return found + (
        f" The task network does not profit from the {name}: rewards from it lead a "
        "policy to the boxes where the loss is lowest instead."
    )
