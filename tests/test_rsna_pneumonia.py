"""Small copies of Kaggle's kit, with real DICOM files written by pydicom."""

import collections
import io
import logging
import os
import pickle
import sys
import zipfile

import cloudpickle
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import encaps, uid

from hapre_jax import errors
from hapre_jax.data import dataset, rsna_pneumonia

NORMAL, PNEUMONIA = 0, 1

# A positive film with two boxes, the second of which leaves the film on the right.
LABELS = """\
patientId,x,y,width,height,Target
aa-two,256.0,512.0,128.0,256.0,1
aa-two,768.0,0.0,512.0,128.0,1
bb-well,,,,,0
cc-other,,,,,0
dd-one,0.0,0.0,1024.0,64.0,1
ee-well,,,,,0
"""
CLASS_INFO = """\
patientId,class
aa-two,Lung Opacity
aa-two,Lung Opacity
bb-well,Normal
cc-other,No Lung Opacity / Not Normal
dd-one,Lung Opacity
ee-well,Normal
"""
BOXES = {
    "aa-two": [[0.5, 0.25, 0.75, 0.375], [0, 0.75, 0.125, 1]],
    "bb-well": [],
    "cc-other": [],
    "dd-one": [[0, 0, 0.0625, 1]],
    "ee-well": [],
}
# 24 rows, 32 columns, dark on the left.
PIXELS = np.repeat([[0] * 16 + [255] * 16], 24, axis=0).astype(np.uint8)


def film(encoded=None, **tags):
    """A DICOM file like Kaggle's: 8 bits, of raw pixels or a JPEG of them."""
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header.SOPClassUID = uid.SecondaryCaptureImageStorage
    header.SOPInstanceUID = "1.2.3"
    header.Modality = "CR"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = PIXELS.shape
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    header.PixelRepresentation = 0
    header.PixelData = PIXELS.tobytes()
    if encoded:
        header.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
        header.PixelData = encaps.encapsulate([encoded])
    header["PixelData"].VR = "OB"
    for name, value in tags.items():
        setattr(header, name, value)
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


FILMS = {
    "aa-two": film(jpeg(), ViewPosition="AP"),
    "bb-well": film(ViewPosition="PA"),
    "cc-other": film(ViewPosition="PA"),
    "dd-one": film(PhotometricInterpretation="MONOCHROME1", ViewPosition="AP"),
    "ee-well": film(),  # of a view that nobody says
}


def kit(labels=LABELS, class_info=CLASS_INFO, films=FILMS):
    members = {f"stage_2_train_images/{name}.dcm": data for name, data in films.items()}
    members |= {
        "stage_2_test_images/zz-test.dcm": film(ViewPosition="PA"),
        "stage_2_sample_submission.csv": b"patientId,PredictionString\nzz-test,\n",
        "stage_2_train_labels.csv": labels,
        "stage_2_detailed_class_info.csv": class_info,
    }
    members = {name: data for name, data in members.items() if data is not None}
    return {
        name: data.encode() if isinstance(data, str) else data
        for name, data in members.items()
    }


def write(root, members):
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def nested(members):
    folder = "rsna-pneumonia-detection-challenge"
    return {f"{folder}/{name}": data for name, data in members.items()}


def a_folder(path):
    return write(path, kit())


def nested_folder(path):
    return write(path, nested(kit()))


def a_zip(path):
    return write_zip(path / "any.zip", kit())


def nested_zip(path):
    return write_zip(path / "any.zip", nested(kit()))


def folder_of_its_zip(path):
    write(path, {"elsewhere/scan.png": b"no film of the kit"})
    write_zip(path / "rsna-pneumonia-detection-challenge.zip", kit())
    return path


def tables_beside_the_zip(path):
    write(path, kit(films={}))
    films = kit(labels=None, class_info=None)
    write_zip(path / "rsna-pneumonia-detection-challenge.zip", films)
    return path


LAYOUTS = [
    a_folder,
    nested_folder,
    a_zip,
    nested_zip,
    folder_of_its_zip,
    tables_beside_the_zip,
]


