import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from hapre_jax import image_ops

AFFINE, BILINEAR, NEAREST = (
    Image.Transform.AFFINE,
    Image.Resampling.BILINEAR,
    Image.Resampling.NEAREST,
)
FILTERS = {"bilinear": BILINEAR, "nearest": NEAREST}


def _film():
    """Smooth shapes and some noise, `u8[40, 32]`, of all gray levels but the ends."""
    y, x = np.mgrid[:40, :32]
    smooth = 128 + 70 * np.sin(y / 7) + 40 * np.cos(x / 5 + y / 11)
    noise = np.random.default_rng(0).normal(scale=6, size=(40, 32))
    return np.clip(smooth + noise, 3, 250).astype(np.uint8)


FILM = _film()


@functools.cache
def _jitted(name, static):
    return jax.jit(getattr(image_ops, name), static_argnames=static)


def _run(name, film=FILM, **arguments):
    """What an operation makes of a film, in gray levels of 255, not rounded."""
    image = jnp.array(film[:, :, None], jnp.float32) / 255
    static = {"interpolation", "bits"} & set(arguments)
    traced = {
        k: jnp.array(arguments.pop(k), jnp.float32) for k in {*arguments} - static
    }
    changed = _jitted(name, tuple(static))(image, **arguments, **traced)
    assert changed.shape == image.shape and changed.dtype == jnp.float32
    assert 0 <= changed.min() and changed.max() <= 1
    return np.asarray(changed)[:, :, 0].astype(float) * 255


def _assert_level(found, pillow, known=True):
    """Within one of 255 levels, what Pillow loses where it cuts fractions off."""
    difference = np.abs(found - np.asarray(pillow, float))
    assert np.max(difference, where=known, initial=0) <= 1 + 1e-3


# Geometry by hand.

NUMBERS = np.arange(16, dtype=np.uint8).reshape(4, 4)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "translate",
            {"shift": (1, -2)},
            [[0, 0, 0, 0], [2, 3, 0, 0], [6, 7, 0, 0], [10, 11, 0, 0]],
        ),
        (
            "rotate",
            {"degrees": 90.0},
            [[3, 7, 11, 15], [2, 6, 10, 14], [1, 5, 9, 13], [0, 4, 8, 12]],
        ),
        (
            # The centers of rows are at y = 0.5 to 3.5: they move by 1, 3, 5, 7.
            "shear",
            {"slope": (0, 2)},
            [[1, 2, 3, 0], [7, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ),
        (
            "shear",
            {"slope": (-2, 0)},
            [[0, 0, 0, 0], [0, 0, 0, 0], [4, 0, 0, 0], [8, 1, 0, 0]],
        ),
    ],
)
def test_geometry_by_hand(name, arguments, expected, interpolation):
    found = _run(name, NUMBERS, **arguments, interpolation=interpolation)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_zoom_by_hand():
    found = _run("zoom", NUMBERS, factor=2.0, interpolation="nearest")
    expected = [[5, 5, 6, 6], [5, 5, 6, 6], [9, 9, 10, 10], [9, 9, 10, 10]]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    # Row 1 is centered at y = 1.5, which shows 1.75: a quarter of row 2.
    expected = [5.75, 6.25, 6.75, 7.25]
    found = _run("zoom", NUMBERS, factor=2.0)[1]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_shrinking_leaves_black_around():
    found = _run("zoom", np.full((4, 4), 200, np.uint8), factor=0.5)
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 200
    np.testing.assert_allclose(found, expected, atol=1e-3)


# Geometry of Pillow.


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("seed", range(4))
def test_transform_is_pillow_s(interpolation, seed):
    rng = np.random.default_rng(seed)
    linear = np.eye(2) + rng.uniform(-0.4, 0.4, (2, 2))
    offset = rng.uniform(-8, 8, 2)
    pillow = (*linear[1, ::-1], offset[1], *linear[0, ::-1], offset[0])
    expected = Image.fromarray(FILM).transform(
        (32, 40), AFFINE, pillow, FILTERS[interpolation]
    )
    matrix = np.hstack([linear, offset[:, None]])
    found = _run("transform", matrix=matrix, interpolation=interpolation)
    # Pillow counts in steps of 2^-16: at an edge of pixels, either one may be nearest.
    y, x = np.mgrid[:40, :32] + 0.5
    source = linear @ np.stack([y.ravel(), x.ravel()]) + offset[:, None]
    from_edge = np.abs(source - source.round()).min(0).reshape(40, 32)
    known = from_edge > 2e-3
    assert known.mean() > 0.98
    _assert_level(found, expected, known)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("degrees", [-30.0, -9.0, 0.0, 2.5, 15.0, 90.0, 180.0])
