import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hapre_jax import checkpoint, optimization, train_state, train_step
from hapre_jax.config import Config, TrainConfig
from hapre_jax.data import feed, pipeline
from hapre_jax.method import Aux, Method, to_float
from hapre_jax.methods import METHODS

# 60 steps: 10 to rise, 50 to fall.
TRAIN = TrainConfig(steps=60, lr_warmup_steps=10, schedule="cosine")


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, 0.0),
        (5, 1.0),
        (10, 2.0),
        (35, 1.0),  # cos(pi / 2) = 0
        (22.5, 2 * 0.853553),  # (1 + cos(pi / 4)) / 2
        (60, 0.0),
        (70, 0.0),
    ],
)
def test_cosine_schedule_by_hand(count, expected):
    found = optimization.schedule(2.0, TRAIN)(jnp.array(count))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("count", "expected"),
    # Starts at 20: rises until 30, falls until 60.
    [(0, 0.0), (19, 0.0), (20, 0.0), (25, 1.0), (30, 2.0), (45, 1.0), (60, 0.0)],
)
def test_schedule_of_the_policy_starts_after_the_warmup(count, expected):
    found = optimization.schedule(2.0, TRAIN, start=20)(jnp.array(count))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("count", "expected"), [(0, 0.0), (5, 1.0), (10, 2), (59, 2)])
def test_constant_schedule_rises_and_stays(count, expected):
    train = dataclasses.replace(TRAIN, schedule="constant")
    found = optimization.schedule(2.0, train)(jnp.array(count))
    assert found == pytest.approx(expected, abs=1e-6)


def test_schedule_without_rise_starts_at_the_peak():
    train = dataclasses.replace(TRAIN, schedule="constant", lr_warmup_steps=0)
    assert optimization.schedule(2.0, train)(jnp.array(0)) == 2.0
    rate = optimization.schedule(2.0, train, start=3)
    assert [float(rate(jnp.array(n))) for n in (0, 2, 3, 4)] == [0, 0, 2, 2]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("start", [0, 300])
def test_schedule_of_a_run_shorter_than_its_rise_stays_finite(schedule, start):
    train = dataclasses.replace(TRAIN, steps=4, schedule=schedule)
    rate = optimization.schedule(2.0, train, start=start)
    found = [float(rate(jnp.array(n))) for n in range(4)]
    expected = [0.0] * 4 if start else [0.0, 0.2, 0.4, 0.6]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("step", "decay", "expected"),
    [
        # kept = min(decay, (1 + step) / (10 + step)) of the 10.
        (0, 0.9, 20 - 0.1 * 10),
        (2, 0.9, 20 - 0.25 * 10),
        (1000, 0.9, 20 - 0.9 * 10),
    ],
)
def test_move_average_by_hand(step, decay, expected):
    average = {"a": jnp.array(10.0)}, {"b": jnp.array([10.0])}
    new = {"a": jnp.array(20.0)}, {"b": jnp.array([20.0])}
    moved = train_step.move_average(average, new, jnp.array(step), decay=decay)
    assert moved[0]["a"] == pytest.approx(expected)
    np.testing.assert_allclose(moved[1]["b"], [expected])


def test_average_without_decay_is_the_new_value_exactly():
    new = jnp.array([0.1, 1e-8, 3.0])
    average = jnp.array([1e4, 1e4, -7.0])
    moved = train_step.move_average(average, new, jnp.array(5), decay=0.0)
    np.testing.assert_array_equal(moved, new)


@pytest.mark.parametrize("kind", [np.float32, np.uint16, bool])
def test_pixels_of_another_range_are_refused(kind):
    with pytest.raises(ValueError, match="but stored pixels are uint8, 0 to 255"):
        to_float({"image": np.zeros((1, 2, 2, 1), kind)})


def test_to_float_maps_bytes_to_one():
    label = np.array([1])
    image = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3, 1)
    batch = to_float({"image": image, "label": label})
    assert batch["image"].dtype == jnp.float32
    np.testing.assert_allclose(batch["image"].ravel(), [0, 0.2, 1], rtol=1e-6)
    assert batch["label"] is label


