"""Metrics of each task, and the interval of their mean over seeds.

Those of classification come from one integer confusion matrix of a whole split.
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special


def confusion_matrix(
    labels: jax.Array,
    predictions: jax.Array,
    *,
    num_classes: int,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Counts `i32[K, K]`, rows the true class, columns the predicted one.

    Sums over batches and devices are exact, so accumulate matrices, never ratios.

    Args:
      labels, predictions: `i32[N]` in 0..K-1; where one of them is another number,
        such as -1 for unknown, the example is not counted.
      num_classes: K.
      mask: `bool[N]`; False for padding, which is not counted.
    """
    chex.assert_rank([labels, predictions], 1)
    chex.assert_equal_shape([labels, predictions])
    # A scatter drops what is beyond the end, but counts negative ones from there.
    counts = (labels >= 0) & (predictions >= 0)
    if mask is not None:
        chex.assert_equal_shape([labels, mask])
        chex.assert_type(mask, bool)
        counts &= mask
    zeros = jnp.zeros((num_classes, num_classes), jnp.int32)
    return zeros.at[labels, predictions].add(counts.astype(jnp.int32), mode="drop")


def accuracy(matrix: jax.Array) -> jax.Array:
    """Share of correct predictions `f32[]` (paper, Eq. 9)."""
    return _ratio(jnp.trace(matrix), jnp.sum(matrix))


def precision(matrix: jax.Array) -> jax.Array:
    """Precision of each class `f32[K]`; 0 for one never predicted (paper, Eq. 10)."""
    return _ratio(jnp.diagonal(matrix), jnp.sum(matrix, axis=0))


def recall(matrix: jax.Array) -> jax.Array:
    """Recall of each class `f32[K]`; 0 for one that never occurs (paper, Eq. 11)."""
    return _ratio(jnp.diagonal(matrix), jnp.sum(matrix, axis=1))


def f1(matrix: jax.Array) -> jax.Array:
    """F1 of each class `f32[K]`; 0 where undefined (paper, Eq. 12)."""
    hits = jnp.diagonal(matrix)
    counts = jnp.sum(matrix, axis=0) + jnp.sum(matrix, axis=1)
    # In the type of sums: twice as many may be too many for that of the matrix.
    return _ratio(2 * hits.astype(counts.dtype), counts)


def summary(matrix: jax.Array) -> dict[str, float]:
    """Accuracy and macro averages: a class counts the same however rare it is.

    One that has neither an image nor an answer does not count, as in scikit-learn.
    """
    chex.assert_rank(matrix, 2)
    is_there = np.asarray(jnp.sum(matrix, axis=0) + jnp.sum(matrix, axis=1) > 0)

    def macro(of_classes):
        kept = np.asarray(of_classes)[is_there]
        return float(np.mean(kept)) if len(kept) else 0.0

    return {
        "accuracy": float(accuracy(matrix)),
        "macro_precision": macro(precision(matrix)),
        "macro_recall": macro(recall(matrix)),
        "macro_f1": macro(f1(matrix)),
    }


def interval(values: Sequence[float]) -> float | None:
    """Half width of the 95 % t-interval of the mean over seeds; None for one value."""
    if len(values) < 2:
        return None
    quantile = scipy.special.stdtrit(len(values) - 1, 0.975)
    return float(quantile * np.std(values, ddof=1) / np.sqrt(len(values)))


def _ratio(numerator, denominator):
    is_there = denominator > 0
    return jnp.where(is_there, numerator / jnp.where(is_there, denominator, 1), 0.0)


def dice(found: jax.Array, truth: jax.Array) -> jax.Array:
    """Dice coefficient `f32[]` of two masks `bool[...]`; 1 where both are empty."""
    return _overlap(found, truth)[0]


def mask_iou(found: jax.Array, truth: jax.Array) -> jax.Array:
    """Intersection over union `f32[]` of two masks; 1 where both are empty."""
    return _overlap(found, truth)[1]


def _overlap(found, truth):
    chex.assert_equal_shape([found, truth])
    chex.assert_type([found, truth], bool)
    return _overlap_of_counts(jnp.sum(found & truth), jnp.sum(found | truth))


def _overlap_of_counts(shared, union):
    """Dice and IoU of numbers of pixels `i32[]`."""
    # Counted exactly, but twice as many may be too many for an integer.
    shared, union = shared.astype(jnp.float32), union.astype(jnp.float32)
    dice = 2 * shared / jnp.maximum(shared + union, 1)
    iou = shared / jnp.maximum(union, 1)
    return jnp.where(union == 0, 1.0, dice), jnp.where(union == 0, 1.0, iou)


def average_precision(
    scores: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    *,
    min_iou: float = 0.5,
) -> float:
    """Area under the precision-recall curve of boxes, not interpolated.

    The most probable box of all images first, each takes the box of its image with
    which it has the largest IoU, if that is at least `min_iou` and not taken yet;
    else it is wrong. mAP is the mean of this over kinds of objects.

    Args:
      scores: of each image, `f[n]`.
      found: of each image, `f[n, 4]` yxyx.
      truth: of each image, `f[m, 4]`; NaN where there is none.
      min_iou: 0.5 is Pascal VOC's.

    Returns:
      In [0, 1]; NaN where there is nothing to be found.

    Raises:
      ValueError: a score is NaN.
    """
    # In float64, since unsigned numbers have no negative to sort by.
    scores = [np.asarray(of, np.float64) for of in scores]
    if any(np.isnan(of).any() for of in scores):
        raise ValueError("scores hold NaN, which has no rank")
    truth = [np.asarray(of).reshape(-1, 4) for of in truth]
    truth = [of[np.isfinite(of).all(1)] for of in truth]
    total = sum(map(len, truth))
    if not total:
        return math.nan
    entries = [
        (score, image, box)
        for image, (of, boxes) in enumerate(zip(scores, found, strict=True))
        for score, box in zip(of, boxes, strict=True)
    ]
    entries.sort(key=lambda entry: -entry[0])
    taken = [np.zeros(len(boxes), bool) for boxes in truth]
    hits = np.zeros(len(entries))
    for row, (_, image, box) in enumerate(entries):
        if not len(truth[image]):
            continue
        ious = _ious(np.asarray(box), truth[image])
        best = int(np.argmax(ious))
        if ious[best] >= min_iou and not taken[image][best]:
            taken[image][best], hits[row] = True, 1
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(np.sum(precisions * hits) / total)


def _ious(box, others):
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    union = np.prod(box[2:] - box[:2]) + areas - shared
    return np.divide(shared, union, out=np.zeros(len(others)), where=union > 0)
