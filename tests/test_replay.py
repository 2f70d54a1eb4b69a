import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import replay

KEY = jax.random.key(0)


def _transition(number, is_last=False):
    """One whose every field tells its number."""
    return replay.Transition(
        state=jnp.full((2, 3), float(number)),
        action=jnp.array(number, jnp.int32),
        reward=jnp.array(number / 8),
        next_state=jnp.full((2, 3), number + 0.5),
        is_last=jnp.array(is_last),
    )


def _memory(size, added, add=replay.add):
    memory = replay.empty(jnp.zeros((2, 3)), size=size)
    for number in range(added):
        memory = add(memory, _transition(number, is_last=number % 3 == 2))
    return memory


def _with_priorities(errors, size):
    """A memory whose first transitions have these errors."""
    memory = _memory(size, len(errors))
    return replay.reprioritize(memory, jnp.arange(len(errors)), jnp.array(errors))


def test_a_full_memory_overwrites_the_oldest(variant):
    memory = _memory(3, 5, variant(replay.add))
    # 3 and 4 are in the places of 0 and 1.
    order = np.array([3, 4, 2])
    stored = memory.transitions
    np.testing.assert_array_equal(stored.action, order)
    np.testing.assert_array_equal(stored.reward, order / 8)
    np.testing.assert_array_equal(stored.is_last, [False, False, True])
    for states, offset in ((stored.state, 0), (stored.next_state, 0.5)):
        expected = np.broadcast_to(order[:, None, None] + offset, (3, 2, 3))
        np.testing.assert_array_equal(states, expected)
    assert memory.added == 5
    np.testing.assert_array_equal(memory.priorities, [1, 1, 1])


def test_an_empty_memory_has_places_and_no_priorities():
    memory = replay.empty(jnp.ones((2, 3)), size=4)
    assert memory.added == 0 and memory.added.dtype == jnp.int32
    np.testing.assert_array_equal(memory.priorities, np.zeros(4))
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), memory.transitions)
    states = ((4, 2, 3), "float32")
    expected = (states, ((4,), "int32"), ((4,), "float32"), states, ((4,), "bool"))
    assert tuple(shapes) == expected


def test_a_new_transition_gets_the_highest_priority(variant):
    add = variant(replay.add)
    memory = _memory(6, 1, add)
    np.testing.assert_array_equal(memory.priorities, [1, 0, 0, 0, 0, 0])
    # Less than 1 is the highest, where no other one is.
    memory = replay.reprioritize(memory, jnp.array([0]), jnp.array([0.25]))
    memory = add(memory, _transition(1))
    np.testing.assert_allclose(memory.priorities[:3], [0.25, 0.25, 0], atol=2e-6)
    memory = replay.reprioritize(memory, jnp.array([1]), jnp.array([7.0]))
    memory = add(memory, _transition(2))
    np.testing.assert_allclose(memory.priorities[:4], [0.25, 7, 7, 0], atol=2e-6)


def test_priorities_are_the_sizes_of_errors_and_a_little(variant):
    memory = _memory(4, 4)
    rows, errors = jnp.array([2, 0, 3]), jnp.array([-3.0, 0.0, 0.5])
    changed = variant(replay.reprioritize)(memory, rows, errors)
    # 1e-6 is what float32 keeps of 1e-6 beside 0, a part of it beside 3.
    np.testing.assert_allclose(changed.priorities, [1e-6, 1, 3, 0.5], rtol=3e-6)
    assert changed.priorities[0] > 0 and changed.priorities[3] > 0.5
    assert changed.added == 4
    for before, after in zip(memory.transitions, changed.transitions, strict=True):
        np.testing.assert_array_equal(before, after)


def test_errors_of_other_rows_are_refused():
    with pytest.raises(AssertionError):
        replay.reprioritize(_memory(3, 3), jnp.array([0, 1]), jnp.array([1.0]))


def test_empty_places_are_never_drawn(variant):
    # Even beside the smallest priority that there is.
    memory = _with_priorities([0.0, 0.0, 0.0], size=200)
    draw = variant(functools.partial(replay.draw, count=3000))
    rows = np.asarray(draw(KEY, memory, beta=jnp.array(0.4)).rows)
    assert set(rows) == {0, 1, 2}