EVERY_THREE = dict.fromkeys(("log_every", "eval_every", "checkpoint_every"), 3)


def _quadratic():
    """A method whose gradients are known: weights of both networks times 1 and 100."""

    def loss(params, model_state, average, batch, key, step):
        value = jnp.sum(params["task"]) + 100 * jnp.sum(params["policy"])
        new_state = {"task": {"n": model_state["task"]["n"] + 1}, "policy": {}}
        noise = jax.random.uniform(key)
        return value, Aux(new_state, {"loss": value, "noise": noise})

    def init(key, image):
        assert image.shape == (1, 1024, 1024, 1)  # as stored by default
        params = {"task": jnp.full(4, 5.0), "policy": jnp.full(9, 5.0)}
        return params, {"task": {"n": jnp.zeros(())}, "policy": {}}

    return Method(init, loss, None, None)


def _batch():
    return {"image": np.zeros((2, 4, 4, 1), np.uint8), "label": np.zeros(2, np.int32)}


def _config(**train):
    defaults = {"lr_warmup_steps": 0, "schedule": "constant", "average_decay": 0.0}
    return Config(train=TrainConfig(**defaults | train))


def test_each_network_has_its_own_learning_rate_and_start():
    config = _config(task_learning_rate=0.1, policy_learning_rate=0.2)
    config = dataclasses.replace(
        config, policy=dataclasses.replace(config.policy, warmup_steps=2)
    )
    method, optimizer = _quadratic(), optimization.make_optimizer(config)
    now = train_state.init(method, optimizer, config)
    step = train_step.make_step(method, optimizer, config)
    tasks, policies = [], []
    for _ in range(3):
        now, _ = step(now, _batch())
        tasks.append(float(now.params["task"][0]))
        policies.append(float(now.params["policy"][0]))
    # Adam moves by the learning rate against a constant gradient, whatever its size.
    np.testing.assert_allclose(tasks, [4.9, 4.8, 4.7], rtol=1e-4)
    np.testing.assert_allclose(policies, [5.0, 5.0, 4.8], rtol=1e-4)


