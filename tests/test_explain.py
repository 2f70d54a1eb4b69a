import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import boxes, explain
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS, hapre
from hapre_jax.serving import answer_folder

OPERATIONS = (*hapre.OPERATIONS, "key_area+gamma", "rotation+key_area")


def with_operation(config, name):
    policy = dataclasses.replace(config.policy, operation=name)
    return dataclasses.replace(config, policy=policy)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_map_is_of_what_the_classifier_sees(tiny_config, name):
    """There is one exactly where it sees the area of the film, cut out, or all."""
    config = with_operation(tiny_config, name)
    operation = hapre.operation(config.policy)
    pixels = np.random.default_rng(0).uniform(0.2, 0.8, (32, 32, 1))
    image = jnp.array(pixels, jnp.float32)
    action = operation.random(jax.random.key(1))
    area = operation.area(action)
    area = jnp.array(boxes.WHOLE) if area is None else area
    seen = operation.apply(image, action, 16)
    cut = boxes.crop_and_resize(image, area, size=16)
    is_cut = bool(jnp.abs(seen - cut).max() < 1e-4)
    assert is_cut == (explain.make(config, 3) is not None)


@pytest.mark.parametrize("name", METHODS)
def test_other_methods_do_not_ask_for_the_operation(tiny_config, name):
    config = dataclasses.replace(with_operation(tiny_config, "rotation"), method=name)
    is_there = explain.make(config, 3) is not None
    alone = {"plain", "random_crop", "random_aug", "cutout", "cutmix", "mixup"}
    assert is_there == (name in alone | {"drl_da"})


def test_heatmaps_of_another_operation_are_refused(tiny_config):
    config = with_operation(tiny_config, "rotation")
    model = types.SimpleNamespace(config=config, explain=None)
    message = "where method hapre with policy.operation rotation looks is not one map"
    with pytest.raises(UserError, match=message):
        answer_folder.predict_films(model, [], pathlib.Path("nowhere"), heatmaps=True)
