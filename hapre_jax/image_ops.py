"""Operations on gray images that augmentations are made of, as Pillow does them.

An image is `f32[H, W, 1]` in [0, 1]. Of an image of 8 bits the results are within one
of 255 gray levels of Pillow's, which is what Pillow loses by rounding: here, grays
between the levels stay. `contrast` and `sharpness` multiply that by their factor, and
"nearest" may take the other one of two pixels that are equally near. `posterize` and
`equalize`, which are about levels, round to them first.

Positions are in pixels, y before x; the centers of pixels are at halves. They are
computed in float32 of an image and of numbers of any type: in bfloat16 there are none
beyond 256.
"""

import chex
import jax
import jax.numpy as jnp

from hapre_jax.errors import check_choice

_LEVELS = 255


def transform(
    image: jax.Array, matrix: jax.Array, *, interpolation: str = "bilinear"
) -> jax.Array:
    """`Image.transform(size, AFFINE, ...)`: each pixel from where the matrix says.

    What lies outside of the image is black, without a soft edge.

    Args:
      image: `f32[H, W, 1]`.
      matrix: `f32[2, 3]`; times (y, x, 1) of a pixel of the result, it is the position
        in the image that this pixel shows. Pillow's six numbers are in the order x, y.
      interpolation: "bilinear" or "nearest".

    Raises:
      ValueError: the interpolation is another word.
    """
    _check(image)
    chex.assert_shape(matrix, (2, 3))
    check_choice("interpolation", interpolation, ("bilinear", "nearest"))
    height, width = image.shape[:2]
    dtype = _of_positions(image)
    y = jnp.arange(height, dtype=dtype)[:, None] + 0.5
    x = jnp.arange(width, dtype=dtype)[None] + 0.5
    matrix = matrix.astype(dtype)
    source_y, source_x = (row[0] * y + row[1] * x + row[2] for row in matrix)
    is_inside = (source_y >= 0) & (source_y < height)
    is_inside &= (source_x >= 0) & (source_x < width)

    levels = image[:, :, 0]

    def pixels(rows, columns):
        rows = jnp.clip(rows.astype(jnp.int32), 0, height - 1)
        columns = jnp.clip(columns.astype(jnp.int32), 0, width - 1)
        return levels[rows, columns]

    if interpolation == "nearest":
        found = pixels(jnp.floor(source_y), jnp.floor(source_x))
    else:
        top, left = jnp.floor(source_y - 0.5), jnp.floor(source_x - 0.5)
        down, right = source_y - 0.5 - top, source_x - 0.5 - left
        upper = _blend(pixels(top, left), pixels(top, left + 1), right)
        lower = _blend(pixels(top + 1, left), pixels(top + 1, left + 1), right)
        found = _blend(upper, lower, down)
    return jnp.where(is_inside, found, 0).astype(image.dtype)[:, :, None]


def rotate(
    image: jax.Array, degrees: jax.Array, *, interpolation: str = "bilinear"
) -> jax.Array:
    """`Image.rotate`: counterclockwise about the center, by `degrees` f32[]."""
    angle = jnp.deg2rad(jnp.asarray(degrees, _of_positions(image)))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return _about_center(image, ((cosine, sine), (-sine, cosine)), interpolation)


def zoom(
    image: jax.Array, factor: jax.Array, *, interpolation: str = "bilinear"
) -> jax.Array:
    """Magnifies about the center by `factor` f32[] > 0; below 1, it shrinks."""
    scale = 1 / jnp.asarray(factor, _of_positions(image))
    zero = jnp.zeros_like(scale)
    return _about_center(image, ((scale, zero), (zero, scale)), interpolation)


def translate(
    image: jax.Array, shift: jax.Array, *, interpolation: str = "bilinear"
) -> jax.Array:
    """Moves what is shown by `shift` f32[2], pixels down and to the right."""
    chex.assert_shape(shift, (2,))
    shift = jnp.asarray(shift, _of_positions(image))  # unsigned has no negative
    matrix = jnp.concatenate([jnp.eye(2, dtype=shift.dtype), -shift[:, None]], axis=1)
    return transform(image, matrix, interpolation=interpolation)


def shear(
    image: jax.Array, slope: jax.Array, *, interpolation: str = "bilinear"
) -> jax.Array:
    """Moves each row left by `slope[1]` times its y, each column up by `slope[0]` of x.

    The top left corner stays, as in torchvision. `slope` is f32[2].
    """
    chex.assert_shape(slope, (2,))
    one, zero = jnp.ones_like(slope[0]), jnp.zeros_like(slope[0])
    rows = [[one, slope[0], zero], [slope[1], one, zero]]
    matrix = jnp.stack([jnp.stack(row) for row in rows])
    return transform(image, matrix, interpolation=interpolation)


def mirror(image: jax.Array) -> jax.Array:
    """`ImageOps.mirror`: left and right exchanged."""
    _check(image)
    return jnp.flip(image, axis=1)


