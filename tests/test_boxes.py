import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hapre_jax import boxes

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def box(*edges):
    return jnp.array(edges, jnp.float32)


def random_boxes(seed, count, min_side=0.05):
    """`f32[count, 4]` valid boxes."""
    rng = np.random.default_rng(seed)
    side = rng.uniform(min_side, 1, (count, 2))
    low = rng.uniform(0, 1, (count, 2)) * (1 - side)
    return np.concatenate([low, low + side], 1).astype(np.float32)


def test_yxyx_to_center_by_hand():
    center = boxes.yxyx_to_center(box(0.1, 0.2, 0.5, 1.0))
    np.testing.assert_allclose(center, [0.3, 0.6, 0.4, 0.8], atol=1e-6)


def test_conversions_are_inverse():
    yxyx = random_boxes(0, 50)
    center = jax.vmap(boxes.yxyx_to_center)(yxyx)
    back = jax.vmap(boxes.center_to_yxyx)(center)
    np.testing.assert_allclose(back, yxyx, atol=1e-6)


def test_functions_take_one_box():
    one, many, image = box(*boxes.WHOLE), jnp.zeros((3, 4)), jnp.zeros((8, 8, 1))
    for call in (
        lambda: boxes.yxyx_to_center(many),
        lambda: boxes.center_to_yxyx(many),
        lambda: boxes.area(many),
        lambda: boxes.intersection(one, many[:, 0]),
        lambda: boxes.is_at_bound(many, min_side=0.2),
        lambda: boxes.mask(many, 4),
        lambda: boxes.bounding_box(image > 0),
        lambda: boxes.crop_and_resize(image, many, size=4),
        lambda: boxes.crop_and_resize(image[..., 0], one, size=4),
    ):
        with pytest.raises(AssertionError):
            call()


def test_central_area_is_four_fifths_high_and_wide():
    center = boxes.yxyx_to_center(box(*boxes.CENTRAL_80))
    np.testing.assert_allclose(center, [0.5, 0.5, 0.8, 0.8], atol=1e-6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.2, 0.3, 0.6, 0.9), (0.2, 0.3, 0.6, 0.9)),  # valid: unchanged
        ((-0.2, 0.1, 0.3, 0.5), (0.0, 0.1, 0.5, 0.5)),  # over the top: moved, not cut
        ((0.8, 0.7, 1.2, 1.1), (0.6, 0.6, 1.0, 1.0)),  # over two borders
        ((2.0, 2.0, 2.5, 2.5), (0.5, 0.5, 1.0, 1.0)),  # wholly outside
        ((-0.5, 0.0, 1.5, 0.5), (0.0, 0.0, 1.0, 0.5)),  # larger than the image
        ((0.5, 0.5, 0.52, 0.9), (0.41, 0.5, 0.61, 0.9)),  # too flat: about its center
        ((0.0, 0.0, 0.02, 0.02), (0.0, 0.0, 0.2, 0.2)),  # too small, in a corner
        ((0.6, 0.2, 0.4, 0.8), (0.4, 0.2, 0.6, 0.8)),  # inverted
    ],
)
def test_clip_by_hand(given, expected):
    clipped = boxes.clip(box(*given), min_side=0.2)
    np.testing.assert_allclose(clipped, expected, atol=1e-6)


def test_clip_bounds_the_largest_side():
    clipped = boxes.clip(box(0.1, 0.0, 0.9, 0.3), min_side=0.2, max_side=0.5)
    np.testing.assert_allclose(clipped, [0.25, 0.0, 0.75, 0.3], atol=1e-6)


