import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from hapre_jax import errors
from hapre_jax.data import dataset, feed


def numbered(count, boxes=True):
    """Image i is filled with i."""
    return dataset.Dataset(
        images=np.full((count, 2, 2, 1), 0, np.uint8)
        + np.arange(count, dtype=np.uint8)[:, None, None, None],
        labels=np.arange(count, dtype=np.int32) % 3,
        names=tuple(f"{i}.png" for i in range(count)),
        groups=tuple(f"{i}.png" for i in range(count)),
        classes=("a", "b", "c"),
        lung_boxes=np.full((count if boxes else 0, 4), 0.5, np.float32),
    )


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_epochs_are_shuffled_anew_and_complete(batch_size):
    batches = feed.TrainIterator(numbered(10), batch_size=batch_size, seed=0)
    rows = np.concatenate([next(batches)["index"] for _ in range(400 // batch_size)])
    epochs = rows.reshape(40, 10)  # a batch may span two epochs: none is cut short
    assert all(len(set(epoch.tolist())) == 10 for epoch in epochs)
    assert all((a != b).any() for a, b in zip(epochs, epochs[1:], strict=False))
    # Each image leads an epoch now and then: 40 draws of 1 in 10.
    assert len({int(epoch[0]) for epoch in epochs}) >= 8


@pytest.mark.parametrize("boxes", [True, False])
def test_batches_hold_matching_rows(boxes):
    source = numbered(10, boxes)
    batch = next(feed.TrainIterator(source, batch_size=4, seed=1))
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
def test_order_goes_on_from_any_position(given, batch_size):
    source = numbered(10)
    first = feed.TrainIterator(source, batch_size=batch_size, seed=4)
    for _ in range(given):
        next(first)
    second = feed.TrainIterator(source, batch_size=batch_size, seed=4, start=given)
    for _ in range(8):
        np.testing.assert_array_equal(next(first)["index"], next(second)["index"])
    second.check(json.loads(json.dumps(first.identity)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_share_the_batches_of_one(count):
    source = numbered(10)
    alone = feed.TrainIterator(source, batch_size=4, seed=2, start=1)
    shards = [
        feed.TrainIterator(source, batch_size=4, seed=2, start=1, shard=(index, count))
        for index in range(count)
    ]
    for _ in range(6):  # over the end of an epoch, which is inside of a batch
        parts = [next(shard)["index"] for shard in shards]
        assert {len(part) for part in parts} == {4 // count}
        np.testing.assert_array_equal(np.concatenate(parts), next(alone)["index"])


def test_shards_share_what_is_scored():
    source = numbered(10)
    parts = [list(feed.eval_batches(source, 8, shard=(n, 2))) for n in range(2)]
    # Of 16 rows the last 6 are copies of row 0.
    rows = [[batch["index"].tolist() for batch in part] for part in parts]
    assert rows == [[[0, 1, 2, 3], [8, 9, 0, 0]], [[4, 5, 6, 7], [0, 0, 0, 0]]]
    assert parts[0][1]["mask"].tolist() == [True, True, False, False]
    assert not parts[1][1]["mask"].any()


def test_a_batch_that_shards_cannot_share():
    with pytest.raises(errors.UserError, match="4 cannot be divided among 3"):
        feed.TrainIterator(numbered(10), batch_size=4, seed=2, shard=(0, 3))


def test_order_depends_on_the_seed_alone():
    def order(seed):
        batches = feed.TrainIterator(numbered(20), batch_size=20, seed=seed)
        return next(batches)["index"].tolist()

    assert order(7) == order(7) != order(8)
    assert sorted(order(7)) == list(range(20)) != order(7)


@pytest.mark.parametrize(
    "other",
    [
        feed.TrainIterator(numbered(9), batch_size=3, seed=4),
        feed.TrainIterator(numbered(10), batch_size=2, seed=4),
        feed.TrainIterator(numbered(10), batch_size=3, seed=5),
        feed.TrainIterator(numbered(11).take(range(1, 11)), batch_size=3, seed=4),
    ],
    ids=["images", "batch_size", "seed", "films"],
)
def test_position_of_another_run_is_refused(other, request):
    name = request.node.callspec.id
    mine = feed.TrainIterator(numbered(10), batch_size=3, seed=4)
    said = f"has {name} .*, this run has"
    if name == "films":
        said = "the training films are others, or in another order"
    with pytest.raises(errors.UserError, match=said):
        mine.check(other.identity)


def test_position_of_an_older_version_does_not_say_of_which_films():
    mine = feed.TrainIterator(numbered(10), batch_size=3, seed=4)
    mine.check({"images": 10, "batch_size": 3, "seed": 4})


def test_batch_larger_than_the_split():
    with pytest.raises(errors.UserError, match="batch_size 11 is more than the 10"):
        feed.TrainIterator(numbered(10), batch_size=11, seed=0)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 16])
def test_evaluation_sees_every_image_once(batch_size):
    batches = list(feed.eval_batches(numbered(10), batch_size))
    assert {batch["image"].shape for batch in batches} == {(batch_size, 2, 2, 1)}
    assert {batch["mask"].dtype for batch in batches} == {np.dtype(bool)}
    mask = np.concatenate([batch["mask"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index[mask], np.arange(10))
    assert (index[~mask] == 0).all() and index.dtype == np.int32


# A file, since processes that are spawned import the program that spawned them.
READ_WITH_PROCESSES = """
import hashlib, sys
from absl import flags
from hapre_jax import config
from hapre_jax.data import feed, pipeline

if __name__ == "__main__":
    data = config.DataConfig(
        name="folder", root=sys.argv[1], image_size=24, memory_gib=0
    )
    loaded = pipeline.load(data, seed=0)
    assert not flags.FLAGS.is_parsed()
    for processes in (0, 2):
        batches = feed.TrainIterator(
            loaded.train, batch_size=3, seed=5, start=2, processes=processes
        )
        digest = hashlib.sha256()
        for _ in range(9):
            batch = next(batches)
            digest.update(batch["image"].tobytes() + batch["index"].tobytes())
        batches.close()
        print(digest.hexdigest())
"""


def write_films(root):
    rng = np.random.default_rng(0)
    for index in range(20):
        path = root / ("fine", "sick")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(path)
    return root


@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="finds children there")
def test_workers_end_with_a_program_that_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(READ_WITH_PROCESSES.replace("batches.close()", "input()"))
    running = subprocess.Popen(
        [sys.executable, program, write_films(tmp_path / "films")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    running.stdin.write("\n")  # past the reader without processes
    running.stdin.flush()
    running.stdout.readline()
    workers = []
    deadline = time.monotonic() + 120
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = children_that_spawned(running.pid)
        time.sleep(0.1)
    assert len(workers) == 2
    running.kill()
    running.wait()
    running.stdin.close()
    running.stdout.close()
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def children_that_spawned(pid):
    """Worker processes of a program, but not the tracker of its resources."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if parent == pid and "spawn_main" in command:
            found.append(int(entry.name))
    return found


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False
    return state.split()[0] != "Z"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_processes_read_the_same_batches(tmp_path, kind):
    root = write_films(tmp_path / "films")
    if kind == "zip":
        root = shutil.make_archive(str(tmp_path / "films"), "zip", root)
    program = tmp_path / "program.py"
    program.write_text(READ_WITH_PROCESSES)
    done = subprocess.run(
        [sys.executable, program, root], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    digests = done.stdout.split()
    assert len(digests) == 2 and digests[0] == digests[1]
