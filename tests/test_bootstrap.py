"""Intervals over patients, against scikit-learn and a bootstrap in plain loops."""

import math
import random

import numpy as np
import pytest
import sklearn.metrics

from hapre_jax import bootstrap
from hapre_jax.predictions import Predictions

# An end of the interval, the 2.5 % quantile of 2,000 draws, has a standard error of
# sqrt(0.025 * 0.975 / 2000) / 0.0584 = 0.060 standard deviations of a normal score,
# and the interval is 3.92 of them wide: 1.5 % of the width. Widths of two bootstraps
# therefore differ by 2 * 1.5 % = 3.1 %, relative to each other; four times that is
# never seen.
WIDTH = 0.12


def predictions(labels, answers, groups=None, *, classes=3):
    labels = np.asarray(labels, np.int32)
    names = tuple(f"film-{i}" for i in range(len(labels)))
    return Predictions(
        names=names,
        groups=names if groups is None else tuple(map(str, groups)),
        views=("",) * len(labels),
        classes=tuple("abcdefg"[:classes]),
        labels=labels,
        probabilities=np.eye(classes, dtype=np.float32)[np.asarray(answers)],
    )


def width(score):
    return score.high - score.low


def sometimes_wrong(rng, labels, share, classes):
    wrong = rng.uniform(size=len(labels)) < share
    return np.where(wrong, rng.integers(0, classes, len(labels)), labels)


def sklearn_f1(labels, answers):
    return sklearn.metrics.f1_score(labels, answers, average="macro", zero_division=0)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_macro_f1_of_a_stack_of_matrices_is_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    matrices = np.zeros((2, 4, classes, classes))
    expected = np.zeros((2, 4))
    for place in np.ndindex(2, 4):
        labels, answers = rng.integers(0, classes, (2, 30))
        expected[place] = sklearn_f1(labels, answers)
        matrices[place] = sklearn.metrics.confusion_matrix(
            labels, answers, labels=range(classes)
        )
    np.testing.assert_allclose(bootstrap.macro_f1(matrices), expected, rtol=1e-12)


def test_class_without_an_image_or_an_answer_does_not_count():
    # 2 * 3 / (4 + 4) twice, and 0 / 0; 2 * 3 / (3 + 4), 2 * 3 / (3 + 4) and 0 / 2.
    matrix = np.array([[3, 1, 0], [1, 3, 0], [0, 0, 0]])
    assert bootstrap.macro_f1(matrix) == pytest.approx(0.75)
    answered = np.array([[3, 0, 1], [0, 3, 1], [0, 0, 0]])
    assert bootstrap.macro_f1(answered) == pytest.approx((6 / 7 + 6 / 7 + 0) / 3)
    assert bootstrap.macro_f1(np.zeros((3, 3))) == 0.0


def test_a_perfect_answer_is_perfect_in_every_draw():
    """Also where the only patient of a class is not drawn."""
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    found = bootstrap.mean_f1([predictions(labels, labels, np.arange(7), classes=3)])
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_a_split_of_which_no_patient_was_drawn_does_not_count():
    """Of two patients each, as others are in the next split, a draw may have none."""
    perfect = [
        predictions([0, 1, 2, 0], [0, 1, 2, 0], groups=[seed, seed, -seed, -seed])
        for seed in (1, 2, 3)
    ]
    score = bootstrap.mean_f1(perfect)
    assert (score.value, score.low, score.high) == (1.0, 1.0, 1.0)


def test_value_is_scikit_learns_f1_of_the_split_and_the_mean_over_runs():
    rng = np.random.default_rng(0)
    runs, expected = [], []
    for films, patients in [(80, 30), (50, 50)]:
        labels = rng.choice([0, 1, 3], films)  # a class is absent
        answers = sometimes_wrong(rng, labels, 0.5, 4)
        groups = rng.integers(0, patients, films)
        runs.append(predictions(labels, answers, groups, classes=4))
        expected.append(sklearn_f1(labels, answers))
    first, both = bootstrap.mean_f1(runs[:1]), bootstrap.mean_f1(runs)
    assert first.value == pytest.approx(expected[0], abs=1e-12)
    assert both.value == pytest.approx(sum(expected) / 2, abs=1e-12)


# A bootstrap that shares nothing with ours: lists, loops and Python's own generator.


def slow_f1(films, of):
    """Macro-F1 in three classes of tuples (label, answer, another's answer)."""
    total, counted = 0.0, 0
    for label in range(3):
        hits = sum(film[0] == label and film[of] == label for film in films)
        said = sum(film[of] == label for film in films)
        there = sum(film[0] == label for film in films)
        if said + there:
            total += 2 * hits / (said + there)
            counted += 1
    return total / counted


def slow_bootstrap(patients, statistic, seed):
    generator = random.Random(seed)
    scores = []
    for _ in range(2000):
        films = []
        for _ in patients:
            films += generator.choice(patients)
        scores.append(statistic(films))
    scores.sort()
    below = sum(score <= 0 for score in scores) / 2000
    return scores[50], scores[-51], 2 * min(below, 1 - below)


