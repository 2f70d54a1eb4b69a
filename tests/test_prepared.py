"""Data sets that were prepared: their index, their reader, and what training sees."""

import concurrent.futures
import dataclasses
import io
import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import cloudpickle
import numpy as np
import pytest
from PIL import Image

from hapre_jax import errors
from hapre_jax.config import DataConfig
from hapre_jax.data import (
    builders,
    dataset,
    images,
    pipeline,
    prepared,
    sources,
    splits,
)

HEADER = prepared.Header("folder", "", ("well", "ill"))
ROWS = [
    prepared.Row(
        "test",
        0,
        dataset.Record("a/1.png", 0, "anna", "PA", "test"),
        dataset.Facts("ab" * 32, 20, 30),
    ),
    prepared.Row(
        "train",
        1,
        # Not UTF-8, a line separator, quotes and a line's end.
        dataset.Record('a/f\udcfc\u2028 "2"\n.png', 1, "Ĝ\udcff"),
        dataset.Facts(
            "cd" * 32,
            4000,
            3,
            np.array((0.1, 1 / 3, 0.7, 1), np.float32),
            np.array(((0, 0.1, 0.2, 0.3), (1 / 7, 0, 1, 1)), np.float32),
        ),
    ),
]


def film(seed, kind="PNG", mode="L", orientation=1):
    """20 rows, 30 columns of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def write(root, members):
    for name, data in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def ped_tree():
    """Films of ten children a class in three folders, most with a mask of the lungs."""
    members = {}
    for i in range(20):
        for label, stem in enumerate(
            (
                f"NORMAL/IM-{i // 2:04}-{i}",
                f"PNEUMONIA/person{i // 2}_bacteria_{i}",
                f"PNEUMONIA/person{i // 2}_virus_{i}",
            )
        ):
            split = ("test", "train", "val", "train")[i // 2 % 4]
            name = f"{split}/{stem}"
            options = ({}, {"mode": "RGB"}, {"orientation": 8})[i % 3]
            members[f"chest_xray/{name}.jpeg"] = film(3 * i + label, "JPEG", **options)
            sides = (30, 20) if i % 3 == 2 else (20, 30)
            mask = np.zeros(sides, np.uint8)
            # Of a few films nobody knows which part is lung.
            mask[5:15, i // 2 : i // 2 + 8] = 127 if i % 5 == 0 else 255
            if i % 4:
                encoded = images.png(Image.fromarray(mask))
                members[f"chest_xray_lungmasks/{name}.png"] = encoded
    members["chest_xray/train/NORMAL/IM-0003-6.jpeg"] = b"not a film"
    return members


def nih_tree():
    """Two films of each of twenty patients, who are of the two lists in turn."""
    entries = ["Image Index,Finding Labels,Patient ID,View Position"]
    boxes = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"]
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    members = {}
    for i in range(40):
        patient = i // 2 + 1
        name = f"{patient:08}_00{i % 2}.png"
        finding = "Pneumonia" if i % 3 == 0 else "No Finding"
        entries.append(f"{name},{finding},{patient},{'AP' if i % 4 else 'PA'}")
        lists[("train_val_list.txt", "test_list.txt")[patient % 2]].append(name)
        if i % 6 == 0:
            boxes.append(f"{name},Pneumonia,{20 * i},100.0,200.0,300.0,,,")
        members[f"images/{name}"] = film(i) if i != 8 else b"not a film"
    tables = {"Data_Entry_2017_v2020.csv": entries, "BBox_List_2017.csv": boxes} | lists
    return members | {
        name: ("\n".join(lines) + "\n").encode() for name, lines in tables.items()
    }


TREES = {"ped_pneumonia": ped_tree, "nih_chest_xray": nih_tree}


def prepare(name, root, out):
    builder = builders.BUILDERS[name](root=str(root), data_dir=out)
    builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


@pytest.fixture(scope="module", params=sorted(TREES))
def pair(request, tmp_path_factory):
    """One data set twice: its config on the files, and as it was prepared."""
    path = tmp_path_factory.mktemp("pair")
    write(path / "raw", TREES[request.param]())
    prepare(request.param, path / "raw", path / "out")
    return tuple(
        DataConfig(name=request.param, root=str(path / folder), image_size=16)
        for folder in ("raw", "out")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set; look, do not touch."""
    path = tmp_path_factory.mktemp("folder")
    films = {f"{name}/{i}.png": film(i) for name in ("ill", "well") for i in range(5)}
    return prepare("folder", write(path / "raw", films), path / "out")


