"""Several processes on one machine share a run, as on several machines."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from hapre_jax import checkpoint, config, state, train
from hapre_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]


def _start(tmp_path, workdir, rank, count, port):
    """A process as srun starts it."""
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_PORT": str(port),
    }
    command = [sys.executable, "-m", "hapre_jax.train", "--train.distributed", "true"]
    command += ["--config", str(tmp_path / "experiment.json")]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir)],
        cwd=ROOT,
        env=os.environ | slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.multihost
@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one(tmp_path, tiny_config):
    """From a checkpoint of one to the same end; and one reads what two have written."""
    settings = config.override_all(
        tiny_config, {"method": "hapre", "compare_plain": "false"}
    )
    text = json.dumps(config.to_dict(settings))
    (tmp_path / "experiment.json").write_text(text)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert train.train_and_evaluate(settings, shared, stop_after=3) is None
    expected = train.train_and_evaluate(settings, alone)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [_start(tmp_path, shared, rank, 2, port) for rank in range(2)]
    said = [process.communicate(timeout=500) for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors
    assert "hapre: going on from step 3" in said[0][0]
    # The second one is silent, but for the library that connects them.
    assert all(line.startswith("[Gloo]") for line in said[1][0].splitlines())

    found = checkpoint.read_json(shared / "results.json")
    assert found["test"]["confusion_matrix"] == expected["test"]["confusion_matrix"]
    method = METHODS["hapre"](settings, 3)
    like = state.blank(method, settings)
    states = []
    for workdir in (alone, shared):
        checkpoints = checkpoint.Checkpoints(workdir)
        states.append(checkpoints.restore("last", like)[0])
        checkpoints.close()
    assert states[0].step == states[1].step == 6
    one, two = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.params)]) for s in states
    )
    assert np.linalg.norm(one - two) <= 1e-4 * np.linalg.norm(one)
    records = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (alone, shared)
    ]
    for one, two in zip(*records, strict=True):
        assert (one["kind"], one["step"]) == (two["kind"], two["step"])
        for name in ("task_loss", "reward", "macro_f1"):
            assert one.get(name) == pytest.approx(two.get(name), abs=1e-5)
    names = [sorted(path.name for path in run.iterdir()) for run in (alone, shared)]
    assert names[0] == names[1]


def test_a_process_that_nobody_started(tmp_path, tiny_config):
    (tmp_path / "experiment.json").write_text(json.dumps(config.to_dict(tiny_config)))
    command = [sys.executable, "-m", "hapre_jax.train", "--train.distributed", "true"]
    command += ["--config", str(tmp_path / "experiment.json")]
    done = subprocess.run(
        [*command, "--workdir", str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: train.distributed is true, but the processes of the run cannot be "
        "found: start them with srun, mpirun or Kubernetes (coordinator_address "
        "should be defined.)\n"
    )
    assert not (tmp_path / "run").exists()
