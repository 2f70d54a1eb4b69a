import hashlib
import io
import json
import logging
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from hapre_jax import config, errors
from hapre_jax.data import dataset, phantom, pipeline, splits

PHANTOMS = config.DataConfig(
    image_size=24, train_images=6, validation_images=3, test_images=3
)


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


def test_phantoms_are_disjoint_ranges_of_one_series(tmp_path):
    path = tmp_path / "splits.csv"
    loaded = pipeline.load(PHANTOMS, seed=5, splits_file=path)
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


def test_folder_is_divided_once(tmp_path):
    data = write_folder(tmp_path / "films")
    path = tmp_path / "splits.csv"
    calls = []
    loaded = pipeline.load(
        data, seed=0, splits_file=path, progress=lambda *counts: calls.append(counts)
    )
    assert calls == [(i, 20) for i in range(1, 21)]
    assert [len(part) for part in loaded] == [14, 2, 4]
    assert [np.bincount(part.labels).tolist() for part in loaded] == [
        [7, 7],
        [1, 1],
        [2, 2],
    ]
    assert loaded.train.classes == ("fine", "sick")
    assert loaded.train.lung_boxes is None
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


def test_unreadable_films_are_left_out_and_named(tmp_path, caplog):
    data = write_folder(tmp_path / "films", kind="JPEG")
    for i in range(5):
        film = tmp_path / f"films/sick/{i}.jpeg"
        film.write_bytes(film.read_bytes()[:200])
    path = tmp_path / "splits.csv"
    with caplog.at_level(logging.WARNING):
        loaded = pipeline.load(data, seed=0, splits_file=path)
    assert [record.message for record in caplog.records] == [
        "left out 5 of 20 images that cannot be read: "
        "sick/0.jpeg, sick/1.jpeg, sick/2.jpeg and 2 more"
    ]
    names = sum((part.names for part in loaded), ())
    assert len(names) == 15 and "sick/4.jpeg" not in names
    assert len(splits.read(path)) == 15
    assert_same(loaded, pipeline.load(data, seed=0, splits_file=path))


def test_unreadable_film_stops_on_request(tmp_path):
    write_folder(tmp_path / "films")
    (tmp_path / "films/fine/3.png").write_bytes(b"no image")
    data = config.DataConfig(
        name="folder", root=str(tmp_path / "films"), image_size=8, unreadable="error"
    )
    path = tmp_path / "splits.csv"
    with pytest.raises(errors.UserError, match="fine/3.png cannot be read"):
        pipeline.load(data, seed=0, splits_file=path)
    assert not path.exists()


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


def test_unknown_source():
    with pytest.raises(errors.UserError, match="'mars' is none of .*'phantom'"):
        pipeline.load(types.SimpleNamespace(name="mars"), seed=0)


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


def test_image_level_split_says_what_it_leaks(tmp_path, caplog):
    ped_pneumonia_tree(tmp_path)
    data = config.DataConfig(
        name="ped_pneumonia", root=str(tmp_path), image_size=16, split_level="image"
    )
    with caplog.at_level(logging.WARNING):
        loaded = pipeline.load(data, seed=0)
    shared = sum(group in loaded.train.groups for group in loaded.test.groups)
    assert shared > 0
    assert caplog.records[0].message.startswith(f"{shared} of 12 test images share")


def numbered(count, boxes=True):
    """Image i is filled with i."""
    return dataset.Dataset(
        images=np.full((count, 2, 2, 1), 0, np.uint8)
        + np.arange(count, dtype=np.uint8)[:, None, None, None],
        labels=np.arange(count, dtype=np.int32) % 3,
        names=tuple(f"{i}.png" for i in range(count)),
        groups=tuple(f"{i}.png" for i in range(count)),
        classes=("a", "b", "c"),
        lung_boxes=np.full((count, 4), 0.5, np.float32) if boxes else None,
    )


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_epochs_are_shuffled_anew_and_complete(batch_size):
    batches = pipeline.train_iterator(numbered(10), batch_size=batch_size, seed=0)
    rows = np.concatenate([next(batches)["index"] for _ in range(400 // batch_size)])
    epochs = rows.reshape(40, 10)  # a batch may span two epochs: none is cut short
    assert all(len(set(epoch.tolist())) == 10 for epoch in epochs)
    assert all((a != b).any() for a, b in zip(epochs, epochs[1:], strict=False))
    # Each image leads an epoch now and then: 40 draws of 1 in 10.
    assert len({int(epoch[0]) for epoch in epochs}) >= 8


@pytest.mark.parametrize("boxes", [True, False])
def test_batches_hold_matching_rows(boxes):
    source = numbered(10, boxes)
    batch = next(pipeline.train_iterator(source, batch_size=4, seed=1))
    keys = {"image", "label", "index"} | ({"lung_box"} if boxes else set())
    assert set(batch) == keys
    assert batch["image"].shape == (4, 2, 2, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == batch["index"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
    batch["image"][:] = 99  # a batch is a copy
    assert source.images.max() == 9


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("given", [0, 2, 3, 7])
def test_resumed_order_is_the_same(given, batch_size):
    source = numbered(10)
    first = pipeline.train_iterator(source, batch_size=batch_size, seed=4)
    for _ in range(given):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = pipeline.train_iterator(source, batch_size=batch_size, seed=4)
    next(second)  # where it was does not matter
    second.set_state(state)
    for _ in range(8):
        np.testing.assert_array_equal(next(first)["index"], next(second)["index"])
    assert first.get_state() == second.get_state()


def test_order_depends_on_the_seed_alone():
    def order(seed):
        batches = pipeline.train_iterator(numbered(20), batch_size=20, seed=seed)
        return next(batches)["index"].tolist()

    assert order(7) == order(7) != order(8)
    assert sorted(order(7)) == list(range(20)) != order(7)


@pytest.mark.parametrize(
    "other",
    [
        pipeline.train_iterator(numbered(9), batch_size=3, seed=4),
        pipeline.train_iterator(numbered(10), batch_size=2, seed=4),
        pipeline.train_iterator(numbered(10), batch_size=3, seed=5),
    ],
    ids=["images", "batch_size", "seed"],
)
def test_position_of_another_run_is_refused(other, request):
    name = request.node.callspec.id
    mine = pipeline.train_iterator(numbered(10), batch_size=3, seed=4)
    with pytest.raises(errors.UserError, match=f"has {name} .*, this run has"):
        mine.set_state(other.get_state())


def test_batch_larger_than_the_split():
    with pytest.raises(errors.UserError, match="batch_size 11 is more than the 10"):
        pipeline.train_iterator(numbered(10), batch_size=11, seed=0)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 16])
def test_evaluation_sees_every_image_once(batch_size):
    batches = list(pipeline.eval_batches(numbered(10), batch_size))
    assert {batch["image"].shape for batch in batches} == {(batch_size, 2, 2, 1)}
    assert {batch["mask"].dtype for batch in batches} == {np.dtype(bool)}
    mask = np.concatenate([batch["mask"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index[mask], np.arange(10))
    assert (index[~mask] == 0).all() and index.dtype == np.int32


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
