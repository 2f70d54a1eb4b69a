"""The examples run, and the documentation shows one of them as it is."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def load(name):
    file = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_loop_of_one_s_own_finds_the_patch(capsys):
    assert load("own_loop").main() > 0.6
    assert capsys.readouterr().out.count("IoU with the patch") == 5


def test_the_operation_of_the_documentation_is_the_example_that_runs(capsys):
    text = (ROOT / "docs" / "extending.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert shown == (ROOT / "examples" / "own_operation.py").read_text()
    example = {"__name__": "example"}
    exec(compile(shown, "docs/extending.md", "exec"), example)
    accuracies = example["main"](steps=4)
    assert set(accuracies) == {"none", "shift"}
    assert "shift: accuracy" in capsys.readouterr().out


def test_the_shown_operation_moves_what_it_says():
    import jax.numpy as jnp

    shift = load("own_operation").Shift(max_shift=0.5)
    image = jnp.zeros((8, 8, 1)).at[2, 3].set(1)
    action = jnp.array([0.5, -0.25])  # 2 pixels down, 1 to the left
    seen = shift.apply(image, action, 8)
    assert seen[4, 2, 0] == pytest.approx(1) and jnp.sum(seen) == pytest.approx(1)
    source = shift.to_source(jnp.array([[4.5, 2.5]]) / 8, action)
    assert source * 8 == pytest.approx(jnp.array([[2.5, 3.5]]))
    back = shift.from_source(source, action)
    assert back * 8 == pytest.approx(jnp.array([[4.5, 2.5]]))


@pytest.mark.slow
def test_a_task_of_one_s_own_is_trained(capsys):
    errors = load("own_task").main(steps=3, films=16)
    assert set(errors) == {"whole image", "key area"}
    assert "the mean of all" in capsys.readouterr().out
