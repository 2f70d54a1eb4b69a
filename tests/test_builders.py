"""Small real trees, stored by TFDS and read back."""

import fcntl
import hashlib
import io
import os
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pydicom
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from pydicom import uid

from hapre_jax import errors
from hapre_jax.config import DataConfig
from hapre_jax.data import __main__ as command
from hapre_jax.data import (
    builders,
    folder,
    images,
    nih_chest_xray,
    ped_pneumonia,
    phantom,
    prepared,
    rsna_pneumonia,
    sources,
)


def film(seed, kind="PNG", mode="L", orientation=None):
    """20 rows, 30 columns of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    elif mode != "L":
        channels = [image, image.rotate(180), image.point(lambda value: 255 - value)]
        image = Image.merge("RGB", channels).convert(mode)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def mask(value):
    """Rows 5 to 14, columns 10 to 19 of a film of the shape above."""
    pixels = np.zeros((20, 30), np.uint8)
    pixels[5:15, 10:20] = value
    return images.png(Image.fromarray(pixels))


def dicom_film(seed, view):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), np.uint8)
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    header.SOPClassUID = uid.SecondaryCaptureImageStorage
    header.SOPInstanceUID = "1.2.3"
    header.ViewPosition = view
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = pixels.shape
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    header.PixelRepresentation = 0
    header.PixelData = pixels.tobytes()
    header["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(root, members):
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


PED = {
    "chest_xray/train/NORMAL/IM-0001-0001.jpeg": film(0, "JPEG"),
    "chest_xray/train/NORMAL/IM-0001-0002.jpeg": film(1, "JPEG", orientation=6),
    "chest_xray/train/PNEUMONIA/person1_bacteria_1.jpeg": film(2, "JPEG", "RGB"),
    "chest_xray/train/PNEUMONIA/person1_bacteria_2.jpeg": b"not a film",
    "chest_xray/train/PNEUMONIA/person1_virus_3.jpeg": film(3, "JPEG"),
    "chest_xray/val/NORMAL/IM-0002-0001.jpeg": film(4, "JPEG"),
    "chest_xray/test/PNEUMONIA/person2_virus_1.jpeg": film(5, "JPEG")[:300],
    "chest_xray/test/PNEUMONIA/person2_virus_2.jpeg": film(6, "JPEG"),
    "chest_xray_lungmasks/train/NORMAL/IM-0001-0001.png": mask(255),
    "chest_xray_lungmasks/train/PNEUMONIA/person1_virus_3.png": mask(127),
}

RSNA = {
    "stage_2_train_images/a.dcm": dicom_film(0, "AP"),
    "stage_2_train_images/b.dcm": dicom_film(1, "PA"),
    "stage_2_train_images/c.dcm": dicom_film(2, "PA")[:300],
    "stage_2_train_images/d.dcm": dicom_film(3, "PA"),
    "stage_2_train_images/e.dcm": dicom_film(4, "PA"),
    "stage_2_train_labels.csv": b"""\
patientId,x,y,width,height,Target
a,256.0,512.0,128.0,256.0,1
a,768.0,0.0,128.0,128.0,1
b,,,,,0
c,,,,,0
d,,,,,0
e,0.0,0.0,512.0,64.0,1
""",
    "stage_2_detailed_class_info.csv": b"""\
patientId,class
a,Lung Opacity
b,Normal
c,Normal
d,No Lung Opacity / Not Normal
e,Lung Opacity
""",
}

# In the order of their names, films of the two lists take turns.
NIH = {
    "images/00000001_000.png": film(0),
    "images/00000002_000.png": film(1, mode="RGBA"),
    "images/00000003_000.png": film(2),
    "images/00000004_000.png": b"",
    "images/00000005_000.png": film(4),
    "Data_Entry_2017_v2020.csv": b"""\
Image Index,Finding Labels,Patient ID,View Position
00000001_000.png,No Finding,1,PA
00000002_000.png,Pneumonia|Edema,2,AP
00000003_000.png,No Finding,3,AP
00000004_000.png,No Finding,4,AP
00000005_000.png,Pneumonia,5,PA
""",
    "BBox_List_2017.csv": b"""\
