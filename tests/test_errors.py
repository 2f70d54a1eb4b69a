"""Switches of public functions, misspelt: another word must not mean one of them."""

import re

import jax
import jax.numpy as jnp
import pytest

from hapre_jax import boxes, errors, image_ops, operations, random_views, tasks
from hapre_jax.nets import layers

IMAGE = jnp.zeros((4, 4, 1))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: boxes.neighbors(
                jnp.array(boxes.WHOLE), "shifts", alpha=1.2, min_side=0.2
            ),
            "moves is 'shifts', but must be one of rescale, shift, stretch",
        ),
        (
            lambda: tasks.normalize(IMAGE, "none"),
            "how is 'none', but must be one of image, fixed",
        ),
        (
            lambda: random_views.flip(
                {"image": IMAGE[None]}, jax.random.key(0), axis="both", probability=0.5
            ),
            "axis is 'both', but must be one of none, vertical, horizontal",
        ),
        (
            lambda: image_ops.rotate(IMAGE, jnp.array(5.0), interpolation="cubic"),
            "interpolation is 'cubic', but must be one of bilinear, nearest",
        ),
        (
            lambda: layers.Norm("instance").init(
                jax.random.key(0), IMAGE[None], train=True
            ),
            "norm is 'instance', but must be one of batch, frozen, group",
        ),
        (
            lambda: operations.KeyArea(readout="mean").mean(jnp.zeros((4, 4))),
            "readout is 'mean', but must be one of moments, max_sum, anchors",
        ),
    ],
)
def test_a_misspelt_switch_is_refused(call, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}($|\n)"):
        call()


def test_a_list_of_many_names_is_cut():
    assert errors.listing(["a", "b", "c"]) == "a, b, c"
    assert errors.listing(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