def test_rotate_is_pillow_s(interpolation, degrees):
    # Pillow turns by 90 degrees without resampling where an image is square.
    film = FILM[:32]
    expected = Image.fromarray(film).rotate(degrees, FILTERS[interpolation])
    found = _run("rotate", film, degrees=degrees, interpolation=interpolation)
    _assert_level(found, expected)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("slope", [-0.09, 0.3])
@pytest.mark.parametrize("axis", [0, 1])
def test_shear_is_pillow_s(interpolation, slope, axis):
    slopes = [0.0, 0.0]
    slopes[axis] = slope
    data = (1, slopes[1], 0, slopes[0], 1, 0)
    expected = Image.fromarray(FILM).transform(
        (32, 40), AFFINE, data, FILTERS[interpolation]
    )
    found = _run("shear", slope=slopes, interpolation=interpolation)
    _assert_level(found, expected)


@pytest.mark.parametrize("shift", [(4, 0), (0, -3), (2.25, -1.75)])
def test_translate_is_pillow_s(shift):
    data = (1, 0, -shift[1], 0, 1, -shift[0])
    expected = Image.fromarray(FILM).transform((32, 40), AFFINE, data, BILINEAR)
    _assert_level(_run("translate", shift=shift), expected)


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.7])
def test_zoom_is_pillow_s(factor):
    data = (1 / factor, 0, 16 - 16 / factor, 0, 1 / factor, 20 - 20 / factor)
    expected = Image.fromarray(FILM).transform((32, 40), AFFINE, data, BILINEAR)
    _assert_level(_run("zoom", factor=factor), expected)


@pytest.mark.parametrize("name", ["mirror", "flip"])
def test_mirror_and_flip_are_pillow_s(name):
    expected = getattr(ImageOps, name)(Image.fromarray(FILM))
    np.testing.assert_allclose(_run(name), np.asarray(expected), atol=1e-3)


def test_flip_by_hand():
    expected = [[12, 13, 14, 15], [8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]]
    np.testing.assert_allclose(_run("flip", NUMBERS), expected, atol=1e-3)


# Warps.


def _shifts(*, grid=(4, 4), scale=1.5):
    return np.random.default_rng(2).normal(scale=scale, size=(*grid, 2))


def _warp_of_scipy(film, shifts):
    """Black is what lies outside, with a soft edge of one pixel."""
    grid = np.indices(film.shape)
    for axis in range(2):
        places = [
            np.linspace(0, points - 1, pixels)
            for points, pixels in zip(shifts.shape[:2], film.shape, strict=True)
        ]
        at = np.stack(np.meshgrid(*places, indexing="ij"))
        moved = scipy.ndimage.map_coordinates(
            shifts[:, :, axis], at, order=1, mode="nearest"
        )
        grid = grid + np.eye(2)[axis][:, None, None] * moved
    return scipy.ndimage.map_coordinates(
        film.astype(float), grid, order=1, mode="grid-constant"
    )


@pytest.mark.parametrize(
    ("grid", "scale"), [((4, 4), 0.3), ((4, 4), 3.0), ((2, 7), 1.5)]
)
def test_warp_is_scipy_s(grid, scale):
    shifts = _shifts(grid=grid, scale=scale)
    found = _run("warp", shifts=shifts)
    expected = _warp_of_scipy(FILM, shifts)
    # Less than a level, of positions in float32 and of steps up to 40 a pixel.
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert np.abs(found - FILM).max() > 5


def test_warp_by_hand():
    """Rows shift by 0, 1/3, 2/3 and 1 pixel, each shows what is to its right."""
    shifts = np.zeros((2, 2, 2))
    shifts[1, :, 1] = 1
    expected = [
        [0, 1, 2, 3],
        [4 + 1 / 3, 5 + 1 / 3, 6 + 1 / 3, 7 * 2 / 3],
        [8 + 2 / 3, 9 + 2 / 3, 10 + 2 / 3, 11 / 3],
        [13, 14, 15, 0],
    ]
    found = _run("warp", NUMBERS, shifts=shifts)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_warp_without_shifts_keeps_every_bit():
    image = jnp.array(FILM[:, :, None], jnp.float32) / 255
    for warp in (image_ops.warp, _jitted("warp", ())):
        np.testing.assert_array_equal(warp(image, jnp.zeros((4, 4, 2))), image)


@pytest.mark.parametrize("shift", [(3, 0), (0, -2), (-4, 5), (40, 0)])
def test_warp_by_whole_pixels_all_alike_is_a_translation(shift):
    found = _run("warp", shifts=np.broadcast_to(shift, (4, 4, 2)))
    # A pixel that shows what is below it moves up.
    expected = scipy.ndimage.shift(FILM, np.negative(shift), order=0)
    np.testing.assert_allclose(found, expected, atol=1e-2)
    np.testing.assert_allclose(
        found, _run("translate", shift=np.negative(shift)), atol=1e-2
    )


