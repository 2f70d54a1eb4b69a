import dataclasses
import errno
import json
import resource
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import checkpoint, config, config_file
from hapre_jax.config import Config, DataConfig, TrainConfig
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS
from hapre_jax.state import TrainState


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
        "architecture than this config's"
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


def test_where_the_best_is_damaged_it_is_made_again(tmp_path, checkpoints):
    for step in (2, 4, 6):
        checkpoints.save("last", _state(step), {"n": step})
    checkpoints.save("best", _state(6), {"n": 6})
    folder = tmp_path / "checkpoints"
    _flip(folder / "best" / "6")
    state, progress, faults = _resumed(tmp_path)
    assert (state.step, progress) == (4, {"n": 4})  # before the best
    assert faults == [f"the checkpoint {folder}/best/6 is damaged"]
    assert sorted(p.name for p in (folder / "damaged").iterdir()) == [
        "best-6",
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


def test_a_folder_belongs_to_one_process(tmp_path):
    said = f"another process is at work in {tmp_path}; wait until it has ended, or "
    with checkpoint.claim(tmp_path):
        with pytest.raises(UserError, match=f"^{said}choose another --workdir$"):
            with checkpoint.claim(tmp_path):
                pass
    with checkpoint.claim(tmp_path):
        pass


def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with checkpoint.claim(tmp_path):
        pass
    assert caplog.messages == [
        f"{tmp_path} cannot be locked (No locks available): see to it that no other "
        "process works there"
    ]


def test_restore_best_needs_a_checkpoint(tmp_path, tiny_config):
    settings = dataclasses.replace(tiny_config, method="plain")
    method = METHODS["plain"](settings, 3)
    with pytest.raises(UserError, match="has no checkpoint yet: its training has only"):
        checkpoint.restore_best(tmp_path, settings, method)


def test_json_round_trip(tmp_path):
    path = tmp_path / "a.json"
    checkpoint.write_json(path, {"a": [1, 0.1, None, "é"]})
    assert checkpoint.read_json(path) == {"a": [1, 0.1, None, "é"]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    checkpoint.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        checkpoint.write_json(path, {"a": object()})
    assert checkpoint.read_json(path) == {"a": 1}


@pytest.mark.parametrize("content", ["", '{"a": 1', "\x00\x00"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"{path} is not JSON: .*; delete it"):
        checkpoint.read_json(path)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    path = tmp_path / "nowhere" / "a.json"
    with pytest.raises(UserError, match=f"{path} cannot be read: No such file"):
        checkpoint.read_json(path)
    with pytest.raises(UserError, match=f"{path} cannot be written: No such file"):
        checkpoint.write_json(path, {})


def test_a_folder_keeps_its_config(tmp_path):
    workdir = tmp_path / "runs" / "a"
    settings = Config(seed=3, train=TrainConfig(steps=7))
    checkpoint.check_workdir(workdir, settings)
    assert not workdir.parent.exists()
    checkpoint.write_config(workdir, settings)
    assert config_file.load(str(workdir / "config.json")) == settings
    before = (workdir / "config.json").stat().st_mtime_ns
    checkpoint.write_config(workdir, settings)
    assert (workdir / "config.json").stat().st_mtime_ns == before


def test_a_run_goes_on_with_other_threads_or_from_another_place(tmp_path):
    checkpoint.write_config(tmp_path, Config())
    before = (tmp_path / "config.json").read_bytes()
    data = DataConfig(root="moved", memory_gib=0.0, threads=7, processes=2)
    checkpoint.write_config(tmp_path, Config(data=data))
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(UserError, match="a run with data.image_size = 1024, not 64"):
        checkpoint.check_workdir(tmp_path, Config(data=DataConfig(image_size=64)))


def test_a_folder_of_another_run_is_refused(tmp_path):
    checkpoint.write_config(tmp_path, Config(train=TrainConfig(steps=7)))
    before = (tmp_path / "config.json").read_bytes()
    for refuse in (checkpoint.check_workdir, checkpoint.write_config):
        with pytest.raises(UserError) as error:
            refuse(tmp_path, Config(train=TrainConfig(steps=8)))
        assert str(error.value) == (
            f"{tmp_path} holds a run with train.steps = 7, not 8; choose another "
            "--workdir, or delete that folder"
        )
    assert (tmp_path / "config.json").read_bytes() == before


def test_all_that_differs_is_listed(tmp_path):
    checkpoint.write_config(tmp_path, Config(seed=3, train=TrainConfig(steps=7)))
    with pytest.raises(UserError) as error:
        checkpoint.check_workdir(tmp_path, Config(train=TrainConfig(batch_size=8)))
    assert str(error.value) == (
        f"{tmp_path} holds a run with seed = 3, not 0, train.steps = 7, not 700, "
        "train.batch_size = 32, not 8; choose another --workdir, or delete that folder"
    )


def test_a_config_of_another_version_is_refused_with_all_its_fields(tmp_path):
    values = config.to_dict(Config()) | {"task": {"wings": 2}, "flies": True, "x": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        checkpoint.check_workdir(tmp_path, Config())
    assert str(error.value) == (
        f"config file {tmp_path}/config.json: config has no fields task.wings, flies, "
        "x; --help lists all"
    )


def test_a_damaged_config_is_named(tmp_path):
    text = json.dumps(config.to_dict(Config()))
    (tmp_path / "config.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=f"{tmp_path}/config.json cannot be read: "):
        checkpoint.check_workdir(tmp_path, Config())


@pytest.mark.parametrize("below", ["", "runs/a"])
def test_a_workdir_that_is_a_file_is_refused(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(
        UserError, match=f"^{file} is a file; choose another --workdir$"
    ):
        checkpoint.check_workdir(file / below, Config())
    assert file.read_text() == "mine"


def test_a_workdir_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    # The tests may run as root, whom permissions do not stop.
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be written to; "):
        checkpoint.check_workdir(tmp_path / "runs" / "a", Config())
