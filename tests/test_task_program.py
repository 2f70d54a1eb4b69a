"""Other tasks train as classification does: one loop, one kind of folder.

The task here is a line: the share of lungs in a film from its mean gray.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hapre_jax import (
    checkpoint,
    evaluate,
    export,
    homogenize,
    html_report,
    json_file,
    landscape,
    log,
    predict,
    run_folder,
    serve,
    task_program,
    train,
)
from hapre_jax.errors import UserError
from hapre_jax.method import Aux, Method, Prediction
from hapre_jax.task_program import Program, train_and_test


def make(config):
    def init(key, image):
        return {"task": {"slope": jnp.zeros(()), "start": jnp.zeros(())}}, {"task": {}}

    def answer(params, batch):
        grays = jnp.mean(batch["image"], axis=(1, 2, 3))
        return params["task"]["slope"] * grays + params["task"]["start"]

    def loss(params, model_state, average, batch, key, step):
        share = jnp.mean(batch["lungs"], axis=(1, 2, 3))
        error = jnp.mean((answer(params, batch) - share) ** 2)
        return error, Aux(model_state, {"task_loss": error})

    def predict(params, model_state, batch):
        assert set(batch) <= {"image", "lung_box"}  # no answers
        return Prediction(answer(params, batch)[:, None])

    return Method(init, loss, predict, lambda *arguments: None)


def score(answers, films):
    shares = films.masks.mean((1, 2, 3)) / 255
    errors = [of.probabilities[:, 0] - shares[rows] for rows, of in answers]
    assert [len(error) for error in errors] == [8, 8, 4][: len(errors)]
    return {"closeness": float(1 - np.mean(np.abs(np.concatenate(errors))))}


def draw(found, films):
    assert len(found.probabilities) == len(films)
    return Image.new("L", (len(films), 1))


LINE = Program("regression", make, score, "closeness", draw, "masks")


@pytest.fixture
def settings(tiny_config):
    data = dataclasses.replace(
        tiny_config.data, image_size=16, validation_images=8, test_images=20
    )
    train = dataclasses.replace(tiny_config.train, batch_size=2)
    return dataclasses.replace(tiny_config, data=data, train=train)


def test_a_run_of_another_task_leaves_what_every_run_leaves(tmp_path, settings):
    results = train_and_test(settings, tmp_path, LINE)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["task"] == "regression" and results["steps"] == 6
    assert set(results["test"]) == {"n", "closeness", "key_area", "parameters"}
    assert results["test"]["n"] == 20
    records = log.read(tmp_path / "metrics.jsonl")
    validated = [r for r in records if r["kind"] == "validation"]
    assert [r["step"] for r in validated] == [2, 4, 6]
    best = max(validated, key=lambda record: (record["closeness"], record["step"]))
    assert results["best_step"] == best["step"]
    with Image.open(tmp_path / "answers.png") as picture:
        assert picture.size == (8, 1)  # the films of the first batch
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        ".lock",
        "config.json",
        "splits.csv",
        "metrics.jsonl",
        "checkpoints",
        "learning.png",
        "answers.png",
        "results.json",
    }
    assert train_and_test(settings, tmp_path, LINE) == results


def test_an_interrupted_run_of_another_task_ends_in_the_same_bits(
    tmp_path, settings, monkeypatch
):
    whole = train_and_test(settings, tmp_path / "whole", LINE)
    cut = tmp_path / "cut"
    assert train_and_test(settings, cut, LINE, stop_after=3) is None
    assert not (cut / "results.json").exists()
    resume = checkpoint.Checkpoints.resume

    def of_an_older_version(self, like):
        now, progress, faults = resume(self, like)
        progress["best_f1"] = progress.pop("best_score")
        return now, progress, faults

    monkeypatch.setattr(checkpoint.Checkpoints, "resume", of_an_older_version)
    results = train_and_test(settings, cut, LINE)
    for file in ("metrics.jsonl", "splits.csv", "learning.png", "answers.png"):
        assert (cut / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert results["seconds"] > 0
    assert results | {"seconds": 0} == whole | {"seconds": 0}


def test_a_folder_of_another_task_is_refused(tmp_path, settings):
    json_file.write(tmp_path / "results.json", {"task": "regression"})
    with pytest.raises(UserError, match="holds a finished run of regression, not of c"):
        train.train_and_evaluate(settings, tmp_path)
    json_file.write(tmp_path / "results.json", {"test": {}})
    with pytest.raises(UserError, match="of classification, not of regression"):
        train_and_test(settings, tmp_path, LINE)


_BUNDLE = ["--out", "{folder}/new"]


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        (evaluate, []),
        (export, _BUNDLE),
        (homogenize, _BUNDLE),
        (html_report, []),
        (landscape, []),
        (predict, ["film.png", *_BUNDLE]),
        (serve, ["--port", "0"]),
    ],
)
def test_programs_of_classification_refuse_a_run_of_another_task(
    tmp_path, settings, program, flags
):
    run = tmp_path / "run"
    run_folder.write_config(run, settings)
    json_file.write(run / "results.json", {"task": "regression", "classes": []})
    with pytest.raises(UserError) as error:
        program.main([str(run), *(flag.format(folder=tmp_path) for flag in flags)])
    assert str(error.value) == (
        f"{run} is a run of regression; this program takes runs of hapre_jax.train, "
        "which classify"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_another_method_is_refused_and_leaves_nothing(tmp_path, settings):
    plain = dataclasses.replace(settings, method="plain")
    with pytest.raises(UserError, match="method is plain, but regression has hapre"):
        train_and_test(plain, tmp_path / "run", LINE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "default"),
    [("probe_size", 8, "0"), ("probe_dtype", "bfloat16", "same")],
)
def test_cheaper_probes_are_of_classification(
    field, value, default, tmp_path, settings
):
    policy = dataclasses.replace(settings.policy, **{field: value})
    other = dataclasses.replace(settings, policy=policy)
    with pytest.raises(UserError) as error:
        train_and_test(other, tmp_path / "run", LINE)
    assert str(error.value) == (
        f"policy.{field} is {value}, but regression tries areas as it trains on them: "
        f"leave it at {default}"
    )
    assert not (tmp_path / "run").exists()


def test_what_a_task_lacks_is_found_before_its_folder_is_made(tmp_path, settings):
    def refuse(config, data):
        raise UserError(f"these {len(data.test)} films will not do")

    with pytest.raises(UserError, match="these 20 films will not do"):
        train_and_test(settings, tmp_path / "run", LINE._replace(check=refuse))
    assert not (tmp_path / "run").exists()


def test_the_program_says_its_scores_at_the_end(
    tmp_path, settings, capsys, monkeypatch
):
    area = {"side_fraction": 0.5, "lung_iou": None}
    found = {"n": 3, "dice": 0.75, "key_area": area, "parameters": {}}
    monkeypatch.setattr(task_program, "train_and_test", lambda *a, **k: {"test": found})
    command = ["--workdir", str(tmp_path)]
    names = {"name": "p", "description": "d", "default_config": "configs/phantom.py"}
    assert task_program.run(command, LINE, **names) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 test films: dice 0.750  side of the key area 0.500"
    assert str(tmp_path) in said[1]