# Grays.


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.73, 0.8, 1.0, 1.27, 1.9])
@pytest.mark.parametrize("name", ["brightness", "contrast", "sharpness"])
def test_enhancements_are_pillow_s(name, factor):
    enhancer = getattr(ImageEnhance, name.capitalize())(Image.fromarray(FILM))
    found = _run(name, factor=factor)
    pillow = np.asarray(enhancer.enhance(factor), float)
    # Pillow cuts fractions off, so half a level is missing in the mean; and it rounds
    # what it blends with, the mean or the smoothed image.
    assert np.abs(found - pillow - 0.5).max() <= 1
    if factor == 1:
        np.testing.assert_allclose(found, FILM, atol=1e-3)


def test_sharpness_by_hand():
    dot = np.zeros((5, 5), np.uint8)
    dot[2, 2] = 130
    smooth = _run("sharpness", dot, factor=0.0)
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = 10
    expected[2, 2] = 50
    np.testing.assert_allclose(smooth, expected, atol=1e-3)


KERNELS = {
    "keep": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "smooth": [[0.1, 0.1, 0.1], [0.1, 0.2, 0.1], [0.1, 0.1, 0.1]],
    "edges": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
    "down and right": [[0.1, 0.2, 0.3], [0.4, 0.5, -0.6], [0.7, -0.8, 0.9]],
}


@pytest.mark.parametrize("name", KERNELS)
def test_filter_is_scipy_s_and_clipped(name):
    found = _run("filter3", kernel=KERNELS[name])
    sums = scipy.ndimage.correlate(FILM.astype(float), np.array(KERNELS[name], float))
    expected = FILM.astype(float)
    expected[1:-1, 1:-1] = np.clip(sums, 0, 255)[1:-1, 1:-1]
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("name", KERNELS)
def test_filter_is_pillow_s(name):
    # Pillow lays a kernel upside down on the image.
    kernel = np.ravel(KERNELS[name][::-1]).tolist()
    pillow = ImageFilter.Kernel((3, 3), kernel, scale=1)
    expected = Image.fromarray(FILM).filter(pillow)
    _assert_level(_run("filter3", kernel=KERNELS[name]), expected)


def test_filter_by_hand():
    kernel = np.zeros((3, 3))
    kernel[0, 0], kernel[1, 2] = 2, -0.5  # above to the left, and to the right
    expected = NUMBERS.astype(float)
    # 0 - 6 / 2 is below 0, 2 - 7 / 2 too; 8 - 10 / 2 and 10 - 11 / 2.
    expected[1, 1:3] = 0, 0
    expected[2, 1:3] = 3, 4.5
    found = _run("filter3", NUMBERS, kernel=kernel)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_pillow_s(bits):
    expected = ImageOps.posterize(Image.fromarray(FILM), bits)
    found = _run("posterize", bits=bits)
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-3)


@pytest.mark.parametrize("threshold", [0, 100, 178.5, 255, 256])
def test_solarize_is_pillow_s(threshold):
    film = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = ImageOps.solarize(Image.fromarray(film), threshold)
    found = _run("solarize", film, threshold=threshold / 255)
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-3)


def _two_grays():
    film = np.full((20, 30), 40, np.uint8)
    film[5:9] = 41
    return film


FILMS = {
    "film": FILM,
    "dark": FILM // 4,
    "steep": (FILM.astype(float) ** 3 / 255**2).astype(np.uint8),
    "noise": np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8),
    "two grays": _two_grays(),
    "one gray": np.full((20, 30), 77, np.uint8),
    "white": np.full((20, 30), 255, np.uint8),
    "few pixels": np.arange(16, dtype=np.uint8).reshape(4, 4) * 3,
    "few darker": np.where(np.arange(400) < 300, np.arange(400), 250)
    .astype(np.uint8)
    .reshape(20, 20),
}


@pytest.mark.parametrize("name", FILMS)
def test_autocontrast_is_pillow_s(name):
    expected = ImageOps.autocontrast(Image.fromarray(FILMS[name]))
    _assert_level(_run("autocontrast", FILMS[name]), expected)


@pytest.mark.parametrize("name", FILMS)
def test_equalize_is_pillow_s(name):
    expected = ImageOps.equalize(Image.fromarray(FILMS[name]))
    found = _run("equalize", FILMS[name])
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-3)


def test_autocontrast_does_not_blow_up_what_rounding_left():
    image = jnp.full((4, 4, 1), 0.3).at[0, 0].add(1e-6)
    np.testing.assert_array_equal(image_ops.autocontrast(image), image)


