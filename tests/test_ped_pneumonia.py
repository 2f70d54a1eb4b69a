import collections
import io
import os
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from hapre_jax import errors
from hapre_jax.data import dataset, ped_pneumonia, reader

NORMAL, BACTERIAL, VIRAL = 0, 1, 2


@pytest.mark.parametrize(
    ("name", "label", "group"),
    [
        ("PNEUMONIA/person23_bacteria_78.jpeg", BACTERIAL, "bacteria:person23"),
        ("PNEUMONIA/person1_virus_6.jpeg", VIRAL, "virus:person1"),
        ("PNEUMONIA/person1000_bacteria_2931.jpeg", BACTERIAL, "bacteria:person1000"),
        ("NORMAL/IM-0115-0001.jpeg", NORMAL, "normal:IM-0115"),
        ("NORMAL/NORMAL2-IM-0285-0001.jpeg", NORMAL, "normal:NORMAL2-IM-0285"),
        # Irregular: one of this kind, ...
        ("PNEUMONIA/person447_virus_921_1.jpeg", VIRAL, "virus:person447"),
        # ... 84 of this, ...
        ("NORMAL/IM-0429-0001-0002.jpeg", NORMAL, "normal:IM-0429"),
        # ... and 59 of this.
        ("NORMAL/NORMAL2-IM-1440-0001-0001.jpeg", NORMAL, "normal:NORMAL2-IM-1440"),
        # Mendeley version 3.
        (
            "PNEUMONIA/BACTERIA-1008087-0001.jpeg",
            BACTERIAL,
            "bacteria:BACTERIA-1008087",
        ),
        ("PNEUMONIA/VIRUS-8723-0002.jpeg", VIRAL, "virus:VIRUS-8723"),
        ("NORMAL/NORMAL-28501-0001.jpeg", NORMAL, "normal:NORMAL-28501"),
    ],
)
def test_names(name, label, group):
    for prefix in ("", "chest_xray/train/", "chest_xray/chest_xray/test/"):
        assert ped_pneumonia.parse_name(prefix + name) == (label, group)


def test_same_number_of_another_kind_is_another_group():
    parse = ped_pneumonia.parse_name
    bacterial = parse("PNEUMONIA/person1_bacteria_1.jpeg")
    viral = parse("PNEUMONIA/person1_virus_6.jpeg")
    first = parse("NORMAL/IM-0001-0001.jpeg")
    second = parse("NORMAL/NORMAL2-IM-0001-0001.jpeg")
    assert len({bacterial[1], viral[1], first[1], second[1]}) == 4


@pytest.mark.parametrize(
    "name",
    [
        "PNEUMONIA/person1_fungus_1.jpeg",
        "PNEUMONIA/person_bacteria_1.jpeg",
        "PNEUMONIA/person1_bacteria.jpeg",
        "NORMAL/IM-0001.jpeg",
        "NORMAL/thumbnail.jpeg",
    ],
)
def test_names_that_say_nothing(name):
    with pytest.raises(errors.UserError, match=f"{name} is not a Ped-Pneumonia"):
        ped_pneumonia.parse_name(f"{name}")


@pytest.mark.parametrize(
    "name",
    [
        "NORMAL/person1_virus_6.jpeg",
        "PNEUMONIA/IM-0115-0001.jpeg",
        "PNEUMONIA/NORMAL-1-1.jpeg",
        "elsewhere/IM-0115-0001.jpeg",
    ],
)
def test_folder_must_agree_with_name(name):
    with pytest.raises(errors.UserError, match="by its name but lies in folder"):
        ped_pneumonia.parse_name(name)


TREE = (
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
    "test/PNEUMONIA/person1_virus_6.jpeg",
)
RECORDS = [
    (VIRAL, "virus:person1"),
    (NORMAL, "normal:IM-0115"),
    (BACTERIAL, "bacteria:person1"),
    (BACTERIAL, "bacteria:person1946"),
]


def write(root, names, data=b"x"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path, names, data=b"x"):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, data)
    return path


def prefixed(*prefixes):
    return [prefix + name for prefix in prefixes for name in TREE]


def the_tree(path):
    return write(path / "chest_xray", TREE)


def its_parent(path):
    write(path / "chest_xray", TREE)
    return path


def kaggle_zip(path):
    names = prefixed(
        "chest_xray/", "chest_xray/chest_xray/", "chest_xray/__MACOSX/chest_xray/._"
    )
    names += ["chest_xray/.DS_Store", "chest_xray/train/.DS_Store"]
    return write_zip(path / "archive.zip", names)


