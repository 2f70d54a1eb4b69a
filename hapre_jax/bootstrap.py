"""Intervals over test images, by resampling patients with replacement.

Films of one patient are not independent, so patients are drawn, not films (the cluster
bootstrap; Davison and Hinkley, "Bootstrap Methods and their Application", 1997). An
interval over images says how far a score depends on who happened to be in the test
split, of networks as they are; one over seeds (`metrics.interval`) how far it depends
on the training, and on the division where seeds divide the films anew.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hapre_jax.predictions import Predictions

_DRAWS = 2000  # the ends of a 95 % interval are the 50th of them from either end
_OF_IMAGES = ("names", "groups", "classes")
_CHUNK = 100  # draws at once, so that a million patients fit into memory


class Score(NamedTuple):
    """A score with what it is in most of the resampled test splits."""

    value: float  # of the test splits themselves
    low: float  # 2.5th percentile
    high: float  # 97.5th
    p: float  # two-sided; that the score is not different from 0


def macro_f1(matrices: np.ndarray) -> np.ndarray:
    """`f[...]` of confusion matrices `[..., K, K]`, as `metrics.summary` defines it."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    total = matrices.sum(-1) + matrices.sum(-2)
    is_there = total > 0
    f1 = np.divide(2 * hits, total, out=np.zeros(hits.shape), where=is_there)
    return f1.sum(-1) / np.maximum(is_there.sum(-1), 1)


def mean_f1(runs: Sequence[Predictions], *, seed: int = 0) -> Score:
    """Macro-F1, mean over runs, each with a test split of its own or the same one.

    Its p is of no use: no F1 is below 0. One patient alone leaves all open: 0 to 1.

    Raises:
      ValueError: there are no runs.
    """
    return _resample([[run] for run in runs], lambda f1: f1[0], seed, ends=(0.0, 1.0))


def is_pair(ours: Predictions, theirs: Predictions) -> bool:
    """Whether both are of the same images in the same order, with the same truth."""
    same = all(getattr(ours, of) == getattr(theirs, of) for of in _OF_IMAGES)
    return same and np.array_equal(ours.labels, theirs.labels)


def gains(pairs: Sequence[tuple[Predictions, Predictions]]) -> list[float]:
    """By how much the first of each pair has the better macro-F1."""
    return [
        float(macro_f1(_count(ours).sum(0)) - macro_f1(_count(theirs).sum(0)))
        for ours, theirs in pairs
    ]


def mean_gain(
    pairs: Sequence[tuple[Predictions, Predictions]], *, seed: int = 0
) -> Score:
    """By how much the first of each pair has the better macro-F1, mean over pairs.

    Both of a pair are tested on the same images, and resampled together. One patient
    alone leaves all open, from -1 to 1.

    Raises:
      ValueError: they are not, or there are none.
    """
    if not all(is_pair(*pair) for pair in pairs):
        raise ValueError("the predictions of a pair are of other images")
    sets = [list(pair) for pair in pairs]
    return _resample(sets, lambda f1: f1[0] - f1[1], seed, ends=(-1.0, 1.0))


def _resample(sets, statistic, seed, *, ends) -> Score:
    """Mean over sets of `statistic` of the F1 `[n, ...]` of a set's n predictions.

    `ends` are the smallest and the largest value that it may have.
    """
    if not sets:
        raise ValueError("there are no predictions to take an interval of")
    # A patient who is in several test splits is drawn, or not, for all of them.
    patients = sorted({group for of in sets for group in of[0].groups})
    counted = []  # of each set: where its patients are among all, and their matrices
    for predictions in sets:
        own = np.searchsorted(patients, np.unique(predictions[0].groups))
        counted.append((own, np.stack([_count(of) for of in predictions])))
    value = np.mean([statistic(macro_f1(counts.sum(1))) for _, counts in counted])
    if len(patients) < 2:  # drawn again, it is the same one each time
        return Score(float(value), ends[0], ends[1], 1.0)
    generator, size = np.random.default_rng(seed), len(patients)
    drawn = []
    for draws in [_CHUNK] * (_DRAWS // _CHUNK):
        weights = generator.multinomial(size, [1 / size] * size, draws)
        of_sets = [
            np.einsum("dg,ngij->ndij", weights[:, own], counts, optimize=True)
            for own, counts in counted
        ]
        values = np.stack([statistic(macro_f1(of)) for of in of_sets])
        # Of a set of few patients a draw may have none, which says nothing of it.
        has_any = np.stack([of[0].sum((1, 2)) > 0 for of in of_sets])
        drawn.append(np.sum(values * has_any, axis=0) / has_any.sum(axis=0))
    means = np.concatenate(drawn)
    low, high = np.quantile(means, [0.025, 0.975])
    # Never 0: so many draws cannot tell less than one in them.
    side = min(np.sum(means <= 0), np.sum(means >= 0))
    p = min(1.0, 2 * (side + 1) / (_DRAWS + 1))
    return Score(float(value), float(low), float(high), float(p))


def _count(of: Predictions) -> np.ndarray:
    """Confusion matrix of each patient, `[G, K, K]`."""
    _, group = np.unique(of.groups, return_inverse=True)
    size = len(of.classes)
    counts = np.zeros((group.max() + 1, size, size))
    np.add.at(counts, (group, of.labels, of.answers), 1)
    return counts
