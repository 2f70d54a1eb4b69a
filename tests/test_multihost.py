"""Several processes on one machine share a run, as on several machines."""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from hapre_jax import checkpoint, config, json_file, train, train_state
from hapre_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]


def _start(tmp_path, workdir, rank, count, port, *program):
    """A process as srun starts it, of the training program or of a changed one."""
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_PORT": str(port),
    }
    program = program or ("-m", "hapre_jax.train")
    command = [sys.executable, *program, "--train.distributed", "true"]
    command += ["--config", str(tmp_path / "experiment.json")]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir)],
        cwd=ROOT,
        env=os.environ | slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# A state of one device, as it is before the first step, over two processes whose
# devices share its channels; prints what this one holds.
PUT = """
import sys
import jax, numpy as np
from hapre_jax import config, sharding

jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
train = config.TrainConfig(distributed=True, batch_size=1, model_devices=2)
mesh = sharding.make_mesh(train)
state = {"bias": np.arange(3.0), "kernel": np.arange(8.0).reshape(2, 4)}
state = jax.device_put(state, jax.local_devices()[0])
once = sharding.put_state(state, mesh)
for put in (once, sharding.put_state(once, mesh)):
    bias, kernel = (put[name].addressable_data(0).tolist() for name in sorted(put))
    assert bias == [0, 1, 2]
    total = jax.jit(jax.numpy.sum)(put["kernel"])
    print(kernel, float(total))
# Both have a half of each layer, and so the same images.
assert sharding.share(mesh) == (0, 1)
label = sharding.put_batch({"label": np.array([3, 5])}, mesh)["label"]
assert label.shape == (2,) and label.addressable_data(0).tolist() == [3, 5]
"""


@pytest.mark.multihost
def test_each_process_puts_its_part_of_a_new_state():
    port = str(_free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PUT, port, str(rank)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    parts = ("[[0.0, 1.0], [4.0, 5.0]]", "[[2.0, 3.0], [6.0, 7.0]]")
    for process, part in zip(started, parts, strict=True):
        said, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        lines = [line for line in said.splitlines() if not line.startswith("[Gloo]")]
        assert lines == [f"{part} 28.0"] * 2


@pytest.mark.multihost
@pytest.mark.slow
# HAPre-KRS goes on; DRL-DA begins with a plain training and that of its agent.
@pytest.mark.parametrize(("name", "begun"), [("hapre", 3), ("drl_da", 0)])
def test_two_processes_do_what_one_does(tmp_path, tiny_config, name, begun):
    """Go on or begin, to the same end; and one reads what two have written."""
    settings = config.override_all(
        tiny_config, {"method": name, "compare_plain": "false"}
    )
    text = json.dumps(config.to_dict(settings))
    (tmp_path / "experiment.json").write_text(text)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    if begun:
        assert train.train_and_evaluate(settings, shared, stop_after=begun) is None
    expected = train.train_and_evaluate(settings, alone)
    port = _free_port()
    started = [_start(tmp_path, shared, rank, 2, port) for rank in range(2)]
    said = [process.communicate(timeout=500) for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors
    assert (f"{name}: going on from step {begun}" in said[0][0]) == bool(begun)
    # The second one is silent, but for the library that connects them.
    assert all(line.startswith("[Gloo]") for line in said[1][0].splitlines())

    found = json_file.read(shared / "results.json")
    assert found["test"]["confusion_matrix"] == expected["test"]["confusion_matrix"]
    method = METHODS[name](settings, 3)
    like = train_state.blank(method, settings)
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
        for metric in ("task_loss", "reward", "macro_f1"):
            assert one.get(metric) == pytest.approx(two.get(metric), abs=1e-5)
    names = [sorted(path.name for path in run.iterdir()) for run in (alone, shared)]
    assert names[0] == names[1]


# The training program; the second process is told to end while it makes step 3.
TOLD = """
import signal
import jax
from hapre_jax import cli, sharding, train

put_batch, taken = sharding.put_batch, []

def put(batch, mesh):
    taken.append(batch)
    if len(taken) == 3 and jax.process_index() == 1:
        signal.raise_signal(signal.SIGTERM)
    return put_batch(batch, mesh)

sharding.put_batch = put
cli.run(train.main)
"""


@pytest.mark.multihost
@pytest.mark.slow
def test_processes_leave_after_one_step_when_one_is_told_to(tmp_path, tiny_config):
    """At the next record, with a checkpoint; the run ends as one of one process."""
    every = {"log_every": 2, "eval_every": 6, "checkpoint_every": 6}
    settings = dataclasses.replace(
        tiny_config,
        method="plain",
        compare_plain=False,
        train=dataclasses.replace(tiny_config.train, **every),
    )
    (tmp_path / "experiment.json").write_text(json.dumps(config.to_dict(settings)))
    alone, shared = tmp_path / "alone", tmp_path / "shared"

    def start(*program):
        port = _free_port()
        started = [
            _start(tmp_path, shared, rank, 2, port, *program) for rank in range(2)
        ]
        said = [process.communicate(timeout=200) for process in started]
        return [process.returncode for process in started], said

    codes, said = start("-c", TOLD)
    assert codes == [143, 143], said
    assert "plain: SIGTERM at step 4, which is saved; the same" in said[0][0]
    assert [path.name for path in (shared / "checkpoints" / "last").iterdir()] == ["4"]
    codes, said = start()
    assert codes == [0, 0], said
    assert "plain: going on from step 4" in said[0][0]
    train.train_and_evaluate(settings, alone)
    one, two = (_last_params(run, settings) for run in (alone, shared))
    assert np.linalg.norm(one - two) <= 1e-4 * np.linalg.norm(one)
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (alone, shared)
    ]
    assert [line["step"] for line in lines[0]] == [2, 4, 6, 6]
    for one, two in zip(*lines, strict=True):
        assert two == pytest.approx(one, abs=1e-4)


def test_what_waits_for_nothing_ends_at_once(tmp_path):
    """As while films are read; JAX would take the signal for itself."""
    code = """
import signal
from hapre_jax import cli, config, sharding

def main(argv):
    sharding.join(config.TrainConfig(distributed=True))
    signal.raise_signal(signal.SIGTERM)

cli.run(main)
"""
    process = _start(tmp_path, tmp_path / "run", 0, 1, _free_port(), "-c", code)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 143 and "terminated" in errors


def _last_params(workdir, settings):
    """All weights of a run's last checkpoint, one after the other."""
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    like = train_state.blank(METHODS[settings.method](settings, 3), settings)
    with contextlib.closing(checkpoints):
        params = checkpoints.restore("last", like)[0].params
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


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
