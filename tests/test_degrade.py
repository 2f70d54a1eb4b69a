import math

import numpy as np
import pytest
from PIL import Image

from hapre_jax import config, errors
from hapre_jax.data import degrade, images

SIZE = 120
LOW = degrade.LEVELS["low"]
# Nothing but the frame: half as large as its sides, not rotated, no object, no noise.
BARE = degrade.Level((2.0, 2.0), 0, 0, 0, 0, 0)


def film(height=90, width=150):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 220, (9, 15), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def lungs_of(picture, box=(20, 30, 70, 120)):
    mask = np.zeros((picture.height, picture.width), bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return mask


def make(picture, lungs, level=LOW, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return degrade.degrade(picture, lungs, level=level, size=size, rng=rng)


def test_frame_by_hand():
    # The film is 60 pixels wide in a frame of 120 and 36 high; rows 20..70 of 90 are
    # 8..28 of those, columns 30..120 of 150 are 12..48.
    for seed in range(5):
        box = make(film(), lungs_of(film()), BARE, seed).lung_box
        height, width = box[2:] - box[:2]
        assert (height, width) == pytest.approx((20 / 120, 36 / 120), abs=1e-6)
        assert 8 / 120 <= box[0] <= (84 + 8) / 120
        assert 12 / 120 <= box[1] <= (60 + 12) / 120


def test_the_film_itself_is_only_scaled():
    picture = film()
    degraded = make(picture, np.ones((90, 150), bool), BARE, seed=3)
    top, left, bottom, right = degraded.lung_box * SIZE
    small = np.asarray(picture.resize((60, 36), Image.Resampling.BILINEAR), float)
    # Away from the border, and resampled once more at a fraction of a pixel.
    rows = np.arange(math.ceil(top) + 2, int(bottom) - 2)
    columns = np.arange(math.ceil(left) + 2, int(right) - 2)
    shown = degraded.image[rows][:, columns].astype(float)
    y, x = np.round(rows - top).astype(int), np.round(columns - left).astype(int)
    near = small[y][:, x]
    scale = (shown * near).sum() / (near * near).sum()  # exposure
    assert 0.75 <= scale <= 1
    assert np.corrcoef(shown.ravel(), near.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("seed", range(8))
def test_the_box_goes_where_the_lungs_go(seed):
    # Bright lungs on a black film, rotated, off the center, of any size.
    mask = lungs_of(film())
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    level = degrade.Level(LOW.frame, LOW.rotation, 0, 0, 0, 0)
    degraded = make(picture, mask, level, seed, size=240)
    bright = degraded.image > degraded.image.max() / 2
    seen = images.tight_box(bright) / 240
    # The corners of a rotated rectangle are thinner than a pixel.
    np.testing.assert_allclose(degraded.lung_box, seen, atol=2.5 / 240)


def test_a_mask_of_another_resolution_gives_the_same_box():
    mask = lungs_of(film(), (20, 30, 70, 120))
    coarse = mask[::10, ::10]
    fine = make(film(), mask).lung_box
    np.testing.assert_allclose(make(film(), coarse).lung_box, fine, atol=1e-6)


def test_same_state_same_pixels():
    first, again, other = (make(film(), lungs_of(film()), seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.lung_box, again.lung_box)
    assert (first.image != other.image).mean() > 0.5
    assert first.image.shape == (SIZE, SIZE) and first.image.dtype == np.uint8


def test_levels_shrink_and_displace():
    mask = np.ones((90, 150), bool)
    mean = {}
    for name, level in degrade.LEVELS.items():
        boxes = np.stack(
            [make(film(), mask, level, s, 32).lung_box for s in range(200)]
        )
        sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
        # Rotation makes a side of 150 pixels longer by the one of 90; the film is
        # rounded to whole pixels, of which the frame has 32.
        angle = math.radians(level.rotation)
        longest = math.cos(angle) + math.sin(angle) * 0.6
        assert sides.min() >= 1 / level.frame[1] - 0.5 / 32
        assert sides.max() <= min(longest / level.frame[0], 1) + 0.5 / 32
        assert boxes.min() >= 0 and boxes.max() <= 1
        centers = (boxes[:, 2:] + boxes[:, :2]) / 2
        # Across only: along, a film as wide as this has room at any level.
        mean[name] = (sides.mean(), centers[:, 1].std())
        np.testing.assert_allclose(centers.mean(0), 0.5, atol=0.04)
    assert mean["low"][0] < 0.75 * mean["medium"][0]
    assert mean["low"][1] > 2 * mean["medium"][1]


def test_objects_keep_clear_of_the_lungs():
    # Wires alone may cross them; they cover little.
    mask = lungs_of(film())
    crowded = degrade.Level((2.0, 2.0), 0, 0, 4, 0, 0)
    black = Image.new("L", (150, 90))
    inside, outside = [], []
    for seed in range(12):
        degraded = make(black, mask, crowded, seed)
        top, left, bottom, right = np.round(degraded.lung_box * SIZE).astype(int)
        bright = degraded.image > 25
        inside.append(bright[top:bottom, left:right].mean())
        outside.append(bright.mean())
    assert np.mean(outside) > 0.1
    assert np.mean(inside) < 0.05


def test_unknown_lungs_stay_unknown():
    for lungs in (None, np.zeros((90, 150), bool)):
        assert np.isnan(make(film(), lungs).lung_box).all()


def test_phantoms_are_not_degraded():
    with pytest.raises(
        errors.UserError, match=r"data\.degrade is low, .* data\.quality"
    ):
        config.DataConfig(degrade="low")