def test_clip_gives_valid_boxes_and_is_idempotent():
    given = np.random.default_rng(1).normal(0.5, 1.0, (500, 4)).astype(np.float32)
    clip = jax.jit(jax.vmap(functools.partial(boxes.clip, min_side=0.3, max_side=0.8)))
    clipped = clip(given)
    sides = clipped[:, 2:] - clipped[:, :2]
    assert jnp.all((clipped > -1e-6) & (clipped < 1 + 1e-6))
    assert jnp.all((sides > 0.3 - 1e-6) & (sides < 0.8 + 1e-6))
    np.testing.assert_allclose(clip(clipped), clipped, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "factor", "expected"),
    [
        ((0.3, 0.2, 0.7, 0.6), 1.25, (0.25, 0.15, 0.75, 0.65)),
        ((0.3, 0.2, 0.7, 0.6), 0.8, (0.34, 0.24, 0.66, 0.56)),
        ((0.0, 0.3, 0.4, 0.7), 1.25, (0.0, 0.25, 0.5, 0.75)),  # moved off the border
        ((0.6, 0.6, 1.0, 1.0), 1.25, (0.5, 0.5, 1.0, 1.0)),  # in a corner
        ((0.6, 0.6, 1.0, 1.0), 0.8, (0.64, 0.64, 0.96, 0.96)),  # leaves the corner
        ((0.05, 0.05, 0.95, 0.95), 1.25, (0.0, 0.0, 1.0, 1.0)),  # at most the image
        ((0.4, 0.0, 0.7, 1.0), 0.8, (0.425, 0.1, 0.675, 0.9)),  # at least min_side
    ],
)
def test_scale_by_hand(given, factor, expected):
    scaled = boxes.scale(box(*given), factor, min_side=0.25)
    np.testing.assert_allclose(scaled, expected, atol=1e-6)


# Of a box of height 0.2 and width 0.4, and of one in a corner, in the order that
# `boxes.neighbors` documents; alpha 1.25, so shifts by a quarter of a side.
EXPANDED_AND_SHRUNK = [(0.375, 0.25, 0.625, 0.75), (0.42, 0.34, 0.58, 0.66)]
SHIFTED = [
    (0.35, 0.3, 0.55, 0.7),
    (0.45, 0.3, 0.65, 0.7),
    (0.4, 0.2, 0.6, 0.6),
    (0.4, 0.4, 0.6, 0.8),
]
STRETCHED = [(0.42, 0.25, 0.58, 0.75), (0.375, 0.34, 0.625, 0.66)]


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ("rescale", EXPANDED_AND_SHRUNK),
        ("shift", EXPANDED_AND_SHRUNK + SHIFTED),
        ("stretch", EXPANDED_AND_SHRUNK + SHIFTED + STRETCHED),
    ],
)
def test_neighbors_by_hand(moves, expected, variant):
    find = functools.partial(boxes.neighbors, moves=moves, alpha=1.25, min_side=0.1)
    found = variant(find)(box(0.4, 0.3, 0.6, 0.7))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neighbors_stay_in_bounds_and_in_the_image(variant):
    # Heights 0.25, 0.16, 0.2 are at least 0.2; widths 0.5, 0.32, 0.4 at most 0.45.
    find = functools.partial(
        boxes.neighbors, moves="stretch", alpha=1.25, min_side=0.2, max_side=0.45
    )
    found = variant(find)(box(0.0, 0.6, 0.2, 1.0))
    expected = [
        (0.0, 0.55, 0.25, 1.0),
        (0.0, 0.64, 0.2, 0.96),
        (0.0, 0.6, 0.2, 1.0),  # up: already at the top
        (0.05, 0.6, 0.25, 1.0),
        (0.0, 0.5, 0.2, 0.9),
        (0.0, 0.6, 0.2, 1.0),  # right: already at the edge
        (0.0, 0.55, 0.2, 1.0),
        (0.0, 0.64, 0.25, 0.96),
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neighbors_of_a_box_of_integers_are_those_of_the_same_numbers():
    with jax.numpy_dtype_promotion("standard"):
        found = boxes.neighbors(jnp.array([0, 0, 1, 1]), alpha=1.25, min_side=0.1)
    np.testing.assert_allclose(found, [[0, 0, 1, 1], [0.1, 0.1, 0.9, 0.9]], atol=1e-6)


def test_neighbors_are_at_most_the_whole_image():
    found = boxes.neighbors(box(0.05, 0.05, 0.95, 0.95), alpha=1.25, min_side=0.2)
    expected = [boxes.WHOLE, (0.14, 0.14, 0.86, 0.86)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neighbors_of_the_paper_are_scaled_boxes():
    bounds = {"min_side": 0.3, "max_side": 0.9}
    given = random_boxes(10, 40)
    found = jax.vmap(lambda b: boxes.neighbors(b, alpha=1.6, **bounds))(given)
    for row, factor in enumerate((1.6, 1 / 1.6)):
        scaled = jax.vmap(lambda b, f=factor: boxes.scale(b, f, **bounds))(given)
        np.testing.assert_allclose(found[:, row], scaled, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "iou", "coverage"),
    [
        ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0), 1.0, 1.0),
        ((0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), 1 / 7, 0.25),
        ((0.0, 0.0, 1.0, 1.0), (0.1, 0.1, 0.9, 0.9), 0.64, 1.0),  # a around b
        ((0.1, 0.1, 0.9, 0.9), (0.0, 0.0, 1.0, 1.0), 0.64, 0.64),  # b around a
        ((0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 1.0), 0.0, 0.0),  # share an edge
        ((0.0, 0.0, 0.2, 0.2), (0.7, 0.7, 0.9, 0.9), 0.0, 0.0),  # far apart
        ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), 0.0, 0.0),  # both empty
        ((0.9, 0.9, 0.1, 0.1), (0.0, 0.0, 1.0, 1.0), 0.0, 0.0),  # inverted
    ],
)
def test_iou_and_coverage_by_hand(a, b, iou, coverage):
    assert boxes.iou(box(*a), box(*b)) == pytest.approx(iou, abs=1e-6)
    assert boxes.coverage(box(*a), box(*b)) == pytest.approx(coverage, abs=1e-6)


