"""Real DICOM files, written by pydicom."""

import io
import sys
import tracemalloc

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import encaps, uid
from pydicom.pixels import processing

from hapre_jax import config, errors
from hapre_jax.data import dicom, dicom_levels, images, pipeline

# Center 1500 and width 1001 show 999.5 to 1999.5; 1500 lies at 0.5005 of it.
STORED = np.array([[0, 1000, 1500], [2000, 4095, 1250]], np.uint16)
WINDOW = {"WindowCenter": 1500, "WindowWidth": 1001}
SHOWN = [[0, 0, 128], [255, 255, 64]]


def header(pixels, **tags):
    film = pydicom.Dataset()
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    film.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    film.SOPClassUID = uid.ComputedRadiographyImageStorage
    film.SOPInstanceUID = "1.2.3"
    film.Rows, film.Columns = pixels.shape[:2]
    film.SamplesPerPixel = 1
    film.PhotometricInterpretation = "MONOCHROME2"
    film.BitsAllocated = 8 * pixels.dtype.itemsize
    film.BitsStored = 12 if film.BitsAllocated == 16 else 8
    film.HighBit = film.BitsStored - 1
    film.PixelRepresentation = int(pixels.dtype.kind == "i")
    film.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    film["PixelData"].VR = "OW" if film.BitsAllocated == 16 else "OB"
    for name, value in tags.items():
        setattr(film, name, value)
    return film


def compressed(film, syntax, encoded):
    film.file_meta.TransferSyntaxUID = syntax
    film.PixelData = encaps.encapsulate([encoded])
    film["PixelData"].VR = "OB"
    return film


def encode(film):
    buffer = io.BytesIO()
    film.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def shown(film):
    return np.asarray(dicom.open_gray(encode(film), name="film.dcm"))


def test_window_by_hand():
    np.testing.assert_array_equal(shown(header(STORED, **WINDOW)), SHOWN)


def test_monochrome1_is_inverted_after_the_window():
    film = header(STORED, PhotometricInterpretation="MONOCHROME1", **WINDOW)
    np.testing.assert_array_equal(shown(film), [[255, 255, 127], [0, 0, 191]])
    # Films of modality DX say it a second time.
    film.PresentationLUTShape = "INVERSE"
    np.testing.assert_array_equal(shown(film), [[255, 255, 127], [0, 0, 191]])


def test_rescale_comes_before_the_window():
    stored = ((STORED.astype(np.int32) - 1000) // 2).astype(np.int16)  # signed
    film = header(
        stored, RescaleSlope=2, RescaleIntercept=1000, BitsStored=16, **WINDOW
    )
    film.HighBit = 15
    # 1250 and 4095 are odd after the division: 1250 stays, 4095 becomes 4094.
    np.testing.assert_array_equal(shown(film), SHOWN)


def test_tags_without_a_value_say_nothing():
    film = header(STORED, RescaleSlope=None, RescaleIntercept=None, **WINDOW)
    film.PixelPaddingValue = 5
    film.add_new("PixelPaddingRangeLimit", "US", None)
    np.testing.assert_array_equal(shown(film), SHOWN)


def test_signed_12_bits():
    stored = np.array([[-2000, -500, 0, 500, 2047]], np.int16)
    film = header(stored, WindowCenter=0, WindowWidth=1001)
    np.testing.assert_array_equal(shown(film), [[0, 0, 128, 255, 255]])


def test_modality_lut():
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4, 0, 16]
    lut["LUTDescriptor"].VR = "US"
    lut.LUTData = [0, 1000, 1500, 4095]
    lut["LUTData"].VR = "US"
    lut.ModalityLUTType = "US"
    film = header(np.array([[0, 1, 2, 3]], np.uint16), **WINDOW)
    film.ModalityLUTSequence = [lut]
    np.testing.assert_array_equal(shown(film), [[0, 0, 128, 255]])


