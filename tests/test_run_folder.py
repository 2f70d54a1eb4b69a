import errno
import fcntl
import json

import pytest
from tiny import FACTS, SCORES

from hapre_jax import config, config_file, run_folder
from hapre_jax.config import Config, DataConfig, TrainConfig
from hapre_jax.errors import UserError


def test_a_folder_belongs_to_one_process(tmp_path):
    said = f"another process is at work in {tmp_path}; wait until it has ended, or "
    with run_folder.claim(tmp_path):
        with pytest.raises(UserError, match=f"^{said}choose another --workdir$"):
            with run_folder.claim(tmp_path):
                pass
    with run_folder.claim(tmp_path):
        pass


def test_a_file_belongs_to_one_process_and_its_lock_goes(tmp_path):
    file = tmp_path / "scores.json"
    said = f"another process is at work on {file}; wait until it has ended, or choose"
    with run_folder.claim_file(file, flag="--out"):
        with pytest.raises(UserError, match=f"^{said} another --out$"):
            with run_folder.claim_file(file, flag="--out"):
                pass
        with run_folder.claim_file(tmp_path / "others.json", flag="--out"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_removed_before_it_was_held_is_nobodys(tmp_path, monkeypatch):
    file, flock = tmp_path / "scores.json", fcntl.flock

    def remove_first(*arguments):
        next(tmp_path.iterdir()).unlink()
        flock(*arguments)

    monkeypatch.setattr("fcntl.flock", remove_first)
    with pytest.raises(UserError, match="^another process is at work on "):
        with run_folder.claim_file(file, flag="--out"):
            pass


def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with run_folder.claim(tmp_path):
        pass
    assert caplog.messages == [
        f"{tmp_path} cannot be locked (No locks available): see to it that no other "
        "process works there"
    ]


def test_the_plain_classifier_s_run_has_the_files_of_the_other(tmp_path):
    plain = tmp_path / run_folder.PLAIN
    plain.mkdir()
    assert run_folder.find(plain, "splits.csv") is None
    (tmp_path / "splits.csv").touch()
    for folder in (tmp_path, plain):
        assert run_folder.find(folder, "splits.csv") == tmp_path / "splits.csv"
    (plain / "splits.csv").touch()  # its own, of one that was trained alone
    assert run_folder.find(plain, "splits.csv") == plain / "splits.csv"


def test_a_folder_keeps_its_config(tmp_path):
    workdir = tmp_path / "runs" / "a"
    settings = Config(seed=3, train=TrainConfig(steps=7))
    run_folder.check_workdir(workdir, settings)
    assert not workdir.parent.exists()
    run_folder.write_config(workdir, settings)
    assert config_file.load(str(workdir / "config.json")) == settings
    before = (workdir / "config.json").stat().st_mtime_ns
    run_folder.write_config(workdir, settings)
    assert (workdir / "config.json").stat().st_mtime_ns == before


def test_a_run_goes_on_with_other_threads_or_from_another_place(tmp_path):
    run_folder.write_config(tmp_path, Config())
    before = (tmp_path / "config.json").read_bytes()
    data = DataConfig(root="moved", memory_gib=0.0, threads=7, processes=2)
    run_folder.write_config(tmp_path, Config(data=data))
    run_folder.check_workdir(tmp_path, Config(train=TrainConfig(rematerialize=True)))
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(UserError, match="a run with data.image_size = 1024, not 64"):
        run_folder.check_workdir(tmp_path, Config(data=DataConfig(image_size=64)))
    data = DataConfig(draw=(3, 4), official_split=True)
    said = "data.official_split = false, not true, data.draw = none, not 3,4"
    with pytest.raises(UserError, match=said):
        run_folder.check_workdir(tmp_path, Config(data=data))


def test_a_folder_among_films_is_refused(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    said = f"^--out {films}/ill lies among the films of {films}: choose another$"
    with pytest.raises(UserError, match=said):
        run_folder.check_not_among(films / "ill", str(films), "--out")
    for root in ("", str(films / "table.csv"), str(tmp_path / "nowhere")):
        run_folder.check_not_among(films / "ill", root, "--out")
    run_folder.check_not_among(tmp_path / "films 2", str(films), "--out")


def test_a_folder_of_another_run_is_refused(tmp_path):
    run_folder.write_config(tmp_path, Config(train=TrainConfig(steps=7)))
    before = (tmp_path / "config.json").read_bytes()
    for refuse in (run_folder.check_workdir, run_folder.write_config):
        with pytest.raises(UserError) as error:
            refuse(tmp_path, Config(train=TrainConfig(steps=8)))
        assert str(error.value) == (
            f"{tmp_path} holds a run with train.steps = 7, not 8; choose another "
            "--workdir, or delete that folder"
        )
    assert (tmp_path / "config.json").read_bytes() == before


def test_checkpoints_without_their_config_are_nobodys(tmp_path):
    (tmp_path / "checkpoints" / "last" / "7").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has lost its config\.json, which says how"):
        run_folder.check_workdir(tmp_path, Config())


def test_all_that_differs_is_listed(tmp_path):
    run_folder.write_config(tmp_path, Config(seed=3, train=TrainConfig(steps=7)))
    with pytest.raises(UserError) as error:
        run_folder.check_workdir(tmp_path, Config(train=TrainConfig(batch_size=8)))
    assert str(error.value) == (
        f"{tmp_path} holds a run with seed = 3, not 0, train.steps = 7, not 700, "
        "train.batch_size = 32, not 8; choose another --workdir, or delete that folder"
    )


def test_a_config_of_another_version_is_refused_with_all_its_fields(tmp_path):
    values = config.to_dict(Config()) | {"task": {"wings": 2}, "flies": True, "x": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        run_folder.check_workdir(tmp_path, Config())
    assert str(error.value) == (
        f"config file {tmp_path}/config.json: config has no fields task.wings, flies, "
        "x; --help lists all"
    )


def test_a_damaged_config_is_named(tmp_path):
    text = json.dumps(config.to_dict(Config()))
    (tmp_path / "config.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=f"{tmp_path}/config.json cannot be read: "):
        run_folder.check_workdir(tmp_path, Config())


@pytest.mark.parametrize("below", ["", "runs/a"])
def test_a_workdir_that_is_a_file_is_refused(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(
        UserError, match=f"^{file} is a file; choose another --workdir$"
    ):
        run_folder.check_workdir(file / below, Config())
    assert file.read_text() == "mine"


def test_a_workdir_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    # The tests may run as root, whom permissions do not stop.
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be written to; "):
        run_folder.check_workdir(tmp_path / "runs" / "a", Config())


_RESULTS = FACTS | {"config": {"seed": 3}, "seed": 3, "test": SCORES}


def _write(folder, **changes):
    (folder / "results.json").write_text(json.dumps(_RESULTS | changes))


def test_results_of_older_versions_are_read(tmp_path):
    _write(tmp_path)
    added = {"task": "classification", "plain": None, "temperature": None}
    assert run_folder.read_results(tmp_path) == _RESULTS | added
    _write(tmp_path, temperature=1)
    assert run_folder.read_results(tmp_path)["temperature"] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": 3}, "the classes"),
        ({"classes": "abc"}, "the classes"),
        ({"classes": ["a", "a"]}, "the classes"),
        ({"classes": [1, 2]}, "the classes"),
        ({"test": {}}, "the scores of its test"),
        ({"test": None, "config": 1}, "its config, the scores of its test"),
        ({"temperature": "x"}, "a temperature above 0"),
        ({"temperature": 0}, "a temperature above 0"),
        ({"temperature": True}, "a temperature above 0"),
        ({"versions": None}, "versions"),
        ({"seed": "3", "steps": [700]}, "seed, steps"),
    ],
)
def test_results_that_were_changed_are_refused(tmp_path, changes, said):
    _write(tmp_path, **changes)
    expected = f"results.json lacks {said}; delete it and give the run's"
    with pytest.raises(UserError, match=expected):
        run_folder.read_results(tmp_path)


def test_a_finished_run_that_lost_its_config_is_still_that_run(tmp_path):
    _write(tmp_path)
    run_folder.check_workdir(tmp_path, Config(seed=3))
    with pytest.raises(UserError, match="holds a run with seed = 3, not 4"):
        run_folder.check_workdir(tmp_path, Config(seed=4))


def test_a_config_that_was_lost_is_read_from_the_results(tmp_path):
    with pytest.raises(UserError) as error:
        run_folder.read_config(tmp_path)
    said = "has no config.json: it is no folder of a run"
    assert str(error.value) == f"{tmp_path} {said}"
    settings = Config(seed=5)
    results = json.dumps({"config": config.to_dict(settings)})
    (tmp_path / "results.json").write_text(results)
    assert run_folder.read_config(tmp_path) == settings


def test_a_link_to_nowhere_is_no_place(tmp_path):
    (tmp_path / "scratch").symlink_to("gone")
    said = f"{tmp_path}/scratch is a link to gone, which is not there; choose another"
    with pytest.raises(UserError, match=f"^{said} --workdir$"):
        run_folder.check_workdir(tmp_path / "scratch" / "run", Config())
    with pytest.raises(UserError, match=f"^{said} --out$"):
        run_folder.check_place(tmp_path / "scratch", "--out")
