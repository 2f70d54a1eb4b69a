import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import replay

KEY = jax.random.key(0)
SIZE = 5

add = jax.jit(replay.add)
draw = jax.jit(replay.draw, static_argnames="count")
reprioritize = jax.jit(replay.reprioritize)


def _transition(number, is_last=False):
    """One whose every field tells its number."""
    return replay.Transition(
        state=jnp.full((2, 3), number, jnp.float32),
        action=jnp.array(number, jnp.int32),
        reward=jnp.array(number / 8),
        next_state=jnp.full((2, 3), number + 0.5),
        is_last=jnp.array(is_last),
    )


def _memory(added):
    memory = replay.empty(jnp.zeros((2, 3)), size=SIZE)
    for number in range(added):
        memory = add(memory, _transition(number, is_last=number % 3 == 2))
    return memory


def _with_priorities(*errors):
    """A memory whose first transitions have these errors."""
    rows = jnp.arange(len(errors))
    return reprioritize(_memory(len(errors)), rows, jnp.array(errors))


def test_an_empty_memory_has_places_and_no_priorities():
    memory = replay.empty(jnp.ones((2, 3)), size=4)
    assert memory.added == 0 and memory.added.dtype == jnp.int32
    np.testing.assert_array_equal(memory.priorities, np.zeros(4))
    found = [(x.shape, str(x.dtype)) for x in memory.transitions]
    states = ((4, 2, 3), "float32")
    expected = [states, ((4,), "int32"), ((4,), "float32"), states, ((4,), "bool")]
    assert found == expected


def test_a_full_memory_overwrites_the_oldest():
    memory = _memory(8)
    # 5, 6 and 7 are in the places of 0, 1 and 2.
    order = np.array([5, 6, 7, 3, 4])
    stored = memory.transitions
    np.testing.assert_array_equal(stored.action, order)
    np.testing.assert_array_equal(stored.reward, order / 8)
    np.testing.assert_array_equal(stored.is_last, [True, False, False, False, False])
    for states, offset in ((stored.state, 0), (stored.next_state, 0.5)):
        expected = np.broadcast_to(order[:, None, None] + offset, (SIZE, 2, 3))
        np.testing.assert_array_equal(states, expected)
    assert memory.added == 8
    np.testing.assert_array_equal(memory.priorities, np.ones(SIZE))


def test_a_new_transition_gets_the_highest_priority():
    memory = _memory(1)
    np.testing.assert_array_equal(memory.priorities, [1, 0, 0, 0, 0])
    # Less than 1 is the highest, where no other one is.
    memory = add(
        reprioritize(memory, jnp.array([0]), jnp.array([0.25])), _transition(1)
    )
    np.testing.assert_allclose(memory.priorities, [0.25, 0.25, 0, 0, 0], atol=2e-6)
    memory = add(reprioritize(memory, jnp.array([1]), jnp.array([7.0])), _transition(2))
    np.testing.assert_allclose(memory.priorities, [0.25, 7, 7, 0, 0], atol=2e-6)


def test_priorities_are_the_sizes_of_errors_and_a_little():
    memory = _memory(4)
    changed = reprioritize(memory, jnp.array([2, 0, 3]), jnp.array([-3.0, 0.0, 0.5]))
    expected = [1e-6, 1, 3 + 1e-6, 0.5 + 1e-6, 0]
    np.testing.assert_allclose(changed.priorities, expected, rtol=2e-7)
    assert changed.added == 4
    for before, after in zip(memory.transitions, changed.transitions, strict=True):
        np.testing.assert_array_equal(before, after)


def test_errors_of_other_rows_are_refused():
    with pytest.raises(AssertionError):
        replay.reprioritize(_memory(3), jnp.array([0, 1]), jnp.array([1.0]))


def test_empty_places_are_never_drawn():
    # Even beside the smallest priorities that there are.
    memory = _with_priorities(0.0, 0.0, 0.0)
    rows = np.asarray(draw(KEY, memory, count=60_000, beta=jnp.array(0.4)).rows)
    assert set(rows) == {0, 1, 2}


def test_a_single_transition_is_drawn_again_and_again():
    sample = draw(KEY, _memory(1), count=40, beta=jnp.array(1.0))
    np.testing.assert_array_equal(sample.rows, np.zeros(40))
    np.testing.assert_array_equal(sample.weights, np.ones(40))


