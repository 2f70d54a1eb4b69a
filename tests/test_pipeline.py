import contextlib
import csv
import dataclasses
import hashlib
import io
import logging
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hapre_jax import config, errors
from hapre_jax.data import feed, phantom, pipeline, sources, splits

PHANTOMS = config.DataConfig(
    image_size=24, train_images=6, validation_images=3, test_images=3
)


def test_phantoms_of_which_none_is_left_to_test():
    """Two of four a class: now and then none is of the validation, or of the test."""
    data, said = dataclasses.replace(PHANTOMS, draw=(2, 2, 2)), []
    for seed in range(20):
        try:
            pipeline.load(data, seed=seed)
        except errors.UserError as error:
            said.append(str(error))
    assert "no image is left for validation" in said
    assert "no image is left for test" in said


def film_bytes(seed, height=20, width=30, kind="PNG"):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_folder(root, per_class=10, kind="PNG"):
    for label, name in enumerate(("fine", "sick")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            data = film_bytes(100 * label + i, kind=kind)
            (root / name / f"{i}.{kind.lower()}").write_bytes(data)
    return config.DataConfig(name="folder", root=str(root), image_size=8)


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert (a.names, a.groups, a.classes) == (b.names, b.groups, b.classes)
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_equal(a.lung_boxes, b.lung_boxes)


def _read(data):
    return pipeline.read(sources.open_source(data, seed=0), data, seed=0)


def load_and_keep(data, path, *, seed, **arguments):
    """Loads films and writes how they were divided, as a run does."""
    loaded = pipeline.load(data, seed=seed, **arguments)
    splits.write(path, pipeline.division(loaded))
    return loaded


def test_phantoms_are_disjoint_ranges_of_one_series(tmp_path):
    path = tmp_path / "splits.csv"
    loaded = load_and_keep(PHANTOMS, path, seed=5)
    assert [len(part) for part in loaded] == [6, 3, 3]
    assert loaded.test.names == ("phantom-5-9", "phantom-5-10", "phantom-5-11")
    assert loaded.train.classes == phantom.CLASSES
    film = phantom.make(10, seed=5, quality="low", size=24)
    np.testing.assert_array_equal(loaded.test.images[1, :, :, 0], film.image)
    np.testing.assert_array_equal(loaded.test.lung_boxes[1], film.lung_box)
    assert loaded.test.labels[1] == film.label
    assert loaded.train.images.dtype == np.uint8
    assert loaded.train.labels.dtype == np.int32
    assert loaded.train.lung_boxes.dtype == np.float32
    row = splits.read(path)[10]
    digest = hashlib.sha256(film.image.tobytes()).hexdigest()
    assert row == ("phantom-5-10", digest, "bacterial", "phantom-5-10", "test")
    assert_same(loaded, pipeline.load(PHANTOMS, seed=5, splits_file=path))
    with pytest.raises(errors.UserError, match="does not list phantom-6-0"):
        pipeline.load(PHANTOMS, seed=6, splits_file=path)


@pytest.mark.parametrize("threads", [0, 1, 8])
def test_result_is_independent_of_threads(tmp_path, threads):
    write_folder(tmp_path)
    one, many = (
        config.DataConfig(name="folder", root=str(tmp_path), image_size=8, threads=n)
        for n in (2, threads)
    )
    assert_same(pipeline.load(one, seed=0), pipeline.load(many, seed=0))


def test_a_whole_source_is_all_that_can_be_read(tmp_path):
    data = write_folder(tmp_path / "films")
    (tmp_path / "films/fine/3.png").write_bytes(b"no image")
    divided = pipeline.load(data, seed=0)
    images = {
        name: image
        for part in divided
        for name, image in zip(part.names, part.images, strict=True)
    }
    for memory in (4.0, 0.0):
        kept = dataclasses.replace(data, memory_gib=memory)
        whole = pipeline.whole(_read(kept))
        assert set(whole.names) == set(images) and len(whole) == 19
        assert np.bincount(whole.labels).tolist() == [9, 10]
        for row, name in enumerate(whole.names):
            np.testing.assert_array_equal(whole.images[row], images[name])


def test_folder_is_divided_once(tmp_path):
    data = write_folder(tmp_path / "films")
    path = tmp_path / "splits.csv"
    calls = []
    loaded = load_and_keep(
        data, path, seed=0, progress=lambda *counts: calls.append(counts)
    )
    assert calls == [(i, 20) for i in range(1, 21)]
    assert [len(part) for part in loaded] == [14, 2, 4]
    assert [np.bincount(part.labels).tolist() for part in loaded] == [
        [7, 7],
        [1, 1],
        [2, 2],
    ]
    assert loaded.train.classes == ("fine", "sick")
    assert not loaded.train.lungs_known.any()
    assert loaded.train.images.shape == (14, 8, 8, 1)
    # The file decides from now on, whatever the seed.
    assert_same(loaded, pipeline.load(data, seed=1, splits_file=path))
    assert loaded.train.names != pipeline.load(data, seed=1).train.names
    (tmp_path / "films/fine/0.png").write_bytes(film_bytes(999))
    with pytest.raises(errors.UserError, match="sha256 of fine/0.png was"):
        pipeline.load(data, seed=0, splits_file=path)


def test_identical_films_stay_together(tmp_path):
    data = write_folder(tmp_path)
    for i in range(10):
        copy = (tmp_path / f"sick/{i}.png").read_bytes()
        (tmp_path / f"sick/copy of {i}.png").write_bytes(copy)
    for seed in range(5):
        for part in pipeline.load(data, seed=seed):
            mine = [image.tobytes() for image in part.images[part.labels == 1]]
            assert sorted(mine) == sorted(2 * list(set(mine)))


def test_splits_are_parted_without_a_second_copy():
    rng = np.random.default_rng(0)
    for count in (1, 7, 40):
        array = rng.integers(0, 256, (count, 2, 2, 1), np.uint8)
        before, rows = array.copy(), rng.permutation(count)
        rows_of = np.split(rows[: count - count // 5], [count // 3, count // 2])
        parts = pipeline._part(array, rows_of)
        for part, wanted in zip(parts, rows_of, strict=True):
            np.testing.assert_array_equal(part, before[wanted])
            assert part.base is array


def test_unreadable_films_are_left_out_and_named(tmp_path, caplog):
    data = write_folder(tmp_path / "films", kind="JPEG")
    for i in range(5):
        film = tmp_path / f"films/sick/{i}.jpeg"
        film.write_bytes(film.read_bytes()[:200])
    path = tmp_path / "splits.csv"
    with caplog.at_level(logging.WARNING):
        films = _read(data)
        loaded, left_out = pipeline.divide(films), films.unreadable
    splits.write(path, pipeline.division(loaded))
    assert [film.name for film in left_out] == [f"sick/{i}.jpeg" for i in range(5)]
    listed = tmp_path / "unreadable.csv"
    pipeline.write_unreadable(listed, left_out)
    with listed.open(newline="") as file:
        assert list(csv.reader(file))[:2] == [["path", "reason"], list(left_out[0])]
    assert left_out[0].reason.startswith("sick/0.jpeg cannot be read: ")
    assert [record.message for record in caplog.records] == [
        "left out 5 of 20 images that cannot be read: "
        "sick/0.jpeg, sick/1.jpeg, sick/2.jpeg and 2 more",
        "class 'sick' has no validation image",
    ]
    names = sum((part.names for part in loaded), ())
    assert len(names) == 15 and "sick/4.jpeg" not in names
    assert len(splits.read(path)) == 15
    assert_same(loaded, pipeline.load(data, seed=0, splits_file=path))


def test_films_that_are_readable_again_belong_to_no_split(tmp_path, caplog):
    data, path = write_folder(tmp_path / "films"), tmp_path / "run" / "splits.csv"
    names = [f"sick/{i}.png" for i in range(3)]
    intact = {name: (tmp_path / "films" / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / "films" / name).write_bytes(b"half of it")
    films = _read(data)
    before = pipeline.divide(films)
    splits.write(path, pipeline.division(before))
    pipeline.write_unreadable(path.with_name("unreadable.csv"), films.unreadable)
    for name, film in intact.items():
        (tmp_path / "films" / name).write_bytes(film)
    # Of a film that is trained on; in two splits that would be refused.
    (tmp_path / "films/sick/0.png").write_bytes(
        (tmp_path / "films" / before.train.names[0]).read_bytes()
    )
    caplog.clear()
    assert_same(pipeline.load(data, seed=0, splits_file=path), before)
    assert [record.message for record in caplog.records][:1] == [
        f"left out 3 images that could not be read when {path} was made, so belong to "
        f"no split: {', '.join(names)}"
    ]
    path.with_name("unreadable.csv").write_text("path,reason\nsick/0.png,damaged\n")
    with pytest.raises(errors.UserError, match="splits.csv does not list sick/1.png:"):
        pipeline.load(data, seed=0, splits_file=path)


def test_unreadable_film_stops_on_request(tmp_path):
    write_folder(tmp_path / "films")
    (tmp_path / "films/fine/3.png").write_bytes(b"no image")
    data = config.DataConfig(
        name="folder", root=str(tmp_path / "films"), image_size=8, on_error="stop"
    )
    with pytest.raises(errors.UserError, match="fine/3.png cannot be read"):
        pipeline.load(data, seed=0)


def test_class_without_a_readable_film(tmp_path):
    data = write_folder(tmp_path)
    for film in (tmp_path / "sick").iterdir():
        film.write_bytes(b"")
    with pytest.raises(
        errors.UserError, match="class 'sick' has no readable image.*sick/0.png"
    ):
        pipeline.load(data, seed=0)


def test_class_without_a_training_film(tmp_path):
    write_folder(tmp_path)
    data = config.DataConfig(
        name="folder",
        root=str(tmp_path),
        image_size=8,
        split_fractions=(0.1, 0.1, 0.8),
    )
    for i in range(1, 10):
        (tmp_path / f"sick/{i}.png").unlink()
    with pytest.raises(errors.UserError, match="class 'sick' has no training image"):
        pipeline.load(data, seed=0)


def test_class_without_a_test_film_is_said(tmp_path, caplog):
    data = write_folder(tmp_path)
    (tmp_path / "rare").mkdir()
    (tmp_path / "rare" / "0.png").write_bytes(film_bytes(999))
    for seed in range(20):  # until its one film is trained on
        caplog.clear()
        with contextlib.suppress(errors.UserError):
            pipeline.load(data, seed=seed)
            break
    assert caplog.messages == [
        f"class 'rare' has no {part} image" for part in ("validation", "test")
    ]


def test_the_same_film_in_two_classes_is_said(tmp_path, caplog):
    data = write_folder(tmp_path)
    for name in ("3.png", "5.png"):
        (tmp_path / "sick" / name).write_bytes((tmp_path / "fine" / name).read_bytes())
    copy = (tmp_path / "fine" / "3.png").read_bytes()
    (tmp_path / "fine" / "30.png").write_bytes(copy)
    pipeline.load(data, seed=0)
    assert caplog.messages == [
        "2 image(s) are in two classes, byte for byte: the first one as fine/30.png "
        "and sick/3.png"
    ]


def ped_pneumonia_tree(root):
    """Two films for each of ten groups a kind; lung masks for the bacterial ones."""
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:20] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    for i in range(20):
        for name in (
            f"NORMAL/IM-{i // 2:04}-{i}",
            f"PNEUMONIA/person{i // 2}_bacteria_{i}",
            f"PNEUMONIA/person{i // 2}_virus_{i}",
        ):
            film = root / f"chest_xray/train/{name}.jpeg"
            film.parent.mkdir(parents=True, exist_ok=True)
            film.write_bytes(film_bytes(len(name) * 100 + i, 20, 40, "JPEG"))
            if "bacteria" in name:
                path = root / f"chest_xray_lungmasks/train/{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("geometry", "box"),
    [
        ("squash", (0.25, 0.25, 0.75, 0.5)),
        ("letterbox", (0.375, 0.25, 0.625, 0.5)),
        ("cover", (0.25, 0.0, 0.75, 0.5)),  # columns 10..30 are kept
    ],
)
def test_lung_masks_become_boxes_of_the_stored_frame(tmp_path, geometry, box):
    ped_pneumonia_tree(tmp_path)
    data = config.DataConfig(
        name="ped_pneumonia", root=str(tmp_path), image_size=16, geometry=geometry
    )
    loaded = pipeline.load(data, seed=0)
    assert loaded.train.classes == ("normal", "bacterial", "viral")
    assert [len(part) for part in loaded] == [42, 6, 12]
    for part in loaded:
        bacterial = part.labels == 1
        np.testing.assert_allclose(part.lung_boxes[bacterial] - box, 0, atol=1e-6)
        assert np.isnan(part.lung_boxes[~bacterial]).all()
    assert not set(loaded.train.groups) & set(loaded.test.groups)


@pytest.mark.parametrize("geometry", ["letterbox", "squash", "cover"])
def test_degraded_films_keep_their_lungs(tmp_path, geometry):
    ped_pneumonia_tree(tmp_path)
    data = config.DataConfig(
        name="ped_pneumonia",
        root=str(tmp_path),
        image_size=32,
        geometry=geometry,
        degrade="low",
    )
    first, again = pipeline.load(data, seed=0), pipeline.load(data, seed=0)
    other = pipeline.load(data, seed=1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.lung_boxes, b.lung_boxes)
        known = np.isfinite(a.lung_boxes[:, 0])
        np.testing.assert_array_equal(known, a.labels == 1)
        sides = a.lung_boxes[known][:, 2:] - a.lung_boxes[known][:, :2]
        # The mask is half of the film's height and a quarter of its width.
        assert (sides > 0.05).all() and (sides < 0.55).all()
    assert np.ptp(first.train.lung_boxes[first.train.labels == 1], axis=0).min() > 0.1
    both = set(first.train.names) & set(other.train.names)
    name = sorted(both)[0]
    mine, theirs = (
        part.images[part.names.index(name)] for part in (first.train, other.train)
    )
    assert (mine != theirs).any()


def nih_tree(root):
    """Ten normal films and ten with a lesion in the upper half, of PA and of AP."""
    entries = ["Image Index,Finding Labels,Patient ID,View Position"]
    boxes = ["Image Index,Finding Label,Bbox [x,y,w,h]"]
    for i in range(20):
        name, findings = f"{i:08}_000.png", "Pneumonia" if i % 2 else "No Finding"
        entries.append(f"{name},{findings},{i},{'AP' if i % 4 < 2 else 'PA'}")
        if i % 2:
            boxes.append(f"{name},Pneumonia,256,128,512,256")
        (root / name).write_bytes(film_bytes(i, 64, 64))
    (root / "Data_Entry_2017.csv").write_text("\n".join(entries))
    (root / "BBox_List_2017.csv").write_text("\n".join(boxes))
    return config.DataConfig(name="nih_chest_xray", root=str(root), image_size=32)


def test_lesions_and_views_reach_every_split(tmp_path):
    loaded = pipeline.load(nih_tree(tmp_path), seed=0)
    for part in loaded:
        for label, lesions in zip(part.labels, part.lesion_boxes, strict=True):
            # 1024 pixels: rows 128 to 384, columns 256 to 768.
            expected = [[0.125, 0.25, 0.375, 0.75]] if label else np.zeros((0, 4))
            np.testing.assert_array_equal(lesions, expected)
        assert set(part.views) <= {"AP", "PA"} and len(part.views) == len(part)
        assert not part.lungs_known.any()
    rows = np.array([2, 0])
    some = loaded.train.take(rows)
    assert some.views == (loaded.train.views[2], loaded.train.views[0])
    assert some.names == (loaded.train.names[2], loaded.train.names[0])
    np.testing.assert_array_equal(some.images, loaded.train.images[rows])
    np.testing.assert_array_equal(some.lesion_boxes[1], loaded.train.lesion_boxes[0])


def test_lesions_move_as_the_film_is_degraded(tmp_path):
    data = dataclasses.replace(nih_tree(tmp_path), degrade="low")
    for part in pipeline.load(data, seed=0):
        for label, lesions in zip(part.labels, part.lesion_boxes, strict=True):
            assert len(lesions) == label
            for box in lesions:
                sides = box[2:] - box[:2]
                # A half and a quarter of a film that is 1 / 2.5 to 1 / 1.3 of the
                # frame, and the tight box of what is turned by up to 15 degrees.
                assert (sides >= 0.09).all() and (sides <= 0.5).all()
                assert (box >= 0).all() and (box <= 1).all()


@pytest.mark.parametrize("degrade", ["none", "low"])
@pytest.mark.parametrize("threads", [0, 3])
def test_what_memory_cannot_hold_is_read_anew(tmp_path, degrade, threads):
    ped_pneumonia_tree(tmp_path)
    in_memory = config.DataConfig(
        name="ped_pneumonia",
        root=str(tmp_path),
        image_size=16,
        degrade=degrade,
        threads=threads,
    )
    streamed = dataclasses.replace(in_memory, memory_gib=0)
    kept, read = pipeline.load(in_memory, seed=0), pipeline.load(streamed, seed=0)
    for a, b in zip(kept, read, strict=True):
        assert isinstance(a.images, np.ndarray) and not isinstance(b.images, np.ndarray)
        assert b.images.shape == a.images.shape and b.images.dtype == a.images.dtype
        np.testing.assert_array_equal(b.images[:], a.images)
        np.testing.assert_array_equal(b.images[-1], a.images[-1])
        np.testing.assert_array_equal(b.images[np.array([3, 1])], a.images[[3, 1]])
        np.testing.assert_array_equal(a.lung_boxes, b.lung_boxes)
        assert (a.names, a.groups) == (b.names, b.groups)
    order = {"batch_size": 5, "seed": 1, "start": 3}
    expected = feed.TrainIterator(kept.train, **order)
    got = feed.TrainIterator(read.train, threads=threads, **order)
    for _ in range(20):
        assert_same_batch(next(expected), next(got))
    got.close()
    batches = feed.eval_batches(read.test, 5, threads=threads)
    for a, b in zip(feed.eval_batches(kept.test, 5), batches, strict=True):
        assert_same_batch(a, b)


def assert_same_batch(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype


def test_a_film_that_is_lost_while_training_is_named(tmp_path):
    data = write_folder(tmp_path)
    loaded = pipeline.load(dataclasses.replace(data, memory_gib=0), seed=0)
    batches = feed.TrainIterator(loaded.train, batch_size=7, seed=0, threads=2)
    next(batches)
    lost = loaded.train.names[0]
    (tmp_path / lost).unlink()
    with pytest.raises(errors.UserError, match=f"{lost} in .* cannot be read"):
        for _ in range(20):  # more than are read ahead
            next(batches)
    batches.close()


def split_tree(root, shared_group):
    """Two classes, eight training and two test films each; as groups.csv says."""
    lines = ["path,group"]
    for label, name in enumerate(("fine", "sick")):
        for i in range(10):
            film = f"{'train' if i < 8 else 'test'}/{name}/{i}.png"
            (root / film).parent.mkdir(parents=True, exist_ok=True)
            (root / film).write_bytes(film_bytes(100 * label + i))
            patient = 0 if shared_group and i == 9 else i
            lines.append(f"{film},{name}{patient}")
    (root / "groups.csv").write_text("\n".join(lines))
    return config.DataConfig(
        name="folder", root=str(root), image_size=8, official_split=True
    )


def test_official_test_images_are_tested(tmp_path):
    data = split_tree(tmp_path, shared_group=False)
    loaded = pipeline.load(data, seed=0)
    assert [len(part) for part in loaded] == [14, 2, 4]  # 7 to 1 of eight
    assert {name.split("/")[0] for name in loaded.test.names} == {"test"}
    pooled = pipeline.load(dataclasses.replace(data, official_split=False), seed=0)
    assert {name.split("/")[0] for name in pooled.test.names} == {"test", "train"}


def test_an_official_split_that_divides_a_patient_is_refused(tmp_path):
    data = split_tree(tmp_path, shared_group=True)
    with pytest.raises(errors.UserError, match="films of one group .* in two splits"):
        pipeline.load(data, seed=0)
    by_image = dataclasses.replace(data, split_level="image")
    assert len(pipeline.load(by_image, seed=0).test) == 4


def test_a_source_without_official_test_images(tmp_path):
    data = dataclasses.replace(write_folder(tmp_path), official_split=True)
    with pytest.raises(errors.UserError, match="folder names no test images"):
        pipeline.load(data, seed=0)


def test_a_division_edited_by_hand_must_not_leak(tmp_path):
    data = split_tree(tmp_path / "films", shared_group=True)
    data = dataclasses.replace(data, official_split=False)
    path = tmp_path / "splits.csv"
    load_and_keep(data, path, seed=0)
    rows = splits.read(path)
    twins = [row for row in rows if row.group == "fine0"]
    assert len(twins) == 2 and twins[0].split == twins[1].split
    other = next(name for name in splits.SPLITS if name != twins[0].split)
    edited = [row._replace(split=other) if row == twins[0] else row for row in rows]
    splits.write(path, edited)
    with pytest.raises(errors.UserError, match="films of one group such as"):
        pipeline.load(data, seed=0, splits_file=path)


def test_image_level_split_says_what_it_leaks(tmp_path, caplog):
    ped_pneumonia_tree(tmp_path)
    data = config.DataConfig(
        name="ped_pneumonia", root=str(tmp_path), image_size=16, split_level="image"
    )
    with caplog.at_level(logging.WARNING):
        loaded = pipeline.load(data, seed=0)
    shared = sum(group in loaded.train.groups for group in loaded.test.groups)
    assert shared > 0
    said = f"{shared} of 12 test images ({shared / 12:.0%}) share a group"
    assert caplog.records[0].message.startswith(said)


def test_importing_the_data_package_is_light():
    code = (
        "import sys, hapre_jax.data.pipeline\n"
        "heavy = {'grain', 'tensorflow', 'tensorflow_datasets', 'flax', 'jax'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