@pytest.fixture
def copy(tmp_path, folder):
    """A copy of it, to be damaged."""
    return pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        everything = np.arange(len(a))
        np.testing.assert_array_equal(a.images[everything], b.images[everything])
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_equal(a.lung_boxes, b.lung_boxes)
        assert (a.lesion_boxes is None) == (b.lesion_boxes is None)
        for x, y in zip(a.lesion_boxes or (), b.lesion_boxes or (), strict=True):
            np.testing.assert_array_equal(x, y)
        for field in ("names", "groups", "classes", "views"):
            assert getattr(a, field) == getattr(b, field)


def test_the_index_keeps_every_field(tmp_path):
    path = tmp_path / "films.jsonl"
    prepared.write_index(path, HEADER, ROWS)
    assert path.read_bytes().isascii()
    assert prepared.read_header(path) == HEADER
    found = prepared.read_index(path)
    assert len(found) == 2
    for row, expected in zip(found, ROWS, strict=True):
        assert row[:3] == expected[:3]
        assert row.facts[:3] == expected.facts[:3]
        for box, wanted in zip(row.facts[3:5], expected.facts[3:5], strict=True):
            assert box.dtype == np.float32 and box.shape == wanted.shape
            np.testing.assert_array_equal(box, wanted)


def write_index(folder, header):
    folder.mkdir(parents=True)
    prepared.write_index(folder / "films.jsonl", header, ROWS)


@pytest.mark.parametrize("root", ["a/folder/1.0.0", "a/folder", "a", "."])
def test_a_prepared_folder_is_found_from_three_levels_above(tmp_path, root):
    write_index(tmp_path / "a/folder/1.0.0", HEADER)
    found = prepared.find(str(tmp_path / root), "folder")
    assert found == tmp_path / "a/folder/1.0.0"


def test_deeper_than_that_nothing_is_found(tmp_path):
    write_index(tmp_path / "a/b/c/d", HEADER)
    assert prepared.find(str(tmp_path), "folder") is None
    assert prepared.find(str(tmp_path / "elsewhere"), "folder") is None


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_index(tmp_path / "x", HEADER)
    assert prepared.find("~/x", "folder") == tmp_path / "x"


def test_of_several_data_sets_the_one_asked_for_is_found(tmp_path):
    for variant in ("class", "target"):
        header = prepared.Header("rsna_pneumonia", variant, ("a", "b"))
        write_index(tmp_path / f"rsna_pneumonia/{variant}/1.0.0", header)
    write_index(tmp_path / "folder/1.0.0", HEADER)
    found = {
        variant: prepared.find(str(tmp_path), "rsna_pneumonia", variant)
        for variant in ("class", "target")
    }
    assert found == {
        variant: tmp_path / f"rsna_pneumonia/{variant}/1.0.0"
        for variant in ("class", "target")
    }
    assert prepared.find(str(tmp_path), "folder") == tmp_path / "folder/1.0.0"


def test_another_data_set_or_variant_is_named(tmp_path):
    header = prepared.Header("rsna_pneumonia", "class", ("a", "b"))
    write_index(tmp_path / "rsna_pneumonia/class/1.0.0", header)
    there = f"but rsna_pneumonia class in {tmp_path}/rsna_pneumonia/class/1.0.0"
    for name, variant, said in (
        ("folder", "", f"{tmp_path} holds no prepared folder, {there}"),
        (
            "rsna_pneumonia",
            "target",
            f"{tmp_path} holds no prepared rsna_pneumonia target, {there}",
        ),
    ):
        with pytest.raises(errors.UserError) as caught:
            prepared.find(str(tmp_path), name, variant)
        assert str(caught.value) == said