# All of them.

OPERATIONS = {
    "transform": lambda x: image_ops.transform(x, jnp.eye(3)[:2] * 1.1),
    "rotate": lambda x: image_ops.rotate(x, jnp.array(7.0)),
    "zoom": lambda x: image_ops.zoom(x, jnp.array(1.1)),
    "translate": lambda x: image_ops.translate(x, jnp.array([1.5, 2.0])),
    "shear": lambda x: image_ops.shear(x, jnp.array([0.1, 0.0])),
    "mirror": image_ops.mirror,
    "flip": image_ops.flip,
    "warp": lambda x: image_ops.warp(x, jnp.array(_shifts(), jnp.float32)),
    "filter3": lambda x: image_ops.filter3(x, jnp.array(KERNELS["edges"], jnp.float32)),
    "brightness": lambda x: image_ops.brightness(x, jnp.array(1.2)),
    "contrast": lambda x: image_ops.contrast(x, jnp.array(0.8)),
    "sharpness": lambda x: image_ops.sharpness(x, jnp.array(1.3)),
    "posterize": lambda x: image_ops.posterize(x, bits=5),
    "solarize": lambda x: image_ops.solarize(x, 0.7),
    "autocontrast": image_ops.autocontrast,
    "equalize": image_ops.equalize,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_jit_and_eager_and_a_batch_agree(strict_dtypes, name):
    images = np.stack([FILM, FILM[::-1], FILM // 3])[:, :, :, None]
    images = jnp.array(images, jnp.float32) / 255
    eager = [np.asarray(OPERATIONS[name](image)) for image in images]
    batched = jax.jit(jax.vmap(OPERATIONS[name]))(images)
    np.testing.assert_allclose(batched, eager, atol=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    "wrong",
    [jnp.zeros((4, 4)), jnp.zeros((4, 4, 3)), jnp.zeros((4, 4, 1), jnp.uint8)],
    ids=["rank", "colors", "bytes"],
)
def test_what_is_no_gray_image_is_refused(name, wrong):
    with pytest.raises(AssertionError):
        OPERATIONS[name](wrong)


@pytest.mark.parametrize("name", ["transform", "rotate", "zoom", "translate", "warp"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_positions_are_exact_whatever_the_type_of_the_image(name, dtype):
    image = np.random.default_rng(0).uniform(size=(600, 8, 1))
    image = jnp.array(image, dtype)
    still = {
        "transform": lambda x: image_ops.transform(x, jnp.eye(3)[:2]),
        "rotate": lambda x: image_ops.rotate(x, jnp.array(0.0)),
        "zoom": lambda x: image_ops.zoom(x, jnp.array(1.0)),
        "translate": lambda x: image_ops.translate(x, jnp.zeros(2)),
        "warp": lambda x: image_ops.warp(x, jnp.zeros((3, 3, 2))),
    }[name]
    found = still(image)
    assert found.dtype == image.dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(("name", "number"), [("rotate", 30.0), ("zoom", 1.5)])
def test_positions_are_exact_whatever_the_type_of_the_number(name, number):
    ramp = jnp.broadcast_to(jnp.arange(600.0)[:, None, None] / 600, (600, 8, 1))
    change = getattr(image_ops, name)
    found = change(ramp, jnp.array(number, jnp.bfloat16))
    np.testing.assert_array_equal(found, change(ramp, jnp.array(number)))


@pytest.mark.parametrize("kind", [jnp.uint8, jnp.int32, jnp.bfloat16])
def test_a_shift_may_be_of_any_type(kind):
    image = jnp.arange(16.0).reshape(4, 4, 1) / 16
    found = image_ops.translate(image, jnp.array([1, 2], kind))
    expected = image_ops.translate(image, jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["sharpness", "posterize", "equalize"])
def test_the_type_of_an_image_stays(name):
    image = jnp.array(FILM[:, :, None] / 255, jnp.bfloat16)
    found = {
        "sharpness": lambda: image_ops.sharpness(image, 1.5),
        "posterize": lambda: image_ops.posterize(image, bits=4),
        "equalize": lambda: image_ops.equalize(image),
    }[name]()
    assert found.dtype == image.dtype


def test_images_of_numpy_are_sharpened_too():
    image = np.float32(FILM[:, :, None] / 255)
    expected = image_ops.sharpness(jnp.array(image), jnp.array(1.5))
    np.testing.assert_array_equal(image_ops.sharpness(image, 1.5), expected)


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_are_those_of_a_byte(bits):
    with pytest.raises(ValueError, match=f"bits is {bits}, but must be 1 to 8"):
        image_ops.posterize(jnp.zeros((2, 2, 1)), bits=bits)
