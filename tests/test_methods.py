import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import boxes, config, framework
from hapre_jax.methods import METHODS, hapre

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).uniform(size=(4, 32, 32, 1))
    return jnp.array(pixels, jnp.float32)


@pytest.fixture(scope="module")
def started(tiny_config, image):
    """HAPre-KRS before its first step: method, parameters, state."""
    method = METHODS["hapre"](tiny_config, 3)
    return method, *jax.jit(method.init)(KEY, image[:1])


def test_methods_are_those_that_a_config_may_name():
    names = config.options(config.Config())["method"].choices
    assert set(METHODS) == set(names)


def test_networks_of_each_method(tiny_config, image, started):
    _, params, model_state = started
    assert set(params) == set(model_state) == {"task", "policy"}
    plain = METHODS["plain"](tiny_config, 3)
    shapes = jax.eval_shape(plain.init, KEY, image[:1])
    assert set(shapes[0]) == set(shapes[1]) == {"task"}
    # The same task network, so that only the key area makes a difference.
    chex.assert_trees_all_equal_shapes(shapes[0]["task"], params["task"])
    chex.assert_trees_all_equal_shapes(shapes[1]["task"], model_state["task"])
    assert params["task"]["head"]["bias"].shape == (3,)


def test_first_key_area_is_the_whole_image_and_the_first_answer_the_plain_one(
    tiny_config, image, started
):
    method, params, model_state = started
    prediction = jax.jit(method.predict)(params, model_state, image)
    whole = np.tile(boxes.WHOLE, (4, 1))
    np.testing.assert_allclose(prediction.action, whole, atol=1e-5)
    np.testing.assert_allclose(prediction.policy_map, np.full((4, 8, 8), 0.5))
    plain = METHODS["plain"](tiny_config, 3)
    expected = jax.jit(plain.predict)(
        {"task": params["task"]}, {"task": model_state["task"]}, image
    )
    np.testing.assert_allclose(
        prediction.probabilities, expected.probabilities, rtol=1e-3
    )
    assert expected.action is None and expected.entropy is None


def test_plain_loss_is_the_cross_entropy_of_the_whole_image(tiny_config, image):
    # Frozen statistics, so that training and prediction see the same network.
    task = dataclasses.replace(tiny_config.task, norm="frozen")
    method = METHODS["plain"](dataclasses.replace(tiny_config, task=task), 3)
    params, model_state = jax.jit(method.init)(KEY, image[:1])
    batch = {"image": image, "label": jnp.array([0, 2, 1, 1])}
    loss, aux = jax.jit(method.loss)(params, model_state, None, batch, KEY, 0)
    probabilities = jax.jit(method.predict)(params, model_state, image).probabilities
    expected = -np.log(np.asarray(probabilities)[np.arange(4), batch["label"]]).mean()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert aux.metrics == {"task_loss": loss}
    chex.assert_trees_all_equal(aux.model_state, model_state)


def test_hapre_passes_every_field_of_the_policy_on(monkeypatch, tiny_config):
    """Values that no default has; a field that is forgotten shows."""
    changes = {
        "samples": 6,
        "explore": False,
        "sigma": 0.31,
        "final_sigma": 0.17,
        "balance": 0.23,
        "gamma": 1.5,
        "warmup_steps": 5,
        "random_share": 0.07,
        "train_crops": 3,
        "train_on_original": True,
        "estimator": "elite",
    }
    sizes = {"alpha": 1.7, "min_side": 0.33, "max_side": 0.77, "image_size": 24}
    policy = dataclasses.replace(tiny_config.policy, **changes, **sizes, width=11)
    policy = dataclasses.replace(policy, area_cost=0.4)
    given = dataclasses.replace(tiny_config, policy=policy)
    seen = {}
    monkeypatch.setattr(framework, "make", lambda *a, **k: seen.update(a=a, k=k))
    hapre.make(given, 5)
    task, network, operation, learning = seen["a"]
    given_on = {"steps": given.train.steps, "action_cost": 0.4}
    assert dataclasses.asdict(learning) == changes | given_on
    assert dataclasses.astuple(operation) == (1.7, 0.33, 0.77)
    assert seen["k"] == {"policy_image_size": 24, "policy_normalize": "image"}
    assert (task.image_size, task.network.num_classes) == (16, 5)
    assert (network.grid, network.width) == (8, 11)
