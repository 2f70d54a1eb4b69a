"""Faults that come when they like: `pytest -m slow -n 0 tests/test_faults.py`.

Real processes, on a run of half a minute that trains both classifiers and reports.
"""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from test_resume import _assert_same_run

from hapre_jax import config, train

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
MOMENTS = 20


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """In the background of a shell SIGINT is ignored, and processes inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def environment(folder):
    """A cache of compiled programs of its own: one that is killed may cut an entry."""
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "jax")}


@pytest.fixture(scope="module")
def experiment(folder, tiny_config):
    """Sixty steps, records and checkpoints at steps of their own."""
    rare = {"steps": 60, "log_every": 7, "eval_every": 20, "checkpoint_every": 5}
    settings = dataclasses.replace(
        tiny_config, train=dataclasses.replace(tiny_config.train, **rare)
    )
    path = folder / "experiment.json"
    path.write_text(json.dumps(config.to_dict(settings)))
    return path


@pytest.fixture(scope="module")
def command(experiment):
    """The command line of a run in a folder."""

    def line(workdir):
        start = [sys.executable, "-m", "hapre_jax.train", "--config", str(experiment)]
        return [*start, "--workdir", str(workdir)]

    return line


@pytest.fixture(scope="module")
def undisturbed(folder, command, environment):
    """Folder of such a run, and the seconds that it took with all compiled."""
    seconds = {}
    for name in ("first", "second"):
        started = time.monotonic()
        subprocess.run(command(folder / name), cwd=ROOT, env=environment, check=True)
        seconds[name] = time.monotonic() - started
    _assert_same_run(folder / "first", folder / "second")
    return folder / "first", seconds["second"]


def _names(run):
    """All files, but for those that Orbax calls by random numbers."""
    files = (path for path in run.rglob("*") if path.parent.name != "d")
    return {str(path.relative_to(run)) for path in files if path.is_file()}


def test_kill_9_at_random_moments(tmp_path, command, environment, undisturbed):
    expected, seconds = undisturbed
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print(f"SEED={seed}")
    rng = random.Random(seed)
    workdir, kills, refused = tmp_path / "run", 0, 0
    while kills < MOMENTS:
        running = subprocess.Popen(
            command(workdir),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            # What is left gets shorter with each kill, and what starts does not.
            running.wait(rng.uniform(0.1, 0.7) * seconds)
        except subprocess.TimeoutExpired:
            if (workdir / "config.json").exists() and not refused:
                other = subprocess.run(
                    command(workdir), cwd=ROOT, env=environment, capture_output=True
                )
                refused = other.stderr.count(b"another process is at work")
            running.kill()
            kills += 1
        said, _ = running.communicate()
        assert "Traceback" not in said and "error" not in said, said
        if running.returncode == 0:  # finished: begin another one
            _assert_same_run(expected, workdir)
            assert _names(expected) == _names(workdir)
            shutil.rmtree(workdir)
    assert refused == 1
    subprocess.run(command(workdir), cwd=ROOT, env=environment, check=True)
    _assert_same_run(expected, workdir)
    assert _names(expected) == _names(workdir)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_stopped_at_random_moments(tmp_path, command, environment, undisturbed, name):
    """Each time within seconds, with the code that a cluster expects."""
    expected, seconds = undisturbed
    rng, workdir, number = random.Random(0), tmp_path / "run", getattr(signal, name)
    codes = []
    while not (workdir / "results.json").exists():
        running = subprocess.Popen(command(workdir), cwd=ROOT, env=environment)
        try:
            running.wait(rng.uniform(0.2, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            running.send_signal(number)
            codes.append(running.wait(timeout=60))
    # Before the program has begun, the signal itself ends the process.
    assert codes and set(codes) <= {128 + number, -number}
    assert 128 + number in codes
    _assert_same_run(expected, workdir)
    assert _names(expected) == _names(workdir)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("kib", [12, 100, 1500, 3000, 5000, 7000])
def test_a_full_disk(tmp_path, command, environment, undisturbed, kib):
    expected, _ = undisturbed
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        done = subprocess.run(
            command(disk / "run"), cwd=ROOT, env=environment, capture_output=True
        )
        said = done.stderr.decode()
        assert done.returncode == 2
        assert said.count("\n") == 1 and "No space left on device" in said, said
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        subprocess.run(command(disk / "run"), cwd=ROOT, env=environment, check=True)
        _assert_same_run(expected, disk / "run")
        assert _names(expected) == _names(disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk that cannot be written")
def test_a_disk_that_cannot_be_written(tmp_path, command, environment):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        done = subprocess.run(
            command(disk / "run"), cwd=ROOT, env=environment, capture_output=True
        )
        assert (done.returncode, done.stderr.decode()) == (
            2,
            f"error: {disk} cannot be written to; choose another --workdir\n",
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    "workers", [{"threads": 4}, {"processes": 1}, {"processes": 4}]
)
def test_results_do_not_depend_on_who_reads_the_films(tmp_path, tiny_config, workers):
    rng = np.random.default_rng(0)
    for label in ("normal", "ill"):
        (tmp_path / "films" / label).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (20, 24), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "films" / label / f"{number}.png")
    results = []
    for reading in ({"threads": 1}, workers):
        data = dataclasses.replace(
            tiny_config.data,
            name="folder",
            root=str(tmp_path / "films"),
            memory_gib=0.0,
            **reading,
        )
        settings = dataclasses.replace(tiny_config, data=data, compare_plain=False)
        workdir = tmp_path / f"run-{len(results)}"
        train.train_and_evaluate(settings, workdir)
        found = json.loads((workdir / "results.json").read_text())
        found.pop("seconds")
        for name in ("threads", "processes"):
            found["config"]["data"].pop(name)
        results.append(found)
    assert results[0] == results[1]
