import dataclasses
import errno
import resource
import shutil
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hapre_jax import checkpoint
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS
from hapre_jax.train_state import TrainState


def _state(step, *, width=2, value=0.1, **more):
    params = {"task": {"kernel": jnp.full((3, width), value), **more}}
    return TrainState(
        step=jnp.array(step, jnp.int32),
        params=params,
        model_state={"task": {}},
        opt_state=(jnp.array(7, jnp.int32), params),
        average=(params, {"task": {}}),
    )


@pytest.fixture
def checkpoints(tmp_path):
    opened = checkpoint.Checkpoints(tmp_path)
    yield opened
    opened.close()


def _reopened(tmp_path, name, like):
    again = checkpoint.Checkpoints(tmp_path)
    restored = again.restore(name, like)
    again.close()
    return restored


def test_round_trip_keeps_bits_types_and_progress(tmp_path, checkpoints):
    # 0.1 has no exact float; JSON keeps what the data position is made of.
    progress = {"data": {"grain": {"next_index": 3}, "seed": 2**32 - 1}, "best_f1": 0.1}
    saved = _state(4)
    checkpoints.save("last", saved, progress)
    restored, restored_progress = _reopened(tmp_path, "last", _state(0, value=0.0))
    assert isinstance(restored, TrainState)
    chex.assert_trees_all_equal(restored, saved)
    chex.assert_trees_all_equal_dtypes(restored, saved)
    assert restored_progress == progress


def test_there_is_none_at_first(tmp_path, checkpoints):
    assert checkpoints.restore("last", _state(0)) is None
    assert checkpoints.find("last") == ""


def test_the_newest_and_the_one_before_are_kept(tmp_path, checkpoints):
    for step in (2, 4, 6):
        checkpoints.save("last", _state(step, value=step / 10), {"n": step})
    for step in (2, 4):
        checkpoints.save("best", _state(step), {})
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in (folder / "last").iterdir()) == ["4", "6"]
    assert [p.name for p in (folder / "best").iterdir()] == ["4"]
    assert checkpoints.find("last") == f"{folder}/last/6"
    restored, progress = checkpoints.restore("last", _state(0))
    assert restored.step == 6 and progress == {"n": 6}
    np.testing.assert_array_equal(restored.params["task"]["kernel"], np.float32(0.6))


def test_a_step_reached_again_is_not_written_again(tmp_path, checkpoints):
    checkpoints.save("best", _state(4), {"n": 1})
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    checkpoints.save("best", _state(4), {"n": 2})
    assert files == {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()
    }


def test_a_best_ahead_of_the_last_stays_when_earlier_steps_come_again(
    tmp_path, checkpoints
):
    # A run that validates more often than it saves, killed after step 5.
    checkpoints.save("last", _state(2), {})
    checkpoints.save("best", _state(5), {"n": 5})
    checkpoints.close()
    again = checkpoint.Checkpoints(tmp_path)
    assert int(again.resume(_state(0))[0].step) == 2
    again.save("best", _state(3), {"n": 3})
    assert again.restore("best", _state(0))[1] == {"n": 5}
    again.save("best", _state(6), {"n": 6})
    again.close()
    assert _reopened(tmp_path, "best", _state(0))[1] == {"n": 6}


@pytest.mark.parametrize(
    "other",
    [_state(0, width=5), _state(0, bias=jnp.zeros(2))],
    ids=["another shape", "another layer"],
)
def test_another_architecture_is_refused(tmp_path, checkpoints, other):
    checkpoints.save("last", _state(4), {})
    with pytest.raises(UserError) as error:
        checkpoints.restore("last", other)
    assert str(error.value) == (
        f"the checkpoint {tmp_path}/checkpoints/last/4 was written by another "
        "architecture than this config's: choose another folder"
    )
    # It is still there for the config that wrote it.
    assert checkpoints.restore("last", _state(0))[0].step == 4


def test_a_checkpoint_of_another_device_is_read(tmp_path, checkpoints):
    checkpoints.save("last", _state(4), {})
    path = tmp_path / "checkpoints" / "last" / "4" / "state" / "_sharding"
    assert "cpu:0" in path.read_text()
    path.write_text(path.read_text().replace("cpu:0", "cuda:5"))
    (path.parents[1] / "sha256.json").unlink()
    restored, _ = _reopened(tmp_path, "last", jax.eval_shape(lambda: _state(0)))
    chex.assert_trees_all_equal(restored, _state(4))