def test_voi_lut_wins_over_the_window():
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4, 5, 8]  # four entries, the first for the value 5
    lut["LUTDescriptor"].VR = "US"
    lut.LUTData = [0, 10, 200, 255]
    lut["LUTData"].VR = "US"
    film = header(np.array([[0, 5, 6], [7, 8, 99]], np.uint16), **WINDOW)
    film.VOILUTSequence = [lut]
    np.testing.assert_array_equal(shown(film), [[0, 0, 10], [200, 255, 255]])


@pytest.mark.parametrize("declared", [10, 12, 16])
def test_a_voi_lut_of_other_bits_than_it_says_is_neither_dark_nor_bright(declared):
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4, 0, declared]
    lut["LUTDescriptor"].VR = "US"
    lut.LUTData = [0, 1024, 2048, 4095]  # of 12 bits
    lut["LUTData"].VR = "US"
    film = header(np.array([[0, 1, 2, 3]], np.uint16), RescaleSlope=1)
    film.VOILUTSequence = [lut]
    np.testing.assert_array_equal(shown(film), [[0, 64, 128, 255]])


def test_a_voi_lut_that_stops_below_white_stays_below():
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [2, 0, 8]
    lut["LUTDescriptor"].VR = "US"
    lut.LUTData = [0, 100]
    lut["LUTData"].VR = "US"
    film = header(np.array([[0, 1]], np.uint16))
    film.VOILUTSequence = [lut]
    np.testing.assert_array_equal(shown(film), [[0, 100]])


@pytest.mark.parametrize(
    ("pixels", "descriptor", "last"),
    [
        # More entries than a byte counts, of which pydicom would take the 44th.
        (np.array([[0, 100, 300, 999]], np.uint16), [400, 0, 8], 255),
        # Without a type of its own the first value, -100, has lost its sign.
        (np.array([[-500, 0, 200, 2000]], np.int16), [400, 65436, 8], 255),
        (np.array([[0, 100, 300, 999]], np.uint16), [400, 0, 16], 65535),
    ],
)
def test_places_in_a_voi_lut_do_not_wrap(pixels, descriptor, last):
    lut = pydicom.Dataset()
    lut.LUTDescriptor = descriptor
    lut["LUTDescriptor"].VR = "US"
    lut.LUTData = np.linspace(0, last, 400).round().astype(int).tolist()
    lut["LUTData"].VR = "US"
    film = header(pixels)
    film.VOILUTSequence = [lut]
    places = [0, 100, 300, 399]
    expected = np.round(255 * np.array(lut.LUTData)[places] / last)
    np.testing.assert_array_equal(shown(film), [expected])


def test_padding_of_signed_values_may_be_written_without_its_sign():
    stored = np.array([[-2000, -500, 0, 500]], np.int16)
    film = header(stored, WindowCenter=0, WindowWidth=5001)
    film.add_new("PixelPaddingValue", "US", 63536)
    assert shown(film).tolist() == [[0, 102, 128, 153]]


def test_a_window_beside_all_values_is_none():
    film = header(STORED)
    beside = header(STORED, WindowCenter=100_000, WindowWidth=100)
    np.testing.assert_array_equal(shown(beside), shown(film))
    assert shown(beside).max() == 255


@pytest.mark.parametrize(
    ("tags", "shape"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (40, 20)),  # two columns become one
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (20, 40)),
        ({"NominalScannedPixelSpacing": [0.15, 0.1]}, (40, 27)),
        ({"PixelAspectRatio": [1, 4]}, (10, 40)),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [1, 2]}, (40, 40)),
        ({"PixelSpacing": [0.139, 0.14]}, (40, 40)),
        ({"PixelSpacing": [0, 0.1], "PixelAspectRatio": [2, 1]}, (40, 20)),
        ({"PixelSpacing": None}, (40, 40)),
        ({"PixelSpacing": 0.2}, (40, 40)),
        ({"PixelAspectRatio": [1, 10**6]}, (1, 40)),
    ],
)
def test_pixels_become_square(tags, shape):
    with pydicom.config.disable_value_validation():
        film = header(np.tile(np.arange(40, dtype=np.uint16), (40, 1)), **tags)
        gray = shown(film)
    assert gray.shape == shape
    # It still goes from black to white, and each row is the same.
    assert gray[0, 0] < 20 and gray[0, -1] > 235 and np.ptp(gray, axis=0).max() == 0