def test_one_transition_is_drawn_again_and_again(variant):
    memory = _memory(5, 1)
    draw = variant(functools.partial(replay.draw, count=7))
    sample = draw(KEY, memory, beta=jnp.array(1.0))
    np.testing.assert_array_equal(sample.rows, np.zeros(7))
    np.testing.assert_array_equal(sample.weights, np.ones(7))


def test_draws_are_as_frequent_as_priorities_to_the_power_of_three_fifths(variant):
    # 32^0.6 = 2^3 and 1024^0.6 = 2^6: as 1 : 8 : 64, the sign of errors aside.
    memory = _with_priorities([32.0, -1024.0, 1.0], size=5)
    draw = variant(functools.partial(replay.draw, count=60_000))
    rows = draw(KEY, memory, beta=jnp.array(0.4)).rows
    shares = np.bincount(rows, minlength=5) / 60_000
    # Four deviations of 60,000 draws.
    expected = np.array([8, 64, 1, 0, 0]) / 73
    tolerance = 4 * np.sqrt(expected * (1 - expected) / 60_000)
    assert (np.abs(shares - expected) <= tolerance).all()


def test_what_is_drawn_is_what_is_stored(variant):
    memory = _memory(6, 5)
    draw = variant(functools.partial(replay.draw, count=40))
    sample = draw(KEY, memory, beta=jnp.array(0.5))
    rows = np.asarray(sample.rows)
    assert set(rows) == set(range(5))
    np.testing.assert_array_equal(sample.transitions.action, rows)
    np.testing.assert_array_equal(sample.transitions.reward, rows / 8)
    np.testing.assert_array_equal(sample.transitions.is_last, rows % 3 == 2)
    np.testing.assert_array_equal(sample.transitions.state[:, 1, 2], rows)
    np.testing.assert_array_equal(sample.transitions.next_state[:, 0, 1], rows + 0.5)
    assert sample.transitions.state.shape == (40, 2, 3)


@pytest.mark.parametrize(
    ("beta", "by_row"),
    [
        (0.0, [1, 1, 1]),
        # (N p)^-beta over that of the rarest, p as 8 : 64 : 1.
        (0.5, [8**-0.5, 1 / 8, 1]),
        (1.0, [1 / 8, 1 / 64, 1]),
    ],
)
def test_weights_by_hand(variant, beta, by_row):
    memory = _with_priorities([32.0, -1024.0, 1.0], size=5)
    draw = variant(functools.partial(replay.draw, count=2000))
    sample = draw(KEY, memory, beta=jnp.array(beta))
    rows = np.asarray(sample.rows)
    assert set(rows) == {0, 1, 2}
    expected = np.array(by_row)[rows]
    np.testing.assert_allclose(sample.weights, expected, rtol=1e-5)


def test_the_highest_weight_is_that_of_the_rarest_that_was_drawn():
    """Not of the rarest that is stored, of one in 41,000 draws."""
    memory = _with_priorities([32.0, 1024.0, 1e-6], size=3)
    sample = replay.draw(KEY, memory, count=200, beta=jnp.array(1.0))
    rows = np.asarray(sample.rows)
    assert set(rows) == {0, 1}
    expected = np.where(rows == 0, 1, 1 / 8)
    np.testing.assert_allclose(sample.weights, expected, rtol=1e-5)


def test_draws_depend_on_the_key_alone():
    memory = _with_priorities([1.0, 2.0, 3.0, 4.0], size=4)
    first, again, other = (
        np.asarray(replay.draw(key, memory, count=50, beta=jnp.array(0.4)).rows)
        for key in (KEY, KEY, jax.random.key(1))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_memory_keeps_its_shapes_in_a_scan():
    """So that one compiled step serves a whole training."""

    def step(memory, key):
        memory = replay.add(memory, _transition(memory.added))
        sample = replay.draw(key, memory, count=4, beta=jnp.array(0.4))
        memory = replay.reprioritize(memory, sample.rows, sample.transitions.reward)
        return memory, sample.rows

    start = replay.empty(jnp.zeros((2, 3)), size=3)
    memory, rows = jax.lax.scan(step, start, jax.random.split(KEY, 8))
    assert memory.added == 8
    np.testing.assert_array_equal(memory.transitions.action, [6, 7, 5])
    # Of the first steps, those places alone that were filled by then.
    assert (rows[0] == 0).all() and (rows[1] < 2).all()
