"""JSON files that are whole or named in one sentence."""

import json
import pathlib
from typing import Any

from hapre_jax import atomic
from hapre_jax.errors import UserError


def write(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader never sees half a file.

    Raises:
      UserError: the folder is missing or cannot be written to.
    """
    atomic.write_text(path, json.dumps(value, indent=1) + "\n")


def read(path: pathlib.Path) -> Any:
    """The JSON value of a file.

    Raises:
      UserError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; delete it") from error
