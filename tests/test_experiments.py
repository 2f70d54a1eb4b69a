"""Many trainings in a row, with small programs in their place."""

import argparse
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import rich.console

from hapre_jax import experiments
from hapre_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
# Takes longer to save than Python waits by itself for a child after Ctrl-C.
PROGRAM = """
import pathlib, signal, sys, time

def save(number, frame):
    time.sleep(1)
    pathlib.Path("saved").write_text(signal.Signals(number).name)
    sys.exit(0)

signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
pathlib.Path("started").touch()
time.sleep(60)
"""
LAUNCHER = """
import pathlib, signal
from hapre_jax import cli, experiments

# Ignored where the tests run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run(lambda argv: experiments.run_program(["program"], pathlib.Path("said.log")))
"""


@pytest.mark.parametrize(
    ("number", "whole_group", "status"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)],
)
def test_a_training_saves_before_its_launcher_ends(
    tmp_path, number, whole_group, status
):
    """Ctrl-C reaches both programs, a `kill` only the one that was started."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    launcher = subprocess.Popen(
        [sys.executable, "launcher.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.05)
    if whole_group:
        os.killpg(launcher.pid, number)
    else:
        launcher.send_signal(number)
    assert launcher.wait(60) == status
    assert (tmp_path / "saved").read_text() == number.name


def test_jobs_that_fail_are_said_when_all_have_ended(tmp_path):
    said = io.StringIO()
    console = rich.console.Console(file=said)
    flags = argparse.Namespace(cluster="local", slurm_args={"timeout_min": 1})
    with pytest.raises(UserError, match=r"^1 of 2 jobs failed, see .*; the same com"):
        experiments.submit(int, ["x", "2"], flags, tmp_path, console)
    first, second = said.getvalue().splitlines()
    number = first.removeprefix("Submitted ").partition(",")[0]
    reason = "ValueError: invalid literal for int() with base 10: 'x'"
    assert second == f"job {number}: {reason}"
    outcomes = sorted(tmp_path.glob("*_result.pkl"))
    assert len(outcomes) == 2  # the second was not given up


@pytest.mark.parametrize(
    ("cluster", "arguments", "sentence"),
    [
        ("slurm", {}, 'Could not detect "srun", are you indeed on a slurm cluster?'),
        (
            "local",
            {"timeout": 1},
            "Parameter 'timeout' need to be prefixed by an executor name.",
        ),
    ],
)
def test_jobs_that_cannot_be_submitted(tmp_path, cluster, arguments, sentence):
    if cluster == "slurm" and shutil.which("srun"):
        pytest.skip("there is a Slurm here")
    flags = argparse.Namespace(cluster=cluster, slurm_args=arguments)
    with pytest.raises(UserError) as error:
        experiments.submit(int, ["2"], flags, tmp_path, rich.console.Console())
    assert str(error.value) == f"jobs cannot be submitted: {sentence}"
