"""500 damaged files in one folder: each is read, or named and left out."""

import io
import json
import os
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from test_dicom import compressed, encode, header, lossless_jpeg

from hapre_jax import config, errors
from hapre_jax.data import images, ped_pneumonia, phantom, pipeline, sources

DAMAGED = 500
CLASSES = ("normal", "pneumonia")


def image(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def color(pixels, kind, **options):
    return image(np.repeat(pixels[:, :, None], 3, axis=2), kind, **options)


def bits12(pixels):
    return pixels.astype(np.uint16) * 16


def bits16(pixels):
    return pixels.astype(np.uint16) * 257


def exif():
    tags = Image.Exif()
    tags[0x0112] = 1  # upright
    tags[0x010E] = "A film of the chest, posterior to anterior"
    return tags


def rle(pixels):
    film = header(bits12(pixels))
    film.compress(uid.RLELossless)
    return encode(film)


def deflated(pixels):
    film = header(bits12(pixels))
    film.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    return encode(film)


def jpeg_dicom(pixels):
    film = header(pixels, WindowCenter=128, WindowWidth=256)
    code = image(pixels, "JPEG", quality=95)
    return encode(compressed(film, uid.JPEGBaseline8Bit, code))


def lossless_dicom(pixels):
    code = lossless_jpeg(bits12(pixels), 12)
    return encode(compressed(header(bits12(pixels)), uid.JPEGLosslessSV1, code))


def jpeg_2000_dicom(pixels):
    film = header(bits16(pixels), BitsStored=16, HighBit=15)
    options = {"no_jp2": True, "irreversible": False, "num_resolutions": 1}
    code = image(bits16(pixels), "JPEG2000", **options)
    return encode(compressed(film, uid.JPEG2000Lossless, code))


# From u8[h, w] to a file.
ENCODERS = {
    "gray.jpeg": lambda pixels: image(pixels, "JPEG", quality=90),
    "color.jpg": lambda pixels: color(pixels, "JPEG", quality=90, exif=exif()),
    "progressive.jpg": lambda pixels: image(pixels, "JPEG", progressive=True),
    "8 bit.png": lambda pixels: image(pixels, "PNG"),
    "16 bit.png": lambda pixels: image(bits16(pixels), "PNG"),
    "raw.tif": lambda pixels: image(pixels, "TIFF"),
    "16 bit.tif": lambda pixels: image(bits16(pixels), "TIFF"),
    "lzw.tiff": lambda pixels: image(pixels, "TIFF", compression="tiff_lzw"),
    "gray.bmp": lambda pixels: image(pixels, "BMP"),
    "color.bmp": lambda pixels: color(pixels, "BMP"),
    "raw.dcm": lambda pixels: encode(header(bits12(pixels))),
    "deflated.dcm": deflated,
    "rle.dcm": rle,
    "jpeg.dcm": jpeg_dicom,
    "lossless.dcm": lossless_dicom,
    "jpeg 2000.dcm": jpeg_2000_dicom,
}


def original_films():
    """One film of each kind and class."""
    drawn = [phantom.make(label, size=96).image for label in range(len(CLASSES))]
    films = {
        kind: [encoder(pixels) for pixels in drawn]
        for kind, encoder in ENCODERS.items()
    }
    if root := os.environ.get("HAPRE_PED_PNEUMONIA"):
        tree, records = ped_pneumonia.scan(root)
        films["gray.jpeg"] = [tree.read(records[index].name) for index in (0, -1)]
    return films


# Ways to damage the file of a film. They return its bytes, its name and whether it can
# be read; None where that depends.


def truncated(film, kind, rng):
    return film[: int(rng.uniform(0.1, 0.9) * len(film))], kind, False


def bit_flipped(film, kind, rng):
    data = bytearray(film)
    for place in rng.integers(len(data), size=2 ** int(rng.integers(7))):
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data), kind, None


def header_overwritten(film, kind, rng):
    data = bytearray(film)
    for place in rng.integers(min(700, len(data)), size=rng.integers(1, 6)):
        data[place] = int(rng.integers(256))
    return bytes(data), kind, None


