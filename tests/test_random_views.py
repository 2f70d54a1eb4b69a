"""Flips and zoom-outs of training images, by hand and against `boxes.mask`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import boxes, random_views

# Image of 2 x 2 pixels, one distinct value each.
IMAGE = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
BOX = np.array([[0.1, 0.2, 0.4, 0.8]], np.float32)


@pytest.mark.parametrize(
    ("axis", "pixels", "box"),
    [
        ("vertical", [[2, 3], [0, 1]], [0.6, 0.2, 0.9, 0.8]),
        ("horizontal", [[1, 0], [3, 2]], [0.1, 0.2, 0.4, 0.8]),
        ("none", [[0, 1], [2, 3]], [0.1, 0.2, 0.4, 0.8]),
    ],
)
def test_flip_turns_image_and_lung_box_along_the_axis(axis, pixels, box):
    batch = {"image": jnp.array(IMAGE), "lung_box": jnp.array(BOX), "label": 1}
    flipped = random_views.flip(batch, jax.random.key(0), axis=axis, probability=1.0)
    np.testing.assert_array_equal(flipped["image"][0, :, :, 0], pixels)
    np.testing.assert_allclose(flipped["lung_box"], [box], atol=1e-6)
    assert flipped["label"] == 1
    kept = random_views.flip(batch, jax.random.key(0), axis=axis, probability=0.0)
    np.testing.assert_array_equal(kept["image"], IMAGE)
    np.testing.assert_array_equal(kept["lung_box"], BOX)


def test_zooming_out_shrinks_film_mask_and_boxes_alike():
    count, side = 64, 48
    box = jnp.array([0.25, 0.5, 0.75, 1.0])
    film = boxes.mask(box, side)[None, :, :, None]
    batch = {
        "image": jnp.tile(0.2 + 0.8 * film, (count, 1, 1, 1)),
        "lungs": jnp.tile(film, (count, 1, 1, 1)),
        "lung_box": jnp.tile(box, (count, 1)),
        "boxes": jnp.tile(jnp.stack([box, jnp.full(4, jnp.nan)]), (count, 1, 1)),
        "label": jnp.arange(count),
    }
    seen = random_views.zoom_out(batch, jax.random.key(0), most=3.0)
    found = np.asarray(seen["lung_box"])
    sides = (found[:, 2] - found[:, 0]) / 0.5
    # The film keeps its shape and lies in the frame; the logarithm of its side is
    # uniform from 1/3 to 1, with mean log(3) / 2 and a fitting spread.
    np.testing.assert_allclose((found[:, 3] - found[:, 1]) / 0.5, sides, rtol=1e-4)
    low = found[:, :2] - np.array([0.25, 0.5]) * sides[:, None]
    assert low.min() >= -1e-6 and (low + sides[:, None]).max() <= 1 + 1e-6
    assert 1 / 3 <= sides.min() < 0.4 and 0.9 < sides.max() <= 1
    assert np.log(sides).mean() == pytest.approx(-np.log(3) / 2, abs=0.1)
    assert low[:, 0].std() > 0.1
    # What is bright lies where the boxes say, and the frame around is black.
    masks = jax.vmap(lambda of: boxes.mask(of, side))(found)
    assert np.abs(seen["lungs"][..., 0] - masks).mean() < 0.01
    frames = np.concatenate([low, low + sides[:, None]], axis=1)
    inside = jax.vmap(lambda of: boxes.mask(of, side))(frames)
    assert np.abs(seen["image"][..., 0] - 0.2 * inside - 0.8 * masks).mean() < 0.01
    np.testing.assert_allclose(seen["boxes"][:, 0], found)
    assert jnp.isnan(seen["boxes"][:, 1]).all()
    np.testing.assert_array_equal(seen["label"], batch["label"])
    assert random_views.zoom_out(batch, jax.random.key(0), most=1.0) is batch


def test_flip_mirrors_a_box_from_left_to_right():
    batch = {"image": jnp.array(IMAGE), "lung_box": jnp.array([[0.1, 0.0, 0.4, 0.3]])}
    flipped = random_views.flip(
        batch, jax.random.key(0), axis="horizontal", probability=1.0
    )
    np.testing.assert_allclose(flipped["lung_box"], [[0.1, 0.7, 0.4, 1.0]], atol=1e-6)


def test_flip_turns_all_boxes_of_an_image():
    many = jnp.array([[[0.1, 0.0, 0.4, 0.3], [0.5, 0.2, 1.0, 0.6]]])
    batch = {"image": jnp.array(IMAGE), "boxes": many}
    flipped = random_views.flip(
        batch, jax.random.key(0), axis="vertical", probability=1.0
    )
    expected = [[[0.6, 0.0, 0.9, 0.3], [0.0, 0.2, 0.5, 0.6]]]
    np.testing.assert_allclose(flipped["boxes"], expected, atol=1e-6)


def test_flip_leaves_unknown_lungs_unknown():
    batch = {"image": jnp.array(IMAGE), "lung_box": jnp.full((1, 4), jnp.nan)}
    flipped = random_views.flip(
        batch, jax.random.key(0), axis="vertical", probability=1.0
    )
    assert np.isnan(flipped["lung_box"]).all()


def test_flip_chooses_each_image_by_the_key():
    batch = {"image": jnp.array(np.repeat(IMAGE, 400, axis=0))}

    def chosen(seed):
        key = jax.random.key(seed)
        flipped = random_views.flip(batch, key, axis="vertical", probability=0.3)
        return np.asarray(flipped["image"])[:, 0, 0, 0] == 2

    np.testing.assert_array_equal(chosen(0), chosen(0))
    assert (chosen(0) != chosen(1)).any()
    assert 0.2 < chosen(0).mean() < 0.4  # four standard deviations
