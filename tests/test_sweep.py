"""Searches with Optuna: real studies, and trainings that are small programs."""

import contextlib
import errno
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import optuna
import pytest
import rich.markup

from hapre_jax import config_file, experiments, search
from hapre_jax.errors import UserError

SWEEP = pathlib.Path(__file__).parents[1] / "launch" / "sweep.py"
_SPEC = importlib.util.spec_from_file_location("sweep", SWEEP)
sweep = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sweep)

SPACE = """
from hapre_jax import config_file
def get_config():
    return config_file.load("tests/tiny.py")
def get_space():
    from optuna.distributions import FloatDistribution, IntDistribution
    return {
        "policy.sigma": FloatDistribution(0.2, 0.5),
        "policy.train_crops": IntDistribution(1, 2),
    }
"""
# In place of the train program: three validations, the better the smaller sigma is.
TRAINING = """
import json, pathlib, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(flags["--workdir"])
folder.mkdir(parents=True, exist_ok=True)
score = 1 - float(flags["--policy.sigma"])
if {fails}:
    sys.exit("error: the disk is full")
for step in (2, 4, 6):
    with open(folder / "metrics.jsonl", "a") as file:
        record = {{"kind": "validation", "step": step, "macro_f1": score + step / 100}}
        print(json.dumps(record), file=file)
    time.sleep({pause})
"""


@pytest.fixture
def space(tmp_path):
    file = tmp_path / "searched.py"
    file.write_text(SPACE)
    return str(file)


