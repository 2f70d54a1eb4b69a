"""Runs of other programs, most of them made up."""

import io
import json
import pathlib

import pytest
import rich.console

from hapre_jax import experiments
from hapre_jax.errors import UserError
from hapre_jax.experiments import Experiment


def make(folder, seed=0, **values):
    return Experiment("configs/phantom.py", {**values, "seed": str(seed)}, folder)


def finish(experiment):
    experiment.folder.mkdir(parents=True, exist_ok=True)
    (experiment.folder / "results.json").write_text("{}")


@pytest.fixture
def console():
    return rich.console.Console(file=io.StringIO(), width=40)


def lines(console):
    return console.file.getvalue().splitlines()


def test_run_is_finished_when_its_results_are_there(tmp_path):
    run = make(tmp_path / "run")
    assert not run.is_finished
    (run.folder / "checkpoints").mkdir(parents=True)
    assert not run.is_finished
    finish(run)
    assert run.is_finished


def test_arguments_name_config_folder_and_all_values_in_order():
    values = {"policy.sigma": "0.2", "data.root": "", "seed": "3"}
    run = Experiment("configs/a.py:b@c", values, pathlib.Path("runs/my run"))
    assert run.arguments == [
        "--config",
        "configs/a.py:b@c",
        "--workdir",
        "runs/my run",
        "--policy.sigma",
        "0.2",
        "--data.root",
        "",
        "--seed",
        "3",
    ]


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("policy.sigm", "0.2", r"no field policy\.sigm; did you mean policy\.sigma"),
        ("policy.sigma", "-1", r"policy\.sigma is -1\.0, but must be a number > 0"),
        ("task.net", "resnet9", r"task\.net is 'resnet9', but must be one of resnet8,"),
    ],
)
def test_field_or_value_that_the_program_would_refuse_is_refused(path, value, sentence):
    with pytest.raises(UserError, match=sentence):
        make(pathlib.Path("run"), **{path: value}).check()


def test_check_of_a_good_run_is_silent_and_touches_nothing(tmp_path):
    make(tmp_path / "run", **{"policy.sigma": "0.2", "task.net": "resnet18"}).check()
    assert list(tmp_path.iterdir()) == []


def test_shards_cover_every_run_once():
    runs = list("abcdefghij")
    parts = [experiments.shard(runs, f"{i}/4") for i in (1, 2, 3, 4)]
    assert parts == [list("aei"), list("bfj"), list("cg"), list("dh")]
    assert experiments.shard(runs, "1/1") == runs
    assert experiments.shard(runs, "11/11") == []


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/", "/2", ""])
def test_malformed_shard_is_refused(text):
    with pytest.raises(UserError, match="is not i/n with i from 1 to n"):
        experiments.shard(["a"], text)


def test_unfinished_runs_are_trained_in_order_and_finished_ones_are_not(
    tmp_path, console, monkeypatch
):
    runs = [make(tmp_path / f"seed-{seed}", seed) for seed in range(3)]
    finish(runs[1])
    commands = []

    def train(command, *, stdout, stderr):
        commands.append(command)
        stdout.write(f"trained {command[-1]}\n")
        return 0

    monkeypatch.setattr(experiments.subprocess, "call", train)
    assert experiments.run_all(runs, console) == []
    assert [command[1:] for command in commands] == [
        ["-m", "hapre_jax.train", *runs[0].arguments],
        ["-m", "hapre_jax.train", *runs[2].arguments],
    ]
    command = f"$ python -m hapre_jax.train {' '.join(runs[0].arguments)}\n"
    assert (tmp_path / "seed-0.log").read_text() == f"{command}trained 0\n"
    assert (tmp_path / "seed-2.log").read_text() == "trained 2\n"
    assert lines(console) == [
        "1 of 3 runs are finished already",
        f"runs 1/2  {tmp_path}/seed-0",
        f"runs 2/2  {tmp_path}/seed-2",
    ]


def test_nothing_is_started_where_all_runs_are_finished(tmp_path, console, monkeypatch):
    monkeypatch.delattr(experiments.subprocess, "call")
    run = make(tmp_path / "run")
    finish(run)
    assert experiments.run_all([run], console) == []
    assert experiments.run_all([], console) == []
    assert lines(console) == ["1 of 1 runs are finished already"]


def test_failed_runs_do_not_stop_the_others_and_say_why(tmp_path, console, monkeypatch):
    runs = [make(tmp_path / f"seed-{seed}", seed) for seed in range(4)]
    said = {"0": "step 1\nerror: [disk] is full\n\n", "1": "", "2": "fine\n"}

    def train(command, *, stdout, stderr):
        seed = command[-1]
        stdout.write(said.get(seed, "error: no GPU"))
        return {"2": 0, "3": -9}.get(seed, 2)

    monkeypatch.setattr(experiments.subprocess, "call", train)
    failures = experiments.run_all(runs, console)
    assert [(failure.what, failure.reason) for failure in failures] == [
        (f"{tmp_path}/seed-0", "error: [disk] is full"),
        (f"{tmp_path}/seed-1", "it said nothing"),
        (f"{tmp_path}/seed-3", "error: no GPU"),
    ]
    experiments.say_failures(failures[:1], console)
    # Long lines stay whole, brackets are no markup.
    assert lines(console)[-1:] == [
        f"failed: {tmp_path}/seed-0: error: [disk] is full (see {tmp_path}/seed-0.log)"
    ]


def test_program_runs_in_a_process_whose_every_word_is_kept(tmp_path):
    output, values = tmp_path / "new" / "folder" / "said.log", tmp_path / "values.json"
    values.write_text('{"a": 1}')
    assert experiments.run_program(["json.tool", "--compact", str(values)], output)
    assert output.read_text().splitlines()[1:] == ['{"a":1}']
    # It says so on stderr, with a status of its own.
    assert not experiments.run_program(["json.tool", "--no-such-option"], output)
    first, *_, last = output.read_text().splitlines()
    assert json.loads(first) == {"a": 1}
    assert "unrecognized arguments: --no-such-option" in last
    assert experiments.Failure("x", output).reason == last


def test_reason_is_found_in_what_is_not_text(tmp_path):
    output = tmp_path / "said.log"
    output.write_bytes(b"fine\nerror: \xff is no file\n")
    reason = experiments.Failure("x", output).reason
    assert reason == "error: � is no file"


def test_training_program_itself_gives_the_reason_of_a_failure(tmp_path, console):
    run = Experiment("configs/nowhere.py", {"seed": "0"}, tmp_path / "run")
    (failure,) = experiments.run_all([run], console)
    assert failure.reason.startswith(
        "error: there is no config file 'configs/nowhere.py'"
    )
    assert failure.output == tmp_path / "run.log" and not run.folder.exists()