Image Index,Finding Label,Bbox [x,y,w,h],,,
00000002_000.png,Pneumonia,256.0,512.0,128.0,256.0,,,
""",
    "train_val_list.txt": b"00000001_000.png\n00000003_000.png\n00000004_000.png\n",
    "test_list.txt": b"00000002_000.png\n00000005_000.png\n",
}

TABLE = {
    "films.csv": b"""\
path,label,group,view,split
a gray.png,well,anna,PA,test
b deep.png,ill,ben,AP,train
c.bmp,well,cleo,PA,test
d color.png,ill,ben,,train
e gray.jpg,well,eva,PA,train
f broken.tif,well,eva,PA,train
""",
    "a gray.png": film(0),
    "b deep.png": film(1, mode="I;16"),
    "c.bmp": film(2, "BMP"),
    "d color.png": film(3, mode="RGB"),
    "e gray.jpg": film(4, "JPEG"),
    "f broken.tif": b"not a film",
}

TINY = builders.PhantomConfig(
    name="tiny", quality="medium", counts=(4, 2, 3), seed=7, size=32
)

MEMBERS = {
    "ped_pneumonia": PED,
    "rsna_pneumonia": RSNA,
    "nih_chest_xray": NIH,
    "folder": TABLE,
    "phantom": {},
}
SOURCES = {
    "ped_pneumonia": ped_pneumonia.source,
    "rsna_pneumonia": rsna_pneumonia.source,
    "nih_chest_xray": nih_chest_xray.source,
    "folder": folder.source,
    "phantom": lambda root: phantom.source(
        (4, 2, 3), seed=7, quality="medium", size=32
    ),
}
# The names of the films of each split that can be read, in order.
SPLITS = {
    "ped_pneumonia": {
        "train": ["IM-0001-0001", "IM-0001-0002", "person1_bacteria_1"]
        + ["person1_virus_3"],
        "validation": ["IM-0002-0001"],
        "test": ["person2_virus_2"],
    },
    "rsna_pneumonia": {"train": ["a", "b", "e"]},
    "nih_chest_xray": {
        "train": ["00000001_000", "00000003_000"],
        "test": ["00000002_000", "00000005_000"],
    },
    "folder": {
        "train": ["b deep", "d color", "e gray"],
        "test": ["a gray", "c"],
    },
    "phantom": {
        "train": [f"phantom-7-{index}" for index in range(4)],
        "validation": ["phantom-7-4", "phantom-7-5"],
        "test": ["phantom-7-6", "phantom-7-7", "phantom-7-8"],
    },
}
UNREADABLE = {
    "ped_pneumonia": [
        (
            "chest_xray/test/PNEUMONIA/person2_virus_1.jpeg",
            "chest_xray/test/PNEUMONIA/person2_virus_1.jpeg cannot be read: ",
        ),
        (
            "chest_xray/train/PNEUMONIA/person1_bacteria_2.jpeg",
            "chest_xray/train/PNEUMONIA/person1_bacteria_2.jpeg cannot be read: not an",
        ),
    ],
    "rsna_pneumonia": [("stage_2_train_images/c.dcm", "stage_2_train_images/c.dcm ")],
    "nih_chest_xray": [
        ("images/00000004_000.png", "images/00000004_000.png cannot be read: not an im")
    ],
    "folder": [("f broken.tif", "f broken.tif cannot be read: ")],
    "phantom": [],
}
COMMON = {"image", "label", "group", "view", "path", "sha256"}
FEATURES = {
    "ped_pneumonia": COMMON | {"lung_mask", "lung_box"},
    "rsna_pneumonia": COMMON | {"lesion_boxes"},
    "nih_chest_xray": COMMON | {"lesion_boxes"},
    "folder": COMMON,
    "phantom": COMMON | {"lung_box", "lesion_boxes"},
}


def root_of(name, path):
    write(path, MEMBERS[name])
    return str(path / "films.csv") if name == "folder" else str(path)


def make(name, path, **options):
    """A builder of the tree of that name, which it writes first."""
    if name == "phantom":
        options = {"config": TINY} | options
    options = {"root": root_of(name, path / "raw"), "data_dir": path / "out"} | options
    return builders.BUILDERS[name](**options)


@pytest.fixture(scope="module", params=sorted(MEMBERS))
def stored(request, tmp_path_factory):
    """A data set that was prepared, and the source it was made of."""
    name, path = request.param, tmp_path_factory.mktemp("stored")
    builder = make(name, path)
    builder.download_and_prepare()
    root = path / "raw/films.csv" if name == "folder" else path / "raw"
    return types.SimpleNamespace(
        name=name,
        # As a user asks TFDS for it.
        full_name="phantom/tiny" if name == "phantom" else name,
        out=path / "out",
        builder=builder,
        source=SOURCES[name](str(root)),
        raw=path / "raw",
    )


def stem(name):
    return pathlib.PurePosixPath(name).stem


def by_stem(source):
    return {stem(record.name): i for i, record in enumerate(source.records)}


def test_tfds_gives_what_the_source_reads(stored):
    for split, stems in SPLITS[stored.name].items():
        examples = tfds.data_source(stored.full_name, data_dir=stored.out, split=split)
        assert [stem(example["path"].decode()) for example in examples] == stems
        for example, name in zip(examples, stems, strict=True):
            index = by_stem(stored.source)[name]
            record, read = stored.source.records[index], stored.source.read(index)
            assert set(example) == FEATURES[stored.name]
            assert example["image"].dtype == np.uint8
            expected = np.asarray(read.image)[:, :, None]
            np.testing.assert_array_equal(example["image"], expected)
            assert example["label"] == record.label
            assert example["path"].decode() == record.name
            assert example["group"].decode() == record.group
            assert example["view"].decode() == record.view
            assert example["sha256"].decode() == read.facts.sha256
            if "lung_box" in example:
                np.testing.assert_equal(example["lung_box"], read.facts.lung_box)
            if "lesion_boxes" in example:
                boxes = example["lesion_boxes"]
                np.testing.assert_array_equal(boxes, read.facts.lesion_boxes)
    assert "tensorflow" not in sys.modules


def test_all_splits_at_once(stored):
    everything = tfds.data_source(stored.full_name, data_dir=stored.out)
    lengths = {split: len(examples) for split, examples in everything.items()}
    assert lengths == {s: len(names) for s, names in SPLITS[stored.name].items()}


def test_films_are_those_of_the_files(stored):
    for split in SPLITS[stored.name]:
        for example in tfds.data_source(
            stored.full_name, data_dir=stored.out, split=split
        ):
            name, encoded = example["path"].decode(), example["image"].tobytes()
            if stored.name != "phantom":
                encoded = (stored.raw / name).read_bytes()
                shown = np.asarray(images.open_gray(encoded, name=name))
                np.testing.assert_array_equal(example["image"][:, :, 0], shown)
            assert example["sha256"].decode() == hashlib.sha256(encoded).hexdigest()


def test_films_that_cannot_be_read_are_named(stored):
    found = stored.builder.unreadable
    expected = UNREADABLE[stored.name]
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, reason), (_, start) in zip(found, expected, strict=True):
        assert reason.startswith(start)


def test_classes_and_description(stored):
    info = tfds.builder(stored.full_name, data_dir=stored.out).info
    assert tuple(info.features["label"].names) == stored.source.classes
    assert info.description.startswith(stored.builder.ABOUT.__doc__.split("\n")[0])


def test_the_index_lists_the_films_as_the_source_does(stored):
    rows = prepared.read_index(stored.builder.data_path / "films.jsonl")
    kept = {stem(row.record.name): row for row in rows}
    source = stored.source
    readable = {name for names in SPLITS[stored.name].values() for name in names}
    assert list(kept) == [name for name in by_stem(source) if name in readable]
    for name, row in kept.items():
        assert row.record == source.records[by_stem(source)[name]]
        assert SPLITS[stored.name][row.split][row.position] == name


def test_gray_files_are_kept_byte_for_byte(stored):
    kept = {
        "ped_pneumonia": {"IM-0001-0001", "person1_virus_3"}
        | {"IM-0002-0001", "person2_virus_2"},
        "rsna_pneumonia": set(),
        "nih_chest_xray": {"00000001_000", "00000003_000", "00000005_000"},
        "folder": {"a gray", "e gray"},
        "phantom": set(),
    }[stored.name]
    raw = {"image": tfds.decode.SkipDecoding()}
    for split in SPLITS[stored.name]:
        for example in tfds.data_source(
            stored.full_name, data_dir=stored.out, split=split, decoders=raw
        ):
            name = example["path"].decode()
            if stem(name) in kept:
                assert example["image"] == (stored.raw / name).read_bytes()
            else:
                assert example["image"].startswith(b"\x89PNG")


def test_lungs_and_lesions(tmp_path):
    for name in ("ped_pneumonia", "rsna_pneumonia"):
        make(name, tmp_path).download_and_prepare()
    films = tfds.data_source("ped_pneumonia", data_dir=tmp_path / "out", split="train")
    lungs = np.zeros((20, 30, 1), np.uint8)
    lungs[5:15, 10:20] = 255
    np.testing.assert_array_equal(films[0]["lung_mask"], lungs)
    np.testing.assert_allclose(films[0]["lung_box"], [0.25, 1 / 3, 0.75, 2 / 3])
    # Of no mask: all of the upright film, which is turned, is unknown.
    assert films[1]["image"].shape == films[1]["lung_mask"].shape == (30, 20, 1)
    assert (films[1]["lung_mask"] == 127).all()
    # A mask of which nothing is surely lung.
    np.testing.assert_array_equal(films[3]["lung_mask"], lungs // 255 * 127)
    assert np.isnan(films[1]["lung_box"]).all() and np.isnan(films[3]["lung_box"]).all()
    films = tfds.data_source("rsna_pneumonia", data_dir=tmp_path / "out", split="train")
    boxes = [[0.5, 0.25, 0.75, 0.375], [0, 0.75, 0.125, 0.875]]
    np.testing.assert_array_equal(films[0]["lesion_boxes"], boxes)
    assert films[1]["lesion_boxes"].shape == (0, 4)
    assert [example["view"] for example in films] == [b"AP", b"PA", b"PA"]


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_builders_are_registered(name):
    assert builders.BUILDERS[name].name == name
    assert tfds.builder_cls(name) is builders.BUILDERS[name]


@pytest.mark.parametrize("name", [name for name in MEMBERS if name != "phantom"])
def test_manual_dir_is_the_root(tmp_path, name):
    root = root_of(name, tmp_path / "raw").removesuffix("films.csv")
    if name == "folder":
        root = write(tmp_path / "films", {"ill/1.png": film(0), "well/2.png": film(1)})
    builder = builders.BUILDERS[name](data_dir=tmp_path / "out")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=root)
    )
    films = builder.as_data_source(split="train")
    assert len(films) == (2 if name == "folder" else len(SPLITS[name]["train"]))
    assert films[0]["image"].shape == (20, 30, 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ped_pneumonia", "ChestXRay2017.zip from doi:10.17632/rscbjbr9sj.2"),
        ("rsna_pneumonia", "rsna-pneumonia-detection-challenge.zip from Kaggle"),
        ("nih_chest_xray", "images_001.tar.gz to images_012.tar.gz, Data_Entry_2017"),
        ("folder", "one folder of films for each class, or a CSV file"),
    ],
)
def test_without_films_the_instructions_are_shown(tmp_path, name, said):
    with pytest.raises(AssertionError, match="does not exist or is empty") as caught:
        tfds.data_source(name, data_dir=tmp_path, split="train")
    assert said in str(caught.value)
    assert not list(tmp_path.glob("**/films.jsonl"))


def test_a_film_that_cannot_be_read_stops_on_request(tmp_path):
    builder = make("ped_pneumonia", tmp_path, on_error="stop")
    with pytest.raises(errors.UserError, match="^chest_xray/test/.*person2_virus_1"):
        builder.download_and_prepare()
    assert not list((tmp_path / "out/ped_pneumonia").iterdir())


@pytest.mark.parametrize("reason", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_leaves_nothing_and_is_repeated(tmp_path, reason):
    builder = make("ped_pneumonia", tmp_path)

    def interrupt(done, total):
        assert total == 8
        if done == 6:
            raise reason

    builder.progress = interrupt
    with pytest.raises(reason):
        builder.download_and_prepare()
    assert not list((tmp_path / "out/ped_pneumonia").iterdir())
    calls = []
    builder.progress = lambda *counts: calls.append(counts)
    builder.download_and_prepare()
    assert calls == [(done, 8) for done in range(1, 9)]
    assert [name for name, _ in builder.unreadable] == [
        name for name, _ in UNREADABLE["ped_pneumonia"]
    ]
    assert len(prepared.read_index(builder.data_path / "films.jsonl")) == 6


def test_a_split_of_which_nothing_can_be_read(tmp_path):
    builder = make("ped_pneumonia", tmp_path)
    film = tmp_path / "raw/chest_xray/test/PNEUMONIA/person2_virus_2.jpeg"
    film.write_bytes(b"")
    with pytest.raises(errors.UserError, match="^no film of test can be read; for one"):
        builder.download_and_prepare()
    assert not list((tmp_path / "out/ped_pneumonia").iterdir())


def test_several_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "_SHARD_FILMS", 3)
    monkeypatch.setattr(builders, "_THREADS", 1)
    names = [f"{i:02}.png" for i in range(10)]
    films = {f"a/{name}": film(i) for i, name in enumerate(names)}
    # All of the first shard, and some of the third.
    films |= {f"a/{i:02}.png": b"" for i in (0, 1, 2, 7)}
    write(tmp_path / "raw", films | {"b/1.png": film(11)})
    builder = builders.Folder(root=str(tmp_path / "raw"), data_dir=tmp_path)
    builder.download_and_prepare()
    assert sorted(path.name for path in builder.data_path.glob("*.array_record*")) == [
        f"folder-train.array_record-0000{i}-of-00004" for i in range(4)
    ]
    expected = [f"a/{i:02}.png" for i in (3, 4, 5, 6, 8, 9)] + ["b/1.png"]
    stored = builder.as_data_source(split="train")
    assert [example["path"].decode() for example in stored] == expected
    source = prepared.source(pathlib.Path(builder.data_path))
    assert [record.name for record in source.records] == expected
    for index, name in enumerate(expected):
        encoded = (tmp_path / "raw" / name).read_bytes()
        assert source.read(index).encoded == encoded


def test_films_that_are_stored_are_no_longer_in_memory(tmp_path, monkeypatch):
    files = []

    class Recorded(builders._ReadOnce):
        def __init__(self, data):
            files.append(self)
            super().__init__(data)

    monkeypatch.setattr(builders, "_ReadOnce", Recorded)
    make("ped_pneumonia", tmp_path).download_and_prepare()
    assert len(files) == 12  # six films, six masks
    assert all(file.closed for file in files)


def test_size_is_no_reason_for_tensorflow(tmp_path, monkeypatch):
    # TFDS sorts what exceeds its memory, a gigabyte, in files of TensorFlow's.
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 100)
    builder = make("nih_chest_xray", tmp_path)
    builder.download_and_prepare()
    assert len(builder.as_data_source(split="train")) == 2
    assert "tensorflow" not in sys.modules


def test_names_need_not_be_utf8(tmp_path):
    name = "a/f\udcfcr.png"  # Latin-1, as Python reads it from the disk
    root = write(tmp_path / "raw", {name: film(0), "b/2.png": film(1)})
    builder = builders.Folder(root=str(root), data_dir=tmp_path)
    builder.download_and_prepare()
    assert builder.as_data_source(split="train")[0]["path"] == b"a/f\xfcr.png"
    source = prepared.source(pathlib.Path(builder.data_path))
    assert source.records[0].name == name


def test_rsna_has_a_folder_for_each_of_its_labels(tmp_path):
    default = make("rsna_pneumonia", tmp_path)
    target = make("rsna_pneumonia", tmp_path, config="target")
    for builder in (default, target):
        builder.download_and_prepare()
    out = tmp_path / "out"
    assert default.data_path == out / "rsna_pneumonia/class/1.0.0"
    assert target.data_path == out / "rsna_pneumonia/target/1.0.0"
    labels = {
        name: [int(e["label"]) for e in tfds.data_source(name, data_dir=out)["train"]]
        for name in ("rsna_pneumonia", "rsna_pneumonia/class", "rsna_pneumonia/target")
    }
    assert labels == {
        "rsna_pneumonia": [1, 0, 1],
        "rsna_pneumonia/class": [1, 0, 1],
        "rsna_pneumonia/target": [1, 0, 0, 1],
    }


def test_a_config_chooses_among_the_labels_of_rsna(tmp_path):
    def kinds(folder):
        return {
            labels: [
                record.label
                for record in sources.open_source(
                    DataConfig(
                        name="rsna_pneumonia",
                        root=str(tmp_path / folder),
                        rsna_labels=labels,
                    ),
                    seed=0,
                ).records
            ]
            for labels in ("class", "target")
        }

    make("rsna_pneumonia", tmp_path).download_and_prepare()
    with pytest.raises(
        errors.UserError, match="no prepared rsna_pneumonia target, but"
    ):
        kinds("out")
    make("rsna_pneumonia", tmp_path, config="target").download_and_prepare()
    assert kinds("out") == {"class": [1, 0, 1], "target": [1, 0, 0, 1]}
    # What was prepared is without the film that cannot be read.
    assert kinds("raw") == {"class": [1, 0, 0, 1], "target": [1, 0, 0, 0, 1]}


def test_phantoms_of_each_quality(tmp_path):
    assert sorted(builders.Phantom.builder_configs) == ["high", "low", "medium"]
    default = builders.Phantom(data_dir=tmp_path)
    assert default.builder_config.name == default.variant == "low"
    assert default.data_path == tmp_path / "phantom/low/1.0.0"
    source = builders.Phantom(data_dir=tmp_path, config="high").open("")
    assert len(source.records) == 3900
    drawn = phantom.make(3899, seed=0, quality="high", size=128)
    np.testing.assert_array_equal(np.asarray(source.read(3899).image), drawn.image)


def prepare(*arguments):
    return command.main(["prepare", *map(str, arguments)])


def lines(capsys):
    """What was printed, without the borders of tables."""
    said = capsys.readouterr()
    assert said.err == ""
    return [" ".join(line.replace("│", " ").split()) for line in said.out.splitlines()]


def test_another_hospital_is_not_taken_for_the_first(tmp_path, capsys):
    first, out = root_of("folder", tmp_path / "raw"), tmp_path / "out"
    folder = shutil.copytree(tmp_path / "raw", tmp_path / "other")
    other = folder / pathlib.Path(first).name
    assert prepare("folder", "--root", first, "--out", out) == 0
    assert prepare("folder", "--root", first, "--out", out) == 0  # is there already
    with pytest.raises(errors.UserError, match="holds the films of .*choose another"):
        prepare("folder", "--root", other, "--out", out)
    inside = folder / "prepared"
    with pytest.raises(errors.UserError, match="prepared lies among the films"):
        prepare("folder", "--root", folder, "--out", inside)
    assert not inside.exists()
    with pytest.raises(errors.UserError, match="--out is missing"):
        prepare("folder", "--root", other)
    capsys.readouterr()


def test_brackets_of_a_class_are_no_markup(tmp_path, capsys):
    films = ["path,label"]
    for row, label in enumerate(["pneumonia [viral]", "x [/old]"]):
        Image.new("L", (20, 20), 40 + row).save(tmp_path / f"{row}.png")
        films.append(f"{row}.png,{label}")
    root = tmp_path / "films.csv"
    root.write_text("\n".join(films))
    assert prepare("folder", "--root", root, "--out", tmp_path / "out") == 0
    said = " ".join(lines(capsys))
    assert "[viral]" in said and "x [/old]" in said


def test_the_command_prints_counts_beside_the_published(tmp_path, capsys):
    root, out = root_of("ped_pneumonia", tmp_path / "raw"), tmp_path / "the out"
    assert prepare("ped_pneumonia", "--root", root, "--out", out) == 0
    said = lines(capsys)
    assert said[:8] == [f"ped_pneumonia films {n}/8" for n in range(1, 9)]
    assert said[8] == "Left out 2 films that cannot be read:"
    for line, (_, reason) in zip(said[9:11], UNREADABLE["ped_pneumonia"], strict=True):
        assert line.startswith(reason)
    rows = [line for line in said if line.startswith(("train", "val", "test", "all"))]
    assert rows == [
        "train 2/1341 1/2530 1/1345 4",
        "validation 1/8 0/8 0/0 1",
        "test 0/234 0/242 1/148 1",
        "all 3/1583 1/2780 2/1493 6",
    ]
    assert said[-4:] == [
        "5 patients",
        "N/M: N are stored of M published",
        f"Everything is in {out}/ped_pneumonia/1.0.0.",
        "Next: python -m hapre_jax.train --config configs/ped_pneumonia.py --data.name "
        f"ped_pneumonia --data.root '{out}' --workdir runs/ped_pneumonia",
    ]
    name = "unreadable.csv"
    listed = (out / "ped_pneumonia/1.0.0" / name).read_text().splitlines()
    assert listed[0] == "path,reason" and len(listed) == 3
    assert prepare("ped_pneumonia", "--root", root, "--out", out) == 0
    again = lines(capsys)
    assert again[0] == (
        f"{out}/ped_pneumonia/1.0.0 is there already; delete it to prepare it anew."
    )
    assert again[1] == f"Films that are left out: {out}/ped_pneumonia/1.0.0/{name}"
    assert again[2:] == said[11:]


@pytest.mark.parametrize(
    ("arguments", "title", "rows", "caption"),
    [
        (
            ("nih_chest_xray",),
            "nih_chest_xray",
            ["train 2 0 2", "test 0 2 2", "all 2/60361 2/1431 4"],
            "each film on its own",
        ),
        (
            ("rsna_pneumonia",),
            "rsna_pneumonia class",
            ["train 1/8851 2/6012 3", "all 1/8851 2/6012 3"],
            "each film on its own",
        ),
        (
            ("rsna_pneumonia", "--variant", "target"),
            "rsna_pneumonia target",
            ["train 2/20672 2/6012 4", "all 2/20672 2/6012 4"],
            "each film on its own",
        ),
        (
            ("folder",),
            "folder",
            ["train 2 1 3", "test 0 2 2", "all 2 3 5"],
            "4 patients",
        ),
    ],
)
def test_the_table_of_each_data_set(tmp_path, capsys, arguments, title, rows, caption):
    root = root_of(arguments[0], tmp_path / "raw")
    assert prepare(*arguments, "--root", root, "--out", tmp_path / "out") == 0
    said = lines(capsys)
    assert title in said and caption in said
    assert "Left out 1 film that cannot be read:" in said
    assert [line for line in said if line.startswith(("train", "test", "all"))] == rows
    assert ("--data.rsna_labels target" in said[-1]) == ("target" in arguments)


def test_films_of_no_official_split_are_counted_together(tmp_path, capsys):
    root = write(tmp_path / "raw", {"ill/1.png": film(0), "well/2.png": film(1)})
    assert prepare("folder", "--root", root, "--out", tmp_path / "out") == 0
    said = lines(capsys)
    assert "all 1 1 2" in said
    assert not any(line.startswith("train") for line in said)


def test_phantoms_need_no_root(tmp_path, capsys, monkeypatch):
    low = builders.Phantom.builder_configs["low"]
    monkeypatch.setattr(low, "counts", (3, 3, 3))
    monkeypatch.setattr(low, "size", 16)
    assert prepare("phantom", "--out", tmp_path) == 0
    said = lines(capsys)
    assert "all 3 3 3 9" in said
    assert said[-1] == f"Everything is in {tmp_path}/phantom/low/1.0.0."


def test_a_narrow_window_cuts_nothing_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    root = root_of("ped_pneumonia", tmp_path / "raw")
    prepare("ped_pneumonia", "--root", root, "--out", tmp_path / "out")
    assert "train 2/1341 1/2530 1/1345 4" in lines(capsys)


def test_a_name_that_is_not_utf8_is_printed(tmp_path, capsys):
    films = {"a/f\udcfcr.png": b"", "a/2.png": film(0), "b/3.png": film(1)}
    root = write(tmp_path / "raw", films)
    assert prepare("folder", "--root", root, "--out", tmp_path / "out") == 0
    assert r"a/f\udcfcr.png cannot be read: not an image" in lines(capsys)
    listed = (tmp_path / "out/folder/1.0.0/unreadable.csv").read_bytes()
    assert b"a/f\xfcr.png," in listed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["ped_pneumonia"],
            "--root is missing. Download ChestXRay2017.zip from doi:10",
        ),
        (["rsna_pneumonia"], "--root is missing. Download rsna-pneumonia-detection-ch"),
        (["nih_chest_xray"], "--root is missing. Download images_001.tar.gz to images"),
        (["folder"], "--root is missing. Give a folder or a zip that holds one folder"),
        (["folder", "--root", "/nowhere"], "/nowhere does not exist: give a folder or"),
        (["folder", "--root", "/nowhere.csv"], "/nowhere.csv does not exist: give a"),
        (["rsna_pneumonia", "--root", "/nowhere"], "/nowhere does not exist: give a"),
        (
            ["rsna_pneumonia", "--root", "x", "--variant", "both"],
            "--variant both is not of rsna_pneumonia, which has: class, target",
        ),
        (
            ["folder", "--root", "x", "--variant", "low"],
            "--variant low is not of folder, which has: none",
        ),
        (["mars"], "argument NAME: invalid choice: 'mars'"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(tmp_path, arguments, said):
    with pytest.raises(errors.UserError) as caught:
        prepare(*arguments, "--out", tmp_path / "out")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("**/films.jsonl"))


def test_a_film_that_cannot_be_read_stops_the_command_on_request(tmp_path):
    root = root_of("nih_chest_xray", tmp_path / "raw")
    out = tmp_path / "out"
    with pytest.raises(errors.UserError, match="^images/00000004_000.png cannot be"):
        prepare("nih_chest_xray", "--root", root, "--out", out, "--on_error", "stop")
    assert not list((out / "nih_chest_xray").iterdir())


def test_where_nothing_can_be_written(tmp_path):
    root, out = root_of("folder", tmp_path / "raw"), tmp_path / "out"
    out.write_text("a file")
    with pytest.raises(errors.UserError) as caught:
        prepare("folder", "--root", root, "--out", out)
    said = f"{out}/folder/1.0.0 cannot be prepared: [Errno 20] Not a directory: "
    assert str(caught.value).startswith(said)


def test_what_a_killed_process_has_left_is_removed(tmp_path):
    root, out = root_of("folder", tmp_path / "raw"), tmp_path / "out"
    left = out / "folder" / "incomplete.06SW8V_1.0.0"
    left.mkdir(parents=True)
    (left / "folder-train.array_record-00000-of-00001").write_bytes(b"half")
    descriptor = os.open(left.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(errors.UserError) as caught:
        prepare("folder", "--root", root, "--out", out)
    assert str(caught.value) == (
        f"another process prepares {out}/folder/1.0.0; wait until it has ended"
    )
    assert left.exists()
    os.close(descriptor)
    prepare("folder", "--root", root, "--out", out)
    assert [path.name for path in (out / "folder").iterdir()] == ["1.0.0"]


def test_a_folder_without_its_index_is_not_taken_for_finished(tmp_path):
    root, out = root_of("folder", tmp_path / "raw"), tmp_path / "out"
    prepare("folder", "--root", root, "--out", out)
    (out / "folder/1.0.0/films.jsonl").unlink()
    with pytest.raises(errors.UserError) as caught:
        prepare("folder", "--root", root, "--out", out)
    said = f"{out}/folder/1.0.0 has lost its films.jsonl: delete the folder"
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("name", "missing", "left_out", "warned"),
    [
        ("folder", [], "f broken.tif", ""),
        (
            "rsna_pneumonia",
            ["stage_2_train_images/a.dcm"],
            "stage_2_train_images/c.dcm",
            "left out 1 of 4 labelled films, which are not in {}: a\n",
        ),
    ],
)
def test_tfds_is_silent_in_a_real_process(tmp_path, name, missing, left_out, warned):
    root = root_of(name, tmp_path / "raw")
    for film_name in missing:
        (tmp_path / "raw" / film_name).unlink()
    words = ["-m", "hapre_jax.data", "prepare", name, "--root", root]
    done = subprocess.run(
        [sys.executable, *words, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, warned.format(root))
    total = 6 - 3 * len(missing)
    said = done.stdout.splitlines()
    assert said[: total + 1] == [
        *(f"{name} films {n}/{total}" for n in range(1, total + 1)),
        "Left out 1 film that cannot be read:",
    ]
    assert said[total + 1].startswith(f"  {left_out} ")
    assert said[total + 2].strip().startswith(name)
