import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.metrics

from hapre_jax import probabilities


@pytest.fixture(scope="module", params=["distinct", "tied"])
def answers(request):
    """300 random answers in 3 classes; rounded, most scores have ties."""
    random = np.random.default_rng(0)
    found = random.dirichlet([1, 1, 1], 300)
    labels = random.integers(0, 3, 300)
    found[np.arange(300), labels] += 0.3  # better than chance
    found /= found.sum(1, keepdims=True)
    return found.round(1) if request.param == "tied" else found, labels


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_areas_are_those_of_scikit_learn(answers, kind):
    found, labels = answers
    score, is_positive = found[:, kind], labels == kind
    expected = sklearn.metrics.roc_auc_score(is_positive, score)
    assert probabilities.roc_auc(score, is_positive) == pytest.approx(expected)
    expected = sklearn.metrics.average_precision_score(is_positive, score)
    area = probabilities.average_precision(score, is_positive)
    assert area == pytest.approx(expected)


def test_roc_curve_is_that_of_scikit_learn(answers):
    found, labels = answers
    curve = probabilities.roc_curve(found[:, 1], labels == 1)
    x, y, _ = sklearn.metrics.roc_curve(
        labels == 1, found[:, 1], drop_intermediate=False
    )
    np.testing.assert_allclose(curve.x, x)
    np.testing.assert_allclose(curve.y, y)


def test_areas_by_hand():
    # Of the four pairs of a positive and a negative, three are in order.
    score, is_positive = [0.9, 0.8, 0.7, 0.1], [True, False, True, False]
    assert probabilities.roc_auc(score, is_positive) == 0.75
    # Precision 1 at the first half of the positives, 2/3 at the second.
    area = probabilities.average_precision(score, is_positive)
    assert area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert probabilities.roc_auc([0.5] * 4, is_positive) == 0.5


def test_reliability_and_calibration_error_by_hand():
    found = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.5, 0.5]])
    labels = np.array([0, 1, 1, 0, 0])
    bins = probabilities.reliability(found, labels, bins=2)
    # A confidence of a half lies in the lower bin.
    np.testing.assert_array_equal(bins.images, [1, 4])
    np.testing.assert_allclose(bins.confidence, [0.5, 0.75])
    np.testing.assert_allclose(bins.accuracy, [1.0, 0.5])
    error = probabilities.calibration_error(bins)
    assert error == pytest.approx((1 * 0.5 + 4 * 0.25) / 5)
    # Of 15 bins the confidences 0.5 and 0.6, 0.7, 0.8, 0.9 are in four: 7/15 is below
    # 0.5, 9/15 and 12/15 are the upper ends of theirs.
    curve = probabilities.summary(found, labels)["reliability"]
    assert list(curve) == ["images", "confidence", "accuracy"]
    assert curve["images"] == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0, 1, 0]
    assert curve["accuracy"][7:12] == [1.0, 0.0, None, 1.0, 0.0]
    assert curve["confidence"][11] == 0.8 and curve["confidence"][0] is None


def test_empty_bins_are_not_counted():
    bins = probabilities.reliability(np.array([[1.0, 0.0]]), np.array([0]), bins=4)
    np.testing.assert_array_equal(bins.images, [0, 0, 0, 1])
    assert np.isnan(bins.accuracy[:3]).all()
    assert probabilities.calibration_error(bins) == 0


def test_calibration_error_of_answers_drawn_from_their_own_probabilities_is_small():
    random = np.random.default_rng(1)
    found = random.dirichlet([1, 1], 100_000)
    labels = (random.random(100_000) < found[:, 1]).astype(int)
    assert probabilities.summary(found, labels)["calibration_error"] < 0.01
    flipped = probabilities.summary(found, 1 - labels)
    # Confident 3/4 in the mean, and right in 1/4.
    assert flipped["calibration_error"] == pytest.approx(0.5, abs=0.01)
    assert flipped["roc_auc"] < 0.2


def test_classes_without_a_curve_do_not_count():
    found = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    labels = np.array([0, 1, 1])
    assert probabilities.summary(found, labels)["roc_auc"] == 1.0
    only = probabilities.summary(found, np.zeros(3, int))
    assert only["roc_auc"] is None and only["average_precision"] is None


# Temperature.