def test_draws_are_as_frequent_as_priorities_to_the_power_of_three_fifths():
    # 32^0.6 = 2^3 and 1024^0.6 = 2^6: as 1 : 8 : 64, the signs of errors aside.
    memory = _with_priorities(32.0, -1024.0, 1.0)
    rows = draw(KEY, memory, count=60_000, beta=jnp.array(0.4)).rows
    shares = np.bincount(rows, minlength=SIZE) / 60_000
    expected = np.array([8, 64, 1, 0, 0]) / 73
    four_deviations = 4 * np.sqrt(expected * (1 - expected) / 60_000)
    assert (np.abs(shares - expected) <= four_deviations).all()


def test_what_is_drawn_is_what_is_stored():
    sample = draw(KEY, _memory(SIZE), count=40, beta=jnp.array(0.5))
    rows = np.asarray(sample.rows)
    assert set(rows) == set(range(SIZE))
    taken = sample.transitions
    np.testing.assert_array_equal(taken.action, rows)
    np.testing.assert_array_equal(taken.reward, rows / 8)
    np.testing.assert_array_equal(taken.is_last, rows % 3 == 2)
    for states, offset in ((taken.state, 0), (taken.next_state, 0.5)):
        expected = np.broadcast_to(rows[:, None, None] + offset, (40, 2, 3))
        np.testing.assert_array_equal(states, expected)


@pytest.mark.parametrize(
    ("beta", "by_row"),
    [
        (0.0, [1, 1, 1]),
        # (N p)^-beta over that of the rarest, p as 8 : 64 : 1.
        (0.5, [8**-0.5, 1 / 8, 1]),
        (1.0, [1 / 8, 1 / 64, 1]),
    ],
)
def test_weights_by_hand(beta, by_row):
    memory = _with_priorities(32.0, -1024.0, 1.0)
    sample = draw(KEY, memory, count=60_000, beta=jnp.array(beta))
    rows = np.asarray(sample.rows)
    assert set(rows) == {0, 1, 2}
    np.testing.assert_allclose(sample.weights, np.array(by_row)[rows], rtol=1e-5)


def test_the_highest_weight_is_of_the_rarest_that_was_drawn():
    """Not of the rarest that is stored, which has one in 290,000 draws."""
    memory = _with_priorities(32.0, 1024.0, 1e-6)
    sample = draw(KEY, memory, count=40, beta=jnp.array(1.0))
    rows = np.asarray(sample.rows)
    assert set(rows) == {0, 1}
    expected = np.where(rows == 0, 1, 1 / 8)
    np.testing.assert_allclose(sample.weights, expected, rtol=1e-5)


def test_draws_depend_on_the_key():
    memory = _with_priorities(1.0, 2.0, 3.0, 4.0)
    first, again, other = (
        np.asarray(draw(key, memory, count=40, beta=jnp.array(0.5)).rows)
        for key in (KEY, KEY, jax.random.key(1))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_jit_and_eager_agree():
    memory = _with_priorities(1.0, 2.0, 3.0)
    eager = replay.add(memory, _transition(3))
    compiled = add(memory, _transition(3))
    jax.tree.map(np.testing.assert_array_equal, eager, compiled)
    given = {"count": 40, "beta": jnp.array(0.5)}
    eager, compiled = replay.draw(KEY, memory, **given), draw(KEY, memory, **given)
    np.testing.assert_array_equal(eager.rows, compiled.rows)
    np.testing.assert_allclose(eager.weights, compiled.weights, rtol=1e-6)
    rows, errors = jnp.array([1, 0, 2]), jnp.array([-1.0, 0.3, 0.0])
    np.testing.assert_array_equal(
        replay.reprioritize(memory, rows, errors).priorities,
        reprioritize(memory, rows, errors).priorities,
    )


def test_a_memory_keeps_its_shapes_in_a_scan():
    """So that one compiled step serves a whole training."""

    def step(memory, key):
        memory = replay.add(memory, _transition(memory.added))
        sample = replay.draw(key, memory, count=4, beta=jnp.array(0.4))
        memory = replay.reprioritize(memory, sample.rows, sample.transitions.reward)
        return memory, sample.rows

    memory, rows = jax.lax.scan(step, _memory(0), jax.random.split(KEY, 8))
    assert memory.added == 8
    np.testing.assert_array_equal(memory.transitions.action, [5, 6, 7, 3, 4])
    # Of the first steps, those places alone that were filled by then.
    assert (rows[0] == 0).all() and (rows[1] < 2).all() and rows.max() == 4
