"""Runs whose policy decides on something else than a key area, by the same trainer."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import shrink

from hapre_jax import config, config_file, evaluation, operations, train
from hapre_jax.config import PolicyConfig
from hapre_jax.data import phantom
from hapre_jax.errors import UserError
from hapre_jax.methods import hapre


def test_each_name_of_the_config_is_an_operation():
    expected = {"rotation": operations.Rotation(30.0), "gamma": operations.Gamma(2.0)}
    for name in hapre.OPERATIONS:
        settings = PolicyConfig(operation=name, max_angle=30.0, max_gamma=2.0)
        made = hapre.operation(settings)
        assert made == expected.get(name, made)
    assert type(hapre.operation(PolicyConfig(operation="none"))) is operations.Numbers
    several = hapre.operation(PolicyConfig(operation="rotation+key_area"))
    parts = operations.Rotation(45.0), operations.KeyArea()
    assert several == operations.Hybrid(parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop", "policy.operation is crop, but must be of key_area, mask"),
        ("", "policy.operation is , but must be of"),
        ("gamma+gamma", "may have each operation once"),
        ("zoom+key_area", "and one of key_area, mask, zoom"),
    ],
)
def test_operations_that_cannot_be_are_refused(text, message):
    with pytest.raises(UserError) as error:
        config.override(config.Config(), "policy.operation", text)
    assert message in str(error.value)


def test_a_run_of_several_operations_reports_each_beside_the_truth(tmp_path):
    tiny = shrink(config_file.load("configs/phantom.py"))
    tiny = dataclasses.replace(
        tiny,
        compare_plain=False,
        data=dataclasses.replace(tiny.data, quality="rotated_exposed"),
        policy=dataclasses.replace(tiny.policy, operation="key_area+rotation+gamma"),
    )
    results = train.train_and_evaluate(tiny, tmp_path / "run")
    assert results["test"]["key_area"]["side_fraction"] > 0.5
    found = results["test"]["parameters"]
    assert set(found) == {"rotation", "log2_gamma"}
    # What is to be beaten is a fact of the films.
    films = [
        phantom.make(36 + i, quality="rotated_exposed", size=32) for i in range(12)
    ]
    untouched = np.mean([abs(film.rotation) for film in films])
    assert found["rotation"]["error_untouched"] == pytest.approx(untouched, rel=1e-5)
    assert found["rotation"]["std"] > 0
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written == results
    assert (tmp_path / "run" / "key_areas.png").exists()


def test_parameter_scores_by_hand():
    found, truth = np.array([1.0, 3.0, 2.0]), np.array([2.0, 5.0, 3.0])
    scored = evaluation.score_parameter(found, truth)
    assert scored["mean"] == 2 and scored["std"] == pytest.approx((2 / 3) ** 0.5)
    # Missing are 1, 2 and 1: their median is 1.
    assert scored["error"] == pytest.approx(4 / 3)
    assert scored["error_but_for_a_constant"] == pytest.approx(1 / 3)
    assert scored["error_untouched"] == pytest.approx(10 / 3)
    assert scored["correlation"] == pytest.approx(np.corrcoef(found, truth)[0, 1])
    unknown = evaluation.score_parameter(found, None)
    assert unknown["mean"] == 2 and unknown["error"] is None
    still = evaluation.score_parameter(np.zeros(3), truth)
    assert still["correlation"] is None
    # The mean of these in float32 is not 0.1, so that their deviation is not 0.
    same = np.full(300, 0.1, np.float32)
    assert np.std(same) > 0
    assert evaluation.score_parameter(same, np.arange(300.0))["correlation"] is None


def test_what_was_done_to_the_films_of_a_variant_is_undone(monkeypatch):
    """The same films, neither turned nor exposed otherwise, come out."""
    spec = dataclasses.replace(phantom.VARIANTS["rotated_exposed"], centering=0.0)
    hybrid = operations.Hybrid((operations.Rotation(45.0), operations.Gamma(3.0)))
    images = {}
    for name, changes in (("harmed", {}), ("as made", {"rotation": 0, "gamma": 0})):
        changed = dataclasses.replace(spec, **changes)
        monkeypatch.setitem(phantom.VARIANTS, "rotated_exposed", changed)
        images[name] = [
            phantom.make(i, quality="rotated_exposed", size=96) for i in range(12)
        ]
    line = (np.arange(96) + 0.5) / 96 - 0.5
    is_inside = np.hypot(line[:, None], line) < 0.4  # no corner was turned in
    for harmed, expected in zip(*images.values(), strict=True):
        assert (expected.rotation, expected.gamma) == (0, 1)
        numbers = harmed.rotation / 45, np.log(harmed.gamma) / np.log(3)
        image = jnp.array(harmed.image, jnp.float32)[..., None] / 255
        undone = hybrid.apply(image, jnp.array(numbers, jnp.float32), 96)[..., 0]
        as_made = np.float32(expected.image) / 255

        def distance(pixels, as_made=as_made):
            return np.mean(np.abs(np.asarray(pixels) - as_made)[is_inside])

        assert distance(undone) < 0.02
        assert distance(image[..., 0]) > 2 * distance(undone)


def test_the_experiments_of_the_variants_have_what_undoes_them():
    for quality, expected in {
        "rotated": operations.Rotation(45.0),
        "exposed": operations.Gamma(3.0),
        "rotated_exposed": operations.Hybrid(
            (operations.Rotation(45.0), operations.Gamma(3.0))
        ),
    }.items():
        settings = config_file.load(f"configs/operations.py:{quality}")
        assert settings.data.quality == quality
        assert hapre.operation(settings.policy) == expected
    with pytest.raises(UserError, match="there is no blurred, but rotated"):
        config_file.load("configs/operations.py:blurred")