def check_against_loops(patients, score, statistic):
    """Compares the means over seeds, `score(seed)` is ours; returns the loops' own.

    A mean of 9 of our ends and one of 3 of theirs differ by sqrt(1/9 + 1/3) * 1.5 %
    = 1.0 % of the width, see above; four times that is never seen. The ends of a 90 %
    interval are 8 % off. A p, twice a share of 2,000, has a standard error of at most
    2 * 0.5 / sqrt(2000), so the means differ by sqrt(1/9 + 1/3) * 0.022 = 0.015.
    """
    ours = [score(seed) for seed in range(9)]
    theirs = [slow_bootstrap(patients, statistic, seed) for seed in range(3)]
    low, high, p = np.mean(theirs, axis=0)
    assert np.mean([of.low for of in ours]) == pytest.approx(
        low, abs=0.04 * (high - low)
    )
    assert np.mean([of.high for of in ours]) == pytest.approx(
        high, abs=0.04 * (high - low)
    )
    assert np.mean([of.p for of in ours]) == pytest.approx(p, abs=0.06)
    return low, high, p


def patients_with_up_to_four_films():
    """All films of a patient have one diagnosis, and mostly the same answer."""
    rng = np.random.default_rng(2)
    patients = []
    for _ in range(40):
        label = int(rng.integers(3))
        ours, theirs = sometimes_wrong(rng, np.array([label] * 2), 0.6, 3).tolist()
        patients.append([(label, ours, theirs)] * int(rng.integers(1, 5)))
    return patients


def as_predictions(patients, of):
    rows = [(g, film) for g, films in enumerate(patients) for film in films]
    return predictions(
        [film[0] for _, film in rows],
        [film[of] for _, film in rows],
        [g for g, _ in rows],
    )


def test_interval_of_f1_is_that_of_a_bootstrap_in_plain_loops():
    patients = patients_with_up_to_four_films()
    run = as_predictions(patients, 1)
    low, high, _ = check_against_loops(
        patients,
        lambda seed: bootstrap.mean_f1([run], seed=seed),
        lambda films: slow_f1(films, 1),
    )
    # Films, drawn one by one, have another interval: the tolerance can tell.
    films = [[film] for films in patients for film in films]
    narrow = slow_bootstrap(films, lambda films: slow_f1(films, 1), 0)
    assert narrow[1] - narrow[0] < 0.8 * (high - low)


def test_interval_and_p_of_a_gain_are_those_of_a_bootstrap_in_plain_loops():
    patients = patients_with_up_to_four_films()
    pair = as_predictions(patients, 1), as_predictions(patients, 2)
    _, _, p = check_against_loops(
        patients,
        lambda seed: bootstrap.mean_gain([pair], seed=seed),
        lambda films: slow_f1(films, 1) - slow_f1(films, 2),
    )
    assert 0.1 < p < 0.9  # or this p could not tell anything


def test_four_times_the_patients_halve_the_interval():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 100)
    answers = sometimes_wrong(rng, labels, 0.4, 3)
    few = bootstrap.mean_f1([predictions(labels, answers)])
    many = bootstrap.mean_f1([predictions(np.tile(labels, 4), np.tile(answers, 4))])
    assert many.value == pytest.approx(few.value)
    assert width(few) / width(many) == pytest.approx(2, rel=WIDTH)


def test_films_of_one_patient_are_no_more_evidence_than_one_film():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 60)
    answers = sometimes_wrong(rng, labels, 0.4, 3)
    one = bootstrap.mean_f1([predictions(labels, answers, range(60))])
    four = [np.repeat(of, 4) for of in (labels, answers, np.arange(60))]
    found = bootstrap.mean_f1([predictions(*four)])
    assert list(found) == pytest.approx(list(one), abs=1e-12)
    taken_apart = bootstrap.mean_f1([predictions(*four[:2])])
    assert width(one) / width(taken_apart) == pytest.approx(2, rel=WIDTH)


def test_gain_of_a_run_over_itself_is_exactly_0():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 50)
    run = predictions(labels, sometimes_wrong(rng, labels, 0.5, 3))
    assert bootstrap.mean_gain([(run, run)] * 2) == (0.0, 0.0, 0.0, 1.0)


def test_gain_that_all_patients_share_has_the_smallest_p():
    # Ten patients with films a, a, b, b, of which theirs calls one a b:
    # F1 of a is 2 * 1 / (2 + 1), of b 2 * 2 / (2 + 3), their mean 11 / 15.
    groups = np.repeat(range(10), 4)
    labels, missed = np.tile([0, 0, 1, 1], 10), np.tile([0, 1, 1, 1], 10)
    ours = predictions(labels, labels, groups, classes=2)
    theirs = predictions(labels, missed, groups, classes=2)
    gain = bootstrap.mean_gain([(ours, theirs)])
    assert gain == pytest.approx((4 / 15, 4 / 15, 4 / 15, 2 / 2001), abs=1e-12)
    loss = bootstrap.mean_gain([(theirs, ours)])
    assert loss == pytest.approx((-4 / 15, -4 / 15, -4 / 15, 2 / 2001), abs=1e-12)
    # The mean with a pair that gains nothing.
    both = bootstrap.mean_gain([(ours, theirs), (ours, ours)])
    assert both == pytest.approx((2 / 15, 2 / 15, 2 / 15, 2 / 2001), abs=1e-12)