def test_two_copies_are_named(tmp_path):
    write_index(tmp_path / "old/folder", HEADER)
    write_index(tmp_path / "new/folder", HEADER)
    with pytest.raises(errors.UserError) as caught:
        prepared.find(str(tmp_path), "folder")
    assert str(caught.value) == (
        f"{tmp_path} holds folder several times: name one of {tmp_path}/new/folder, "
        f"{tmp_path}/old/folder"
    )


def test_a_link_is_no_copy(tmp_path):
    write_index(tmp_path / "folder/1.0.0", HEADER)
    (tmp_path / "folder/latest").symlink_to("1.0.0")
    assert prepared.find(str(tmp_path), "folder") == tmp_path / "folder/1.0.0"


def test_what_a_killed_program_left_is_not_found(tmp_path):
    # TFDS renames a folder when it is finished.
    write_index(tmp_path / "folder/incomplete.AB12CD_1.0.0", HEADER)
    assert prepared.find(str(tmp_path), "folder") is None
    write_index(tmp_path / "folder/1.0.0", HEADER)
    assert prepared.find(str(tmp_path), "folder") == tmp_path / "folder/1.0.0"


def cut(text):
    return text[:-20]


def without_header(text):
    return text.partition("\n")[2]


def without_last_line(text):
    return text[: text.rstrip().rfind("\n") + 1]


def of_another_split(text):
    return text.replace('"split": "train"', '"split": "test"')


def without_boxes(text):
    return text.replace('"lung_box": null, ', "")


def of_lists(text):
    return text.replace("{", "[").replace("}", "]").replace('": ', '", ')


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        without_header,
        without_last_line,
        of_another_split,
        without_boxes,
        of_lists,
        lambda text: "",
        lambda text: "\xff" + text,
    ],
)
def test_a_damaged_index_is_named(copy, damage):
    index = copy / "films.jsonl"
    index.write_text(damage(index.read_text()), encoding="latin-1")
    with pytest.raises(errors.UserError, match="prepare the data set again") as caught:
        prepared.source(copy)
    assert str(caught.value).startswith(f"{index} is damaged (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", [None, "", "{}", "{"])
def test_damaged_files_of_tfds_are_named(copy, name, text):
    (copy / name).unlink()
    if text is not None:
        (copy / name).write_text(text)
    with pytest.raises(errors.UserError, match="prepare .*again"):
        prepared.source(copy)


def all_but_the_start(data):
    return data[:100]


