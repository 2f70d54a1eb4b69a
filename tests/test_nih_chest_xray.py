"""Small copies of NIH's collection, with real image files."""

import collections
import io
import logging
import os
import pickle
import zipfile

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from hapre_jax import errors
from hapre_jax.data import dataset, nih_chest_xray

NORMAL, PNEUMONIA = 0, 1

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = """
00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143
00000001_001.png,No Finding,1,1,58,M,PA,2894,2729,0.143,0.143
00000002_000.png,Infiltration|Pneumonia,0,2,80,M,AP,2500,2048,0.171,0.171
00000003_000.png,Pneumonia,0,3,74,F,PA,2500,2048,0.168,0.168
00030805_004.png,No Finding,4,30805,3,F,AP,2048,2500,0.168,0.168
"""
ENTRIES = HEADER + ROWS
BOXES = """\
Image Index,Finding Label,Bbox [x,y,w,h],,,
00000001_000.png,Cardiomegaly,225.0,547.0,86.0,79.0,,,
00000002_000.png,Pneumonia,256.0,512.0,128.0,256.0,,,
00000002_000.png,Infiltrate,1.0,2.0,3.0,4.0,,,
00000002_000.png,Pneumonia,768.0,-64.0,512.0,192.0,,,
00009999_000.png,Pneumonia,1.0,2.0,3.0,4.0,,,
"""
# The second box leaves the film at the top and on the right.
EXPECTED_BOXES = {
    "00000002_000": [[0.5, 0.25, 0.75, 0.375], [0, 0.75, 0.125, 1]],
}
TRAIN = "00000001_000.png\n00000001_001.png\n00000003_000.png\n"
TEST = "00000002_000.png\n00009999_000.png\n"
EXPECTED = [
    ("00000001_001", NORMAL, "00000001", "PA", "train"),
    ("00000002_000", PNEUMONIA, "00000002", "AP", "test"),
    ("00000003_000", PNEUMONIA, "00000003", "PA", "train"),
    ("00030805_004", NORMAL, "00030805", "AP", ""),  # in neither list
]

GRAY = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (20, 1))  # 20 rows, 24 columns


def encoded(kind="PNG", mode="L"):
    buffer = io.BytesIO()
    Image.fromarray(GRAY).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def images(*folders, suffix=".png"):
    """The films, in turn in one of the folders."""
    stems = ["00000001_000", *(row[0] for row in EXPECTED)]
    return {
        f"{folders[i % len(folders)]}{stem}{suffix}": encoded(
            # Some of the published files are in color.
            mode="RGBA" if stem == "00000003_000" and suffix == ".png" else "L",
            kind="PNG" if suffix == ".png" else "JPEG",
        )
        for i, stem in enumerate(stems)
    }


def tables(entries=ENTRIES, boxes=BOXES, train=TRAIN, test=TEST, v2017=None):
    texts = {
        "Data_Entry_2017_v2020.csv": entries,
        "Data_Entry_2017.csv": v2017,
        "BBox_List_2017.csv": boxes,
        "train_val_list.txt": train,
        "test_list.txt": test,
    }
    return {name: text.encode() for name, text in texts.items() if text is not None}


def write(root, members):
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def one_folder(path):
    return write(path, images("images/") | tables())


def as_published(path):
    return write(path, images("images_001/images/", "images_002/images/") | tables())


def deep_in_a_zip(path):
    members = images("x/CXR8/images/images/") | tables()
    members = {n if "/" in n else f"x/CXR8/{n}": data for n, data in members.items()}
    return write_zip(path / "any.zip", members)


def tables_beside_the_zip(path):
    write(path, tables())
    write_zip(path / "images.zip", images(""))
    return path


def tables_beside_the_named_zip(path):
    return tables_beside_the_zip(path) / "images.zip"


def resized_copy(path):
    return write(path, images("small/", suffix=".jpg") | tables())


def of_2017(path):
    """The first edition: lines end in an empty column."""
    v2017 = ENTRIES.replace("\n", ",\n")
    return write(path, images("images/") | tables(entries=None, v2017=v2017))