def flip(image: jax.Array) -> jax.Array:
    """`ImageOps.flip`: top and bottom exchanged."""
    _check(image)
    return jnp.flip(image, axis=0)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """`ImageEnhance.Brightness`: grays times `factor` f32[] >= 0, at most white."""
    _check(image)
    return _enhance(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """`ImageEnhance.Contrast`: differences to the mean gray times `factor` f32[]."""
    _check(image)
    return _enhance(jnp.mean(image), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """`ImageEnhance.Sharpness`: differences to a smoothed image times `factor` f32[].

    Smoothed is the mean of 3 x 3 pixels, of which the middle one counts five times;
    pixels at the border are left as they are.
    """
    kernel = jnp.ones((3, 3)).at[1, 1].set(5) / 13
    return _enhance(filter3(image, kernel), image, factor)


def filter3(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Weighted sums of 3 x 3 pixels, `kernel` f32[3, 3] from the top left, clipped.

    As `ImageFilter.Kernel`, whose rows go from the bottom up. Pixels at the border are
    left as they are.
    """
    _check(image)
    chex.assert_shape(kernel, (3, 3))
    image = jnp.asarray(image)
    height, width = image.shape[:2]
    inner = sum(
        kernel[row, column] * image[row : height - 2 + row, column : width - 2 + column]
        for row in range(3)
        for column in range(3)
    )
    return image.at[1:-1, 1:-1].set(jnp.clip(inner, 0, 1).astype(image.dtype))


def warp(image: jax.Array, shifts: jax.Array) -> jax.Array:
    """Shows each pixel from elsewhere, by shifts given on a grid, linear between.

    Args:
      image: `f32[H, W, 1]`.
      shifts: `f32[g, g, 2]`, y and x in pixels, of g x g points from the first to the
        last pixel; what lies outside of the image is black, with a soft edge.
    """
    _check(image)
    chex.assert_shape(shifts, (None, None, 2))
    height, width = image.shape[:2]
    grid_y = jnp.linspace(0, shifts.shape[0] - 1, height)
    grid_x = jnp.linspace(0, shifts.shape[1] - 1, width)
    at = jnp.meshgrid(grid_y, grid_x, indexing="ij")
    moved_y, moved_x = (
        jax.scipy.ndimage.map_coordinates(shifts[:, :, axis], at, order=1)
        for axis in range(2)
    )
    dtype = _of_positions(image)
    y = jnp.arange(height, dtype=dtype)[:, None] + moved_y
    x = jnp.arange(width, dtype=dtype)[None] + moved_x
    found = jax.scipy.ndimage.map_coordinates(image[:, :, 0], [y, x], order=1)
    return found.astype(image.dtype)[:, :, None]


def posterize(image: jax.Array, *, bits: int) -> jax.Array:
    """`ImageOps.posterize`: the highest 1 to 8 bits of each gray level.

    Raises:
      ValueError: `bits` is another number.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}, but must be 1 to 8")
    step = 2 ** (8 - bits)
    return _from_levels(_to_levels(image) // step * step, image.dtype)


def solarize(image: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """`ImageOps.solarize`: grays of at least `threshold`, in 0..1, are inverted."""
    _check(image)
    return jnp.where(image < threshold, image, 1 - image)


def autocontrast(image: jax.Array) -> jax.Array:
    """`ImageOps.autocontrast`: the darkest gray becomes black, the brightest white.

    An image whose grays differ by less than half a level stays as it is.
    """
    _check(image)
    low, high = jnp.min(image), jnp.max(image)
    is_flat = (high - low) * _LEVELS < 0.5
    return jnp.where(is_flat, image, (image - low) / jnp.where(is_flat, 1, high - low))


def equalize(image: jax.Array) -> jax.Array:
    """`ImageOps.equalize`: gray levels about equally frequent, in the same order."""
    levels = _to_levels(image)
    counts = jnp.bincount(levels.ravel(), length=_LEVELS + 1)
    step = (levels.size - counts[jnp.max(levels)]) // _LEVELS
    darker = jnp.cumsum(counts) - counts
    table = (step // 2 + darker) // jnp.maximum(step, 1)
    equalized = _from_levels(jnp.minimum(table, _LEVELS)[levels], image.dtype)
    # Too few pixels, or one gray only.
    return jnp.where(step == 0, image, equalized)


def _check(image):
    chex.assert_shape(image, (None, None, 1))
    chex.assert_type(image, float)


def _of_positions(image):
    """Type that pixels are counted in."""
    return jnp.promote_types(image.dtype, jnp.float32)


def _about_center(image, linear, interpolation):
    """`transform` by a linear map, rows of numbers `f32[]`, that keeps the center."""
    _check(image)
    middle = jnp.array(image.shape[:2], _of_positions(image)) / 2
    rows = [
        jnp.stack([a, b, center - a * middle[0] - b * middle[1]])
        for (a, b), center in zip(linear, middle, strict=True)
    ]
    return transform(image, jnp.stack(rows), interpolation=interpolation)


def _blend(first, second, share):
    return first + share * (second - first)


def _enhance(degenerate, image, factor):
    """Past `image` in the direction away from `degenerate` where factor > 1."""
    return jnp.clip(_blend(degenerate, image, factor), 0, 1)


def _to_levels(image):
    """`i32[H, W, 1]` in 0..255."""
    _check(image)
    return jnp.round(jnp.clip(image, 0, 1) * _LEVELS).astype(jnp.int32)


def _from_levels(levels, dtype):
    return (levels.astype(jnp.float32) / _LEVELS).astype(dtype)
