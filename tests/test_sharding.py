"""Many devices give what one gives: eight simulated ones, in a process of their own."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from hapre_jax import (
    checkpoint,
    evaluate,
    log,
    predictions,
    sharding,
    train,
    train_state,
)
from hapre_jax import config as config_lib
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
# Twenty steps of HAPre-KRS on meshes (data, model); prints what they led to.
STEPS = """
import dataclasses, json, sys
import jax, numpy as np
from hapre_jax import config_file, evaluation, optimization, sharding
from hapre_jax import train_state, train_step
from hapre_jax.data import feed, pipeline
from hapre_jax.methods import METHODS

config = config_file.load("tests/tiny.py")
method, optimizer = METHODS["hapre"](config, 3), optimization.make_optimizer(config)
data = pipeline.load(config.data, seed=0)
found = []

def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).tolist()

for devices, model in json.loads(sys.argv[1]):
    train = dataclasses.replace(
        config.train,
        batch_size=8,
        devices=devices,
        model_devices=model,
    )
    mesh = sharding.make_mesh(train)
    now = sharding.put_state(train_state.init(method, optimizer, config), mesh)
    step = train_step.make_step(method, optimizer, config, mesh)
    batches = feed.TrainIterator(data.train, batch_size=8, seed=0)
    losses = []
    for _ in range(20):
        now, metrics = step(now, sharding.put_batch(next(batches), mesh))
        losses.append(float(metrics["task_loss"]))
    kernel = now.params["task"]["stage3_block1"]["conv2"]["kernel"]
    predict = evaluation.make_predict(method, mesh)
    scored = evaluation.evaluate(predict, now, data.test, config=config, mesh=mesh)
    found.append({
        "params": flat(now.params),
        "statistics": flat(now.model_state),
        "losses": losses,
        "answers": scored.table.probabilities.ravel().tolist(),
        "devices": len(now.params["task"]["head"]["bias"].sharding.device_set),
        "channels": kernel.addressable_shards[0].data.shape[-1],
        "compilations": step.func._cache_size(),
    })
print(json.dumps(found))
"""

# Begins a run on eight devices, two of which share the channels of each image, and goes
# on with one that a single device began.
RUNS = """
import json, pathlib, sys
import jax
from hapre_jax import config, train

