import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import q_learning

VALUES = jnp.array([0.5, -1.0, 2.0, 1.5])

explore = jax.jit(jax.vmap(q_learning.explore, in_axes=(0, None, None)))
td_error = jax.jit(functools.partial(q_learning.td_error, discount=0.5))


def _shares(epsilon, values=VALUES):
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions = explore(keys, values, jnp.array(epsilon))
    assert actions.shape == (20_000,) and actions.dtype == jnp.int32
    return np.bincount(actions, minlength=len(values)) / 20_000


@pytest.mark.parametrize("best", range(4))
def test_without_exploring_the_most_valuable_action_is_taken(best):
    values = np.roll(VALUES, best - 2)
    np.testing.assert_array_equal(_shares(0.0, values), np.eye(4)[best])


# Within four deviations of 20,000 draws.
def test_all_exploring_is_uniform():
    np.testing.assert_allclose(_shares(1.0), [0.25] * 4, atol=0.012)


def test_some_exploring_takes_any_action_that_often():
    # 0.7 of the best and a quarter of 0.3 of each.
    expected = [0.075, 0.075, 0.775, 0.075]
    np.testing.assert_allclose(_shares(0.3), expected, atol=0.012)


def test_exploring_in_jit_and_eager_agree():
    keys, epsilon = jax.random.split(jax.random.key(3), 8), jnp.array(0.8)
    eager = [int(q_learning.explore(key, VALUES, epsilon)) for key in keys]
    assert eager == list(explore(keys, VALUES, epsilon))
    assert len(set(eager)) > 1


def _arguments(is_last, action=1):
    """The network that learns prefers action 0 of the next state, the target 2."""
    return {
        "values": jnp.array([1.0, 0.25, -2.0]),
        "action": jnp.array(action),
        "reward": jnp.array(0.5),
        "next_values": jnp.array([3.0, 1.0, 2.0]),
        "next_target_values": jnp.array([0.75, 5.0, 8.0]),
        "is_last": jnp.array(is_last),
    }


# Worth 0.5 + 0.5 x 0.75 = 0.875. The target's own best would make it 4.5, what the
# network that learns thinks of its best, 2.
@pytest.mark.parametrize(("action", "error"), [(0, -0.125), (1, 0.625), (2, 2.875)])
def test_double_q_error_by_hand(action, error):
    assert td_error(**_arguments(False, action)) == error
    eager = q_learning.td_error(**_arguments(False, action), discount=0.5)
    assert eager == error


def test_the_last_action_is_worth_its_reward():
    assert td_error(**_arguments(True)) == 0.25
    # Whatever stands in the place of the next state.
    nothing = jnp.full(3, jnp.nan)
    given = {"next_values": nothing, "next_target_values": nothing}
    assert td_error(**_arguments(True) | given) == 0.25


def test_discount_of_nothing_and_of_all():
    arguments = _arguments(False)
    assert q_learning.td_error(**arguments, discount=0.0) == 0.25
    assert q_learning.td_error(**arguments, discount=1.0) == 1.0


@pytest.mark.parametrize("is_last", [False, True])
def test_gradient_reaches_the_value_of_the_action_alone(is_last):
    arguments = _arguments(is_last)
    names = ("values", "reward", "next_values", "next_target_values")
    learned = {name: arguments.pop(name) for name in names}
    gradient = jax.grad(lambda given: td_error(**arguments, **given))(learned)
    # Worth less what was thought: the thought counts negatively.
    np.testing.assert_array_equal(gradient.pop("values"), [0, -1, 0])
    for value in gradient.values():
        np.testing.assert_array_equal(value, np.zeros(value.shape))


def test_batches_are_for_vmap():
    arguments = {k: jnp.stack([v, v]) for k, v in _arguments(False).items()}
    with pytest.raises(AssertionError):
        td_error(**arguments)
    arguments["is_last"] = jnp.array([False, True])
    found = jax.vmap(lambda given: td_error(**given))(arguments)
    np.testing.assert_array_equal(found, [0.625, 0.25])