@pytest.mark.parametrize("overlap", [boxes.iou, boxes.coverage])
def test_overlap_of_empty_boxes_has_a_finite_gradient(overlap):
    empty = box(0.5, 0.5, 0.5, 0.5)
    for gradient in jax.jit(jax.grad(overlap, (0, 1)))(empty, empty):
        assert jnp.isfinite(gradient).all()


def test_iou_and_coverage_agree_with_counted_pixels():
    pixels = 32
    rng = np.random.default_rng(2)
    corners = np.sort(rng.integers(0, pixels + 1, (2, 60, 2, 2)), axis=2)
    corners = corners.reshape(2, 60, 4)  # y0 <= y1, x0 <= x1; some are empty

    def raster(y0, x0, y1, x1):
        filled = np.zeros((pixels, pixels), bool)
        filled[y0:y1, x0:x1] = True
        return filled

    a, b = jnp.array(corners / pixels, jnp.float32)
    ious, coverages = jax.vmap(boxes.iou)(a, b), jax.vmap(boxes.coverage)(a, b)
    for row in range(60):
        first, second = raster(*corners[0, row]), raster(*corners[1, row])
        shared, union = (first & second).sum(), (first | second).sum()
        assert ious[row] == pytest.approx(shared / max(union, 1), abs=1e-5)
        expected = shared / max(second.sum(), 1)
        assert coverages[row] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.3, 0.3, 0.7, 0.7), False),
        ((0.3, 0.3, 0.5, 0.7), True),  # height at min_side
        ((0.0, 0.3, 1.0, 0.7), True),  # height at max_side
        ((0.0, 0.0, 0.99, 0.99), False),  # touching the border is not a bound
    ],
)
def test_is_at_bound(given, expected):
    assert bool(boxes.is_at_bound(box(*given), min_side=0.2)) is expected


