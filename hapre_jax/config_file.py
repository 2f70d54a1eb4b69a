"""Files that hold the configuration of a run: Python with `get_config`, or JSON."""

import inspect
import json
import pathlib
import runpy
import traceback

from hapre_jax import json_file
from hapre_jax.config import Config, from_dict
from hapre_jax.errors import UserError

_PACKAGE = pathlib.Path(__file__).resolve().parent


def load(spec: str) -> Config:
    """The config of `FILE[:ARG]`.

    A Python file has `get_config()`, or `get_config(ARG)`, which returns a `Config`;
    a JSON file holds what `config.to_dict` gives, as a run's `config.json` does. A
    relative FILE is looked up in the current directory, then beside the package, where
    a clone has `configs/`, and then inside it, where an installed package has them.

    Raises:
      UserError: there is no such file, or it gives no config.
    """
    path, argument = find(spec)
    if path.suffix == ".json":
        return _load_json(path)
    if path.suffix != ".py":
        raise UserError(
            f"config file {path} must be a .py file, or a run's config.json"
        )
    return _load_python(path, [argument] if argument else [])


def of_run(folder: pathlib.Path) -> Config | None:
    """What a run, or a bundle, was configured as; None where its folder does not say.

    Of a finished run that has lost its `config.json`, `results.json` says it too.

    Raises:
      UserError: the file that says it is damaged.
    """
    if (folder / "config.json").exists():
        # Absolute, or the file would be looked for beside the package too.
        return load(str((folder / "config.json").absolute()))
    if not (folder / "results.json").exists():
        return None
    results = json_file.read(folder / "results.json")
    if not isinstance(results, dict):
        raise UserError(f"{folder / 'results.json'} holds no results; delete it")
    found = results.get("config")
    return from_dict(found) if isinstance(found, dict) and found else None


def available() -> list[str]:
    """The experiments that come with the library, as `load` takes them."""
    for folder in (_PACKAGE.parent, _PACKAGE):
        files = sorted((folder / "configs").glob("*.py"))
        if files:
            return [f"configs/{file.name}" for file in files]
    return []


def find(spec: str) -> tuple[pathlib.Path, str]:
    """The file of `FILE[:ARG]`, see `load`, and its argument or "".

    Raises:
      UserError: there is no such file.
    """
    name, colon, argument = spec.partition(".py:")
    name = f"{name}.py" if colon else spec
    for folder in (pathlib.Path(), _PACKAGE.parent, _PACKAGE):
        if (folder / name).is_file():
            return folder / name, argument
    raise UserError(
        f"there is no config file {name!r}; there are {', '.join(available())}"
    )


def _load_json(path):
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"config file {path} holds no fields")
    try:
        return from_dict(values)
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from error


def _load_python(path, arguments):
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if not callable(get_config):
            raise UserError("it has no function get_config")
        try:
            inspect.signature(get_config).bind(*arguments)
        except TypeError as error:
            wrong = "needs an argument"
            if arguments:
                wrong = f"takes no argument, got {arguments[0]!r}"
            raise UserError(f"get_config {wrong}") from error
        config = get_config(*arguments)
        if not isinstance(config, Config):
            raise UserError(f"get_config returned {config!r}, which is no Config")
        return config
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from error
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        where = f" in line {lines[-1]}" if lines else ""
        raise UserError(
            f"config file {path} fails{where} with {type(error).__name__}: {error}"
        ) from error
