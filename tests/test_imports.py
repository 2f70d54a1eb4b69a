import ast
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "hapre_jax"

OPTIONAL = (
    "matplotlib",
    "onnx",
    "onnxruntime",
    "optuna",
    "pydicom",
    "pylibjpeg",
    "sklearn",
    "starlette",
    "submitit",
    "tensorboardX",
    "uvicorn",
)
HEAVY = ("flax", "grain", "tensorflow_datasets", *OPTIONAL)


def _modules_after(code, *, hidden=()):
    """Names of the packages that a new process has imported after `code`."""
    lines = [
        "import json, sys",
        # Importing a module that is None in sys.modules raises ImportError.
        f"sys.modules.update(dict.fromkeys({list(hidden)!r}))",
        code,
        "names = [n for n, module in sys.modules.items() if module]",
        "print(json.dumps([n.partition('.')[0] for n in names]))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_importing_the_package_pulls_in_nothing_heavy():
    assert not _modules_after("import hapre_jax") & {*HEAVY, "tensorflow", "torch"}


def test_pure_functions_need_neither_flax_nor_data_libraries():
    pure = "boxes, cli, config, losses, metrics, operations, policy, policy_gradient"
    loaded = _modules_after(f"from hapre_jax import {pure}, rewards")
    assert "jax" in loaded
    assert not loaded & {*HEAVY, "orbax", "tensorflow", "torch"}


def test_everything_imports_without_tensorflow_and_without_the_extras():
    code = """
import importlib, pkgutil
import hapre_jax
for module in pkgutil.walk_packages(hapre_jax.__path__, 'hapre_jax.'):
    if module.name != 'hapre_jax.serving.onnx_graph':  # which is about nothing but onnx
        importlib.import_module(module.name)
"""
    loaded = _modules_after(code, hidden=OPTIONAL)
    assert {"hapre_jax", "flax"} <= loaded
    assert not loaded & {"tensorflow", "torch", *OPTIONAL}


def _rows():
    """Row of the README's table of modules that each module or package stands in."""
    table = (ROOT / "README.md").read_text().partition("## Inside")[2]
    rows: dict[str, int] = {}
    for number, line in enumerate(re.findall(r"^\|.*\|$", table, re.MULTILINE)):
        for listed in re.findall(r"`([^`]*)`", line):
            for name in listed.split():  # programs may be named again
                rows.setdefault(name.rstrip("/"), number)
    return rows


def _imported(file):
    """Modules and packages of this package that a module imports, also in functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "hapre_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("hapre_jax."):
            yield node.module.split(".")[1]


def test_modules_import_what_stands_before_them_in_the_readme():
    rows = _rows()
    own = {path: path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    names = {name.removesuffix(".py") for name in own.values()} - {"__init__"}
    assert names <= rows.keys()
    wrong = [
        f"{path.name} imports {name}"
        for path, module in own.items()
        for name in _imported(path)
        if rows[name] > rows.get(module.removesuffix(".py"), 0)
    ]
    assert not wrong


def test_only_the_networks_import_flax():
    pattern = re.compile(r"^\s*(import|from)\s+flax\b", re.MULTILINE)
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if pattern.search(path.read_text())
    }
    assert users == {"nets"}