def its_folder(path):
    write_zip(path / "chest_xray.zip", prefixed("chest_xray/"))
    write_zip(path / "chest_xray_lungmasks.zip", prefixed("chest_xray_lungmasks/"))
    return path


def only_nested(path):
    return write(path / "chest_xray", prefixed("chest_xray/"))


def beside_masks(path):
    masks = [name.replace(".jpeg", ".png") for name in TREE]
    write(path, [f"chest_xray_lungmasks/{name}" for name in masks])
    return its_parent(path)


@pytest.mark.parametrize(
    "make", [the_tree, its_parent, kaggle_zip, its_folder, only_nested, beside_masks]
)
def test_every_layout_gives_the_same_records(tmp_path, make):
    tree, records = ped_pneumonia.scan(str(make(tmp_path)))
    assert [(record.label, record.group) for record in records] == RECORDS
    assert all(isinstance(record, dataset.Record) for record in records)
    assert [tree.read(record.name) for record in records] == [b"x"] * 4


def test_nested_copy_gives_way_to_the_outer_one(tmp_path):
    _, records = ped_pneumonia.scan(str(kaggle_zip(tmp_path)))
    assert {record.name.count("chest_xray") for record in records} == {1}


def test_wrong_root_says_what_is_expected(tmp_path):
    write(tmp_path, ["dogs/1.jpeg"])
    with pytest.raises(errors.UserError, match=r"expected chest_xray/\{train,val,test"):
        ped_pneumonia.scan(str(tmp_path))


def mask_png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["folder", "zip", "beside"])
def test_lung_masks(tmp_path, kind):
    mask = np.zeros((10, 20), np.uint8)
    mask[2:5, 4:8] = 255
    mask[3:9, 10:13] = 255
    mask[0, :] = 127  # unknown is not lung
    name = "chest_xray_lungmasks/train/NORMAL/IM-0115-0001.png"
    blank = "chest_xray_lungmasks/train/PNEUMONIA/person1_bacteria_1.png"
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "chest_xray_lungmasks.zip", "w") as archive:
            archive.writestr(name, mask_png(mask))
            archive.writestr(blank, mask_png(np.zeros((4, 4), np.uint8)))
    else:
        write(tmp_path, [name], mask_png(mask))
        write(tmp_path, [blank], mask_png(np.zeros((4, 4), np.uint8)))
    root = tmp_path / "chest_xray" if kind == "beside" else tmp_path
    masks = ped_pneumonia.lung_masks(str(root))
    found = [masks(name) for name in prefixed("chest_xray/")]
    np.testing.assert_array_equal(found[0], mask)
    np.testing.assert_allclose(
        reader.lung_box(found[0]), [2 / 10, 4 / 20, 9 / 10, 13 / 20], rtol=1e-6
    )
    # A blank mask knows no lungs; the last two films have none.
    np.testing.assert_array_equal(reader.lung_box(found[1]), [np.nan] * 4)
    assert not found[1].any() and found[2:] == [None, None]


def test_no_masks_at_all(tmp_path):
    assert ped_pneumonia.lung_masks(str(the_tree(tmp_path))) is None


def test_the_real_films():
    root = os.environ.get("HAPRE_PED_PNEUMONIA")
    if not root:
        pytest.skip("HAPRE_PED_PNEUMONIA does not name a folder with chest_xray.zip")
    tree, records = ped_pneumonia.scan(root)
    counts = collections.Counter(record.label for record in records)
    complete = {NORMAL: 1583, BACTERIAL: 2780, VIRAL: 1493}
    without_held_out = {NORMAL: 1357, BACTERIAL: 2380, VIRAL: 1269}
    assert dict(counts) in (complete, without_held_out)
    stems = {pathlib.PurePosixPath(record.name).stem for record in records}
    assert len(stems) == len(records)
    assert "person447_virus_921_1" in stems
    if dict(counts) == complete:
        # Counted from published file lists: 2,653 and 1,444.
        assert len({record.group for record in records}) == 4097
    film = Image.open(io.BytesIO(tree.read(records[0].name)))
    assert film.format == "JPEG"
    masks = ped_pneumonia.lung_masks(root)
    if masks is not None:
        found = [masks(record.name) for record in records]
        known = np.stack([reader.lung_box(mask) for mask in found if mask is not None])
        assert len(known) == 4859
        assert (known >= 0).all() and (known <= 1).all()
        assert (known[:, :2] < known[:, 2:]).all()
        # The lungs of a chest film: centered, and most of it.
        np.testing.assert_allclose(known.mean(0)[:2] + known.mean(0)[2:], 1, atol=0.1)
