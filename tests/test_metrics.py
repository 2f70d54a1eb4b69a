import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from hapre_jax import metrics

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_rows_are_true_classes_and_columns_predicted_ones():
    labels, predictions = jnp.array([0, 0, 1, 2, 2, 2]), jnp.array([0, 1, 1, 2, 0, 2])
    matrix = metrics.confusion_matrix(labels, predictions, num_classes=3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert matrix.dtype == jnp.int32


# Which classes occur among the labels, and which among the predictions.
CASES = {
    "all": ([0, 1, 2, 3], [0, 1, 2, 3]),
    "never predicted": ([0, 1, 2, 3], [0, 1, 3]),
    "never occurs": ([0, 1, 3], [0, 1, 2, 3]),
    "absent from both": ([0, 1, 3], [0, 1, 3]),
    "one prediction": ([0, 1, 2, 3], [2]),
    "never right": ([0, 1], [2, 3]),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_scikit_learn(case, variant):
    true, predicted = CASES[case]
    rng = np.random.default_rng(0)
    labels, predictions = rng.choice(true, 60), rng.choice(predicted, 60)
    confusion = variant(functools.partial(metrics.confusion_matrix, num_classes=4))
    matrix = confusion(jnp.array(labels), jnp.array(predictions))
    expected = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(4))
    np.testing.assert_array_equal(matrix, expected)

    scores = functools.partial(
        sklearn.metrics.precision_recall_fscore_support,
        labels,
        predictions,
        zero_division=0,
    )
    functions = (metrics.precision, metrics.recall, metrics.f1)
    of_classes = scores(labels=range(4), average=None)
    for function, by_class in zip(functions, of_classes, strict=False):
        np.testing.assert_allclose(function(matrix), by_class, atol=1e-6)
    accuracy = sklearn.metrics.accuracy_score(labels, predictions)
    assert metrics.accuracy(matrix) == pytest.approx(accuracy, abs=1e-6)
    summary = metrics.summary(matrix)
    assert list(summary) == ["accuracy", "macro_precision", "macro_recall", "macro_f1"]
    # Over the classes that occur on either side, which it finds by itself.
    macro = scores(labels=None, average="macro")[:3]
    assert list(summary.values()) == pytest.approx([accuracy, *macro], abs=1e-6)
    assert all(isinstance(value, float) for value in summary.values())


def test_masked_examples_are_not_counted():
    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 3, (2, 40))
    mask = rng.uniform(size=40) < 0.6
    masked = metrics.confusion_matrix(
        jnp.array(labels), jnp.array(predictions), num_classes=3, mask=jnp.array(mask)
    )
    expected = sklearn.metrics.confusion_matrix(labels[mask], predictions[mask])
    np.testing.assert_array_equal(masked, expected)


def test_matrices_of_parts_add_up_to_that_of_the_whole():
    labels, predictions = np.random.default_rng(2).integers(0, 3, (2, 3, 20))
    confusion = functools.partial(metrics.confusion_matrix, num_classes=3)
    parts = jax.vmap(confusion)(jnp.array(labels), jnp.array(predictions)).sum(0)
    whole = confusion(jnp.array(labels.ravel()), jnp.array(predictions.ravel()))
    np.testing.assert_array_equal(parts, whole)


def test_empty_split_scores_0():
    summary = metrics.summary(jnp.zeros((3, 3), jnp.int32))
    assert set(summary.values()) == {0.0}


def test_labels_and_predictions_need_equal_length():
    with pytest.raises(AssertionError):
        metrics.confusion_matrix(jnp.array([0, 1]), jnp.array([0]), num_classes=2)


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (12, 2.201)])
def test_interval_is_students(n, quantile):
    # Quantiles of any table of Student's t, of n - 1 degrees of freedom.
    values = [0.1 * i**2 for i in range(n)]
    expected = quantile * statistics.stdev(values) / n**0.5
    assert metrics.interval(values) == pytest.approx(expected, rel=2e-4)
    assert metrics.interval([1.0]) is None


def test_unknown_labels_are_not_counted():
    labels, answers = jnp.array([0, 1, 3, -1, 2]), jnp.array([0, 1, 2, 2, -1])
    matrix = metrics.confusion_matrix(labels, answers, num_classes=3)
    np.testing.assert_array_equal(matrix, np.diag([1, 1, 0]))


def test_a_mask_is_of_truth_values_one_each():
    labels = jnp.array([0, 1])
    for mask in (jnp.array([True]), jnp.array([0.5, 1.0])):
        with pytest.raises(AssertionError):
            metrics.confusion_matrix(labels, labels, num_classes=2, mask=mask)


def test_a_matrix_of_shares_has_the_scores_of_its_counts():
    counts = np.array([[3, 1, 0], [2, 5, 1], [0, 0, 4]])
    of_counts = metrics.summary(jnp.array(counts))
    of_shares = metrics.summary(jnp.array(counts / counts.sum()))
    assert of_shares == pytest.approx(of_counts, rel=1e-6)


def test_dice_of_more_pixels_than_an_integer_doubles():
    # As many as 16,000 masks of 256 pixels a side, without their memory.
    shared, union = (jnp.array(n, jnp.int32) for n in (2**30 + 64, 2**31 - 64))
    dice, iou = metrics._overlap_of_counts(shared, union)
    assert dice == pytest.approx(2 / 3) and iou == pytest.approx(1 / 2)


def test_average_precision_leaves_out_boxes_that_are_not_there():
    box, nowhere = [0.0, 0.0, 0.5, 0.5], [np.nan] * 4
    for truth in ([box, nowhere], [nowhere, box]):
        found = metrics.average_precision([[0.9]], [np.array([box])], [np.array(truth)])
        assert found == 1.0
    none = metrics.average_precision([[0.9]], [np.array([box])], [np.array([nowhere])])
    assert np.isnan(none)


def test_average_precision_ranks_scores_of_any_type():
    right, wrong = np.array([[0, 0, 0.5, 0.5]]), np.array([[0.5, 0.5, 1, 1]])
    found, truth = [right, wrong], [right, right]
    for scores in ([0.9, 0.1], np.array([[200], [0]], np.uint8), [[1], [0]]):
        scores = np.reshape(scores, (2, 1))
        assert metrics.average_precision(scores, found, truth) == 0.5
    with pytest.raises(ValueError, match="^scores hold NaN, which has no rank$"):
        metrics.average_precision([[0.9], [np.nan]], found, truth)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_f1_of_counts_in_a_small_type(kind):
    matrix = np.array([[100, 0], [0, 100]], kind)
    assert metrics.f1(jnp.array(matrix)).tolist() == [1, 1]