@pytest.mark.parametrize("bad", ["loss", "task", "policy", "statistics"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(bad):
    def loss(params, model_state, average, batch, key, step):
        is_bad = step == 1
        scale = {n: jnp.where(is_bad & (bad == n), jnp.inf, 1.0) for n in params}
        value = sum(scale[name] * jnp.sum(params[name]) for name in params)
        count = model_state["task"]["n"] + jnp.where(
            is_bad & (bad == "statistics"), jnp.nan, 1.0
        )
        said = jnp.where(is_bad & (bad == "loss"), jnp.nan, 0.0)
        return value, Aux({"task": {"n": count}, "policy": {}}, {"loss": said})

    config = _config(on_nonfinite="skip", average_decay=0.5, clip_norm=0.0)
    method, optimizer = (
        _quadratic()._replace(loss=loss),
        optimization.make_optimizer(config),
    )
    step = train_step.make_step(method, optimizer, config)
    states = [train_state.init(method, optimizer, config)]
    for _ in range(3):
        new, metrics = step(jax.tree.map(jnp.copy, states[-1]), _batch())
        states.append(new)
        is_finite = [bool(np.isfinite(value)) for value in metrics.values()]
        assert all(is_finite) == (len(states) != 3)
    assert [int(now.step) for now in states] == [0, 1, 2, 3]
    chex.assert_trees_all_equal(states[1]._replace(step=states[2].step), states[2])
    assert states[3].model_state["task"]["n"] == 2
    assert (states[3].params["task"] < states[2].params["task"]).all()
    chex.assert_tree_all_finite(states[3])


def test_gradients_are_clipped_before_adam():
    # Adam forgets the scale of a constant gradient, but not its first moment's size.
    for clip_norm, expected in ((0.0, 0.1 * 100), (1.0, 0.1 / 3)):
        optimizer = optimization.make_optimizer(_config(clip_norm=clip_norm))
        params = {"task": jnp.zeros(4), "policy": jnp.zeros(9)}
        gradients = {"task": jnp.ones(4), "policy": jnp.full(9, 100.0)}
        _, after = optimizer.update(gradients, optimizer.init(params), params)
        moments = optax.tree_utils.tree_get_all_with_path(after, "mu")
        found = {
            leaf.shape: leaf for _, tree in moments for leaf in jax.tree.leaves(tree)
        }
        np.testing.assert_allclose(found[(9,)], np.full(9, expected), rtol=1e-5)


@pytest.mark.parametrize("shapes", [[(2, 3)], [(5000,)], [(3,), (), (70, 70), (0, 2)]])
def test_norm_is_that_of_all_numbers(shapes):
    rng = np.random.default_rng(0)
    tree = {str(i): jnp.array(rng.normal(size=shape)) for i, shape in enumerate(shapes)}
    expected = np.linalg.norm(np.concatenate([np.ravel(x) for x in tree.values()]))
    np.testing.assert_allclose(train_step.norm(tree), expected, rtol=1e-6)


def test_norm_of_no_arrays_is_zero():
    assert train_step.norm({}) == 0


def test_step_says_its_norms_and_counts():
    config = _config()
    method, optimizer = _quadratic(), optimization.make_optimizer(config)
    now = train_state.init(method, optimizer, config)
    step = train_step.make_step(method, optimizer, config)
    now, metrics = step(now, _batch())
    assert metrics["loss"] == 4 * 5 + 100 * 45
    assert metrics["grad_norm/task"] == pytest.approx(2.0)
    assert metrics["grad_norm/policy"] == pytest.approx(300.0)
    expected = np.sqrt(np.sum(np.square(now.params["task"])) + 1)  # statistic n = 1
    assert metrics["weight_norm/task"] == pytest.approx(expected, rel=1e-6)
    assert now.step == 1 and now.model_state["task"]["n"] == 1
    # Without decay the average is the state itself.
    np.testing.assert_array_equal(now.average[0]["task"], now.params["task"])


def test_three_steps_of_one_call_are_three_steps():
    config = _config()
    method, optimizer = _quadratic(), optimization.make_optimizer(config)
    step = train_step.make_step(method, optimizer, config)
    one = train_state.init(method, optimizer, config)
    seen = []
    for _ in range(3):
        one, metrics = step(one, _batch())
        seen.append(metrics)
    config = _config(steps=9, steps_per_call=3, **EVERY_THREE)
    steps = train_step.make_step(method, optimizer, config)
    many, metrics = steps(train_state.init(method, optimizer, config), (_batch(),) * 3)
    chex.assert_trees_all_close(many, one, rtol=1e-6)
    assert many.step == 3
    expected = {name: [values[name] for values in seen] for name in metrics}
    chex.assert_trees_all_close(jax.tree.map(list, metrics), expected, rtol=1e-6)


def test_parts_of_a_batch_have_the_gradient_of_the_whole():
    def loss(params, model_state, average, batch, key, step):
        value = jnp.mean(batch["image"], axis=(1, 2, 3)) @ jnp.arange(1.0, 3.0)
        seen = {"n": model_state["task"]["n"] + len(batch["label"])}
        value = value * jnp.sum(params["task"])
        return value, Aux({"task": seen, "policy": {}}, {"loss": value})

    batch = _batch() | {"label": np.zeros(4, np.int32)}
    batch["image"] = np.repeat(np.uint8([0, 51, 102, 255]), 16).reshape(4, 4, 4, 1)
    config = _config(batch_size=4, parts=2, clip_norm=0.0)
    method = _quadratic()._replace(loss=loss)
    optimizer = optimization.make_optimizer(config)
    now = train_state.init(method, optimizer, config)
    now, metrics = train_step.make_step(method, optimizer, config)(now, batch)
    # Images 0, 2 and 1, 3: 0 * 1 + 0.4 * 2 and 0.2 * 1 + 1 * 2; four weights.
    assert metrics["grad_norm/task"] == pytest.approx((0.8 + 2.2) / 2 * 2)
    assert metrics["loss"] == pytest.approx(20 * (0.8 + 2.2) / 2)
    assert now.model_state["task"]["n"] == 4 and now.step == 1


def test_noise_of_a_step_depends_on_seed_and_step_alone():
    def noises(seed):
        config = dataclasses.replace(_config(), seed=seed)
        method, optimizer = _quadratic(), optimization.make_optimizer(config)
        now = train_state.init(method, optimizer, config)
        step = train_step.make_step(method, optimizer, config)
        found = []
        for _ in range(3):
            now, metrics = step(now, _batch())
            found.append(float(metrics["noise"]))
        return found

    assert noises(0) == noises(0)
    assert len({*noises(0), *noises(1), *noises(2**32 - 1)}) == 9


@pytest.mark.parametrize("name", ["hapre", "plain", "cutout"])
def test_what_one_seed_compiled_serves_another(name, tiny_config):
    texts = []
    for seed in (0, 1):
        config = dataclasses.replace(tiny_config, method=name, seed=seed)
        method, optimizer = (
            METHODS[name](config, 3),
            optimization.make_optimizer(config),
        )
        side = config.data.image_size
        batch = {
            "image": jax.ShapeDtypeStruct((2, side, side, 1), jnp.uint8),
            "label": jax.ShapeDtypeStruct((2,), jnp.int32),
            "index": jax.ShapeDtypeStruct((2,), jnp.int32),
        }
        step = train_step.make_step(method, optimizer, config)
        lowered = step.func.lower(*step.args, train_state.blank(method, config), batch)
        texts.append(lowered.as_text())
    assert texts[0] == texts[1]


def test_init_depends_on_the_seed_and_shares_no_buffer(tiny_config):
    config = dataclasses.replace(tiny_config, method="plain")
    method = METHODS["plain"](config, 3)
    optimizer = optimization.make_optimizer(config)
    first, again = (train_state.init(method, optimizer, config) for _ in range(2))
    other = dataclasses.replace(config, seed=1)
    other = train_state.init(method, optimizer, other)
    kernel = ("task", "stem_conv", "kernel")
    values = [
        np.asarray(s.params[kernel[0]][kernel[1]][kernel[2]])
        for s in (first, again, other)
    ]
    np.testing.assert_array_equal(values[0], values[1])
    assert (values[0] != values[2]).any()
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(first)]
    assert len(set(pointers)) == len(pointers)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), first)
    blank = train_state.blank(method, config)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), blank)