def test_temperature_by_hand():
    half = np.array([[0.5, 0.5], [0.8, 0.2]])
    # Logits log(4) and 0, halved: odds of 2 to 1.
    np.testing.assert_allclose(
        probabilities.at_temperature(half, 2), [[0.5, 0.5], [2 / 3, 1 / 3]]
    )
    np.testing.assert_allclose(probabilities.at_temperature(half, 1), half)
    certain = probabilities.at_temperature(np.array([[1.0, 0.0]]), 3)
    np.testing.assert_allclose(certain, [[1 / 1.0001, 1e-4 / 1.0001]])


def test_the_fitted_temperature_is_the_likeliest(answers):
    found, labels = answers

    def loss(logarithm):
        scaled = probabilities.at_temperature(found, np.exp(logarithm))
        likelihood = np.sum(np.log(scaled[np.arange(len(labels)), labels]))
        return -likelihood - scipy.stats.norm(0, 0.5).logpdf(logarithm)

    expected = scipy.optimize.minimize_scalar(
        loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10}
    )
    fitted = probabilities.fit_temperature(found, labels)
    assert np.log(fitted) == pytest.approx(expected.x, abs=1e-5)


def test_a_temperature_that_was_put_in_is_found():
    random = np.random.default_rng(0)
    shares = random.dirichlet([1, 1, 1], 40_000)
    labels = (random.random((len(shares), 1)) > shares.cumsum(1)).sum(1)
    sharpened = probabilities.at_temperature(shares, 1 / 2.5)
    fitted = probabilities.fit_temperature(sharpened, labels)
    assert fitted == pytest.approx(2.5, rel=0.03)
    before = probabilities.reliability(sharpened, labels)
    scaled = probabilities.at_temperature(sharpened, fitted)
    after = probabilities.reliability(scaled, labels)
    assert probabilities.calibration_error(before) > 0.1
    assert probabilities.calibration_error(after) < 0.01


def test_no_films_change_no_temperature():
    assert probabilities.fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1


@pytest.mark.parametrize("count", [6, 3000])
def test_a_few_films_do_not_decide(count):
    """All right at 73 %: of many films 99 % is likelier, of six not so."""
    found = np.tile([[0.73, 0.27]], (count, 1))
    right = probabilities.fit_temperature(found, np.zeros(count, int))
    wrong = probabilities.fit_temperature(found, np.ones(count, int))
    low, high = {6: (0.5, 0.8), 3000: (0.05, 0.25)}[count]
    assert low < right < high
    assert wrong > 1.4 if count == 6 else wrong == pytest.approx(20)


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.int8, bool, float])
def test_areas_are_the_same_of_scores_of_any_type(kind):
    score = np.array([0, 1, 0, 1, 1]).astype(kind)
    is_positive = [0, 0, 1, 1, 1]
    expected = sklearn.metrics.roc_auc_score(is_positive, score.astype(float))
    assert probabilities.roc_auc(score, is_positive) == pytest.approx(expected)
    expected = sklearn.metrics.average_precision_score(is_positive, score.astype(float))
    assert probabilities.average_precision(score, is_positive) == pytest.approx(
        expected
    )


def test_scores_that_have_no_rank_are_refused():
    with pytest.raises(ValueError, match="scores hold NaN"):
        probabilities.roc_auc([0.1, np.nan, 0.3], [0, 1, 1])
    with pytest.raises(AssertionError):
        probabilities.average_precision([0.1, 0.3], [0, 1, 1])
    with pytest.raises(AssertionError):
        probabilities.fit_temperature(np.full((3, 2), 0.5), np.array([0, 1]))


def test_no_temperature_is_fitted_to_what_is_not_known():
    shares = np.full((2, 3), 1 / 3)
    with pytest.raises(ValueError, match="^labels are at least 0, and one is -1$"):
        probabilities.fit_temperature(shares, np.array([0, -1]))
    with pytest.raises(ValueError, match="^probabilities hold NaN"):
        probabilities.fit_temperature(np.full((2, 3), np.nan), np.array([0, 1]))


def test_summary_takes_lists():
    shares, labels = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), [0, 1, 1]
    found = probabilities.summary(shares, np.array(labels))
    assert probabilities.summary(shares.tolist(), labels) == found
    assert found["roc_auc"] == 1.0