@pytest.mark.parametrize("make", LAYOUTS)
def test_every_layout_gives_the_same_records(tmp_path, make, caplog):
    source = rsna_pneumonia.source(str(make(tmp_path)))
    assert source.name == "rsna_pneumonia"
    assert source.classes == ("normal", "pneumonia")
    prefix = source.records[0].name.removesuffix("stage_2_train_images/aa-two.dcm")
    expected = [
        ("aa-two", PNEUMONIA, "AP"),
        ("bb-well", NORMAL, "PA"),
        ("dd-one", PNEUMONIA, "AP"),
        ("ee-well", NORMAL, ""),
    ]
    assert source.records == [
        dataset.Record(
            f"{prefix}stage_2_train_images/{film}.dcm", label, film, view, "train"
        )
        for film, label, view in expected
    ]
    assert not caplog.records
    assert not source.is_divided


def test_target_keeps_films_that_are_neither(tmp_path):
    root = write(tmp_path, kit(class_info=None))  # which it does not need
    source = rsna_pneumonia.source(str(root), labels="target")
    assert [(record.group, record.label, record.view) for record in source.records] == [
        ("aa-two", PNEUMONIA, "AP"),
        ("bb-well", NORMAL, "PA"),
        ("cc-other", NORMAL, "PA"),
        ("dd-one", PNEUMONIA, "AP"),
        ("ee-well", NORMAL, ""),
    ]


@pytest.mark.parametrize("make", [a_folder, nested_zip])
def test_films_are_read_with_their_boxes(tmp_path, make):
    source = rsna_pneumonia.source(str(make(tmp_path)), labels="target")
    copy = pickle.loads(cloudpickle.dumps(source))
    for index, record in enumerate(source.records):
        for read in (source.read, copy.read):
            found = read(index)
            assert (found.facts.height, found.facts.width) == (24, 32)
            assert found.image.size == (32, 24)
            boxes = found.facts.lesion_boxes
            assert boxes.dtype == np.float32
            expected = np.reshape(BOXES[record.group], (-1, 4))
            np.testing.assert_array_equal(boxes, expected)
            assert found.encoded == FILMS[record.group]
            assert np.isnan(found.facts.lung_box).all() and found.lungs is None
            shown = np.asarray(found.image).astype(int)
            dark = PIXELS if record.group != "dd-one" else 255 - PIXELS
            np.testing.assert_allclose(shown, dark, atol=4)  # a JPEG is among them


def test_a_row_that_is_there_twice_is_harmless(tmp_path):
    labels = LABELS + "bb-well,,,,,0\n"
    root = write(tmp_path, kit(labels, CLASS_INFO + "bb-well,Normal\n"))
    records = rsna_pneumonia.source(str(root)).records
    groups = [record.group for record in records]
    assert groups == ["aa-two", "bb-well", "dd-one", "ee-well"]


def test_tables_with_a_byte_order_mark_and_carriage_returns(tmp_path):
    windows = ["\ufeff" + text.replace("\n", "\r\n") for text in (LABELS, CLASS_INFO)]
    source = rsna_pneumonia.source(str(write(tmp_path, kit(*windows))))
    assert len(source.records) == 4


def test_a_damaged_film_has_no_view_and_is_refused_when_read(tmp_path):
    films = FILMS | {"bb-well": b"not a film", "dd-one": FILMS["dd-one"][:200]}
    source = rsna_pneumonia.source(str(write(tmp_path, kit(films=films))))
    assert [record.view for record in source.records] == ["AP", "", "", ""]
    for index, name in ((1, "bb-well.dcm"), (2, "dd-one.dcm")):
        with pytest.raises(errors.UserError, match=name):
            source.read(index)


def test_missing_and_unlabelled_films_are_warned_of(tmp_path, caplog):
    films = {"aa-two": FILMS["aa-two"], "yy-new": film(), "cc-other": film()}
    root = write(tmp_path, kit(films=films))
    with caplog.at_level(logging.WARNING):
        source = rsna_pneumonia.source(str(root))
    assert [record.group for record in source.records] == ["aa-two"]
    assert [record.message for record in caplog.records] == [
        f"left out 3 of 4 labelled films, which are not in {root}: bb-well, dd-one, "
        "ee-well",
        f"left out 1 of 3 films in {root}, which have no label: yy-new",
    ]