@pytest.mark.parametrize("file", ["state/_METADATA", "progress/metadata"])
def test_a_damaged_checkpoint_is_named(tmp_path, checkpoints, file):
    checkpoints.save("last", _state(4), {"n": 1})
    path = tmp_path / "checkpoints" / "last" / "4" / file
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError) as error:
        _reopened(tmp_path, "last", _state(0))
    assert str(error.value) == (
        f"the checkpoint {tmp_path}/checkpoints/last/4 is damaged"
    )
    with pytest.raises(UserError) as error:
        _resumed(tmp_path)
    assert str(error.value) == (
        f"the checkpoint {tmp_path}/checkpoints/last/4 is damaged; delete "
        f"{tmp_path}/checkpoints to train anew"
    )
    assert path.exists()  # that decision is the user's


def test_a_checkpoint_cut_short_by_a_crash_is_as_if_it_were_not(tmp_path, checkpoints):
    checkpoints.save("last", _state(2), {})
    # What Orbax has written when it is killed before it renames.
    half = tmp_path / "checkpoints" / "last" / "4.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "data").write_bytes(b"half")
    # One who only looks leaves it: the run may be writing it at this moment.
    reader = checkpoint.Checkpoints(tmp_path, read_only=True)
    assert reader.restore("last", _state(0))[0].step == 2
    reader.close()
    assert half.exists()
    restored, _ = _reopened(tmp_path, "last", _state(0))
    assert restored.step == 2
    assert [p.name for p in half.parent.iterdir()] == ["2"]


def _resumed(tmp_path):
    again = checkpoint.Checkpoints(tmp_path)
    try:
        return again.resume(_state(0))
    finally:
        again.close()


def _cut(folder):
    for path in folder.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-1])


def _flip(folder):
    for path in folder.rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def _other_progress(folder):
    """What no reader of the file would notice."""
    path = folder / "progress" / "metadata"
    path.write_text(path.read_text().replace('"n": ', '"n": 1'))


def _other_arrays(folder):
    """A file system that gives back what was there before, whole."""
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.parent / "2" / "state", folder / "state")


def _cut_checksums(folder):
    path = folder / "sha256.json"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    "damage", [_cut, _flip, _other_progress, _other_arrays, _cut_checksums]
)
def test_the_newest_intact_checkpoint_is_gone_on_from(tmp_path, checkpoints, damage):
    for step in (2, 4):
        checkpoints.save("last", _state(step, value=step / 10), {"n": step})
    folder = tmp_path / "checkpoints" / "last"
    assert _resumed(tmp_path)[0].step == 4
    damage(folder / "4")
    state, progress, faults = _resumed(tmp_path)
    chex.assert_trees_all_equal(state, _state(2, value=0.2))
    assert progress == {"n": 2}
    assert faults == [f"the checkpoint {folder}/4 is damaged"]
    assert (tmp_path / "checkpoints" / "damaged" / "last-4").is_dir()
    again = checkpoint.Checkpoints(tmp_path)
    again.save("last", _state(4, value=0.4), {"n": 4})
    state, progress, faults = again.resume(_state(0))
    again.close()
    chex.assert_trees_all_equal(state, _state(4, value=0.4))
    assert (progress, faults) == ({"n": 4}, [])


@pytest.mark.parametrize("newest", [4, 6])
def test_a_damaged_best_is_written_anew_from_the_last_of_its_step(
    tmp_path, checkpoints, newest
):
    for step in range(2, newest + 1, 2):
        checkpoints.save("last", _state(step, value=step), {"n": step})
        if step == 4:
            checkpoints.save("best", _state(step, value=step), {})
    folder = tmp_path / "checkpoints"
    _flip(folder / "best" / "4")
    state, progress, faults = _resumed(tmp_path)
    assert (state.step, progress) == (newest, {"n": newest})
    assert faults == [f"the checkpoint {folder}/best/4 is damaged"]
    assert [p.name for p in (folder / "damaged").iterdir()] == ["best-4"]
    best, _ = _reopened(tmp_path, "best", _state(0))
    chex.assert_trees_all_equal(best, _state(4, value=4))
    assert _resumed(tmp_path)[2] == []


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_damaged_best_without_a_last_of_its_step_is_found_again(
    tmp_path, checkpoints, is_kept
):
    for step in (2, 4, 6):
        checkpoints.save("last", _state(step), {"n": step})
    checkpoints.save("best", _state(6 if is_kept else 5), {"n": 6})
    folder = tmp_path / "checkpoints"
    (bad,) = (folder / "best").iterdir()
    _flip(bad)
    damaged = [bad]
    if is_kept:
        _flip(folder / "last" / "6")
        damaged.append(folder / "last" / "6")
    state, progress, faults = _resumed(tmp_path)
    assert (state.step, progress) == (4, {"n": 4})  # before the best
    assert faults == [f"the checkpoint {path} is damaged" for path in damaged]
    assert sorted(p.name for p in (folder / "damaged").iterdir()) == [
        f"best-{bad.name}",
        "last-6",
    ]
    assert not list((folder / "best").iterdir())


