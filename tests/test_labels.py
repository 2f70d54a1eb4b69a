import numpy as np
import pytest

from hapre_jax import errors
from hapre_jax.data import labels

THREE = ("normal", "bacterial", "viral")
TWO = ("normal", "pneumonia")


@pytest.mark.parametrize(
    ("first", "second", "space"),
    [
        (THREE, THREE, THREE),
        (("Viral", "Normal"), ("Viral", "Normal"), ("Viral", "Normal")),
        (THREE, TWO, TWO),
        (TWO, THREE, TWO),
        (THREE, ("VIRUS", "Normal", "BACTERIA"), THREE),
        (("No Finding", "Lung Opacity"), THREE, TWO),
        (("viral", "normal"), THREE, ("pneumonia", "normal")),
        (("cat", "dog"), ("dog", "Cat"), ("cat", "dog")),
        # Classes of one's own stay apart, whatever else they are called elsewhere.
        (("No Finding", "Lung Opacity", "Pneumonia"),) * 2
        + (("No Finding", "Lung Opacity", "Pneumonia"),),
        (("No Finding", "Lung Opacity", "Pneumonia"), TWO, TWO),
        # Both halves of what is coarse on one side only.
        (("normal", "pneumonia", "viral"), TWO, TWO),
    ],
)
def test_finest_common_space(first, second, space):
    assert labels.common(first, second) == space


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (THREE, ("cat", "dog")),
        (TWO, ("normal", "covid")),
        (("viral", "bacterial"),) * 2,
    ],
)
def test_no_common_space(first, second):
    if first == second:  # equal spaces need no coarsening
        assert labels.common(first, second) == first
        return
    with pytest.raises(errors.UserError, match="no common label space"):
        labels.common(first, second)


def test_coarse_classes_of_one_kind_are_no_space():
    with pytest.raises(errors.UserError, match="no common label space"):
        labels.common(("viral", "bacterial"), ("pneumonia", "viral"))


def test_probabilities_and_labels_are_summed_up():
    matrix = labels.projection(THREE, TWO)
    np.testing.assert_array_equal(matrix, [[1, 0], [0, 1], [0, 1]])
    probabilities = np.array([[0.4, 0.35, 0.25], [0.6, 0.3, 0.1]])
    summed = probabilities @ matrix
    np.testing.assert_allclose(summed, [[0.4, 0.6], [0.6, 0.4]], rtol=1e-6)
    # The first film is no pneumonia by its likeliest class, but by the sum.
    assert summed.argmax(1).tolist() == [1, 0]
    assert matrix.argmax(1)[np.array([2, 0, 1])].tolist() == [1, 0, 1]


def test_projection_reorders_equal_spaces():
    matrix = labels.projection(("Virus", "normal", "bacteria"), THREE)
    np.testing.assert_array_equal(matrix.argmax(1), [2, 0, 1])


def test_equal_spaces_are_left_alone():
    names = ("No Finding", "Lung Opacity", "Pneumonia")
    np.testing.assert_array_equal(labels.projection(names, names), np.eye(3))


def test_a_class_outside_the_space():
    with pytest.raises(errors.UserError, match="'covid' is in none of normal, pneumon"):
        labels.projection(("normal", "covid"), TWO)