def edited(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"labels": None},
            "holds no stage_2_train_labels.csv: it comes with the films, in Kaggle's",
        ),
        ({"class_info": None}, "holds no stage_2_detailed_class_info.csv: it comes"),
        (
            {"labels": edited(LABELS, "Target", "Finding")},
            r"stage_2_train_labels.csv of .* has the columns .*'Finding'\], not "
            "patientId,x,y,width,height,Target",
        ),
        (
            {"class_info": edited(CLASS_INFO, ",", ":")},
            r"class_info.csv of .* columns \['patientId:class'\], not patientId,class",
        ),
        ({"labels": ""}, "stage_2_train_labels.csv of .* is empty: it needs patientId"),
        (
            {"class_info": edited(CLASS_INFO, "bb-well,Normal", "bb-well,Healthy")},
            "gives bb-well the class 'Healthy': expected Normal, Lung Opacity, No Lung",
        ),
        (
            {"class_info": edited(CLASS_INFO, "aa-two,Lung Opacity", "aa-two,Normal")},
            "gives aa-two two classes, Normal and Lung Opacity",
        ),
        (
            {
                "class_info": edited(
                    CLASS_INFO, "bb-well,Normal", "bb-well,Lung Opacity"
                )
            },
            "gives bb-well the class Lung Opacity, but stage_2_train_labels.csv the "
            "Target 0",
        ),
        (
            {"class_info": edited(CLASS_INFO, "dd-one,Lung Opacity", "dd-one,Normal")},
            "gives dd-one the class Normal, but .* the Target 1",
        ),
        (
            {"class_info": CLASS_INFO + "ff-new,Normal\n"},
            "ff-new is in stage_2_detailed_class_info.csv but not in stage_2_train_lab",
        ),
        (
            {"labels": LABELS + "ff-new,,,,,0\n"},
            "ff-new is in stage_2_train_labels.csv but not in stage_2_detailed_class",
        ),
        (
            {"labels": LABELS + "bb-well,1,2,3,4,1\n"},
            "stage_2_train_labels.csv gives bb-well both Targets, 0 and 1",
        ),
        ({"labels": LABELS + "aa-two,,,,,0\n"}, "gives aa-two both Targets"),
        (
            {"labels": edited(LABELS, "bb-well,,,,,0", "bb-well,,,,,1")},
            "gives bb-well the box ',,,' and the Target '1': 1 has a box inside",
        ),
        (
            {"labels": edited(LABELS, "bb-well,,,,,0", "bb-well,1,2,3,4,0")},
            "gives bb-well the box '1,2,3,4' and the Target '0'",
        ),
        (
            {"labels": edited(LABELS, "bb-well,,,,,0", "bb-well,,,,,2")},
            "gives bb-well the box ',,,' and the Target '2'",
        ),
        (
            {"labels": edited(LABELS, "bb-well,,,,,0", "bb-well,one,2,3,4,1")},
            "gives bb-well the box 'one,2,3,4'",
        ),
        (
            {"labels": edited(LABELS, "bb-well,,,,,0", "bb-well,1,nan,3,4,1")},
            "gives bb-well the box '1,nan,3,4'",
        ),
        (
            {"labels": edited(LABELS, "bb-well,,,,,0", "bb-well,1024,2,3,4,1")},
            "gives bb-well the box '1024,2,3,4'",
        ),
        (
            {"films": {"yy-new": film()}},
            "holds none of the labelled films: aa-two, bb-well, dd-one and 1 more",
        ),
        (
            {"films": FILMS | {"copy/aa-two": film()}},
            "holds film aa-two twice, as stage_2_train_images/aa-two.dcm and "
            "stage_2_train_images/copy/aa-two.dcm: give",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, said):
    with pytest.raises(errors.UserError, match=said) as caught:
        rsna_pneumonia.source(str(write(tmp_path, kit(**changes))))
    assert "\n" not in str(caught.value)


def test_unknown_labels(tmp_path):
    with pytest.raises(errors.UserError, match="'Target' of RSNA is none of class, ta"):
        rsna_pneumonia.source(str(a_folder(tmp_path)), labels="Target")


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    root = a_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(errors.UserError, match=r"pip install 'hapre_jax\[dicom\]'"):
        rsna_pneumonia.source(str(root))


@pytest.mark.parametrize("labels", ["class", "target"])
def test_the_real_films(labels):
    root = os.environ.get("HAPRE_RSNA_PNEUMONIA")
    if not root:
        pytest.skip("HAPRE_RSNA_PNEUMONIA does not name a folder with Kaggle's kit")
    source = rsna_pneumonia.source(root, labels)
    counts = collections.Counter(record.label for record in source.records)
    official = rsna_pneumonia.OFFICIAL_COUNTS[labels]["train"]
    assert (counts[NORMAL], counts[PNEUMONIA]) == official
    views = collections.Counter(record.view for record in source.records)
    if labels == "target":
        assert views == {"PA": 14511, "AP": 12173}
    found = source.read(0)
    assert (found.facts.height, found.facts.width) == (1024, 1024)
