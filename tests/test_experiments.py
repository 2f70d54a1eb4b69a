"""Many trainings in a row, with small programs in their place."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

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
import pathlib
from hapre_jax import cli, experiments

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
        # In the background of a shell SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
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