LAYOUTS = [
    one_folder,
    as_published,
    deep_in_a_zip,
    tables_beside_the_zip,
    tables_beside_the_named_zip,
    resized_copy,
    of_2017,
]


def stem(record):
    return record.name.rpartition("/")[2].partition(".")[0]


@pytest.mark.parametrize("make", LAYOUTS)
def test_every_layout_gives_the_same_films(tmp_path, make, caplog):
    source = nih_chest_xray.source(str(make(tmp_path)))
    assert source.name == "nih_chest_xray"
    assert source.classes == ("normal", "pneumonia")
    assert not source.is_divided
    by_film = sorted(source.records, key=stem)
    assert [(stem(record), *record[1:]) for record in by_film] == EXPECTED
    assert all(isinstance(record, dataset.Record) for record in source.records)
    copy = pickle.loads(cloudpickle.dumps(source))
    for index, record in enumerate(source.records):
        for read in (source.read, copy.read):
            film = read(index)
            assert (film.facts.height, film.facts.width) == (20, 24)
            np.testing.assert_allclose(np.asarray(film.image).astype(int), GRAY, atol=6)
            boxes = film.facts.lesion_boxes
            expected = np.reshape(EXPECTED_BOXES.get(stem(record), []), (-1, 4))
            np.testing.assert_array_equal(boxes, expected)
            assert boxes.dtype == np.float32
    assert not caplog.records


@pytest.mark.parametrize(
    ("findings", "label"),
    [
        ("No Finding", NORMAL),
        ("Pneumonia", PNEUMONIA),
        ("Edema|Pneumonia", PNEUMONIA),
        ("Pneumonia|Edema", PNEUMONIA),
        ("Edema", None),
        ("No Finding|Edema", None),
        ("Edema|Pneumothorax", None),
        ("Pneumonia-like", None),
        ("", None),
    ],
)
def test_findings(findings, label):
    assert nih_chest_xray.parse_findings(findings) == label


@pytest.mark.parametrize(
    ("corner", "box"),
    [
        (("256", "512.0", "128", "64"), [0.5, 0.25, 0.5625, 0.375]),
        (("-512", "0", "1024", "2048"), [0, 0, 1, 0.5]),
        (("1000", "0", "0", "10"), None),
        (("1000", "0", "-5", "10"), None),
        (("1024", "0", "5", "10"), None),
        (("", "", "", ""), None),
        (("1", "2", "3", ""), None),
        (("1", "2", "nan", "4"), None),
        (("1", "two", "3", "4"), None),
    ],
)
def test_boxes_are_fractions_of_the_published_film(corner, box):
    found = nih_chest_xray.parse_box(*corner)
    if box is None:
        assert found is None
    else:
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, box)


def test_the_later_edition_wins(tmp_path):
    older = ENTRIES.replace("No Finding", "Pneumonia")
    root = write(tmp_path, images("images/") | tables(v2017=older))
    labels = [record.label for record in nih_chest_xray.source(str(root)).records]
    assert labels == [NORMAL, PNEUMONIA, PNEUMONIA, NORMAL]


def test_lists_and_boxes_are_optional(tmp_path):
    members = images("images/") | tables(boxes=None, train=None, test=None)
    source = nih_chest_xray.source(str(write(tmp_path, members)))
    assert [record.official for record in source.records] == [""] * 4
    assert all(not len(source.read(i).facts.lesion_boxes) for i in range(4))


def test_a_partial_download_is_warned_of(tmp_path, caplog):
    members = {"images_001/images/00000001_001.png": encoded()} | tables()
    members |= {"images_001/images/00000007_000.png": encoded()}
    members |= {"figures/overview.png": encoded()}  # no film by its name
    root = write(tmp_path, members)
    with caplog.at_level(logging.WARNING):
        source = nih_chest_xray.source(str(root))
    assert [stem(record) for record in source.records] == ["00000001_001"]
    assert [record.message for record in caplog.records] == [
        f"left out 3 of 4 labelled films, which are not in {root}: 00000002_000, "
        "00000003_000, 00030805_004",
        f"left out 1 of 2 films in {root}, which have no label: 00000007_000",
    ]