def half(data):
    return data[: len(data) // 2]


def flipped(data):
    """One bit in each place where something is written."""
    return bytes(byte ^ 4 if byte else 0 for byte in data)


@pytest.mark.parametrize(
    "damage", [all_but_the_start, half, flipped, lambda data: b"", None]
)
def test_a_damaged_record_names_the_film(copy, damage):
    (records,) = copy.glob("*.array_record*")
    data = records.read_bytes()
    records.unlink()
    if damage is not None:
        records.write_bytes(damage(data))
    source = prepared.source(copy)
    with pytest.raises(errors.UserError) as caught:
        source.read(6)
    said = f"well/1.png, as prepared in {copy}, cannot be read: "
    assert str(caught.value).startswith(said)


def test_one_damaged_film_does_not_harm_the_others(copy):
    (records,) = copy.glob("*.array_record*")
    data = bytearray(records.read_bytes())
    data[200] ^= 1  # in the first film
    records.write_bytes(data)
    data = DataConfig(
        name="folder",
        root=str(copy),
        image_size=8,
        split_fractions=(0.4, 0.3, 0.3),
    )
    films = pipeline.read(sources.open_source(data, seed=0), data, seed=0)
    assert [film.name for film in films.unreadable] == ["ill/0.png"]
    assert sum(map(len, pipeline.divide(films))) == 9


def test_films_are_what_the_files_hold(folder):
    source = prepared.source(folder)
    assert source.name == "folder" and source.classes == ("ill", "well")
    assert not source.is_divided
    for index, record in enumerate(source.records):
        found = source.read(index)
        encoded = (folder.parents[2] / "raw" / record.name).read_bytes()
        assert found.encoded == encoded
        np.testing.assert_array_equal(found.image, images.open_gray(encoded, name=""))
        assert found.image.mode == "L" and found.lungs is None
        assert found.facts is source.facts[index]


@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_a_source_is_pickled(folder, module):
    source = prepared.source(folder)
    source.read(0)  # its files are open
    copied = module.loads(module.dumps(source))
    assert copied.records == source.records
    for index in range(10):
        assert copied.read(index).encoded == source.read(index).encoded


def test_another_process_reads_a_pickled_source(folder, tmp_path):
    path = tmp_path / "source"
    path.write_bytes(cloudpickle.dumps(prepared.source(folder)))
    code = f"import pickle; print(pickle.load(open({str(path)!r}, 'rb')).read(5).facts)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert prepared.source(folder).facts[5].sha256 in done.stdout


def test_threads_share_a_source(folder):
    expected = [prepared.source(folder).read(index).encoded for index in range(10)]
    source = prepared.source(folder)  # no file is open yet
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda index: source.read(index).encoded, 50 * list(range(10)))
        )
    assert found == 50 * expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"geometry": "cover", "seed": 3},
        {"geometry": "squash", "split_level": "image"},
        {"degrade": "low"},
        {"degrade": "medium", "geometry": "cover", "memory_gib": 0.0},
        {"memory_gib": 0.0},
        {"official_split": True},
    ],
    ids=str,
)
def test_training_sees_what_it_sees_of_the_files(tmp_path, pair, options):
    options = dict(options)
    seed = options.pop("seed", 0)
    loaded = []
    for data in pair:
        data = dataclasses.replace(data, **options)
        loaded.append(pipeline.load(data, seed=seed))
    assert_same(*loaded)
    raw, prepared = map(pipeline.division, loaded)
    assert raw == prepared


def test_a_division_of_the_files_holds_for_what_is_prepared(tmp_path, pair):
    raw, ready = pair
    path = tmp_path / "splits.csv"
    first = pipeline.load(raw, seed=0)
    splits.write(path, pipeline.division(first))
    assert_same(first, pipeline.load(ready, seed=1, splits_file=path))


def test_loading_what_is_not_kept_in_memory_reads_no_film(pair, monkeypatch):
    read, calls = prepared._StoreReader.__call__, []

    def counted(self, index):
        calls.append(index)
        return read(self, index)

    monkeypatch.setattr(prepared._StoreReader, "__call__", counted)
    data = dataclasses.replace(pair[1], memory_gib=0.0)
    loaded = pipeline.load(data, seed=0)
    assert calls == []
    batch = loaded.train.images[np.array((2, 0))]
    assert batch.shape == (2, 16, 16, 1) and len(calls) == 2
    in_memory = pipeline.load(pair[1], seed=0)
    np.testing.assert_array_equal(batch, in_memory.train.images[np.array((2, 0))])


def test_the_index_is_as_json_reads_it(folder):
    header, *lines = (folder / "films.jsonl").read_text().splitlines()
    header = json.loads(header)
    assert pathlib.Path(header.pop("root")).name == "raw"
    assert header == {"name": "folder", "variant": "", "classes": ["ill", "well"]}
    first = json.loads(lines[0])
    assert len(first.pop("sha256")) == 64
    assert first == {
        "split": "train",
        "position": 0,
        "name": "ill/0.png",
        "label": 0,
        "group": "ill/0.png",
        "view": "",
        "official": "",
        "height": 20,
        "width": 30,
        "lung_box": None,
        "lesion_boxes": [],
    }