def test_a_damaged_spacing_is_none():
    film = header(STORED, PixelSpacing=[0.25, 0.125], **WINDOW)
    data = encode(film)
    assert data.count(b"0.25\\0.125") == 1
    damaged = data.replace(b"0.25\\0.125", b"0.2x\\0.12y")
    gray = np.asarray(dicom.open_gray(damaged, name="film.dcm"))
    np.testing.assert_array_equal(gray, SHOWN)


def test_the_first_of_several_windows():
    film = header(STORED, WindowCenter=[1500, 40], WindowWidth=[1001, 80])
    np.testing.assert_array_equal(shown(film), SHOWN)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_are_pydicoms(function):
    film = header(STORED, VOILUTFunction=function, **WINDOW)
    values = np.arange(4096, dtype=np.uint16)
    oracle = processing.apply_windowing(values, film) / 4095
    mine = dicom_levels.window(values, center=1500, width=1001, function=function)
    np.testing.assert_allclose(mine, oracle, atol=1e-12)


@pytest.mark.parametrize("width", [None, 0, 1])
def test_without_a_window_percentiles_ignore_letters(width):
    # 1,000 levels, and letters at the top of the range in less than 0.5 % of the film.
    stored = np.append(np.arange(1000), [4095] * 4).astype(np.uint16)[None]
    tags = {} if width is None else {"WindowCenter": 0, "WindowWidth": width}
    low, high = np.percentile(stored, (0.5, 99.5))
    assert (low, high) == pytest.approx((5.015, 997.985))
    expected = np.round(255 * np.clip((stored - low) / (high - low), 0, 1))
    np.testing.assert_array_equal(shown(header(stored, **tags)), expected)


def test_32_bits_are_shown_as_16_are():
    stored = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)
    film = header(stored.astype(np.uint32), BitsStored=32, HighBit=31)
    np.testing.assert_array_equal(shown(film), shown(header(stored)))


def test_a_large_film_takes_a_few_bytes_a_pixel():
    data = encode(header(np.arange(2**24, dtype=np.uint16).reshape(2**12, -1)))
    tracemalloc.start()
    dicom.open_gray(data, name="film.dcm")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 2**24  # pydicom reads, and copies, 2 bytes


