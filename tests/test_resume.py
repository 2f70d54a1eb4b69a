"""An interrupted run, given the same command again, ends in the same bits."""

import dataclasses
import io
import json
import pathlib
import shutil
import subprocess
import sys

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest
import rich.console

from hapre_jax import config_file, train

ROOT = pathlib.Path(__file__).parents[1]
# Runs the training program, which kills itself the hard way at a chosen moment.
KILLED = """
import os, pathlib, signal, threading
from hapre_jax import checkpoint, cli, log, train

def die():
    os.kill(os.getpid(), signal.SIGKILL)

{patch}
cli.run(train.main)
"""
# In the middle of writing a record, after the checkpoint of step 2.
IN_A_RECORD = """
write = log.MetricsLog.write

def half(self, kind, step, metrics):
    if step == 3:
        self._file.write('{"kind": "tra')
        self._file.flush()
        die()
    write(self, kind, step, metrics)

log.MetricsLog.write = half
"""
# At a moment that only the clock knows, while the checkpoint of step 4 is written.
IN_A_CHECKPOINT = """
save = checkpoint.Checkpoints.save

def late(self, name, state, progress):
    is_chosen = name == "last" and state.step == 4 and "plain" not in self.find(name)
    if is_chosen:
        threading.Timer(0.03, die).start()
    save(self, name, state, progress)
    if is_chosen:
        die()

checkpoint.Checkpoints.save = late
"""
# The report of a finished training, half of which is on the disk.
IN_THE_REPORT = """
write_text = pathlib.Path.write_text

def half(self, text, **options):
    if self.name == "report.html.partial":
        write_text(self, text[: len(text) // 2], **options)
        die()
    return write_text(self, text, **options)

pathlib.Path.write_text = half
"""


def _command(workdir, *start):
    arguments = ["--config", "tests/tiny.py", "--workdir", str(workdir)]
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=ROOT, capture_output=True, text=True
    )


def _train(workdir):
    done = _command(workdir, "-m", "hapre_jax.train")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def _kill(workdir, patch):
    done = _command(workdir, "-c", KILLED.format(patch=patch))
    assert done.returncode == -9, done.stderr
    assert not (workdir / "results.json").exists()


def _arrays(workdir, name):
    """All arrays of the newest checkpoint, and the rest of what it says."""
    found = (workdir / "checkpoints" / name).iterdir()
    folder = max(found, key=lambda path: int(path.name))
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.StandardCheckpointHandler(), progress=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handler) as reader:
        restored = reader.restore(
            folder,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore()
            ),
        )
    restored.progress.pop("seconds", None)
    return folder.name, restored.state, restored.progress


def _without_seconds(path):
    results = json.loads(path.read_text())
    assert results.pop("seconds") > 0
    return results


def assert_same_checkpoints(first, second):
    for name in ("last", "best"):
        (step, state, progress), other = _arrays(first, name), _arrays(second, name)
        assert (step, progress) == (other[0], other[2])
        chex.assert_trees_all_equal(state, other[1])


def _assert_same_run(first, second):
    for a, b in ((first, second), (first / "plain", second / "plain")):
        assert_same_checkpoints(a, b)
        for name in ("metrics.jsonl", "config.json", "learning.png"):
            assert (a / name).read_bytes() == (b / name).read_bytes()
        results = (_without_seconds(run / "results.json") for run in (a, b))
        assert next(results) == next(results)
    pictures = ("key_areas.png", "key_areas_over_time.png")
    for name in (*pictures, "splits.csv", "landscape.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_comparison_notices_one_bit(tmp_path, finished_run):
    _, state, _ = _arrays(finished_run, "last")
    changed = {**state, "step": np.asarray(state["step"]) + 1}
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(state, changed)
    kernel = state["params"]["policy"]["logits"]["kernel"]
    assert np.abs(kernel).max() > 0  # the policy has learned something


# In `test_train` a run of the plain classifier stops so by default.
@pytest.mark.slow
def test_six_steps_are_three_and_three_in_a_new_process(
    tmp_path, tiny_config, finished_run
):
    workdir = tmp_path / "run"
    # The plain classifier is done; HAPre-KRS stops between two checkpoints.
    shutil.copytree(finished_run / "plain", workdir / "plain")
    assert train.train_and_evaluate(tiny_config, workdir, stop_after=3) is None
    assert _arrays(workdir, "last")[0] == "3"
    assert not (workdir / "results.json").exists()
    said = _train(workdir)
    assert "hapre: going on from step 3" in said
    assert "plain" not in said.split("hapre")[0]
    _assert_same_run(finished_run, workdir)


def test_kill_9_in_all_phases_changes_nothing(tmp_path, finished_run):
    workdir = tmp_path / "run"
    _kill(workdir, IN_A_RECORD)
    assert (workdir / "plain" / "metrics.jsonl").read_text().endswith('{"kind": "tra')
    assert not (workdir / "metrics.jsonl").exists()
    _kill(workdir, IN_A_CHECKPOINT)
    assert (workdir / "plain" / "results.json").exists()
    _kill(workdir, IN_THE_REPORT)
    assert (workdir / "report.html.partial").exists()
    said = _train(workdir)
    assert "hapre: going on from step 6" in said
    _assert_same_run(finished_run, workdir)
    names = [
        {path.relative_to(run) for path in run.rglob("*") if path.parent.name != "d"}
        for run in (finished_run, workdir)
    ]
    assert names[0] == names[1]


def test_a_finished_run_started_again_does_nothing_and_prints_its_table(
    finished_run, monkeypatch, capsys
):
    def forbidden(*args, **kwargs):
        raise AssertionError("a finished run needs no data")

    monkeypatch.setattr("hapre_jax.data.pipeline.load", forbidden)
    paths = [p for p in finished_run.rglob("*") if p.is_file()]
    before = {p: p.stat().st_mtime_ns for p in paths}
    arguments = ["--config", "tests/tiny.py", "--workdir", str(finished_run)]
    assert train.main(arguments) == 0
    said = capsys.readouterr().out
    results = json.loads((finished_run / "results.json").read_text())
    assert f"{results['test']['accuracy']:.3f}" in said
    assert f"Everything is in {finished_run}: " in said
    assert "was not looked at" not in said
    tiny = config_file.load("tests/tiny.py")
    data = dataclasses.replace(tiny.data, root="/elsewhere")
    console = rich.console.Console(file=io.StringIO(), width=200)
    settings = dataclasses.replace(tiny, data=data)
    train.train_and_evaluate(settings, finished_run, console=console)
    said = console.file.getvalue()
    assert "films of the program itself: /elsewhere was not looked at" in said
    paths = [p for p in finished_run.rglob("*") if p.is_file()]
    assert before == {p: p.stat().st_mtime_ns for p in paths}
