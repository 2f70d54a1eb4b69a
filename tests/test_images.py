import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hapre_jax import errors
from hapre_jax.data import images


def encode(pixels, kind="PNG", *, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width), np.uint8)


def decode(data, size, geometry="squash"):
    result = images.decode(data, size=size, geometry=geometry, name="film.png")
    assert result.shape == (size, size, 1) and result.dtype == np.uint8
    return result[:, :, 0]


@pytest.mark.parametrize("geometry", images.GEOMETRIES)
def test_square_of_its_own_size_is_untouched(geometry):
    pixels = noise(7, 7)
    np.testing.assert_array_equal(decode(encode(pixels), 7, geometry), pixels)


@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        ("letterbox", [[0, 0, 0, 0], [10, 20, 30, 40], [50, 60, 70, 80], [0, 0, 0, 0]]),
        ("cover", [[20, 30], [60, 70]]),
    ],
)
def test_wide_film_by_hand(geometry, expected):
    film = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)
    expected = np.array(expected)
    np.testing.assert_array_equal(
        decode(encode(film), len(expected), geometry), expected
    )
    # A tall film is the same thing lying down.
    tall = decode(encode(film.T), len(expected), geometry)
    np.testing.assert_array_equal(tall, expected.T)


def test_squash_is_pillows_antialiased_bilinear():
    film = noise(40, 60)
    oracle = Image.fromarray(film).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(encode(film), 16), np.asarray(oracle))


def test_downscaling_averages_instead_of_skipping():
    # One-pixel stripes: a sampler without antialiasing returns 0 or 255.
    film = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.abs(decode(encode(film), 8)[:, 1:-1].astype(int) - 127).max() <= 8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_modes_keep_gray_levels(mode):
    film = noise(9, 9)
    if mode == "1":
        film = np.where(film > 127, 255, 0).astype(np.uint8)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    np.testing.assert_array_equal(decode(encode(film, kind, mode=mode), 9), film)


def test_color_becomes_luma():
    # 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    film = np.full((3, 3, 3), (200, 100, 50), np.uint8)
    np.testing.assert_array_equal(decode(encode(film), 3), 124)
    paletted = Image.fromarray(film).convert("P", palette=Image.Palette.ADAPTIVE)
    assert paletted.mode == "P"
    np.testing.assert_array_equal(decode(encode(paletted), 3), 124)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_high_end(kind):
    film = np.array([[0, 257, 40_000], [65_535, 128, 129], [514, 4096, 65_000]])
    expected = [[0, 1, 156], [255, 0, 1], [2, 16, 253]]
    data = encode(film.astype(np.uint16), kind)
    np.testing.assert_array_equal(decode(data, 3), expected)


def test_32_bit_integers_in_the_16_bit_range():
    film = np.array([[0, 65_535], [257, 25_700]], np.int32)
    assert Image.fromarray(film).mode == "I"
    np.testing.assert_array_equal(decode(encode(film, "TIFF"), 2), [[0, 255], [1, 100]])


@pytest.mark.parametrize(
    "film",
    [
        np.array([[0, 70_000]], np.int32),
        np.array([[-5, 700]], np.int32),
        np.array([[0.0, 1.0]], np.float32),
        np.array([[0, 4095]], np.uint16),  # 12 bits
        np.array([[0, 16383]], np.uint16),  # 14 bits
    ],
)
def test_unknown_ranges_are_not_guessed(film):
    with pytest.raises(errors.UserError, match=r"film\.png holds .*values"):
        decode(encode(film, "TIFF"), 2)


def color_png(film):
    """A gray film as a PNG of 16 bits a color, which Pillow does not write."""
    rows = np.repeat(film[:, :, None], 3, axis=2).astype(">u2")
    height, width = film.shape

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    signature = b"\x89PNG\r\n\x1a\n"
    ends = chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return signature + chunk(b"IHDR", header) + ends


def test_16_bits_of_color_are_of_the_same_range():
    film = np.array([[0, 65_535], [257, 25_700]])
    np.testing.assert_array_equal(decode(color_png(film), 2), [[0, 255], [1, 100]])
    with pytest.raises(errors.UserError, match=r"16-bit values of at most 3855: scale"):
        decode(color_png(film // 16), 2)


@pytest.mark.parametrize("bits", [12, 14])
def test_a_bright_marker_does_not_hide_how_many_bits_a_film_has(bits):
    film = np.random.default_rng(0).integers(0, 2**bits, (40, 40)).astype(np.uint16)
    film[0, :4] = 65_535
    for data in (encode(film), color_png(film)):
        with pytest.raises(errors.UserError, match="99 % of them of at most"):
            decode(data, 40)


def test_a_jpeg_whose_end_is_zeros_is_cut():
    film = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    whole = encode(film, "JPEG")
    for data in (whole, whole + bytes(40), whole + b"more"):
        np.testing.assert_array_equal(decode(data, 64), decode(whole, 64))
    half = len(whole) // 2
    with pytest.raises(errors.UserError, match="its end is nothing but zeros"):
        decode(whole[:half] + bytes(len(whole) - half), 64)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[1, 2], [3, 4]]),
        (2, [[2, 1], [4, 3]]),  # mirrored
        (3, [[4, 3], [2, 1]]),  # upside down
        (6, [[3, 1], [4, 2]]),  # a quarter turn clockwise to be upright
        (8, [[2, 4], [1, 3]]),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_orientation(orientation, expected, dtype):
    exif = Image.Exif()
    exif[0x0112] = orientation
    film = (np.array([[1, 2], [3, 4]]) * (50 if dtype == np.uint8 else 12_850)).astype(
        dtype
    )
    data = encode(film, exif=exif)
    np.testing.assert_array_equal(decode(data, 2), np.array(expected) * 50)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 2, "mode": "RGB"}]
)
def test_jpeg_kinds(options):
    rows = np.linspace(0, 255, 32).astype(np.uint8)
    film = np.tile(rows[:, None], (1, 32))
    decoded = decode(encode(film, "JPEG", quality=95, **options), 32)
    assert np.abs(decoded.astype(int) - film).max() <= 6


