"""The training program from its command line."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from PIL import Image
from test_resume import assert_same_checkpoints

from hapre_jax import (
    checkpoint,
    cli,
    config,
    errors,
    evaluate,
    evaluation,
    log,
    predictions,
    run_folder,
    sharding,
    train,
    train_state,
    train_step,
    training,
)
from hapre_jax.data import pipeline, splits
from hapre_jax.errors import UserError
from hapre_jax.method import Prediction
from hapre_jax.methods import METHODS
from hapre_jax.predictions import Predictions

ROOT = pathlib.Path(__file__).parents[1]
# Of a method without key areas; the second only if an answer is wrong.
PLAIN_PICTURES = {"learning.png", "mistakes.png", "heatmaps.png"}


@pytest.fixture
def plain_config(tiny_config):
    """The plain classifier alone."""
    return dataclasses.replace(tiny_config, method="plain", compare_plain=False)


@pytest.fixture
def experiment(tmp_path, plain_config):
    """A config file as `--config` takes it."""
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(config.to_dict(plain_config)))
    return path


def _films(root, per_class=12, classes=("normal", "pneumonia")):
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = rng.integers(0, 256, (16, 20), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.jpeg")
    return root


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs the program and gives the one sentence that it ends with."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["train", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.run(train.main)
        assert stopped.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and printed.endswith("\n")
        assert printed.count("\n") == 1
        return printed.removeprefix("error: ").rstrip("\n")

    return run


def test_a_run_says_where_it_is_and_what_is_next(finished_run, capsys, tmp_path):
    """From the files of a finished run; `test_resume` runs the program itself."""
    arguments = ["--config", str(finished_run / "config.json")]
    assert train.main([*arguments, "--workdir", str(finished_run)]) == 0
    said = capsys.readouterr().out.splitlines()
    results = json.loads((finished_run / "results.json").read_text())
    assert said[0].strip() == "phantom: 12 test images, seed 0"
    assert any(f"{results['plain']['macro_f1']:.3f}" in line for line in said)
    # Six steps do not move the policy.
    assert said[-3] == (
        "The policy did not move: its key area is the whole image, as at the start. "
        "If the classifier has learned (see learning.png), raise "
        "train.policy_learning_rate or train.steps; if not, raise "
        "policy.warmup_steps or train.task_learning_rate."
    )
    assert said[-2] == (
        f"Everything is in {finished_run}: report.html, results.json, "
        "predictions.csv, metrics.jsonl, learning.png, key_areas.png, "
        "key_areas_over_time.png, landscape.png, heatmaps.png, mistakes.png"
    )
    assert said[-1] == (
        f"Next: python -m hapre_jax.evaluate {finished_run} --data.quality medium"
    )


@pytest.mark.parametrize(
    ("data", "command"),
    [
        ({"quality": "medium"}, "python -m hapre_jax.evaluate RUN --data.quality low"),
        ({"quality": "exposed"}, "open RUN/report.html"),  # none has its classes
        (
            {"name": "nih_chest_xray"},
            "python -m hapre_jax.evaluate RUN --data.root DIR",
        ),
    ],
)
def test_next_command_is_one_that_can_be_given(data, command):
    said = train._next(config.DataConfig(**data), pathlib.Path("RUN"))
    assert said == command


def test_calls_of_several_steps_are_whole_before_a_run_leaves(tmp_path, plain_config):
    every = dict.fromkeys(("log_every", "checkpoint_every", "eval_every"), 6)
    several = dataclasses.replace(plain_config.train, steps_per_call=2, **every)
    settings = dataclasses.replace(plain_config, train=several)
    assert train.train_and_evaluate(settings, tmp_path, stop_after=3) is None
    assert (tmp_path / "checkpoints" / "last" / "2").is_dir()


def test_a_run_on_one_s_own_films(tmp_path, experiment, capsys):
    """Lungs unknown, two classes, other numbers of images than a batch divides."""
    films = _films(tmp_path / "films")
    workdir = tmp_path / "run"
    flags = ["--data.name", "folder", "--data.root", films, "--workdir", workdir]
    assert train.main(["--config", str(experiment), *map(str, flags)]) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert results["classes"] == ["normal", "pneumonia"]
    assert results["dataset"] == "folder" and results["test"]["n"] == 6
    said = capsys.readouterr().out
    assert said.endswith(f"evaluate {workdir} --data.root DIR\n")
    assert f"{workdir}: report.html, results.json, predictions.csv, metrics" in said
    # The plain classifier has no key areas.
    assert {path.name for path in workdir.glob("*.png")} <= PLAIN_PICTURES
    (workdir / "report.html").unlink()
    assert train.main(["--config", str(experiment), *map(str, flags)]) == 0
    assert f"{workdir} has lost report.html: delete" in capsys.readouterr().out
    # Its pictures would be films of the next run.
    flags[-1] = films / "runs" / "a"
    with pytest.raises(UserError, match="^--workdir .* lies among the films of "):
        train.main(["--config", str(experiment), *map(str, flags)])
    assert not (films / "runs").exists()


# What these do to images is tested by itself, and CutMix is trained as they are; so are
# the losses of MAG-SD and the released DRE-Net, whose steps take longest to compile.
_LIKE_OTHERS = {"cutout", "dre_net_official", "mixup", "random_aug", "random_crop"}
_LIKE_OTHERS |= {"mag_sd", "true_lungs"}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.slow if name in _LIKE_OTHERS else ())
        for name in sorted(set(METHODS) - {"hapre", "plain"})
    ],
)
def test_other_methods_train_go_on_and_are_evaluated(tmp_path, plain_config, method):
    settings = dataclasses.replace(plain_config, method=method)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    results = train.train_and_evaluate(settings, whole)
    assert results["method"] == method and results["test"]["n"] == 12
    assert results["test"]["key_area"] is None
    # DRL-DA starts from the plain classifier, which is therefore trained too.
    assert (results["plain"] is not None) == (method == "drl_da")
    # As it was when the fourth of six steps had been saved.
    shutil.copytree(whole, parts)
    (parts / "results.json").unlink()
    for later in list(parts.glob("checkpoints/*/6")):
        shutil.rmtree(later)
    console = rich.console.Console(file=io.StringIO())
    again = train.train_and_evaluate(settings, parts, console=console)
    assert f"{method}: going on from step 4" in console.file.getvalue()
    assert again["test"] == results["test"]
    records = [run / "metrics.jsonl" for run in (whole, parts)]
    assert records[0].read_bytes() == records[1].read_bytes()
    assert {path.name for path in whole.glob("*.png")} <= PLAIN_PICTURES
    assert evaluate.main([str(parts)]) == 0
    evaluated = json.loads((parts / "evaluation.json").read_text())
    assert evaluated["test"] == results["test"]


def test_stop_after_leaves_a_checkpoint_and_no_result(tmp_path, plain_config):
    stopped = train.train_and_evaluate(plain_config, tmp_path, stop_after=1)
    assert stopped is None
    assert (tmp_path / "checkpoints" / "last" / "1").is_dir()
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("scores", "best"),
    # Validated at steps 2, 4 and 6. Of equal ones the later: its policy is further.
    [((0.5, 0.7, 0.6), 4), ((0.7, 0.6, 0.5), 2), ((0.4, 0.7, 0.7), 6)],
)
def test_best_checkpoint_has_the_highest_validation_f1(
    tmp_path, monkeypatch, plain_config, scores, best
):
    def make_step(method, optimizer, config, mesh):
        def step(now, batch):
            return now._replace(step=np.int32(now.step + 1)), {"loss": np.float32(1)}

        return step

    tested = []
    table = Predictions((), (), (), (), np.zeros(0, int), np.zeros((0, 1)))

    def score(predict, now, source, *, config, mesh, **others):
        steps = {2: 0, 4: 1, 6: 2}
        tested.append((int(now.step), len(source)))
        found = {"macro_f1": scores[steps[int(now.step)]], "key_area": None}
        return evaluation.Evaluation(found, Prediction(None), table)

    monkeypatch.setattr(train_step, "make_step", make_step)
    monkeypatch.setattr(evaluation, "evaluate", score)
    # What is made of answers that nobody gave.
    monkeypatch.setattr(train.probabilities, "fit_temperature", lambda *arguments: 1.0)
    monkeypatch.setattr(train.figures, "mistakes_sheet", lambda *arguments: None)
    monkeypatch.setattr(train.html_report, "write", lambda *arguments: None)
    counts = {"validation_images": 6, "test_images": 9}
    data = dataclasses.replace(plain_config.data, **counts)
    settings = dataclasses.replace(plain_config, data=data)
    results = train.train_and_evaluate(settings, tmp_path)
    assert results["best_step"] == best
    # The best one once more on validation films, for the temperature.
    assert tested == [(2, 6), (4, 6), (6, 6), (best, 6), (best, 9)]


def test_what_a_method_learned_before_the_first_step_is_saved(tmp_path, plain_config):
    """DRL-DA's agent may take longer than all that comes after it."""
    method = METHODS["plain"](plain_config, 3)
    data = pipeline.load(plain_config.data, seed=0)
    calls = []

    def learn(now):
        calls.append(now)
        ones = jax.tree.map(jnp.ones_like, now.params)
        return train_state.start_from(now, ones, now.model_state)

    for _ in range(2):
        fitted = training.fit(
            plain_config,
            method,
            tmp_path,
            data,
            validate=None,
            best_by="macro_f1",
            mesh=sharding.make_mesh(plain_config.train),
            console=rich.console.Console(quiet=True),
            before=learn,
            stop_after=0,
        )
        assert fitted is None
    assert len(calls) == 1
    checkpoints = checkpoint.Checkpoints(tmp_path)
    saved, _ = checkpoints.restore("last", calls[0])
    checkpoints.close()
    assert all((x == 1).all() for x in jax.tree.leaves(saved.params))