settings = config.from_dict(json.loads(pathlib.Path(sys.argv[1]).read_text()))
on_all = {"train.devices": "8", "train.model_devices": "2"}
settings = config.override_all(settings, on_all)
begun, gone_on = map(pathlib.Path, sys.argv[2:])
assert train.train_and_evaluate(settings, begun, stop_after=3) is None
train.train_and_evaluate(settings, gone_on)
print(json.dumps(jax.device_count()))
"""


def _eight(code, *arguments):
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_eight_devices_equal_one_over_twenty_steps():
    """Batches over four, channels over two; the statistics are of the whole batch."""
    one, many = _eight(STEPS, "[[1, 1], [8, 2]]")
    assert many["devices"] == 8 and many["channels"] == 32
    assert one["devices"] == 1 and one["channels"] == 64
    for name in ("losses", "answers", "statistics"):
        assert many[name] == pytest.approx(one[name], abs=1e-5), name
    # Where a gradient is 0, Adam makes steps of the learning rate of its rounding: of
    # single weights only the distance of all of them is bounded.
    distance = np.linalg.norm(np.subtract(many["params"], one["params"]))
    assert distance <= 1e-5 * np.linalg.norm(one["params"])
    assert np.ptp(one["losses"]) > 0.1
    assert one["compilations"] == many["compilations"] == 1


def test_a_run_goes_on_with_more_devices_or_fewer(tmp_path, tiny_config):
    """To the same end; and its best checkpoint is of use without them."""
    every = {"eval_every": 3, "checkpoint_every": 3}
    settings = dataclasses.replace(
        tiny_config,
        # At first a policy's last bias has no gradient, so Adam makes steps of its
        # rounding.
        method="plain",
        compare_plain=False,
        train=dataclasses.replace(tiny_config.train, **every),
    )
    file, alone, fewer, more = (
        tmp_path / name for name in ("config.json", "alone", "fewer", "more")
    )
    file.write_text(json.dumps(config_lib.to_dict(settings)))
    expected = train.train_and_evaluate(settings, alone)
    assert train.train_and_evaluate(settings, more, stop_after=3) is None
    assert _eight(RUNS, str(file), str(fewer), str(more)) == 8
    train.train_and_evaluate(settings, fewer)

    weights, records, answers = zip(
        *(_end(run, settings) for run in (alone, fewer, more)), strict=True
    )
    for weight, record, answer in zip(
        weights[1:], records[1:], answers[1:], strict=True
    ):
        distance = np.linalg.norm(weight - weights[0])
        assert distance <= 1e-5 * np.linalg.norm(weights[0])
        assert len(record) == len(records[0]) == 6 + 2
        for one, other in zip(records[0], record, strict=True):
            assert other == pytest.approx(one, abs=1e-5), one["step"]
        np.testing.assert_allclose(answer, answers[0], atol=1e-5)
    # A config that asks for eight devices, and a best checkpoint that eight wrote.
    assert expected["best_step"] == 6
    for run, answer in ((fewer, answers[1]), (more, answers[2])):
        out = tmp_path / "again.json"
        assert evaluate.main([str(run), "--out", str(out)]) == 0
        again = predictions.read(tmp_path / "again_predictions.csv").probabilities
        np.testing.assert_allclose(again, answer, atol=1e-5)


def _end(workdir, settings):
    """Last weights of a run, its records and its answers."""
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    like = train_state.blank(METHODS[settings.method](settings, 3), settings)
    with contextlib.closing(checkpoints):
        last = checkpoints.restore("last", like)[0]
    weights = np.concatenate([np.ravel(x) for x in jax.tree.leaves(last.params)])
    records = log.read(workdir / "metrics.jsonl")
    answers = predictions.read(workdir / "predictions.csv").probabilities
    return weights, records, answers


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"devices": 99}, "train.devices is 99, but there are "),
        ({"model_devices": 3}, "train.model_devices is 3, but must divide the 1 dev"),
    ],
)
def test_devices_that_are_not_there(settings, said):
    with pytest.raises(UserError, match=said):
        sharding.make_mesh(config_lib.TrainConfig(**settings))


@pytest.mark.parametrize(
    ("processes", "parts"),
    [
        # Of devices (data, model), the process; and what each process reads.
        ([[0], [1], [2], [3]], [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ([[0], [0], [1], [1]], [(0, 2), (1, 2)]),
        ([[0, 1], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ([[0, 0], [1, 1]], [(0, 2), (1, 2)]),
    ],
)
def test_processes_read_what_their_devices_learn_from(monkeypatch, processes, parts):
    mesh = _mesh_of(processes)
    for process, part in enumerate(parts):
        monkeypatch.setattr(jax, "process_index", lambda of=process: of)
        assert sharding.share(mesh) == part


@pytest.mark.parametrize("processes", [[[0], [1], [0], [1]], [[0], [1], [1]]])
def test_devices_that_are_not_a_part_of_a_batch_are_refused(monkeypatch, processes):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(UserError, match="this process has devices for the parts"):
        sharding.share(_mesh_of(processes))


def _mesh_of(processes):
    """A mesh whose devices belong to those processes."""
    devices = [[types.SimpleNamespace(process_index=of) for of in p] for p in processes]
    shape = {"data": len(devices), "model": len(devices[0])}
    return types.SimpleNamespace(devices=np.array(devices), shape=shape)


def test_a_batch_that_devices_cannot_share(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
    monkeypatch.setattr(jax, "make_mesh", lambda shape, *_, **__: shape)
    shared = {"devices": 0, "batch_size": 20}
    mesh = sharding.make_mesh(config_lib.TrainConfig(**shared, model_devices=2))
    assert mesh == (4, 2)
    with pytest.raises(UserError) as error:
        sharding.make_mesh(config_lib.TrainConfig(**shared))
    assert str(error.value) == (
        "train.batch_size is 20, but must be a multiple of the 8 devices that share it"
    )