def test_only_the_films_at_hand_have_to_be_divided_by_patient(tmp_path):
    members = images("images/") | tables(train=TRAIN + "00009999_001.png\n")
    assert len(nih_chest_xray.source(str(write(tmp_path, members))).records) == 4


SECOND_ROW = "00000001_001.png,Edema,1,1,58,M,PA,2894,2729,0.143,0.143\n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"entries": None},
            "holds neither Data_Entry_2017_v2020.csv nor Data_Entry_2017.csv, which",
        ),
        (
            {"entries": ENTRIES.replace("View Position", "View")},
            "Data_Entry_2017_v2020.csv of .* has the columns .*, not Image Index,Findi",
        ),
        (
            {"entries": ENTRIES.replace(",30805,", ",30806,")},
            "says that 00030805_004.png shows patient '30806'; its name says 00030805",
        ),
        (
            {"entries": ENTRIES.replace(",30805,", ",,")},
            "says that 00030805_004.png shows patient ''; its name says 00030805",
        ),
        (
            {"entries": ENTRIES.replace("00000003_000.png", "3.png")},
            "Data_Entry_2017_v2020.csv lists '3.png', which is no name of a film",
        ),
        (
            {"entries": ENTRIES + SECOND_ROW},
            "has two rows for 00000001_001.png that contradict each other: .*No Findin",
        ),
        ({"test": None}, "no test_list.txt: give both train_val_list.txt and test_li"),
        ({"train": None}, "holds no train_val_list.txt: give both"),
        (
            {"test": TEST + "00000003_000.png"},
            "patient 00000003 is in both train_val_list.txt and test_list.txt: the pu",
        ),
        (
            {"boxes": BOXES.replace("Bbox [x", "x")},
            "BBox_List_2017.csv of .* has the columns .*, not Image Index,Finding Lab",
        ),
        (
            {"boxes": BOXES.replace("256.0,512.0,128.0", "256.0,512.0,0")},
            "BBox_List_2017.csv gives 00000002_000.png the box 256.0,512.0,0,256.0: ex",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, said):
    root = write(tmp_path, images("images/") | tables(**changes))
    with pytest.raises(errors.UserError, match=said) as caught:
        nih_chest_xray.source(str(root))
    assert "\n" not in str(caught.value)


def test_films_of_one_patient_may_not_be_divided(tmp_path):
    # Two films at hand of one patient, one in each list.
    entries = ENTRIES.replace("Cardiomegaly", "No Finding")
    train, test = "00000001_000.png", "00000001_001.png"
    members = images("images/") | tables(entries, train=train, test=test)
    with pytest.raises(errors.UserError, match="patient 00000001 is in both"):
        nih_chest_xray.source(str(write(tmp_path, members)))


def test_none_of_the_labelled_films(tmp_path):
    root = write(tmp_path, {"images/00000001_000.png": encoded()} | tables())
    with pytest.raises(
        errors.UserError,
        match="none of the labelled films: 00000001_001, 00000002_000, 00000003_000 an",
    ):
        nih_chest_xray.source(str(root))


def test_a_film_in_two_sizes(tmp_path):
    root = write(tmp_path, images("images/") | tables())
    write(root, images("small/", suffix=".jpg"))
    with pytest.raises(
        errors.UserError,
        match="film 00000001_000 twice, as images/00000001_000.png and small/00000001",
    ):
        nih_chest_xray.source(str(root))


def test_the_real_films():
    root = os.environ.get("HAPRE_NIH_CHEST_XRAY")
    if not root:
        pytest.skip("HAPRE_NIH_CHEST_XRAY does not name a folder with NIH's films")
    source = nih_chest_xray.source(root)
    counts = collections.Counter(record.label for record in source.records)
    normal, pneumonia = nih_chest_xray.OFFICIAL_COUNTS["all"]
    assert 0 < counts[NORMAL] <= normal and 0 < counts[PNEUMONIA] <= pneumonia
    assert {record.view for record in source.records} == {"PA", "AP"}
    assert min(source.read(0).image.size) >= 16