def block_lost(film, kind, rng):
    start = int(rng.integers(len(film)))
    return film[:start] + film[start + 32 :].rjust(len(film) - start, b"\0"), kind, None


def emptied(film, kind, rng):
    return b"", kind, False


def text(film, kind, rng):
    return b"404 Not Found: the film has moved.\n" * 100, kind + ".png", False


def point(film, kind, rng):
    return ENCODERS[kind](np.full((1, 1), 200, np.uint8)), kind, False


def line(film, kind, rng):
    pixels = np.tile(np.arange(200, dtype=np.uint8), 150)  # 30000
    shape = (1, -1) if rng.integers(2) else (-1, 1)
    return ENCODERS[kind](pixels.reshape(shape)), kind, False


def renamed(film, kind, rng):
    """What a file is called decides only that it is DICOM, never that it is not."""
    other = str(rng.choice([".jpeg", ".PNG", ".bmp", ".tiff", ".dcm"]))
    return film, kind + other, other != ".dcm" or kind.endswith(".dcm")


WAYS = (
    truncated,
    truncated,
    bit_flipped,
    bit_flipped,
    header_overwritten,
    block_lost,
    emptied,
    text,
    point,
    line,
    renamed,
)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of 500 damaged films and one whole one of each kind and class.

    Returns:
      The folder, and from the name of each film to whether it can be read.
    """
    root, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    originals, readable = original_films(), {}

    def write(name, label, data, is_readable):
        name = f"{CLASSES[label]}/{name}"
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
        readable[name] = is_readable

    for kind, films in originals.items():
        for label, film in enumerate(films):
            write(f"whole {kind}", label, film, True)
    kinds = list(originals)
    for number in range(DAMAGED):
        way, kind = WAYS[number % len(WAYS)], kinds[number % len(kinds)]
        label = int(rng.integers(len(CLASSES)))
        data, name, is_readable = way(originals[kind][label], kind, rng)
        write(f"{number} {way.__name__} {name}", label, data, is_readable)
    return root, readable


def stored(root, **options):
    return config.DataConfig(
        name="folder", root=str(root), image_size=16, threads=2, **options
    )


@pytest.fixture(scope="module")
def loaded(films):
    """The names that were read, the films left out, and what Python warned of."""
    data = stored(films[0])
    with warnings.catch_warnings(record=True) as warned:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        found = pipeline.read(sources.open_source(data, seed=0), data, seed=0)
    return [record.name for record in found.records], found.unreadable, warned


def test_every_film_is_read_or_left_out_once(films, loaded):
    names, left_out, _ = loaded
    _, readable = films
    assert len(readable) == DAMAGED + 2 * len(ENCODERS)
    assert sorted(names + [film.name for film in left_out]) == sorted(readable)
    for name, expected in readable.items():
        assert expected in (None, name in names), name


def test_every_reason_is_one_line_that_names_the_film(loaded):
    _, left_out, _ = loaded
    for name, reason in left_out:
        assert reason.startswith(name) and "\n" not in reason
        assert "<_io" not in reason and "object at 0x" not in reason
        assert len(reason) < len(name) + 250


def test_libraries_warn_the_user_of_nothing(loaded):
    assert [str(warning.message) for warning in loaded[2]] == []


def test_the_first_unreadable_film_stops_on_request(films, loaded):
    with pytest.raises(errors.UserError) as caught:
        pipeline.load(stored(films[0], on_error="stop"), seed=0)
    assert str(caught.value) == loaded[1][0].reason


# In a process of its own: decoders that crash or never return must not end the tests.
STREAM = """
import json, sys
from hapre_jax import config
from hapre_jax.data import pipeline, sources