def test_mask_by_hand():
    # Of the four rows the box covers 0.5, 1, 1 and 0; of the four columns 0, 1, 0.4, 0.
    covered = boxes.mask(box(0.125, 0.25, 0.75, 0.6), 4)
    expected = [[0, 0.5, 0.2, 0], [0, 1, 0.4, 0], [0, 1, 0.4, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(covered, expected, atol=1e-6)


def test_mask_of_a_box_inside_one_cell():
    covered = boxes.mask(box(0.30, 0.55, 0.40, 0.70), 4)
    expected = np.zeros((4, 4))
    expected[1, 2] = 0.10 * 0.15 * 16
    np.testing.assert_allclose(covered, expected, atol=1e-6)


def test_mask_ignores_what_lies_outside_the_image():
    outside = boxes.mask(box(-0.5, 0.5, 0.5, 1.5), 8)
    np.testing.assert_array_equal(outside, boxes.mask(box(0.0, 0.5, 0.5, 1.0), 8))


def test_mask_sums_to_the_area():
    given = random_boxes(3, 50, min_side=0.0)
    masks = jax.vmap(functools.partial(boxes.mask, grid=7))(given)
    assert jnp.all((masks >= 0) & (masks <= 1 + 1e-5))
    areas = np.prod(given[:, 2:] - given[:, :2], axis=1)
    np.testing.assert_allclose(masks.sum((1, 2)) / 49, areas, atol=1e-5)


def random_image(height, width, channels=1):
    rng = np.random.default_rng(4)
    return rng.uniform(size=(height, width, channels)).astype(np.float32)


@pytest.mark.parametrize(
    ("places", "box"),
    [
        ([(0, 0)], (0, 0, 1 / 4, 1 / 5)),
        ([(3, 4)], (3 / 4, 4 / 5, 1, 1)),
        ([(1, 1), (2, 3)], (1 / 4, 1 / 5, 3 / 4, 4 / 5)),
        ([(0, 3), (3, 1)], (0, 1 / 5, 1, 4 / 5)),
        ([], (0, 0, 1, 1)),
        (list(np.ndindex(4, 5)), (0, 0, 1, 1)),
    ],
)
def test_bounding_box_of_a_mask(variant, places, box):
    mask = np.zeros((4, 5), bool)
    for place in places:
        mask[place] = True
    np.testing.assert_allclose(variant(boxes.bounding_box)(jnp.array(mask)), box)


def test_crop_of_the_whole_image_at_its_size_is_the_image():
    image = random_image(24, 24, 3)
    crop = boxes.crop_and_resize(jnp.array(image), box(*boxes.WHOLE), size=24)
    np.testing.assert_array_equal(crop, image)


def test_crop_of_whole_pixels_at_their_size_is_a_slice(variant):
    image = random_image(16, 32, 2)
    crop = variant(functools.partial(boxes.crop_and_resize, size=8))
    given = box(4 / 16, 20 / 32, 12 / 16, 28 / 32)
    expected = image[4:12, 20:28]
    np.testing.assert_allclose(crop(jnp.array(image), given), expected, atol=1e-5)


@pytest.mark.parametrize("size", [5, 12, 40])
def test_crop_agrees_with_pillow(size):
    image = random_image(37, 53)
    crop = jax.jit(functools.partial(boxes.crop_and_resize, size=size))
    special = [
        boxes.WHOLE,
        (0.0, 0.3, 0.5, 1.0),  # touches the top and the right edge
        (0.4, 0.0, 1.0, 0.2),  # touches the bottom and the left edge
        (0.47, 0.52, 0.53, 0.58),  # two by three pixels
    ]
    for yxyx in np.concatenate([np.array(special, np.float32), random_boxes(5, 12)]):
        y0, x0, y1, x1 = np.clip(yxyx.astype(float) * [37, 53, 37, 53], 0, None)
        edges = (x0, y0, min(x1, 53.0), min(y1, 37.0))
        expected = Image.fromarray(image[..., 0]).resize(
            (size, size), Image.Resampling.BILINEAR, box=edges
        )
        np.testing.assert_allclose(crop(image, yxyx)[..., 0], expected, atol=1e-4)


def test_crop_compiles_once_for_all_boxes():
    traces = []

    @jax.jit
    def crop(image, yxyx):
        traces.append(1)
        return boxes.crop_and_resize(image, yxyx, size=4)

    for yxyx in random_boxes(6, 3):
        crop(random_image(8, 8), yxyx)
    assert len(traces) == 1


def test_crop_of_many_boxes_equals_a_loop():
    image = jnp.array(random_image(20, 30))
    crop = functools.partial(boxes.crop_and_resize, size=8)
    given = jnp.array(random_boxes(7, 4))
    many = jax.jit(jax.vmap(crop, (None, 0)))(image, given)
    for row in range(4):
        np.testing.assert_allclose(many[row], crop(image, given[row]), atol=1e-5)


@pytest.mark.parametrize("size", [4, 16])
def test_crop_gradient_agrees_with_finite_differences(size, float64):
    image = jnp.array(random_image(12, 10), jnp.float64)
    weights = jnp.array(np.random.default_rng(8).normal(size=(size, size, 1)))

    @jax.jit
    def score(yxyx):
        return jnp.sum(weights * boxes.crop_and_resize(image, yxyx, size=size))

    for edges in [(0.13, 0.21, 0.87, 0.73), (0.31, 0.42, 0.59, 0.71)]:
        yxyx = jnp.array(edges)
        gradient = jax.grad(score)(yxyx)
        assert jnp.all(jnp.abs(gradient) > 1e-3)
        for edge in range(4):
            # Small enough that no resampling kernel crosses a pixel's center between.
            step = jnp.zeros(4).at[edge].set(1e-7)
            difference = (score(yxyx + step) - score(yxyx - step)) / 2e-7
            np.testing.assert_allclose(gradient[edge], difference, rtol=1e-5)


def test_crop_gradient_is_finite_and_nonzero_at_the_border():
    image = jnp.array(random_image(12, 10))
    weights = jnp.array(np.random.default_rng(9).normal(size=(6, 6, 1)), jnp.float32)

    def score(yxyx):
        return jnp.sum(weights * boxes.crop_and_resize(image, yxyx, size=6))

    given = jnp.stack([box(*boxes.WHOLE), box(0, 0, 0.5, 0.5), box(0.25, 0.5, 1, 1)])
    gradients = jax.jit(jax.vmap(jax.grad(score)))(given)
    assert jnp.all(jnp.isfinite(gradients))
    assert jnp.all(jnp.abs(gradients).sum(1) > 1e-3)


@pytest.mark.parametrize("sides", [(0.9, 0.3), (0.0, 1.0), (0.3, 1.5)])
def test_bounds_of_sides_are_checked(sides):
    low, high = sides
    with pytest.raises(ValueError, match=f"min_side and max_side are {low} and {high}"):
        boxes.clip(jnp.array(boxes.WHOLE), min_side=low, max_side=high)


def test_bounds_may_be_traced():
    box = jnp.array([0.4, 0.4, 0.5, 0.5])
    clip = jax.jit(lambda side: boxes.clip(box, min_side=side))
    np.testing.assert_allclose(clip(0.5), [0.2, 0.2, 0.7, 0.7], atol=1e-6)


def test_a_box_of_half_precision_cuts_where_it_says():
    ramp = jnp.broadcast_to(jnp.arange(4001.0)[None, :, None] / 4001, (8, 4001, 1))
    yxyx = jnp.array([0, 0.25, 1, 0.75])  # which bfloat16 has
    expected = boxes.crop_and_resize(ramp, yxyx, size=224)
    found = boxes.crop_and_resize(ramp, yxyx.astype(jnp.bfloat16), size=224)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.uint8])
def test_only_a_mask_of_truth_values_has_a_bounding_box(kind):
    with pytest.raises(AssertionError, match="expected bool"):
        boxes.bounding_box(jnp.ones((4, 4), kind))