# Without compression a flipped bit of a pixel is found by its checksum alone.
FLIPPED = bytearray(encode(noise(64, 64), "PNG", compress_level=0))
FLIPPED[2000] ^= 1
FLIPPED = bytes(FLIPPED)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain text, not an image",
        encode(noise(64, 64), "JPEG")[:1500],
        encode(noise(64, 64), "PNG")[:1500],
        encode(noise(64, 64), "PNG")[:20],
        encode(noise(64, 64), "PNG")[:-20] + bytes(20),
        FLIPPED,
    ],
    ids=[
        "empty",
        "text",
        "short jpeg",
        "short png",
        "header only",
        "no end",
        "flipped",
    ],
)
def test_broken_files_are_named(data):
    with pytest.raises(errors.UserError, match="film.png cannot be read") as caught:
        decode(data, 8)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def test_want_of_memory_is_no_fault_of_a_film(monkeypatch):
    def load(self):
        raise MemoryError

    film = encode(noise(4, 4))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(MemoryError, match=r"^a\.png does not fit into memory$"):
        images.open_gray(film, name="a.png")


def test_tiff_whose_0_is_white():
    film = np.array([[0, 65_535], [25_700, 5140]], np.uint16)
    for pixels in (film, (film // 257).astype(np.uint8)):
        data = bytearray(encode(pixels, "TIFF"))
        # An entry of the directory: tag 262, a short, once, 1.
        entry = struct.pack("<HHIH", 262, 3, 1, 1)
        assert data.count(entry) == 1
        data = data.replace(entry, struct.pack("<HHIH", 262, 3, 1, 0))
        np.testing.assert_array_equal(decode(data, 2), [[255, 0], [155, 235]])


def test_a_stripe_does_not_fill_the_memory():
    # Halved it is 8 x 9400. A row of 32 is a triangle of 293.75 rows to each side, so
    # both at the middle have half of 8 / 293.75 of 147, which is 2.
    stripe = Image.new("L", (18_800, 16), 147)
    square = images.fit(stripe, size=32, geometry="letterbox")[:, :, 0]
    expected = np.zeros((32, 32))
    expected[15:17] = 2
    np.testing.assert_array_equal(square, expected)


def test_unknown_geometry():
    with pytest.raises(errors.UserError, match="'zoom' is none of letterbox"):
        decode(encode(noise(4, 4)), 4, "zoom")


# A film of 100 x 200: the letterbox frame is 200 x 200 from row -50, the cover frame
# 100 x 100 from column 50.
@pytest.mark.parametrize(
    ("geometry", "box", "expected"),
    [
        ("squash", (10, 20, 60, 180), (0.1, 0.1, 0.6, 0.9)),
        ("letterbox", (10, 20, 60, 180), (0.3, 0.1, 0.55, 0.9)),
        ("letterbox", (0, 0, 100, 200), (0.25, 0, 0.75, 1)),
        ("cover", (10, 60, 60, 140), (0.1, 0.1, 0.6, 0.9)),
        ("cover", (10, 20, 60, 90), (0.1, 0, 0.6, 0.4)),  # cut
        ("cover", (10, 0, 60, 50), (np.nan,) * 4),  # nothing left
        ("squash", (np.nan,) * 4, (np.nan,) * 4),
    ],
)
def test_frame_box_by_hand(geometry, box, expected):
    got = images.frame_box(np.array(box, np.float32), 100, 200, geometry)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # Lying down, rows and columns change places.
    turned = np.array(box, np.float32)[[1, 0, 3, 2]]
    got = images.frame_box(turned, 200, 100, geometry)
    np.testing.assert_allclose(got, np.array(expected)[[1, 0, 3, 2]], atol=1e-6)


@pytest.mark.parametrize("geometry", images.GEOMETRIES)
@pytest.mark.parametrize(("height", "width"), [(83, 120), (121, 84), (60, 60)])
def test_frame_box_goes_where_the_pixels_go(geometry, height, width):
    film = np.zeros((height, width), np.uint8)
    box = (30, 25, 58, 51)
    film[box[0] : box[2], box[1] : box[3]] = 255
    bright = decode(encode(film), 240, geometry) > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    seen = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / 240
    mapped = images.frame_box(np.array(box), height, width, geometry)
    # Half a film pixel, where interpolation crosses one half.
    np.testing.assert_allclose(seen, mapped, atol=1.5 / 240)
