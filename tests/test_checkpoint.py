import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import checkpoint, config
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


def test_the_newest_is_kept_and_the_others_are_not(tmp_path, checkpoints):
    for step in (2, 4, 6):
        checkpoints.save("last", _state(step, value=step / 10), {"n": step})
    checkpoints.save("best", _state(4), {})
    folder = tmp_path / "checkpoints"
    assert [p.name for p in (folder / "last").iterdir()] == ["6"]
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
        f"the checkpoint {tmp_path}/checkpoints/last/4 is damaged; delete "
        f"{tmp_path}/checkpoints to train anew"
    )


def test_a_checkpoint_cut_short_by_a_crash_is_as_if_it_were_not(tmp_path, checkpoints):
    checkpoints.save("last", _state(2), {})
    # What Orbax has written when it is killed before it renames.
    half = tmp_path / "checkpoints" / "last" / "4.orbax-checkpoint-tmp-1"
    (half / "state").mkdir(parents=True)
    (half / "state" / "data").write_bytes(b"half")
    restored, _ = _reopened(tmp_path, "last", _state(0))
    assert restored.step == 2


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
    assert config.load(str(workdir / "config.json")) == settings
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