data = config.DataConfig(
    name="folder", root=sys.argv[1], image_size=16, threads=2, memory_gib=0
)
found = pipeline.read(sources.open_source(data, seed=0), data, seed=0)
print(json.dumps([[record.name for record in found.records], found.unreadable]))
"""


def test_streaming_leaves_out_the_same_films(films, loaded):
    command = [sys.executable, "-c", STREAM, films[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    names, left_out, _ = loaded
    assert json.loads(done.stdout) == [names, [list(film) for film in left_out]]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr


def cut_exif():
    data = bytearray(image(np.eye(32, dtype=np.uint8), "JPEG", exif=exif()))
    place = data.index(b"\x01\x0e\x00\x02")  # the description: its length comes next
    data[place + 4 : place + 8] = struct.pack(">I", 60_000)
    return bytes(data)


def transparent_palette():
    film = Image.fromarray(np.eye(32, dtype=np.uint8)).convert("P")
    buffer = io.BytesIO()
    film.save(buffer, "PNG", transparency=bytes(range(256)))
    return buffer.getvalue()


@pytest.mark.parametrize("make", [cut_exif, transparent_palette])
def test_a_film_with_broken_metadata_is_read_in_silence(make):
    data = make()
    with pytest.warns(UserWarning):
        film = Image.open(io.BytesIO(data))
        film.getexif()
        expected = np.asarray(film.convert("L"))
    read = images.open_gray(data, name="film")
    np.testing.assert_array_equal(np.asarray(read), expected)
    filters = list(warnings.filters)
    images.open_gray(data, name="film")
    assert warnings.filters == filters


def png_of(height, width):
    data = bytearray(image(np.eye(96, dtype=np.uint8), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg_of(height, width):
    data = bytearray(image(np.eye(96, dtype=np.uint8), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_dicom_of(height, width):
    film = header(np.eye(96, dtype=np.uint8))
    code = jpeg_of(height, width)
    return encode(compressed(film, uid.JPEGBaseline8Bit, code))


def jpeg_2000_dicom_of(height, width):
    pixels = bits16(np.eye(96, dtype=np.uint8))
    code = bytearray(image(pixels, "JPEG2000", no_jp2=True, irreversible=False))
    code[8:16] = struct.pack(">II", width, height)
    code[24:32] = struct.pack(">II", width, height)  # in one tile
    film = header(pixels, BitsStored=16, HighBit=15)
    return encode(compressed(film, uid.JPEG2000Lossless, bytes(code)))


def peak_mib():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (20 if sys.platform == "darwin" else 10)


@pytest.mark.parametrize("make", [png_of, jpeg_of, jpeg_dicom_of, jpeg_2000_dicom_of])
def test_forged_sizes_are_refused_at_once(make):
    assert images.open_gray(make(96, 96), name="film").size == (96, 96)
    data, start, before = make(60_000, 60_000), time.monotonic(), peak_mib()
    with pytest.raises(errors.UserError, match=r"film .*(pixels|x 60000)"):
        images.open_gray(data, name="film")
    assert peak_mib() - before < 100  # of 3,400 at the least
    assert time.monotonic() - start < 5


def test_more_pixels_than_the_header_says():
    film = header(np.ones((30, 20), np.uint16))
    film.Rows = 10
    with pytest.raises(errors.UserError, match="film cannot be read: .* 3 films"):
        images.open_gray(encode(film), name="film")


@pytest.mark.parametrize("slope", ["nan", "1e308"])
def test_a_rescale_that_is_no_number(slope):
    pixels = np.arange(600, dtype=np.uint16).reshape(30, 20)
    film = header(pixels, RescaleIntercept="0", RescaleSlope="1")
    data = encode(film)
    # pydicom does not write what it would not read.
    place = data.index(b"\x28\x00\x53\x10DS\x02\x00")
    value = slope.encode().ljust(6)
    data = data[: place + 6] + struct.pack("<H", 6) + value + data[place + 10 :]
    with pytest.raises(errors.UserError, match="film cannot be read: .* no number"):
        images.open_gray(data, name="film")


def test_postscript_is_not_run():
    data = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(errors.UserError, match="film.png cannot be read: not an image"):
        images.open_gray(data, name="film.png")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "JPEG2000"])
def test_films_of_the_web_are_recognised_by_their_content(kind):
    pixels = phantom.make(0, size=96).image
    film = images.open_gray(image(pixels, kind), name="film.jpeg")
    assert np.abs(np.asarray(film).astype(int) - pixels).mean() < 3
