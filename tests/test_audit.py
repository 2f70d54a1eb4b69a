"""Real small collections: files in folders, read as a user's are."""

import dataclasses
import io
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid

from hapre_jax import errors
from hapre_jax.data import audit, dataset, folder, phantom, reader

RNG = np.random.default_rng


def pixels(rng, width, height, *channels):
    return rng.integers(0, 256, (height, width, *channels)).astype(np.uint8)


def encode(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif():
    tags = Image.Exif()
    tags[0x010F] = "a maker"
    return tags


def write(root, films):
    """Writes files by path."""
    for name, encoded in films.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded)
    return root


def write_groups(root, groups):
    lines = [f"{path},{group}" for path, group in groups.items()]
    (root / "groups.csv").write_text("\n".join(["path,group", *lines]) + "\n")


def source(root):
    tree, records, classes = folder.scan(str(root))
    read = reader.FilmReader(tree, records)
    return dataset.Source("my films", classes, records, read)


def seen_as(read, views):
    records = [
        record._replace(view=view)
        for record, view in zip(read.records, views, strict=True)
    ]
    return dataclasses.replace(read, records=records)


def equal_films(rng, count, **options):
    """Films whose shape, color, EXIF and size say nothing of where they are put."""
    films = []
    for _ in range(count):
        size = rng.integers(20, 40, 2)
        channels = (3,) if rng.random() < 0.3 else ()
        tags = {"exif": exif()} if rng.random() < 0.3 else {}
        quality = int(rng.integers(40, 95))
        image = pixels(rng, *size, *channels)
        films.append(encode(image, "JPEG", quality=quality, **tags, **options))
    return films


