import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import q_learning

VALUES = jnp.array([0.5, -1.0, 2.0, 1.5])


@functools.cache
def _explore():
    return jax.jit(jax.vmap(q_learning.explore, in_axes=(0, None, None)))


def _shares(epsilon, values=VALUES, count=20_000):
    keys = jax.random.split(jax.random.key(0), count)
    actions = _explore()(keys, values, jnp.array(epsilon))
    assert actions.shape == (count,) and actions.dtype == jnp.int32
    return np.bincount(actions, minlength=len(values)) / count


@pytest.mark.parametrize("best", range(4))
def test_without_exploring_the_most_valuable_action_is_taken(best):
    shares = _shares(0.0, jnp.roll(VALUES, best - 2), count=500)
    np.testing.assert_array_equal(shares, np.eye(4)[best])


def test_all_exploring_is_uniform():
    np.testing.assert_allclose(_shares(1.0), [0.25] * 4, atol=0.013)


def test_some_exploring_takes_any_action_that_often():
    # 0.7 of the best and a quarter of 0.3 of each.
    expected = [0.075, 0.075, 0.775, 0.075]
    np.testing.assert_allclose(_shares(0.3), expected, atol=0.013)


def test_exploring_in_jit_and_eager_agree(variant):
    explore = variant(q_learning.explore)
    keys = jax.random.split(jax.random.key(3), 6)
    found = [int(explore(key, VALUES, jnp.array(1.0))) for key in keys]
    assert found == list(_explore()(keys, VALUES, jnp.array(1.0)))
    assert len(set(found)) > 1


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


# Worth 0.5 + 0.5 x 0.75 = 0.875. The target's own best would give 0.5 + 0.5 x 8 = 4.5,
# what the network itself thinks 0.5 + 0.5 x 3 = 2.
@pytest.mark.parametrize(
    ("action", "error"), [(0, 0.875 - 1), (1, 0.875 - 0.25), (2, 0.875 + 2)]
)
def test_double_q_error_by_hand(variant, action, error):
    td_error = variant(functools.partial(q_learning.td_error, discount=0.5))
    assert td_error(**_arguments(False, action)) == pytest.approx(error, abs=1e-6)


def test_the_last_action_is_worth_its_reward(variant):
    td_error = variant(functools.partial(q_learning.td_error, discount=0.5))
    assert td_error(**_arguments(True)) == pytest.approx(0.5 - 0.25, abs=1e-6)


def test_without_the_future_only_the_reward_counts():
    error = q_learning.td_error(**_arguments(False), discount=0.0)
    assert error == pytest.approx(0.5 - 0.25, abs=1e-6)


@pytest.mark.parametrize("is_last", [False, True])
def test_gradient_reaches_the_value_of_the_action_alone(variant, is_last):
    arguments = _arguments(is_last)
    names = ("values", "reward", "next_values", "next_target_values")

    def error(learned):
        return q_learning.td_error(**arguments | learned, discount=0.5)

    gradient = variant(jax.grad(error))({name: arguments[name] for name in names})
    # Worth less what was thought of action 1: the thought counts negatively.
    np.testing.assert_array_equal(gradient.pop("values"), [0, -1, 0])
    for value in gradient.values():
        np.testing.assert_array_equal(value, np.zeros(value.shape))


def test_batches_are_for_vmap():
    arguments = {k: jnp.stack([v, v]) for k, v in _arguments(False).items()}
    with pytest.raises(AssertionError):
        q_learning.td_error(**arguments, discount=0.5)
    arguments["is_last"] = jnp.array([False, True])
    error = functools.partial(q_learning.td_error, discount=0.5)
    found = jax.vmap(lambda given: error(**given))(arguments)
    np.testing.assert_allclose(found, [0.625, 0.25], atol=1e-6)