def test_gain_that_half_of_the_patients_have_and_half_have_not_is_no_evidence():
    labels = np.tile([0, 1], 20)
    first, second = labels.copy(), labels.copy()
    first[:10] = 1 - first[:10]
    second[10:20] = 1 - second[10:20]
    gain = bootstrap.mean_gain(
        [(predictions(labels, first), predictions(labels, second))]
    )
    assert gain.value == pytest.approx(0, abs=1e-12)
    assert gain.low < -0.1 and gain.high > 0.1 and gain.p > 0.5


def test_pairing_narrows_the_interval_of_a_gain():
    # They are wrong in 60 of 200 films and we in 50 of the same ones. Accuracies then
    # differ in 5 % of the films, with deviation sqrt(0.05 * 0.95 / 200) = 0.015; of
    # independent splits it would be sqrt((0.25 * 0.75 + 0.3 * 0.7) / 200) = 0.045.
    labels = np.tile([0, 1], 100)
    first, second = labels.copy(), labels.copy()
    first[:50], second[:60] = 1 - first[:50], 1 - second[:60]
    runs = [predictions(labels, of, classes=2) for of in (first, second)]
    paired = width(bootstrap.mean_gain([tuple(runs)]))
    independent = math.hypot(*(width(bootstrap.mean_f1([run])) for run in runs))
    assert paired / independent == pytest.approx(0.015 / 0.045, rel=0.2)


def test_mean_over_runs_with_test_splits_of_their_own_is_known_better():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 120)
    run = predictions(labels, sometimes_wrong(rng, labels, 0.4, 3))
    renamed = tuple(f"another-{name}" for name in run.names)
    other = run._replace(names=renamed, groups=renamed)
    one, two = bootstrap.mean_f1([run]), bootstrap.mean_f1([run, other])
    assert width(one) / width(two) == pytest.approx(math.sqrt(2), rel=WIDTH)


def test_patients_of_several_test_splits_are_drawn_for_all_of_them():
    """Two splits that share 95 of 100 patients say hardly more than one.

    Were they drawn apart, the interval of the mean would be narrower by sqrt(2).
    """
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 420)
    answers = sometimes_wrong(rng, labels, 0.5, 3)
    groups = np.arange(420)
    parts = [slice(0, 400), slice(20, 420)]
    splits = [predictions(labels[of], answers[of], groups[of]) for of in parts]
    one, both = bootstrap.mean_f1(splits[:1]), bootstrap.mean_f1(splits)
    assert width(both) == pytest.approx(width(one), rel=WIDTH)


def test_mean_over_runs_with_the_same_test_split_is_not_known_better():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 120)
    run = predictions(labels, sometimes_wrong(rng, labels, 0.4, 3))
    one, two = bootstrap.mean_f1([run]), bootstrap.mean_f1([run, run])
    assert width(one) / width(two) == pytest.approx(1, rel=WIDTH)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run._replace(names=("another", *run.names[1:])),
        lambda run: run._replace(names=run.names[::-1], labels=run.labels[::-1]),
        lambda run: run._replace(labels=run.labels[::-1]),
        lambda run: predictions([0, 1], [0, 1]),
    ],
    ids=["name", "order", "label", "number"],
)
def test_pair_with_predictions_of_other_images_is_refused(change):
    run = predictions([0, 1, 2], [0, 1, 1])
    with pytest.raises(ValueError, match="of other images"):
        bootstrap.mean_gain([(run, run), (run, change(run))])


def test_same_seed_gives_the_same_numbers():
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 3, 40)
    runs = [predictions(labels, sometimes_wrong(rng, labels, 0.5, 3)) for _ in "ab"]
    pairs = [tuple(runs)]
    assert bootstrap.mean_f1(runs) == bootstrap.mean_f1(runs, seed=0)
    assert bootstrap.mean_gain(pairs) == bootstrap.mean_gain(pairs, seed=0)
    first, second = (bootstrap.mean_gain(pairs, seed=seed) for seed in (0, 1))
    assert first.value == second.value and first != second


def test_one_patient_says_nothing_of_others():
    ours = predictions([0, 1, 2], [0, 1, 1], ["same"] * 3)
    theirs = predictions([0, 1, 2], [0, 0, 0], ["same"] * 3)
    f1 = sklearn.metrics.f1_score([0, 1, 2], [0, 1, 1], average="macro")
    assert bootstrap.mean_f1([ours]) == (pytest.approx(f1), 0, 1, 1)
    gain = f1 - sklearn.metrics.f1_score([0, 1, 2], [0, 0, 0], average="macro")
    assert bootstrap.mean_gain([(ours, theirs)]) == (pytest.approx(gain), -1, 1, 1)
    with pytest.raises(ValueError, match="there are no predictions"):
        bootstrap.mean_f1([])
