import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import batching


def _count(ran):
    def double(values, offset):
        jax.debug.callback(lambda: ran.append(True))
        return 2 * values.sum() + offset

    return jax.jit(batching.compute_if_any_needs(double))


@pytest.mark.parametrize("wanted", [(False, False), (False, True), (True, True)])
def test_what_nobody_of_a_batch_asks_for_is_not_computed(wanted):
    ran, values = [], jnp.arange(6.0).reshape(2, 3)
    found = jax.vmap(_count(ran), (0, 0, None))(jnp.array(wanted), values, 1.0)
    jax.effects_barrier()
    expected = [7.0, 25.0] if any(wanted) else [0.0, 0.0]
    np.testing.assert_array_equal(found, expected)
    assert bool(ran) == any(wanted)


def test_elements_that_share_all_arguments_may_ask_alike():
    found = jax.vmap(_count([]), (0, None, None))(
        jnp.array([False, True]), jnp.arange(3.0), 1.0
    )
    np.testing.assert_array_equal(found, [7.0, 7.0])


@pytest.mark.parametrize(("wanted", "expected"), [(False, 0.0), (True, 7.0)])
def test_what_one_image_does_not_ask_for_is_not_computed(wanted, expected):
    ran = []
    assert _count(ran)(jnp.array(wanted), jnp.arange(3.0), 1.0) == expected
    jax.effects_barrier()
    assert bool(ran) == wanted


def test_a_function_of_a_batch_sees_all_batches_as_one():
    seen = []

    def function(x):
        seen.append(x.shape)
        return {"double": 2 * x, "sum": x.sum((1, 2))}

    x = jnp.arange(2 * 3 * 4 * 5, dtype=jnp.float32).reshape(2, 3, 4, 5)
    one = batching.as_one_batch(function)
    for compile_it in (lambda f: f, jax.jit):
        seen.clear()
        found = compile_it(jax.vmap(one))(x)
        assert (6, 4, 5) in seen and (2, 3, 4, 5) not in seen
        np.testing.assert_array_equal(found["double"], 2 * x)
        np.testing.assert_array_equal(found["sum"], x.sum((2, 3)))
    alone = one(x[0])
    assert alone["sum"].shape == (3,)
    np.testing.assert_array_equal(alone["double"], 2 * x[0])
