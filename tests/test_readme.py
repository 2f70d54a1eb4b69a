"""The README's code runs, and names files that exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("(4, 32, 32, 1) ")
    # D1 = 0.4 - 0.9 < 0: the detected area is kept, with weight e^-0.5.
    assert printed.split()[-2:] == ["0.60653067", "0"]


def test_links_and_configs_exist():
    names = re.findall(r"\]\(([^)#]+)\)|(configs/\w+\.py|launch/\w+\.py)", README)
    paths = {a or b for a, b in names}
    assert {"docs/key_areas.png", "configs/ped_pneumonia.py"} <= paths
    local = [path for path in paths if "://" not in path]
    assert [path for path in local if not (ROOT / path).exists()] == []


def test_every_module_has_its_place():
    """In the table of "Inside", by its name or its folder's."""
    inside = README.partition("\n## Inside\n")[2]
    named = set(re.findall(r"\w+", inside))
    modules = (ROOT / "hapre_jax").glob("*.py")
    folders = (ROOT / "hapre_jax").glob("*/__init__.py")
    names = {path.stem for path in modules} | {path.parent.name for path in folders}
    assert names - named == {"__init__"}
