"""How good probabilities are: rankings, calibration; each class against the rest.

NumPy, in float64: sums over a large test split must not round. Definitions are those
of scikit-learn.
"""

from typing import Any, NamedTuple

import chex
import numpy as np

_TINY = 1e-12  # keeps the logarithm of a probability of 0 finite
# Of the logarithm, about 0. Guo et al. find temperatures of 1 to 3 for many networks.
_TEMPERATURE_SPREAD = 0.5
# Beyond it all classes, or none but one, are about equally likely.
_MAX_TEMPERATURE = 20.0
_BINS = 15  # of a reliability curve, as Guo et al., "On Calibration", 2017


class Curve(NamedTuple):
    """Points from the strictest threshold to the most lenient one."""

    x: np.ndarray  # f[n]
    y: np.ndarray  # f[n]


class Reliability(NamedTuple):
    """Images in bins of equal width of the confidence in the answer."""

    images: np.ndarray  # i[b], number of them
    confidence: np.ndarray  # f[b], mean; NaN where a bin is empty
    accuracy: np.ndarray  # f[b], share of right answers; NaN where a bin is empty


def roc_curve(score: np.ndarray, is_positive: np.ndarray) -> Curve:
    """False positive rate and true positive rate at each distinct threshold.

    Args:
      score: `f[N]`, higher is more positive.
      is_positive: `bool[N]`; some are, some are not.

    Raises:
      ValueError: a score is NaN.
    """
    hits, alarms = _counts(score, is_positive)
    zero = np.zeros(1)
    return Curve(
        np.concatenate([zero, alarms / alarms[-1]]),
        np.concatenate([zero, hits / hits[-1]]),
    )


def roc_auc(score: np.ndarray, is_positive: np.ndarray) -> float:
    """Area under the ROC curve: probability to rank a positive above a negative."""
    curve = roc_curve(score, is_positive)
    return float(np.trapezoid(curve.y, curve.x))


def average_precision(score: np.ndarray, is_positive: np.ndarray) -> float:
    """Area under the precision-recall curve, as a step function; see `roc_curve`."""
    hits, alarms = _counts(score, is_positive)
    precision, recall = hits / (hits + alarms), hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, *, bins: int = _BINS
) -> Reliability:
    """How often answers are right, by how sure they are.

    Args:
      probabilities: `f[N, K]`.
      labels: `i[N]`.
      bins: number b of bins, each open below and closed above.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    chex.assert_shape(probabilities, (len(labels), None))
    sure, answer = probabilities.max(1), probabilities.argmax(1)
    edges = np.linspace(0, 1, bins + 1)
    row = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    count = np.bincount(row, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(row, sure, bins) / count
        accuracy = np.bincount(row, answer == labels, bins) / count
    return Reliability(count, confidence, accuracy)


def calibration_error(found: Reliability) -> float:
    """Expected calibration error: mean distance of accuracy and confidence."""
    known = found.images > 0
    gaps = np.abs(found.accuracy - found.confidence)[known]
    return float(np.average(gaps, weights=found.images[known]))


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities `f[N, K]` of logits divided by a temperature > 0; 1 changes none.

    Answers stay what they are, a temperature above 1 makes them less sure. Guo et al.,
    "On Calibration of Modern Neural Networks", 2017.
    """
    scaled = np.log(np.maximum(probabilities, _TINY)) / temperature
    shares = np.exp(scaled - scaled.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The likeliest temperature, by images that were not trained on.

    A few images alone would say anything: of six that all are right, 0. So its
    logarithm is taken to be 0 give or take 0.5, before any image is seen; hundreds
    of images leave little of that.

    Args:
      probabilities: `f[N, K]`, as the network gives them.
      labels: `i[N]`.

    Returns:
      From 1/20 to 20; 1 of no images.

    Raises:
      ValueError: a probability is NaN, or a label is that of no class.
    """
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _TINY))
    chex.assert_shape(logits, (len(labels), None))
    if not len(labels):
        return 1.0
    if np.isnan(logits).any():
        raise ValueError("probabilities hold NaN, which no temperature makes likely")
    # -1, as of an unknown class, would be taken for the last one.
    if np.min(labels) < 0:
        raise ValueError(f"labels are at least 0, and one is {np.min(labels)}")
    truth = logits[np.arange(len(labels)), labels].mean()

    def slope(inverse):
        """Of the mean loss, by the logarithm of the inverse temperature, times -1."""
        shares = np.exp(inverse * (logits - logits.max(1, keepdims=True)))
        shares /= shares.sum(1, keepdims=True)
        of_images = inverse * (truth - (shares * logits).sum(1).mean())
        return of_images - np.log(inverse) / (_TEMPERATURE_SPREAD**2 * len(labels))

    low, high = 1 / _MAX_TEMPERATURE, _MAX_TEMPERATURE
    for _ in range(50):  # halves of an interval: far beyond float64's precision
        middle = np.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(1 / low)


def summary(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Means over classes of the areas under both curves, calibration error and curve.

    A class that no image has, or every image, has no curve and does not count; None
    where no class has one.

    Args:
      probabilities: `f[N, K]`.
      labels: `i[N]`.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    kinds = range(probabilities.shape[1])
    known = [kind for kind in kinds if 0 < np.sum(labels == kind) < len(labels)]

    def mean(area):
        areas = [area(probabilities[:, kind], labels == kind) for kind in known]
        return float(np.mean(areas)) if areas else None

    found = reliability(probabilities, labels)
    return {
        "roc_auc": mean(roc_auc),
        "average_precision": mean(average_precision),
        "calibration_error": calibration_error(found),
        # Lists for JSON, which has no NaN: None in a bin without images.
        "reliability": {
            name: [None if np.isnan(value) else value for value in values.tolist()]
            for name, values in found._asdict().items()
        },
    }


def _counts(score, is_positive) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives at or above each distinct score, from the highest."""
    # In float64, since unsigned numbers have no negative to sort by.
    score, is_positive = np.asarray(score, np.float64), np.asarray(is_positive, bool)
    chex.assert_rank([score, is_positive], 1)
    chex.assert_equal_shape([score, is_positive])
    if np.isnan(score).any():
        raise ValueError("scores hold NaN, which has no rank")
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(is_positive[order], dtype=np.float64)[last]
    return hits, 1.0 + last - hits