def test_checkpoints_are_not_trained_on_by_another_division(
    tmp_path, finished_run, fails
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    (workdir / "results.json").unlink()
    (workdir / "splits.csv").unlink()
    flags = ["--config", str(workdir / "config.json"), "--workdir", workdir]
    assert fails(*flags) == (
        f"{workdir}/splits.csv is lost, which says what films the checkpoints there "
        "were trained on: restore it, or choose another --workdir"
    )
    assert not (workdir / "splits.csv").exists()


# Not a number.


def _assert_finite(workdir, settings):
    method = METHODS[settings.method](settings, 3)
    checkpoints = checkpoint.Checkpoints(workdir)
    restored, _ = checkpoints.restore("last", train_state.blank(method, settings))
    checkpoints.close()
    for array in jax.tree.leaves(restored):
        assert np.isfinite(array).all()
    return int(restored.step)


def test_a_huge_learning_rate_stops_with_the_last_good_checkpoint(
    tmp_path, plain_config, experiment, fails
):
    changes = {"train.task_learning_rate": "1e30", "train.checkpoint_every": "1"}
    flags = [f"--{name}={value}" for name, value in changes.items()]
    workdir = tmp_path / "run"
    said = fails("--config", experiment, "--workdir", workdir, *flags)
    # The rate rises from 0 in the first step, so the second one destroys the weights.
    record = log.read(workdir / "metrics.jsonl")[-1]
    films = record.pop("films")
    assert record == {"kind": "not_finite", "step": 2, "metrics": ["weight_norm/task"]}
    rows = splits.read(workdir / "splits.csv")
    trained = {row.path for row in rows if row.split == "train"}
    assert len(set(films)) == 4 and set(films) <= trained
    assert said == (
        f"weight_norm/task is not finite at step 2 (films {films[0]}, {films[1]}, "
        f"{films[2]} and 1 more); the last good checkpoint is "
        f"{workdir}/checkpoints/last/1; lower train.task_learning_rate or "
        "train.policy_learning_rate, or set train.on_nonfinite to skip"
    )
    settings = config.override_all(plain_config, changes)
    assert _assert_finite(workdir, settings) == 1
    assert not (workdir / "results.json").exists()
    again = fails("--config", experiment, "--workdir", workdir, *flags)
    assert again == said


@pytest.mark.parametrize("name", ["task_loss", "grad_norm/task"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_step_is_named_though_metrics_are_read_rarely(
    tmp_path, monkeypatch, plain_config, name, value
):
    """Five steps wait on the device when the bad one is found among them."""
    seen = {}

    def make_step(method, optimizer, config, mesh):
        def step(now, batch):
            count = int(now.step) + 1
            seen[count] = [int(row) for row in batch["index"]]
            metrics = {"a": np.float32(1), name: np.float32(value if count > 1 else 0)}
            return now._replace(step=np.int32(count)), metrics

        return step

    monkeypatch.setattr(train_step, "make_step", make_step)
    rare = {"log_every": 5, "checkpoint_every": 5, "eval_every": 10}
    rarely = dataclasses.replace(plain_config.train, **rare)
    settings = dataclasses.replace(plain_config, train=rarely)
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(settings, tmp_path)
    trained = pipeline.load(settings.data, seed=settings.seed).train.names
    films = [trained[row] for row in seen[2]]
    assert str(error.value) == (
        f"{name} is not finite at step 2 (films {films[0]}, {films[1]}, {films[2]} and "
        "1 more); no checkpoint yet; lower train.task_learning_rate or "
        "train.policy_learning_rate, or set train.on_nonfinite to skip"
    )
    assert log.read(tmp_path / "metrics.jsonl")[-1]["films"] == films
    assert not list((tmp_path / "checkpoints" / "last").iterdir())


def _with_nan(monkeypatch, bad_step):
    """Films of a step, counted from 0, that are not finite to the network."""
    make = METHODS["plain"]

    def broken(settings, classes):
        method = make(settings, classes)

        def loss(params, model_state, average, batch, key, step):
            image = jnp.where(step == bad_step, jnp.nan, batch["image"])
            batch = batch | {"image": image}
            return method.loss(params, model_state, average, batch, key, step)

        return method._replace(loss=loss)

    monkeypatch.setitem(METHODS, "plain", broken)


def test_steps_that_are_not_finite_are_skipped_on_request(
    tmp_path, monkeypatch, plain_config
):
    _with_nan(monkeypatch, 2)
    changes = {"on_nonfinite": "skip", "log_every": 2}
    settings = dataclasses.replace(
        plain_config, train=dataclasses.replace(plain_config.train, **changes)
    )
    said = io.StringIO()
    console = rich.console.Console(file=said)
    train.train_and_evaluate(settings, tmp_path / "run", console=console)
    records = log.read(tmp_path / "run" / "metrics.jsonl")
    (bad,) = [record for record in records if record["kind"] == "not_finite"]
    assert bad["step"] == 3 and "grad_norm/task" in bad["metrics"]
    films = errors.listing(bad["films"])
    first = bad["metrics"][0]
    sentence = f"plain: {first} is not finite at step 3 (films {films}); it is skipped"
    assert sentence in said.getvalue().splitlines()
    means = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in means] == [2, 4, 6]
    assert all(np.isfinite(record["grad_norm/task"]) for record in means)
    assert _assert_finite(tmp_path / "run", settings) == 6


def test_a_run_that_only_skips_ends(tmp_path, monkeypatch, plain_config):
    def make_step(method, optimizer, config, mesh):
        def step(now, batch):
            count = int(now.step) + 1
            metrics = {"loss": np.float32(np.nan if count in (3, 4) else 1)}
            return now._replace(step=np.int32(count)), metrics

        return step

    monkeypatch.setattr(train_step, "make_step", make_step)
    changes = {"on_nonfinite": "skip", "log_every": 2}
    settings = dataclasses.replace(
        plain_config, train=dataclasses.replace(plain_config.train, **changes)
    )
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(settings, tmp_path)
    assert str(error.value) == (
        "all steps of the last record, until step 4, were skipped as not finite: lower "
        "train.task_learning_rate or train.policy_learning_rate"
    )
    steps = [record["step"] for record in log.read(tmp_path / "metrics.jsonl")]
    assert steps == [2, 2, 3, 4]
    assert (tmp_path / "checkpoints" / "last" / "2").is_dir()


# Interrupted.

# Runs the training program, and tells it to stop while its third step is computed.
SIGNALLED = """
import os, signal, sys
from hapre_jax import cli, train, train_step
make_step = train_step.make_step

def signalled(*arguments):
    step = make_step(*arguments)

    def stepped(now, batch):
        if int(now.step) == 2:
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        return step(now, batch)

    return stepped

# Ignored where the tests run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)
train_step.make_step = signalled
cli.run(train.main)
"""


@pytest.mark.parametrize(
    ("name", "code"),
    [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)],
)
def test_a_run_that_is_told_to_stop_saves_and_ends_in_the_same_bits(
    tmp_path, plain_config, undisturbed, name, code
):
    settings, expected = undisturbed
    config_file, workdir = tmp_path / "experiment.json", tmp_path / "run"
    config_file.write_text(json.dumps(config.to_dict(settings)))
    command = [sys.executable, "-c", SIGNALLED, "--config", config_file]
    done = subprocess.run(
        [*command, "--workdir", workdir],
        cwd=ROOT,
        env=os.environ | {"SIGNAL": name},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    word = {"SIGTERM": "terminated", "SIGINT": "interrupted"}[name]
    held = f"{name}: ends when it has saved; again: at once\n"
    assert done.stderr == f"{held}{word}\n"
    said = (
        f"plain: {name} at step 3, which is saved; the same command goes on from there"
    )
    assert done.stdout.splitlines()[-1] == said
    assert (workdir / "checkpoints" / "last" / "3").is_dir()
    # The record of steps 1 to 4 is not due yet.
    assert (workdir / "metrics.jsonl").read_bytes() == b""
    train.train_and_evaluate(settings, workdir)
    assert_same_checkpoints(expected, workdir)
    for file in ("metrics.jsonl", "predictions.csv", "learning.png"):
        assert (workdir / file).read_bytes() == (expected / file).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_config):
    """A config whose records and checkpoints are far apart, and its run."""
    rare = {"log_every": 4, "checkpoint_every": 4, "eval_every": 6}
    settings = dataclasses.replace(
        tiny_config,
        method="plain",
        compare_plain=False,
        train=dataclasses.replace(tiny_config.train, **rare),
    )
    workdir = tmp_path_factory.mktemp("undisturbed")
    train.train_and_evaluate(settings, workdir)
    return settings, workdir


def test_two_processes_in_one_folder(tmp_path, experiment, plain_config, fails):
    workdir = tmp_path / "run"
    workdir.mkdir()
    run_folder.write_config(workdir, plain_config)
    with run_folder.claim(workdir):
        said = fails("--config", experiment, "--workdir", workdir)
    assert said == (
        f"another process is at work in {workdir}; wait until it has ended, or choose "
        "another --workdir"
    )


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_after_room_is_made(
    tmp_path, experiment, monkeypatch, undisturbed, fails
):
    settings, expected = undisturbed
    experiment.write_text(json.dumps(config.to_dict(settings)))
    workdir = tmp_path / "run"
    write = log.MetricsLog.write

    def fill(self, kind, step, metrics):
        if step == 6:  # a device that is always full
            self._file.close()
            self._file = open("/dev/full", "a")
        write(self, kind, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(log.MetricsLog, "write", fill)
        said = fails("--config", experiment, "--workdir", workdir)
    assert said == (
        f"{workdir}/metrics.jsonl cannot be written: No space left on device"
    )
    train.train_and_evaluate(settings, workdir)
    for file in ("metrics.jsonl", "predictions.csv"):
        assert (workdir / file).read_bytes() == (expected / file).read_bytes()


def test_steps_of_one_call_are_logged_one_by_one(tmp_path, monkeypatch, plain_config):
    taken = []

    def make_step(method, optimizer, config, mesh):
        def steps(now, batches):
            taken.append(len(batches))
            count = int(now.step) + np.arange(1, 4)
            values = np.where(count == 5, np.inf, count).astype(np.float32)
            return now._replace(step=np.int32(count[-1])), {"loss": values}

        return steps

    monkeypatch.setattr(train_step, "make_step", make_step)
    every = dict.fromkeys(("log_every", "checkpoint_every", "eval_every"), 3)
    several = dataclasses.replace(
        plain_config.train, steps_per_call=3, steps=9, **every
    )
    scores = {"macro_f1": 0.5, "key_area": None}
    monkeypatch.setattr(train, "_validate", lambda *arguments: (scores, None))
    monkeypatch.setattr(training.learning_curves, "draw_run", lambda *a, **k: None)
    settings = dataclasses.replace(plain_config, train=several)
    with pytest.raises(UserError, match="loss is not finite at step 5 "):
        train.train_and_evaluate(settings, tmp_path)
    assert taken == [3, 3]
    first, _, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first) == {"kind": "train", "step": 3, "loss": 2.0}
    assert json.loads(second)["step"] == 5


# Bad input. A command that cannot work leaves nothing behind, so that the corrected one
# is not refused.


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train.stepz=5"], "unknown option --train.stepz; did you mean"),
        (["--train.steps=many"], "train.steps is 'many', but must be an integer"),
        (["--policy.grid=5"], "policy.image_size is 16, but must be a multiple of"),
        (["--data.name=ped_pneumonia"], "data.root is empty: give the folder or the"),
        (["--data.name=folder", "--data.root=nowhere"], "nowhere does not exist: give"),
        (["--data.name=folder", "--data.root=empty"], "empty holds no image ("),
        (["--data.name=folder", "--data.root=no.zip"], "no.zip is not a readable zip"),
        (["--train.batch_size=25"], "train.batch_size 25 is more than the 24 training"),
    ],
)
def test_wrong_input_leaves_nothing_behind(
    tmp_path, monkeypatch, experiment, fails, flags, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_text("This is not an archive.")
    before = sorted(tmp_path.rglob("*"))
    arguments = ("--config", experiment, "--workdir", "runs/a", *flags)
    assert fails(*arguments).startswith(said)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_of_damaged_films(tmp_path, experiment, fails):
    films = _films(tmp_path / "films")
    for path in (films / "normal").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    flags = ("--data.name", "folder", "--data.root", films)
    workdir = tmp_path / "run"
    said = fails("--config", experiment, "--workdir", workdir, *flags)
    assert said.startswith(
        "class 'normal' has no readable image; for one, normal/0.jpeg"
    )
    assert not workdir.exists()


def test_true_lungs_of_films_without_lung_boxes(tmp_path, experiment, fails):
    films, workdir = _films(tmp_path / "films"), tmp_path / "run"
    flags = ("--method", "true_lungs", "--data.name", "folder", "--data.root", films)
    said = fails("--config", experiment, "--workdir", workdir, *flags)
    assert said == (
        "method true_lungs needs lung boxes, and of a split of this data set none is "
        "known"
    )
    assert not workdir.exists()


def test_the_corrected_command_is_not_refused(tmp_path, experiment, fails, capsys):
    """After each kind of failure the same folder serves; one run at the end."""
    workdir = tmp_path / "run"
    start = ["--config", str(experiment), "--workdir", str(workdir)]
    fails(*start, "--data.name", "folder", "--data.root", tmp_path / "nowhere")
    fails(*start, "--train.batch_size", "25", "--data.train_images", "20")
    assert train.main(start) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Everything is in") for line in lines)
    # Progress, as it is written where no terminal is.
    images = [line for line in lines if line.startswith("phantom images ")]
    assert len(images) == 10 and images[-1] == "phantom images 48/48"
    first, *steps = [line for line in lines if re.match(r"plain(:| \d)", line)]
    assert re.fullmatch(r"plain: first step done after \d+\.\d s", first)
    assert [line.split("  ")[0] for line in steps] == [
        f"plain {n}/6" for n in range(1, 7)
    ]
    assert all(line.split("  ")[1].startswith("loss ") for line in steps)


def test_a_folder_of_another_run(tmp_path, experiment, plain_config, fails):
    workdir = tmp_path / "run"
    run_folder.write_config(workdir, plain_config)
    before = (workdir / "config.json").read_bytes()
    start = ("--config", experiment, "--workdir", workdir)
    said = fails(*start, "--task.image_size", "24")
    assert said.startswith(f"{workdir} holds a run with task.image_size = 16, not 24; ")
    (workdir / "config.json").write_bytes(before[:50])
    assert fails(*start).startswith(f"config file {workdir}/config.json cannot be read")
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_a_checkpoint_of_another_architecture(
    tmp_path, finished_run, experiment, fails
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run / "plain", workdir)
    shutil.copy(finished_run / "splits.csv", workdir)
    values = json.loads((workdir / "config.json").read_text())
    values["task"]["norm"] = "group"  # as if the checkpoints were of this config
    (workdir / "config.json").write_text(json.dumps(values))
    (workdir / "results.json").unlink()
    before = (workdir / "metrics.jsonl").read_bytes()
    start = ("--config", experiment, "--workdir", workdir)
    assert fails(*start, "--task.norm", "group") == (
        f"the checkpoint {workdir}/checkpoints/best/6 was written by another "
        "architecture than this config's: choose another folder"
    )
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_damaged_results_and_records(tmp_path, finished_run, experiment, fails):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run / "plain", workdir)
    shutil.copy(finished_run / "splits.csv", workdir)
    results = workdir / "results.json"
    results.write_bytes(results.read_bytes()[:40])
    start = ("--config", experiment, "--workdir", workdir)
    said = fails(*start)
    assert said.startswith(f"{results} is not JSON: ") and said.endswith("; delete it")
    results.unlink()
    records = workdir / "metrics.jsonl"
    records.write_bytes(b"{" + records.read_bytes())
    assert fails(*start) == f"line 1 of {records} is no record; delete that line"