def test_one_compilation_serves_a_whole_run(tmp_path, tiny_config):
    """Before and after the warm-up, and after a restart.

    The state is donated, and nothing but the batch goes to the device.
    """
    policy = dataclasses.replace(tiny_config.policy, warmup_steps=1)
    config = dataclasses.replace(tiny_config, policy=policy)
    data = pipeline.load(config.data, seed=config.seed)
    batches = feed.TrainIterator(
        data.train, batch_size=config.train.batch_size, seed=config.seed
    )
    method, optimizer = METHODS["hapre"](config, 3), optimization.make_optimizer(config)
    step = train_step.make_step(method, optimizer, config)
    now = train_state.init(method, optimizer, config)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for _ in range(3):
        before, batch = now, jax.device_put(next(batches))
        with jax.transfer_guard("disallow"):
            now, _ = step(now, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    checkpoints.save("last", now, {})
    now, _ = checkpoints.restore("last", now)
    checkpoints.close()
    now, _ = step(now, jax.device_put(next(batches)))
    assert now.step == 4
    assert step.func._cache_size() == 1
    # What the guard would have said.
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        with jax.transfer_guard("disallow"):
            step(now, next(batches))


def test_films_of_several_channels_that_are_no_squares(tiny_config):
    """An own data set: the state is of the shape of its films."""
    method = METHODS["hapre"](tiny_config, 3)
    optimizer = optimization.make_optimizer(tiny_config)
    rng = np.random.default_rng(0)
    films = rng.integers(0, 256, (4, 24, 32, 3), np.uint8)
    now = train_state.init(
        method, optimizer, tiny_config, image=jnp.zeros((1, 24, 32, 3))
    )
    step = train_step.make_step(method, optimizer, tiny_config)
    batch = {"image": films, "label": np.arange(4) % 3, "index": np.arange(4)}
    now, metrics = step(now, batch)
    assert int(now.step) == 1 and np.isfinite(metrics["task_loss"])