def test_padding_is_black_and_does_not_move_the_percentiles():
    stored = np.tile(np.arange(1000, dtype=np.uint16), (2, 1)) + 1000
    plain = shown(header(stored, PhotometricInterpretation="MONOCHROME1"))
    padded = np.concatenate([stored, np.zeros_like(stored)])
    film = header(padded, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    np.testing.assert_array_equal(shown(film)[:2], plain)
    np.testing.assert_array_equal(shown(film)[2:], 0)


@pytest.mark.parametrize("tag", ["PhotometricInterpretation", "Rows"])
def test_a_missing_tag_is_named(tag):
    film = header(STORED)
    content = encode(film)
    delattr(film, tag)
    assert len(encode(film)) < len(content)
    with pytest.raises(errors.UserError, match=f"^film.dcm does not say its {tag}$"):
        shown(film)


def test_a_blank_film_is_black():
    np.testing.assert_array_equal(shown(header(np.full((2, 3), 7, np.uint16))), 0)


def lossless_jpeg(pixels, precision):
    """A lossless JPEG (ITU T.81 annex H, predictor 1), written from the standard."""
    bits = ""
    for row in range(pixels.shape[0]):
        for column in range(pixels.shape[1]):
            if column:
                guess = int(pixels[row, column - 1])
            else:
                guess = int(pixels[row - 1, 0]) if row else 1 << (precision - 1)
            difference = int(pixels[row, column]) - guess
            size = abs(difference).bit_length()
            bits += f"{size:05b}"  # all 17 sizes have codes of five bits
            if size:
                low = difference if difference > 0 else difference + (1 << size) - 1
                bits += f"{low:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = bytes([precision, *pixels.shape[0].to_bytes(2, "big")])
    frame += bytes([*pixels.shape[1].to_bytes(2, "big"), 1, 1, 0x11, 0])
    table = bytes([0, *([0] * 4), 17, *([0] * 11), *range(17)])
    parts = [(0xC3, frame), (0xC4, table), (0xDA, bytes([1, 1, 0, 1, 0, 0]))]
    data = b"\xff\xd8"
    for marker, body in parts:
        data += bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body
    return data + coded + b"\xff\xd9"


def ramp(high):
    film = np.linspace(0, high, 32 * 24).reshape(32, 24)
    return film.astype(np.uint8 if high < 256 else np.uint16)


def jpeg(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_transfer_syntaxes():
    full = {"WindowCenter": 2048, "WindowWidth": 4096}
    pixels = ramp(4095)
    expected = shown(header(pixels, **full))
    assert expected.min() == 0 and expected.max() == 255
    for syntax in (uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian):
        film = header(pixels, **full)
        film.file_meta.TransferSyntaxUID = syntax
        np.testing.assert_array_equal(shown(film), expected)
    film = header(pixels, **full)
    film.compress(uid.RLELossless)
    np.testing.assert_array_equal(shown(film), expected)
    for syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        film = compressed(header(pixels, **full), syntax, lossless_jpeg(pixels, 12))
        np.testing.assert_array_equal(shown(film), expected)
    codes = jpeg(ramp(65535), "JPEG2000", no_jp2=True, irreversible=False)
    film = header(ramp(65535), BitsStored=16, HighBit=15)
    film.WindowCenter, film.WindowWidth = 32768, 65536
    film = compressed(film, uid.JPEG2000Lossless, codes)
    np.testing.assert_array_equal(shown(film), np.round(ramp(65535) / 257.0))


def test_big_endian_values():
    film = header(STORED, **WINDOW)
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    film.PixelData = STORED.astype(">u2").tobytes()
    buffer = io.BytesIO()
    film.save_as(
        buffer, enforce_file_format=True, little_endian=False, implicit_vr=False
    )
    gray = np.asarray(dicom.open_gray(buffer.getvalue(), name="film.dcm"))
    np.testing.assert_array_equal(gray, SHOWN)


def test_jpeg_baseline():
    film = header(ramp(255), WindowCenter=128, WindowWidth=256)
    expected = shown(film).astype(int)
    film = compressed(film, uid.JPEGBaseline8Bit, jpeg(ramp(255), "JPEG", quality=95))
    assert np.abs(shown(film) - expected).max() <= 4


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_compressed_film_that_is_cut_is_refused(share):
    code = jpeg(ramp(255), "JPEG", quality=95)
    film = header(ramp(255), WindowCenter=128, WindowWidth=256)
    whole = shown(compressed(film, uid.JPEGBaseline8Bit, code + b"\0\0\0"))
    cut = code[: int(share * len(code))]
    with pytest.raises(errors.UserError, match="film.dcm is cut: its compressed"):
        shown(compressed(film, uid.JPEGBaseline8Bit, cut))
    assert whole.shape == (32, 24)


def without_pixels():
    film = header(STORED)
    del film.PixelData
    return film


@pytest.mark.parametrize(
    ("film", "message"),
    [
        (without_pixels(), "film.dcm holds no image"),
        (header(STORED, NumberOfFrames=2), "film.dcm holds 2 frames"),
        (
            header(
                np.zeros((2, 2, 3), np.uint8),
                SamplesPerPixel=3,
                PhotometricInterpretation="RGB",
                PlanarConfiguration=0,
            ),
            "film.dcm is RGB, 3 sample",
        ),
        (header(STORED, Rows=60_000, Columns=60_000), "film.dcm says it has 60000 x"),
        (header(STORED, Rows=200), "film.dcm cannot be read: "),
        (header(STORED, HighBit=15), r"film.dcm has its 12 bits below bit 16 \(High"),
        (header(STORED, RescaleSlope=0), "film.dcm .* its rescale slope is 0"),
        (header(STORED, VOILUTFunction="CUBIC", **WINDOW), "function 'CUBIC' is none"),
        (
            compressed(header(STORED), uid.JPEGLosslessSV1, b"no jpeg"),
            "film.dcm cannot be read: ",
        ),
        (
            compressed(header(STORED), uid.MPEG2MPML, b"a film that moves"),
            "film.dcm (is compressed as|cannot be read)",
        ),
    ],
    ids=lambda value: value.split("film")[-1] if isinstance(value, str) else "",
)
def test_refusals_name_the_file(film, message):
    with pytest.raises(errors.UserError, match=message) as caught:
        shown(film)
    assert "\n" not in str(caught.value)


def test_not_a_dicom_file():
    for data in (b"", b"text", encode(header(STORED))[200:]):
        with pytest.raises(errors.UserError, match="film.dcm is not a DICOM file"):
            dicom.open_gray(data, name="film.dcm")


def test_without_pydicom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(errors.UserError, match=r"pip install 'hapre_jax\[dicom\]'"):
        images.open_gray(b"", name="film.dcm")


@pytest.mark.parametrize("kind", ["raw", "lossless"])
def test_damaged_copies_are_named_or_read(kind):
    film = header(ramp(4095))
    if kind == "lossless":
        film = compressed(film, uid.JPEGLosslessSV1, lossless_jpeg(ramp(4095), 12))
    whole = encode(film)
    rng = np.random.default_rng(0)
    outcomes = set()
    for attempt in range(60):
        data = bytearray(whole)
        if attempt % 3 == 0:
            data = data[: rng.integers(len(data))]
        elif attempt % 3 == 1:
            for place in rng.integers(132, len(data), 4):
                data[place] ^= 1 << int(rng.integers(8))
        else:
            start = int(rng.integers(132, len(data)))
            data[start : start + 32] = bytes(len(data[start : start + 32]))
        try:
            image = dicom.open_gray(bytes(data), name="film.dcm")
            outcomes.add(image.mode)
        except errors.UserError as error:
            assert "film.dcm" in str(error)
            outcomes.add("refused")
    assert outcomes == {"L", "refused"}


def test_a_hospital_of_dicom_files(tmp_path):
    rng = np.random.default_rng(0)
    for label, kind in enumerate(["ill", "well"]):
        (tmp_path / kind).mkdir()
        for index in range(10):
            # A film of 40 x 20 whose left half is dark, whatever its noise.
            pixels = rng.integers(0, 50, (40, 20)).astype(np.uint16)
            pixels[:, 10:] += 4000
            film = header(pixels, WindowCenter=2048, WindowWidth=4096)
            film.PhotometricInterpretation = f"MONOCHROME{2 - label}"
            (tmp_path / kind / f"{index}.dcm").write_bytes(encode(film))
    data = config.DataConfig(
        name="folder", root=str(tmp_path), image_size=8, geometry="squash"
    )
    loaded = pipeline.load(data, seed=0)
    assert sum(len(part) for part in loaded) == 20
    for part in loaded:
        for image, label in zip(part.images, part.labels, strict=True):
            left, right = image[:, :3].mean(), image[:, 5:].mean()
            assert (left < 5 and right > 245) == (part.classes[label] == "ill")


@pytest.mark.parametrize("place", ["dcmread", "gray"])
def test_want_of_memory_is_no_fault_of_a_film(monkeypatch, place):
    def fail(*_, **__):
        raise MemoryError

    film = encode(header(np.zeros((4, 4), np.uint16), **WINDOW))
    module = dicom_levels if place == "gray" else pydicom
    monkeypatch.setattr(module, place, fail)
    with pytest.raises(MemoryError, match=r"^a\.dcm does not fit into memory$"):
        dicom.open_gray(film, name="a.dcm")