def test_a_workdir_that_is_a_file(tmp_path, experiment, fails):
    file = tmp_path / "file"
    file.write_text("mine")
    said = fails("--config", experiment, "--workdir", file)
    assert said == f"{file} is a file; choose another --workdir"
    assert file.read_text() == "mine"


def test_missing_tensorboard_is_found_before_the_data_are_read(
    tmp_path, experiment, fails, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr("hapre_jax.data.pipeline.load", None)
    flags = ("--workdir", tmp_path / "run", "--train.tensorboard", "true")
    said = fails("--config", experiment, *flags)
    assert said.startswith("train.tensorboard needs tensorboardX: pip install ")
    assert not (tmp_path / "run").exists()


def test_the_program_ends_with_a_sentence_and_status_2(tmp_path):
    """As its users call it."""
    flags = ["--config", "configs/ped_pneumonia.py", "--data.root", "nowhere"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hapre_jax.train",
            *flags,
            "--workdir",
            tmp_path / "run",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: nowhere does not exist: give a folder or a zip\n"
    assert not (tmp_path / "run").exists()


def test_the_logged_lung_iou_is_of_films_whose_lungs_are_known():
    # Batches of which half, none, and all have known lungs: IoU 0.4 of one film in
    # two, and 0.7 of two.
    logged = [
        {"lung_iou": 0.2, "lung_iou/known": 0.5, "side": 0.1},
        {"lung_iou": 0.0, "lung_iou/known": 0.0, "side": 0.2},
        {"lung_iou": 0.7, "lung_iou/known": 1.0, "side": 0.3},
    ]
    steps = list(enumerate(logged, 1))
    found = training.mean_metrics(steps, 3)
    assert found == {"lung_iou": pytest.approx(0.6), "side": pytest.approx(0.2)}
    assert training.mean_metrics(steps[1:2], 2) == {"side": 0.2}


def test_what_was_lost_while_a_run_rested_is_said(tmp_path, plain_config):
    assert train.train_and_evaluate(plain_config, tmp_path, stop_after=4) is None
    (tmp_path / "metrics.jsonl").write_text("")
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    console = rich.console.Console(file=io.StringIO(), width=300)
    results = train.train_and_evaluate(plain_config, tmp_path, console=console)
    said = console.file.getvalue()
    assert "checkpoints/best is lost: the best of the validations from here on" in said
    assert (
        "metrics.jsonl has lost records up to step 4: curves will begin later" in said
    )
    assert results["best_step"] == 6  # the only validation that is left
    # Where none is left, there is one more.
    (tmp_path / "results.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    again = train.train_and_evaluate(plain_config, tmp_path)
    assert (again["best_step"], again["test"]) == (6, results["test"])


def test_names_of_films_need_not_be_utf_8(tmp_path, tiny_config):
    films = _films(tmp_path / "films")
    for index in range(12):
        name = os.fsdecode(b"M\xfcller-%d.jpeg" % index)
        (films / "normal" / f"{index}.jpeg").rename(films / "normal" / name)
    values = {"data.name": "folder", "data.root": str(films), "method": "plain"}
    settings = config.override_all(tiny_config, values)
    run = tmp_path / "run"
    results = train.train_and_evaluate(settings, run)
    assert results["test"]["n"] > 0
    names = set(predictions.read(run / "predictions.csv").names)
    assert names <= {of.relative_to(films).as_posix() for of in films.glob("*/*")}
    assert any("M\udcfcller" in name for name in names)


def test_films_that_are_readable_again_do_not_stop_a_run(tmp_path, plain_config):
    """One after the other, of which the run's own list keeps both."""
    films, run = _films(tmp_path / "films"), tmp_path / "run"
    values = {"data.name": "folder", "data.root": str(films)}
    settings = config.override_all(plain_config, values)
    names = "normal/0.jpeg", "pneumonia/1.jpeg"
    intact = [(films / name).read_bytes() for name in names]

    def go_on():
        with contextlib.ExitStack() as claims:
            _, data = training.open_run(
                settings,
                run,
                lambda classes: METHODS["plain"](settings, len(classes)),
                lambda method, data: None,
                console=rich.console.Console(quiet=True),
                claims=claims,
            )
        return data.train.names, (run / "unreadable.csv").read_text()

    for name in names:
        (films / name).write_bytes(b"half of it")
    begun = go_on()
    for name, film in zip(names, intact, strict=True):
        (films / name).write_bytes(film)
        assert go_on() == begun