def dicom_film(width=30, height=20, bits=12, kind="MONOCHROME2"):
    film = pydicom.Dataset()
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    film.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    film.Rows, film.Columns = height, width
    film.SamplesPerPixel = 1
    film.PhotometricInterpretation = kind
    film.BitsAllocated, film.HighBit = 16, 11
    film.add_new("BitsStored", "US", bits)
    film.PixelRepresentation = 0
    film.PixelData = bytes(2 * width * height)
    film["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    film.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


GRAY = pixels(RNG(0), 30, 20)
COLOR = pixels(RNG(0), 30, 20, 3)
DEEP = GRAY.astype(np.uint16) * 257


@pytest.mark.parametrize(
    ("encoded", "channels", "bits", "has_exif", "kind"),
    [
        (encode(GRAY, "JPEG"), 1, 8, False, "JPEG"),
        (encode(GRAY, "JPEG", exif=exif()), 1, 8, True, "JPEG"),
        (encode(COLOR, "JPEG"), 3, 8, False, "JPEG"),
        (encode(Image.fromarray(COLOR).convert("CMYK"), "JPEG"), 4, 8, False, "JPEG"),
        (encode(GRAY), 1, 8, False, "PNG"),
        (encode(GRAY, exif=exif()), 1, 8, True, "PNG"),
        (encode(DEEP), 1, 16, False, "PNG"),
        (encode(Image.fromarray(COLOR).convert("RGBA")), 4, 8, False, "PNG"),
        (encode(DEEP, "TIFF"), 1, 16, False, "TIFF"),
        (dicom_film(), 1, 12, False, "DICOM"),
    ],
)
def test_geometry(encoded, channels, bits, has_exif, kind):
    expected = (30, 20, len(encoded), channels, bits, has_exif, kind)
    assert audit.geometry(encoded, name="film") == expected


def test_the_shape_is_the_stored_one_and_only_the_header_is_read():
    tags = exif()
    tags[0x0112] = 6  # turned by a quarter
    for encoded in (encode(GRAY, "JPEG", exif=tags), encode(GRAY), dicom_film()):
        cut = encoded[:-300]
        header = audit.geometry(cut, name="film")
        assert (header.width, header.height) == (30, 20)
        assert header.file_bytes == len(cut)


@pytest.mark.parametrize(
    ("encoded", "name", "message"),
    [
        (b"text", "a.png", "a.png cannot be read: not an image"),
        (encode(GRAY)[:20], "a.png", "a.png cannot be read: "),
        (b"text", "a.dcm", "a.dcm is not a DICOM file: it lacks the prefix DICM"),
        (encode(GRAY[:8]), "a.png", "a.png cannot be read: 30 x 8 pixels are too few"),
        (dicom_film(height=0), "a.dcm", "a.dcm cannot be read: 30 x 0 pixels"),
        (dicom_film(bits=None), "a.dcm", "a.dcm cannot be read: "),
        # Training would leave it out.
        (dicom_film(kind="RGB"), "a.dcm", "a.dcm is RGB, 1 sample"),
    ],
)
def test_no_geometry(encoded, name, message):
    with pytest.raises(errors.UserError, match=message):
        audit.geometry(encoded, name=name)


def test_optional_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(errors.UserError, match=r"a.dcm .* 'hapre_jax\[dicom\]'"):
        audit.geometry(dicom_film(), name="a.dcm")
    write(tmp_path, {"a/1.png": encode(GRAY), "b/1.png": encode(GRAY)})
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(errors.UserError, match=r"pip install 'hapre_jax\[audit\]'"):
        audit.examine(source(tmp_path))


def test_importing_it_is_cheap():
    code = "import hapre_jax.data.audit_report, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"sklearn", "pydicom", "jax"} & set(done.stdout.split())


def test_only_original_files_are_audited():
    records = [dataset.Record("1", 0, "1"), dataset.Record("2", 1, "2")]
    drawn = dataset.Source("phantom", phantom.CLASSES, records, lambda index: None)
    with pytest.raises(errors.UserError, match="'phantom' are no original files"):
        audit.examine(drawn)


def test_aucs_by_hand(tmp_path):
    # Of the four pairs, b is wider in two, a in one, and one is a tie: 1.5 of 4. The
    # aspect ratios are 1 and 1.5 against 1 and 1: 0.5 and 0.5 and 1 and 1 of 4.
    sizes = {"a/1": (20, 20), "a/2": (30, 20), "b/1": (20, 20), "b/2": (40, 40)}
    rng = RNG(0)
    films = {f"{k}.bmp": encode(pixels(rng, *v), "BMP") for k, v in sizes.items()}
    audited = audit.examine(source(write(tmp_path, films)))
    assert audited.aucs["width"] == 0.375
    assert audited.aucs["height"] == 0.25
    assert audited.aucs["area"] == 0.375
    assert audited.aucs["aspect ratio"] == 0.75
    assert audited.aucs["file size"] == 0.375
    assert audited.aucs["EXIF"] == audited.aucs["JPEG"] == audited.aucs["bits"] == 0.5


def test_no_shortcut(tmp_path):
    films = {}
    for class_name, seed in (("ill", 0), ("well", 1)):
        for index, film in enumerate(equal_films(RNG(seed), 80)):
            films[f"{class_name}/{index}.jpg"] = film
    audited = audit.examine(source(write(tmp_path, films)))
    # Three standard deviations sqrt((80 + 80 + 1) / (12 * 80 * 80)).
    assert audited.chance == pytest.approx(0.5 + 3 * 0.0457858, abs=1e-6)
    within = audited.chance - 0.5
    assert all(abs(auc - 0.5) < within for auc in audited.aucs.values())
    assert all(abs(auc - 0.5) < within for auc in audited.together)


def test_the_aspect_ratio_gives_the_class_away(tmp_path):
    rng = RNG(0)
    films = {}
    for class_name, (low, high) in {"normal": (0.6, 0.9), "viral": (1.1, 1.6)}.items():
        for index in range(60):
            aspect, area = rng.uniform(low, high), rng.uniform(500, 1500)
            size = np.round([(area * aspect) ** 0.5, (area / aspect) ** 0.5])
            films[f"{class_name}/{index}.jpg"] = encode(
                pixels(rng, *size.astype(int)), "JPEG"
            )
    audited = audit.examine(source(write(tmp_path, films)))
    assert audited.aucs["aspect ratio"] < 0.01
    assert min(audited.together) > 0.98
    assert abs(audited.aucs["area"] - 0.5) < audited.chance - 0.5


@pytest.mark.parametrize("kind", ["channels", "EXIF"])
def test_kind(tmp_path, kind):
    films, rng = {}, RNG(0)
    for class_name in ("a", "b"):
        for index in range(30):
            size = rng.integers(20, 40, 2)
            is_color = kind == "channels" and class_name == "b"
            tags = {"exif": exif()} if kind == "EXIF" and class_name == "b" else {}
            image = pixels(rng, *size, *([3] if is_color else []))
            films[f"{class_name}/{index}.jpg"] = encode(image, "JPEG", **tags)
    audited = audit.examine(source(write(tmp_path, films)))
    assert audited.aucs[kind] == 0 and min(audited.together) == 1


def test_compression_is_told_apart_from_shape(tmp_path):
    films, rng = {}, RNG(0)
    for class_name, quality in (("a", 40), ("b", 90)):
        for index in range(40):
            image = pixels(rng, 32, 32)
            films[f"{class_name}/{index}.jpg"] = encode(image, "JPEG", quality=quality)
    audited = audit.examine(source(write(tmp_path, films)))
    assert audited.aucs["bytes a pixel"] == 0
    assert audited.together == (0.5, 0.5)


def test_each_class_against_the_rest(tmp_path):
    films, rng = {}, RNG(0)
    for class_name, width in (("a", 20), ("b", 20), ("c", 40)):
        for index in range(40):
            height = int(rng.integers(20, 40))
            films[f"{class_name}/{index}.png"] = encode(pixels(rng, width, height))
    audited = audit.examine(source(write(tmp_path, films)))
    # Of a and b only c is told: 40 of the 80 others are ranked right, 40 are ties.
    assert audited.together[2] == 1
    assert audited.together[:2] == pytest.approx((0.75, 0.75), abs=0.1)
    assert audited.aucs["width"] == 0.25


def test_patients_are_not_recognized(tmp_path):
    """Each patient has a shape of its own, which says nothing of other patients."""
    films, groups, rng = {}, {}, RNG(0)
    shapes = rng.permutation([(w, h) for w in range(20, 30) for h in range(20, 30)])
    for patient, (width, height) in enumerate(shapes):
        for index in range(6):
            name = f"{'ab'[patient % 2]}/{patient}-{index}.png"
            films[name] = encode(pixels(rng, width, height))
            groups[name] = f"patient{patient}"
    write_groups(write(tmp_path, films), groups)
    audited = audit.examine(source(tmp_path))
    assert audited.groups.number == 100
    assert max(audited.together) < audited.chance
    # Were films independent, the classifier would know all of these patients.
    write_groups(tmp_path, {name: name for name in groups})
    assert min(audit.examine(source(tmp_path)).together) > 0.9


def test_identical_files(tmp_path):
    rng = RNG(0)
    same = [encode(pixels(rng, 20, 20)) for _ in range(3)]
    films = {
        "train/a/1.png": same[0],  # an error: of two classes
        "train/b/1.png": same[0],
        "train/a/2.png": same[1],  # of two splits and patients
        "test/a/2.png": same[1],
        "train/b/3.png": same[2],  # harmless
        "train/b/4.png": same[2],
        "test/b/5.png": encode(pixels(rng, 20, 20)),
    }
    groups = dict(zip(films, "112345", strict=False), **{"test/b/5.png": "6"})
    groups["train/b/4.png"] = groups["train/b/3.png"]
    write_groups(write(tmp_path, films), groups)
    audited = audit.examine(source(tmp_path))
    copies = audited.copies
    assert {frozenset(names) for names in copies.sets} == {
        frozenset({"train/a/1.png", "train/b/1.png"}),
        frozenset({"train/a/2.png", "test/a/2.png"}),
        frozenset({"train/b/3.png", "train/b/4.png"}),
    }
    assert copies.of_several_classes == (("train/a/1.png", "train/b/1.png"),)
    assert copies.of_several_groups == (("test/a/2.png", "train/a/2.png"),)
    assert copies.of_several_splits == copies.of_several_groups


def test_patients_of_an_image_level_split(tmp_path):
    films, groups, rng = {}, {}, RNG(0)
    for class_name in "ab":
        for index in range(100):
            name = f"{class_name}/{index}.png"
            films[name] = encode(pixels(rng, 20, 20))
            groups[name] = f"{class_name}{index // 2}"
    write_groups(write(tmp_path, films), groups)
    found = audit.examine(source(tmp_path))
    # The other film of a test film's patient is one of 99, of which 70 are trained on.
    # 100 * 2 seeds of 20 test films: standard deviation 0.04 at most.
    assert found.groups.image_level_leak == pytest.approx(70 / 99, abs=0.1)
    assert found.groups.of_several_films == 1 and found.groups.of_several_classes == 0
    assert found.groups.official_leak is None and found.official_counts == {}
    # One patient a class: each test film has a trained one.
    write_groups(tmp_path, {name: name[0] for name in groups})
    found = audit.examine(source(tmp_path))
    assert found.groups.image_level_leak == 1 and found.groups.number == 2
    # And nobody is left to try a classifier on.
    assert found.together is None


def test_official_splits(tmp_path):
    owners = {
        "train/a/1.png": "ann",
        "train/b/1.png": "bob",
        "val/b/1.png": "cyd",
        "test/a/1.png": "dan",
        "test/a/2.png": "bob",
        "test/b/1.png": "cyd",
        "test/b/2.png": "eve",
    }
    rng = RNG(0)
    films = {name: encode(pixels(rng, 20, 20)) for name in owners}
    write_groups(write(tmp_path, films), owners)
    audited = audit.examine(source(tmp_path))
    assert audited.official_counts == {
        "train": (1, 1),
        "validation": (0, 1),
        "test": (2, 2),
    }
    assert audited.groups.official_leak == 0.25  # bob's
    assert audited.groups.of_several_films == 2 / 5
    assert audited.groups.of_several_classes == 1 / 5


def test_few_films_prove_nothing(tmp_path):
    rng = RNG(0)
    films = {f"a/{i}.png": encode(pixels(rng, 20, 40)) for i in range(3)}
    films |= {f"b/{i}.png": encode(pixels(rng, 40, 20)) for i in range(12)}
    audited = audit.examine(source(write(tmp_path, films)))
    assert audited.aucs["width"] == 0 and audited.chance == 1


def test_one_film_of_each_class(tmp_path):
    films = {"a/1.png": encode(GRAY), "b/1.png": encode(DEEP)}
    audited = audit.examine(source(write(tmp_path, films)))
    assert audited.together is None and audited.groups.image_level_leak is None
    assert audited.aucs["bits"] == 0


def test_unreadable_files_are_named(tmp_path):
    films = {f"{k}/{i}.png": encode(GRAY) for k in "ab" for i in range(3)}
    films |= {f"b/broken{i}.png": b"text" for i in range(4)} | {"a/film.dcm": b"text"}
    calls = []
    audited = audit.examine(
        source(write(tmp_path, films)), progress=lambda *done: calls.append(done)
    )
    assert calls == [(done, 11) for done in range(1, 12)]
    assert audited.counts == (3, 3)
    assert list(audited.unreadable) == [
        "a/film.dcm",
        *(f"b/broken{i}.png" for i in range(4)),
    ]
    assert audited.unreadable["b/broken1.png"].endswith("not an image")


def test_a_class_without_a_readable_film(tmp_path):
    write(tmp_path, {"a/1.png": encode(GRAY), "b/1.png": b"text"})
    with pytest.raises(errors.UserError, match="class 'b' has no .* b/1.png cannot be"):
        audit.examine(source(tmp_path))


def test_the_same_again(tmp_path):
    films = {}
    for class_name, seed in (("ill", 0), ("well", 1)):
        for index, film in enumerate(equal_films(RNG(seed), 20)):
            films[f"{class_name}/{index}.jpg"] = film
    write(tmp_path, films)
    audited = audit.examine(source(tmp_path))
    assert audit.examine(source(tmp_path), threads=1) == audited


def test_views(tmp_path):
    rng = RNG(0)
    films = {f"{k}/{i}.png": encode(pixels(rng, 20, 20)) for k in "ab" for i in (0, 1)}
    audited = audit.examine(source(write(tmp_path, films)))
    assert audited.view == "" and "view" not in audited.aucs
    # Three of the four pairs are ranked right or half right: PA beats what is not PA.
    audited = audit.examine(seen_as(source(tmp_path), ["PA", "PA", "PA", ""]))
    assert audited.view == "PA" and audited.aucs["view"] == 0.75


def test_the_classifier_does_not_see_the_view(tmp_path):
    rng = RNG(0)
    films = {
        f"{k}/{i}.png": encode(pixels(rng, 20, 20)) for k in "ab" for i in range(9)
    }
    audited = audit.examine(
        seen_as(source(write(tmp_path, films)), ["PA"] * 9 + ["AP"] * 9)
    )
    assert audited.aucs["view"] == 1 and audited.together == (0.5, 0.5)


def test_copies_outside_of_the_official_splits(tmp_path):
    write(tmp_path, {name: encode(GRAY) for name in ("a/1.png", "a/2.png", "b/1.png")})
    read = source(tmp_path)
    for official, count in ((["test", "", ""], 0), (["test", "", "train"], 1)):
        records = [
            record._replace(official=split)
            for record, split in zip(read.records, official, strict=True)
        ]
        copies = audit.examine(dataclasses.replace(read, records=records)).copies
        assert len(copies.of_several_splits) == count
