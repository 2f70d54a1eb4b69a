"""What holds for whatever numbers: hypothesis looks for ones for which it does not."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from hapre_jax import boxes, metrics, policy, rewards
from hapre_jax.data import splits
from hapre_jax.errors import UserError

checked = functools.partial(
    settings, deadline=None, derandomize=True, database=None, max_examples=100
)
# XLA takes numbers below 1e-38 for 0.
number = functools.partial(st.floats, width=32, allow_subnormal=False)
MIN, MAX = 0.25, 0.75

MOVES = {
    "clip": lambda box, x: box,
    "expand": lambda box, x: boxes.scale(box, 1.25, min_side=MIN, max_side=MAX),
    "shrink": lambda box, x: boxes.scale(box, 0.8, min_side=MIN, max_side=MAX),
    "sample": lambda box, x: policy.action(x, box, sigma=0.5),
    **{
        f"neighbor {n}": lambda box, x, n=n: boxes.neighbors(
            box, "stretch", alpha=1.25, min_side=MIN, max_side=MAX
        )[n]
        for n in range(8)
    },
}


@jax.jit
def _moved(index, box, x):
    """A move, then what a caller does with every action: clip it."""
    tried = [lambda box, x, m=m: m(box, x) for m in MOVES.values()]
    moved = jax.lax.switch(index, tried, box, x)
    return boxes.clip(moved, min_side=MIN, max_side=MAX)


@checked()
@given(
    start=st.lists(number(-2, 3), min_size=4, max_size=4),
    moves=st.lists(
        st.tuples(
            st.integers(0, len(MOVES) - 1),
            st.lists(number(-4, 4), min_size=4, max_size=4),
        ),
        max_size=12,
    ),
)
def test_boxes_stay_valid_under_any_moves(start, moves):
    box = jnp.array(start, jnp.float32)
    for index, noise in [(0, [0] * 4), *moves]:
        box = _moved(index, box, jnp.array(noise, jnp.float32))
        y0, x0, y1, x1 = map(float, box)
        assert -1e-6 <= y0 < y1 <= 1 + 1e-6 and -1e-6 <= x0 < x1 <= 1 + 1e-6
        for side in (y1 - y0, x1 - x0):
            assert MIN - 1e-6 <= side <= MAX + 1e-6


_iou, _coverage = jax.jit(boxes.iou), jax.jit(boxes.coverage)


@checked()
@given(st.lists(number(-1, 2), min_size=8, max_size=8))
def test_overlaps_are_shares(corners):
    a, b = jnp.array(corners[:4], jnp.float32), jnp.array(corners[4:], jnp.float32)
    assert 0 <= _iou(a, b) <= 1 + 1e-6
    assert abs(_iou(a, b) - _iou(b, a)) < 1e-6
    assert 0 <= _coverage(a, b) <= 1 + 1e-6


@checked(max_examples=20)
@given(
    corner=st.lists(number(-0.5, 0.5), min_size=2, max_size=2),
    sides=st.lists(number(0.125, 1), min_size=2, max_size=2),
    sigma=number(0.0625, 1),
)
def test_log_prob_is_that_of_a_density(corner, sides, sigma):
    """Its integral over centers and log sides is 1, by a grid of 15^4 boxes."""
    low = np.array(corner, np.float32)
    mean = jnp.array([*low, *(low + np.array(sides, np.float32))], jnp.float32)
    center = np.asarray(boxes.yxyx_to_center(mean), np.float64)
    # Five deviations to each side; the trapezoid rule is exact for a Gaussian.
    noise = np.linspace(-5, 5, 15)
    widths = sigma * np.array([center[2], center[3], 1, 1])
    axes = [center[i] + widths[i] * noise for i in (0, 1)]
    axes += [np.log(center[i]) + widths[i] * noise for i in (2, 3)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 4)
    grid[:, 2:] = np.exp(grid[:, 2:])
    tried = jax.vmap(boxes.center_to_yxyx)(jnp.array(grid, jnp.float32))
    log_probs = _log_probs(tried, mean, sigma)
    cell = np.prod(widths * (noise[1] - noise[0]))
    total = np.sum(np.exp(np.asarray(log_probs, np.float64))) * cell
    assert abs(total - 1) < 1e-3


@jax.jit
def _log_probs(tried, mean, sigma):
    return jax.vmap(lambda box: policy.log_prob(box, mean, sigma=sigma))(tried)


_reward = jax.jit(rewards.paper_reward)


@checked()
@given(
    losses=st.lists(number(0, 2.0**100), min_size=3, max_size=8),
    balance=number(0, 1),
)
def test_rewards_are_bounded(losses, balance):
    arrays = [jnp.float32(loss) for loss in losses]
    found = _reward(*arrays, balance=balance)
    original, detected, *others = map(float, arrays)
    assert 0 <= found.choice <= len(others)
    assert (found.choice == 0) == (detected < original)
    # A weight: at most 1 where something helps, else between what the area costs and
    # what the best neighbor costs.
    cost = max(detected - original, min(others) - detected)
    assert 0 <= found.reward <= max(1, cost * (1 + 1e-6))
    if found.choice > 0:
        assert others[int(found.choice) - 1] == min(others)
    if detected < original:
        assert found.reward <= 1
        assert math.isclose(found.d1, detected - original, rel_tol=1e-6)


@checked()
@given(
    st.integers(2, 6).flatmap(
        lambda classes: st.tuples(
            st.just(classes),
            st.lists(
                st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)),
                min_size=1,
                max_size=40,
            ),
        )
    )
)
def test_scores_are_those_of_scikit_learn(case):
    classes, pairs = case
    labels, answers = (
        np.array(column, np.int32) for column in zip(*pairs, strict=True)
    )
    matrix = np.zeros((classes, classes), np.int32)
    np.add.at(matrix, (labels, answers), 1)
    found = metrics.summary(jnp.asarray(matrix))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn.metrics.precision_recall_fscore_support(
            labels,
            answers,
            average="macro",
            zero_division=0,
        )[:3]
    expected = [sklearn.metrics.accuracy_score(labels, answers), *expected]
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-6)


levels = st.sampled_from(splits.LEVELS)
films = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 2), st.integers(0, 30)),
    min_size=12,
    max_size=60,
)


@checked()
@given(
    films=films, seed=st.integers(0, 2**32 - 1), level=st.sampled_from(splits.LEVELS)
)
def test_splits_never_share_a_patient_nor_a_film(films, seed, level):
    groups = [f"patient-{patient}" for patient, _, _ in films]
    hashes = [f"{digest}" for _, _, digest in films]
    labels = [label for _, label, _ in films]
    try:
        divided = splits.assign(groups, labels, hashes=hashes, seed=seed, level=level)
    except UserError as error:
        assert "split is empty" in str(error)
        return
    assert set(divided) == set(splits.SPLITS) and len(divided) == len(films)
    rows = [
        splits.Row(str(index), digest, "", group, str(split))
        for index, (digest, group, split) in enumerate(
            zip(hashes, groups, divided, strict=True)
        )
    ]
    splits.refuse_leaks(rows, groups=level == "group")
    for names in (hashes, groups) if level == "group" else (hashes,):
        places: dict = {}
        for name, split in zip(names, divided, strict=True):
            assert places.setdefault(name, split) == split