def test_a_damaged_best_of_before_all_others_is_the_user_s_to_delete(
    tmp_path, checkpoints
):
    for step in (2, 4, 6):
        checkpoints.save("last", _state(step), {})
        checkpoints.save("best", _state(2), {})
    _cut(tmp_path / "checkpoints" / "best" / "2")
    with pytest.raises(UserError, match="best/2 is damaged; delete .* to train anew$"):
        _resumed(tmp_path)
    assert not (tmp_path / "checkpoints" / "damaged").exists()


def test_a_damaged_best_of_a_run_without_a_last_one_is_nothing_lost(
    tmp_path, checkpoints
):
    checkpoints.save("best", _state(2), {})
    _cut(tmp_path / "checkpoints" / "best" / "2")
    assert _resumed(tmp_path) is None
    assert not list((tmp_path / "checkpoints" / "best").iterdir())


def _no_memory(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory of 9 bytes.")


def _no_answer(path):
    raise OSError(errno.EIO, "Input/output error", str(path))


@pytest.mark.parametrize(
    ("place", "name", "failure", "reason"),
    [
        (
            ocp.CheckpointManager,
            "restore",
            _no_memory,
            "RESOURCE_EXHAUSTED: Out of memory of 9 bytes.",
        ),
        (checkpoint.atomic, "digest", _no_answer, "Input/output error"),
    ],
)
def test_what_cannot_be_read_now_is_not_damaged(
    tmp_path, checkpoints, monkeypatch, place, name, failure, reason
):
    for step in (2, 4):
        checkpoints.save("last", _state(step), {})
    checkpoints.save("best", _state(4), {})
    before = sorted(tmp_path.rglob("*"))
    where = f"the checkpoint {tmp_path}/checkpoints/best/4 cannot be read now: {reason}"
    with monkeypatch.context() as patch:
        patch.setattr(place, name, failure)
        with pytest.raises(UserError) as error:
            _resumed(tmp_path)
        assert str(error.value) == where
        assert not isinstance(error.value, checkpoint.Damaged)
    assert sorted(tmp_path.rglob("*")) == before
    assert _resumed(tmp_path)[0].step == 4


def test_a_checkpoint_without_checksums_is_read(tmp_path, checkpoints):
    """Of an older version, or of a process killed before it wrote them."""
    checkpoints.save("last", _state(4), {"n": 4})
    (tmp_path / "checkpoints" / "last" / "4" / "sha256.json").unlink()
    assert _resumed(tmp_path)[1:] == ({"n": 4}, [])


def test_a_full_disk_leaves_the_last_good_checkpoint(
    tmp_path, checkpoints, monkeypatch
):
    checkpoints.save("last", _state(2), {"n": 2})
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**17))
        with pytest.raises(UserError) as error:
            checkpoints.save("last", _state(4), {})
    assert str(error.value) == (
        f"the checkpoint {tmp_path}/checkpoints/last/4 cannot be written: No space "
        "left on device (0.1 MiB free, 0.3 needed); the last good checkpoint is "
        f"{tmp_path}/checkpoints/last/2; make room, and give the same command again"
    )
    checkpoints.save("last", _state(4), {"n": 4})
    assert _resumed(tmp_path)[1:] == ({"n": 4}, [])


def test_a_write_that_the_system_refuses_is_one_sentence(tmp_path, checkpoints, capfd):
    """A quota is not seen in advance; a limit of the size of files is like one."""
    checkpoints.save("last", _state(2), {"n": 2})
    large = _state(4, width=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError) as error:
            checkpoints.save("last", large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == (
        f"the checkpoint {tmp_path}/checkpoints/last/4 cannot be written: File too "
        f"large; the last good checkpoint is {tmp_path}/checkpoints/last/2; make "
        "room, and give the same command again"
    )
    assert capfd.readouterr().err == ""
    assert [p.name for p in (tmp_path / "checkpoints" / "last").iterdir()] == ["2"]
    assert _resumed(tmp_path)[1:] == ({"n": 2}, [])


def test_late_answers_to_a_save_that_failed_are_not_shown(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    with pytest.raises(OSError), checkpoint._quietly():
        raise OSError
    late, other = (
        types.SimpleNamespace(exc_value=RuntimeError(text))
        for text in ("Event loop is closed", "another")
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert seen == [other]


def test_restore_best_needs_a_checkpoint(tmp_path, tiny_config):
    settings = dataclasses.replace(tiny_config, method="plain")
    method = METHODS["plain"](settings, 3)
    with pytest.raises(UserError, match="has no checkpoint yet: its training has only"):
        checkpoint.restore_best(tmp_path, settings, method)
