import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import rewards

pytestmark = pytest.mark.usefixtures("strict_dtypes")

DETECTED, EXPANDED, SHRUNK = 0, 1, 2

# Losses of the original, detected, expanded and shrunk area, worked by hand with
# lambda = 1/2: reward, choice, D1, D2.
TABLE = [
    # D1 < 0: the neighbors do not matter, however good they are.
    ((1.0, 0.6, 0.1, 0.2), (math.exp(-0.4), DETECTED, -0.4, -0.4)),
    ((1.0, 0.6, 3.0, 2.0), (math.exp(-0.4), DETECTED, -0.4, -0.4)),
    # D1 = 0 exactly counts as no help.
    ((1.0, 1.0, 0.8, 0.9), (math.exp(-0.1), EXPANDED, 0.0, -0.1)),
    ((1.0, 1.0, 1.4, 1.2), (0.1, SHRUNK, 0.0, 0.1)),
    # D1 > 0, D2 < 0: 0.5 * (0.7 - 1.2) + 0.5 * 0.2.
    ((1.0, 1.2, 0.9, 0.7), (math.exp(-0.15), SHRUNK, 0.2, -0.15)),
    ((1.0, 1.2, 0.7, 0.9), (math.exp(-0.15), EXPANDED, 0.2, -0.15)),
    # D1 > 0, D2 > 0: 0.5 * (1.4 - 1.5) + 0.5 * 0.5; the neighbor helps, not enough.
    ((1.0, 1.5, 1.4, 1.45), (0.2, EXPANDED, 0.5, 0.2)),
    # Both neighbors are worse still.
    ((1.0, 1.5, 2.0, 1.75), (0.375, SHRUNK, 0.5, 0.375)),
    # D2 = 0 exactly: 0.5 * (1.0 - 1.5) + 0.5 * 0.5, all exact in binary.
    ((1.0, 1.5, 1.0, 2.0), (0.0, EXPANDED, 0.5, 0.0)),
    # All equal: D1 = D2 = 0, and the tie goes to expand.
    ((1.0, 1.0, 1.0, 1.0), (0.0, EXPANDED, 0.0, 0.0)),
    # A tie of the neighbors alone.
    ((1.0, 2.0, 1.5, 1.5), (0.25, EXPANDED, 1.0, 0.25)),
]

# More neighbors than the paper's two, or one; lambda = 1/2 again.
MANY = [
    # D1 < 0: none of them matters.
    ((1.0, 0.6, 0.1, 0.2, 0.0, 0.3), (math.exp(-0.4), DETECTED, -0.4, -0.4)),
    # 0.5 * (0.5 - 1.5) + 0.5 * 0.5, by the fourth of six.
    ((1.0, 1.5, 1.4, 1.45, 1.2, 0.5, 1.3, 0.9), (math.exp(-0.25), 4, 0.5, -0.25)),
    # 0.5 * (1.2 - 1.5) + 0.5 * 0.5, by the last.
    ((1.0, 1.5, 1.4, 1.45, 1.3, 1.2), (0.1, 4, 0.5, 0.1)),
    # The first of the equally good ones: 0.5 * (1.5 - 2) + 0.5 * 1.
    ((1.0, 2.0, 1.75, 1.5, 1.5, 1.5), (0.25, 2, 1.0, 0.25)),
    ((1.0, 1.5, 1.25), (0.125, 1, 0.5, 0.125)),
]


def scalars(losses):
    return [jnp.float32(loss) for loss in losses]


@pytest.mark.parametrize(("losses", "expected"), TABLE + MANY)
def test_every_branch_by_hand(losses, expected, variant):
    result = variant(rewards.paper_reward)(*scalars(losses))
    assert int(result.choice) == expected[1]
    got = (result.reward, result.d1, result.d2)
    np.testing.assert_allclose(got, [expected[i] for i in (0, 2, 3)], atol=1e-6)


def test_reward_is_exactly_0_where_d2_is():
    assert rewards.paper_reward(*scalars((1.0, 1.5, 1.0, 2.0))).reward == 0


def test_reward_jumps_from_1_to_0_where_d2_reaches_0():
    below = rewards.paper_reward(*scalars((1.0, 1.5, 1.0 - 1e-5, 2.0))).reward
    above = rewards.paper_reward(*scalars((1.0, 1.5, 1.0 + 1e-5, 2.0))).reward
    assert below == pytest.approx(1, abs=1e-4)
    assert above == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [(0.0, 0.5), (0.25, 0.25), (1.0, math.exp(-0.5))],  # D1 alone ... neighbor alone
)
def test_balance_weighs_the_neighbor_against_d1(balance, expected):
    losses = scalars((1.0, 1.5, 1.0, 2.0))
    result = rewards.paper_reward(*losses, balance=balance)
    assert result.reward == pytest.approx(expected, abs=1e-6)


def test_vmap_equals_single_images():
    losses = jnp.array([row[0] for row in TABLE], jnp.float32)
    many = jax.jit(jax.vmap(rewards.paper_reward))(*losses.T)
    for i in range(3):
        expected = [row[1][(0, 2, 3)[i]] for row in TABLE]
        got = (many.reward, many.d1, many.d2)[i]
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert many.choice.tolist() == [row[1][1] for row in TABLE]
    assert many.choice.dtype == jnp.int32


@pytest.mark.parametrize(
    "losses",
    [
        (0.0, 1e30, 1e30, 1e30),  # exp of the loss in the other branch would overflow
        (1e30, 0.0, 0.0, 0.0),
        (1e30, 1e30, 0.0, 0.0),
        (1e4, 2e4, 0.0, 3e4),
        (0.0, 0.0, 0.0, 0.0),
    ],
)
def test_huge_losses_stay_finite_and_pass_no_gradient(losses):
    def reward(losses):
        return rewards.paper_reward(*losses).reward

    with jax.debug_infs(True):  # of any step, the branch not taken included
        rewards.paper_reward(*scalars(losses))
    value, gradient = jax.value_and_grad(reward)(jnp.array(losses, jnp.float32))
    assert jnp.isfinite(value) and value >= 0
    np.testing.assert_array_equal(gradient, np.zeros(4))


@pytest.mark.parametrize("field", ["reward", "d1", "d2"])
def test_no_gradient_flows_into_the_losses(field):
    def of_field(losses):
        return getattr(rewards.paper_reward(*losses), field)

    for losses, _ in TABLE[::4]:
        gradient = jax.grad(of_field)(jnp.array(losses, jnp.float32))
        np.testing.assert_array_equal(gradient, np.zeros(4))


def test_takes_one_image():
    with pytest.raises(AssertionError):
        rewards.paper_reward(*[jnp.zeros(2)] * 4)


def test_a_reward_without_neighbors_is_refused():
    with pytest.raises(ValueError, match="at least one neighbor"):
        rewards.paper_reward(jnp.array(1.0), jnp.array(0.5))