def test_a_space_may_be_of_an_argument(tmp_path):
    """As `--config FILE.py:ARGUMENT` is of every program."""
    file = tmp_path / "searched.py"
    file.write_text(SPACE.replace("get_config():", "get_config(which):"))
    assert set(search.load_space(f"{file}:a")) == {"policy.sigma", "policy.train_crops"}
    with pytest.raises(UserError, match="needs an argument"):
        search.load_space(str(file))


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Puts a small program in the place of `hapre_jax.train`."""
    popen = subprocess.Popen

    def use(*, fails="False", pause=0.0):
        program = tmp_path / "training.py"
        program.write_text(TRAINING.format(fails=fails, pause=pause))

        def start(command, *args, **settings):
            if command[1:3] == ["-m", "hapre_jax.train"]:  # matplotlib lists fonts
                command = [sys.executable, str(program), *command[3:]]
            return popen(command, *args, **settings)

        monkeypatch.setattr(experiments.subprocess, "Popen", start)

    monkeypatch.setattr(search, "_POLL_SECONDS", 0.02)
    return use


def _study(workdir, storage=""):
    return search.open_study(
        "searched", workdir, storage=storage, seed=0, warmup_steps=1
    )


def _states(study):
    return [of.state.name for of in study.get_trials()]


def _until(happens):
    """Waits for what another process does."""
    deadline = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_search_finds_the_best_and_says_what_is_next(
    tmp_path, space, training, capsys
):
    training()
    workdir = tmp_path / "runs"
    arguments = ["--config", space, "--trials", "6", "--workdir", str(workdir)]
    assert sweep.main(arguments) == 0
    trials = _study(workdir).get_trials()
    done = [of for of in trials if of.state == optuna.trial.TrialState.COMPLETE]
    assert len(trials) == 6
    for trial in done:  # the last validation is the best one
        assert trial.value == pytest.approx(1.06 - trial.params["policy.sigma"])
    best = config_file.load(str(workdir / "best.json"))
    assert best.policy.sigma == min(of.params["policy.sigma"] for of in done)
    assert best.policy.grid == 8  # of the experiment that all share
    said = capsys.readouterr().out
    assert f"Next: python -m hapre_jax.train --config {workdir}/best.json" in said
    for name in ("history.png", "importance.png"):
        assert (workdir / name).stat().st_size > 5000

    # The same command again has nothing left to do, one more trial is one more.
    assert sweep.main(arguments) == 0 and len(_study(workdir).get_trials()) == 6
    arguments[3] = "7"
    assert sweep.main(arguments) == 0 and len(_study(workdir).get_trials()) == 7


def test_brackets_of_a_value_are_no_markup():
    shown = rich.markup.render(sweep._shown("films [/old]"))
    assert shown.plain == "films [/old]"
    assert sweep._shown(0.123456) == "0.1235"


def test_a_trial_below_the_median_is_stopped(tmp_path, space, training):
    training(pause=0.3)
    study = _study(tmp_path)
    distributions = search.load_space(space)
    for _ in range(5):
        trial = optuna.trial.create_trial(
            params={"policy.sigma": 0.2, "policy.train_crops": 1},
            distributions=distributions,
            value=0.9,
            intermediate_values={2: 0.8, 4: 0.85, 6: 0.9},
        )
        study.add_trial(trial)
    study.enqueue_trial({"policy.sigma": 0.5, "policy.train_crops": 1})
    trial = study.ask(distributions)
    with pytest.raises(optuna.TrialPruned, match=r"step 2: F1 0\.520"):
        search.run_trial(trial, config=space, workdir=tmp_path, seed=0)
    assert search.validations(tmp_path / "trial-0005") == {2: 0.52}


def test_a_trial_is_not_stopped_while_its_policy_waits(tmp_path):
    study = search.open_study("s", tmp_path, storage="", seed=0, warmup_steps=4)
    for _ in range(5):
        values = {2: 0.8, 4: 0.85}
        study.add_trial(
            optuna.trial.create_trial(value=0.9, intermediate_values=values)
        )
    trial = study.ask()
    trial.report(0.5, 2)
    assert not trial.should_prune()
    trial.report(0.5, 4)
    assert trial.should_prune()


def test_failed_trials_are_told_and_three_in_a_row_end_the_search(
    tmp_path, space, training
):
    training(fails="True")
    flags = ["--config", space, "--trials", "5", "--workdir", str(tmp_path / "runs")]
    with pytest.raises(UserError, match="three trials in a row.*the disk is full"):
        sweep.main(flags)
    trials = _study(tmp_path / "runs").get_trials()
    assert [of.state.name for of in trials] == ["FAIL"] * 3


# A worker in a process of its own, whose trainings are the small program.
WORKER = """
import importlib.util, os, signal, subprocess, sys
from hapre_jax import experiments, search
spec = importlib.util.spec_from_file_location("sweep", {sweep!r})
sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)
popen = subprocess.Popen
experiments.subprocess.Popen = lambda command, **settings: popen(
    [sys.executable, {program!r}, *command[3:]], **settings)
{first}
sweep.main({flags!r})
"""


@pytest.fixture
def begin(tmp_path):
    """Starts a worker whose training takes minutes; what it leaves is ended."""
    workers = []

    def start(flags, first=""):
        program = tmp_path / "long.py"
        program.write_text(TRAINING.format(fails="False", pause=60))
        code = WORKER.format(
            sweep=str(SWEEP), program=str(program), flags=flags, first=first
        )
        command = [sys.executable, "-c", code]
        workers.append(subprocess.Popen(command, start_new_session=True))
        return workers[-1]

    yield start
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def test_an_interrupted_trial_goes_on_in_its_folder(tmp_path, space, training, begin):
    """The worker is killed as by the system; a second one takes its trial up."""
    workdir = tmp_path / "runs"
    flags = ["--config", space, "--trials", "1", "--workdir", str(workdir)]
    worker = begin(flags)
    first = workdir / "trial-0000"
    _until(lambda: search.validations(first))
    (running,) = _study(workdir).get_trials()
    # Its folder is taken as long as it lives,
    search.take_up_interrupted(_study(workdir))
    assert _states(_study(workdir)) == ["RUNNING"]
    # and as long as its training does, which went on without it.
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    search.take_up_interrupted(_study(workdir))
    assert _states(_study(workdir)) == ["RUNNING"]
    os.killpg(worker.pid, signal.SIGKILL)

    def is_taken_up():
        search.take_up_interrupted(_study(workdir))
        return _states(_study(workdir)) == ["FAIL", "WAITING"]

    _until(is_taken_up)
    training()
    assert sweep.main(flags) == 0
    old, new = _study(workdir).get_trials()
    assert (old.state.name, new.state.name) == ("FAIL", "COMPLETE")
    assert new.params == running.params
    assert new.user_attrs["folder"] == str(first)
    assert not (workdir / "trial-0001").exists()


def test_another_machine_takes_up_the_trial_of_a_lost_one(
    tmp_path, space, training, begin, monkeypatch
):
    """They share a database alone: the disk of the first is gone with it."""
    storage = f"sqlite:///{tmp_path}/study.db"
    lost, workdir = tmp_path / "lost", tmp_path / "runs"
    flags = ["--config", space, "--trials", "1", "--storage", storage]
    quick = "search._BEAT_SECONDS, search._GRACE_SECONDS = 1, 3"
    worker = begin([*flags, "--workdir", str(lost)], first=quick)
    _until(lambda: search.validations(lost / "trial-0000"))
    lost.rename(tmp_path / "away")
    monkeypatch.setattr(search, "_GRACE_SECONDS", 3)
    study = _study(workdir, storage)
    (running,) = study.get_trials()
    living = time.monotonic() + 5  # longer than the silence of the dead
    while time.monotonic() < living:
        search.take_up_interrupted(study)
        assert _states(study) == ["RUNNING"]
        time.sleep(0.2)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()

    def is_taken_up():
        search.take_up_interrupted(study)
        return _states(study) == ["FAIL", "WAITING"]

    _until(is_taken_up)
    training()
    assert sweep.main([*flags, "--workdir", str(workdir)]) == 0
    old, new = study.get_trials()
    assert (old.state.name, new.state.name) == ("FAIL", "COMPLETE")
    assert new.params == running.params
    assert new.user_attrs["folder"] == str(workdir / "trial-0001")
    assert not lost.exists()


@pytest.mark.parametrize("storage", ["", "sqlite:///{}/study.db"])
def test_a_worker_that_dies_before_its_trial_begins(
    tmp_path, space, training, begin, monkeypatch, storage
):
    storage, workdir = storage.format(tmp_path), tmp_path / "runs"
    flags = ["--config", space, "--trials", "1", "--workdir", str(workdir)]
    flags += ["--storage", storage]
    dies = "search.run_trial = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)"
    assert begin(flags, first=dies).wait(120) == -signal.SIGKILL
    study = _study(workdir, storage)
    (begun,) = study.get_trials()
    assert begun.user_attrs == {}
    # It might be about to begin for some minutes, not for ever.
    search.take_up_interrupted(study)
    assert _states(study) == ["RUNNING"]
    monkeypatch.setattr(search, "_GRACE_SECONDS", 1)
    time.sleep(1.1)
    training()
    assert sweep.main(flags) == 0
    assert _states(study) == ["FAIL", "COMPLETE"]
    assert study.get_trials()[1].params == begun.params


def test_a_worker_leaves_a_trial_that_another_took(
    tmp_path, space, training, monkeypatch
):
    """Its signs of life did not arrive, such as those of a machine that slept."""
    training(pause=0.2)
    validations, tell = search.validations, optuna.study.Study.tell

    def away(number):
        tell(_study(tmp_path), number, state=optuna.trial.TrialState.FAIL)

    def taken_while_it_trains(folder):
        found = validations(folder)
        if folder.name == "trial-0000" and list(found) == [2]:
            away(0)
            monkeypatch.setattr(search, "validations", validations)
        return found

    def taken_at_its_end(study, trial, *args, **settings):
        if trial.number == 1:
            away(1)
        return tell(study, trial, *args, **settings)

    monkeypatch.setattr(search, "validations", taken_while_it_trains)
    monkeypatch.setattr(optuna.study.Study, "tell", taken_at_its_end)
    flags = ["--config", space, "--trials", "1", "--workdir", str(tmp_path)]
    assert sweep.main(flags) == 0
    assert _states(_study(tmp_path)) == ["FAIL", "FAIL", "COMPLETE"]
    # The first was ended, where the second had come to its end.
    assert len(validations(tmp_path / "trial-0000")) < 3
    assert len(validations(tmp_path / "trial-0001")) == 3


def test_workers_draw_settings_of_their_own(tmp_path, space):
    distributions = search.load_space(space)
    # Each opens the study, as every worker does, and every command that goes on.
    drawn = [_study(tmp_path / "one").ask(distributions).params for _ in range(3)]
    assert len({of["policy.sigma"] for of in drawn}) == 3
    # What a trial draws depends on its number, not on who asks.
    alone = _study(tmp_path / "other")
    assert [alone.ask(distributions).params for _ in range(3)] == drawn


@pytest.fixture
def dead(tmp_path, space):
    """A study whose only worker has died: its trial 0 runs for ever."""
    study = _study(tmp_path)
    trial = study.ask(search.load_space(space))
    folder = tmp_path / "trial-0000"
    trial.set_user_attr("folder", str(folder))
    with search._claim(folder) as lock:
        search._write(lock, "0")
    return study


def test_two_workers_take_up_a_trial_once(tmp_path, dead, monkeypatch):
    get_trials = dead.get_trials

    def meanwhile(**settings):
        """Another worker takes it up after this one has seen it."""
        seen = get_trials(**settings)
        monkeypatch.undo()
        search.take_up_interrupted(_study(tmp_path))
        return seen

    monkeypatch.setattr(dead, "get_trials", meanwhile)
    search.take_up_interrupted(dead)
    assert _states(dead) == ["FAIL", "WAITING"]


def test_a_trial_that_was_taken_up_is_left_to_its_worker(
    tmp_path, dead, space, monkeypatch
):
    search.take_up_interrupted(dead)
    # Asked for by its new worker, which is not in its folder yet.
    assert dead.ask(search.load_space(space)).number == 1
    search.take_up_interrupted(_study(tmp_path))
    assert _states(dead) == ["FAIL", "RUNNING"]
    # It never came.
    monkeypatch.setattr(search, "_GRACE_SECONDS", 0)
    search.take_up_interrupted(_study(tmp_path))
    assert _states(dead) == ["FAIL", "FAIL", "WAITING"]


def test_trials_of_machines_that_share_no_folder_are_left_alone(
    tmp_path, space, monkeypatch
):
    study = _study(tmp_path)
    trial = study.ask(search.load_space(space))
    elsewhere = tmp_path / "disk-of-another-machine" / "trial-0000"
    trial.set_user_attr("folder", str(elsewhere))
    monkeypatch.setattr(search, "_GRACE_SECONDS", 0)
    search.take_up_interrupted(_study(tmp_path))
    assert _states(study) == ["RUNNING"]
    assert not elsewhere.parent.exists()


def test_dry_run_shows_the_space_and_writes_nothing(tmp_path, space, capsys):
    workdir = tmp_path / "runs"
    flags = ["--config", space, "--workdir", str(workdir), "--dry-run"]
    assert sweep.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("policy.sigma: FloatDistribution(") and len(lines) == 2
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("get_space", "other", r"has no get_space\(\)"),
        ("policy.sigma", "policy.sigm", r"no field policy\.sigm; did you mean"),
        ("FloatDistribution(0.2", "FloatDistribution(-0.2", "must be a number > 0"),
        (
            "    return {",
            "    given = {",
            "gives None, but must give a dict from fields",
        ),
        ("FloatDistribution(0.2, 0.5),", "[0.2, 0.5],", "but must give a dict from"),
    ],
)
def test_a_wrong_space_is_refused_in_one_sentence(tmp_path, before, after, message):
    file = tmp_path / "searched.py"
    file.write_text(SPACE.replace(before, after))
    with pytest.raises(UserError, match=message):
        sweep.main(["--config", str(file), "--workdir", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_a_search_keeps_to_what_it_was_begun_with(tmp_path, space, training):
    training(fails=False, pause=0)
    flags = ["--config", space, "--workdir", str(tmp_path / "runs"), "--trials"]
    assert sweep.main([*flags, "1"]) == 0
    file = pathlib.Path(space)
    with pytest.raises(UserError, match="was begun with seed = 0, not 1; choose anoth"):
        sweep.main([*flags, "2", "--seed", "1"])
    other = SPACE.replace(
        'return config_file.load("tests/tiny.py")',
        'import dataclasses\n    tiny = config_file.load("tests/tiny.py")\n    return '
        'dataclasses.replace(tiny, method="cutout")',
    )
    file.write_text(other)
    with pytest.raises(
        UserError, match="begun with method = hapre, not cutout; choose"
    ):
        sweep.main([*flags, "2"])
    file.write_text(
        SPACE.replace(
            "IntDistribution(1, 2)", "CategoricalDistribution((1, 2))"
        ).replace(
            "import FloatDistribution, Int", "import FloatDistribution, Categorical"
        )
    )
    with pytest.raises(UserError, match="was begun with another space"):
        sweep.main([*flags, "2"])
    file.write_text(SPACE)
    assert sweep.main([*flags, "2"]) == 0


@pytest.mark.parametrize("half", [b'{"op_code":5,"wor', b""])
def test_a_line_that_a_full_disk_left_half_spoils_no_search(tmp_path, half):
    study = _study(tmp_path)
    study.enqueue_trial({})
    journal = tmp_path / "study.journal"
    with journal.open("ab") as file:
        file.write(half)
    study.enqueue_trial({})  # by a worker that is still there
    with journal.open("ab") as file:
        file.write(half)
    assert _states(_study(tmp_path)) == ["WAITING", "WAITING"]
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_full_disk_is_named(tmp_path, space, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = optuna.storages.journal.JournalFileBackend
    monkeypatch.setattr(journal, "append_logs", fail)
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be written: No space lef"):
        sweep.main(["--config", space, "--workdir", str(tmp_path)])


def test_files_without_a_space_are_refused_in_one_sentence(tmp_path, space):
    run = tmp_path / "config.json"
    run.write_text('{"compare_plain": false}')
    with pytest.raises(UserError, match=r"config\.json has no get_space\(\)$"):
        search.load_space(str(run))
    file = tmp_path / "wrong.py"
    file.write_text(SPACE.replace("(0.2, 0.5)", "(0.5, 0.2)"))
    with pytest.raises(UserError, match=r"get_space\(\) of .*wrong\.py fails with Val"):
        search.load_space(str(file))


def test_without_optuna_the_extra_is_named(space, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"^sweeps need Optuna: pip install -e '\.\[sw"):
        search.load_space(space)


def test_wrong_flags_are_refused(tmp_path, space):
    flags = ["--config", space, "--workdir", str(tmp_path), "--storage"]
    for address in ("nonsense", f"sqlite:///{tmp_path}/nowhere/study.db"):
        with pytest.raises(UserError, match=r"database of --storage cannot be opened"):
            sweep.main([*flags, address])
    with pytest.raises(UserError, match="--trials is 0"):
        sweep.main(["--config", space, "--trials", "0"])
    with pytest.raises(UserError, match="seed is -1, but must be"):
        sweep.main(["--config", space, "--seed", "-1", "--workdir", str(tmp_path)])
    with pytest.raises(UserError, match="is not JSON"):
        sweep.main(["--config", space, "--slurm-args", "{"])


# Submitit's debug executor does not close its log files.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_workers_are_submitted(tmp_path, space, training):
    """Submitit's debug executor runs here what Slurm would run elsewhere."""
    training()
    flags = ["--config", space, "--trials", "2", "--workdir", str(tmp_path / "runs")]
    flags += ["--slurm", "1", "--cluster", "debug"]
    assert sweep.main([*flags, "--slurm-args", json.dumps({"timeout_min": 5})]) == 0
    assert len(_study(tmp_path / "runs").get_trials()) == 2


def test_the_search_of_the_repository_is_valid():
    assert search.load_space("configs/sweep_phantom.py").keys() >= {"policy.sigma"}
