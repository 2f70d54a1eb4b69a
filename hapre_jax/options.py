"""Fields of configs: declared once, checked, read from texts, and listed.

A field is declared as `option(default, help, limits)`: the line of help is its comment
there and its text in `--help`, and the limits are checked by `check`, named in the
error and shown in `--help`.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hapre_jax.errors import UserError

ROLES = (
    "machine",  # where a run is computed and its images lie: it may go on with others
    "reading",  # how images are read
    "appearance",  # what an image looks like
    "augmentation",  # of training images
)


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    role: str = "",
    is_path: bool = False,
    source: str = "",
) -> Any:
    """A field of a config: its default, its line of help and what it accepts.

    Args:
      default: its value.
      help: a sentence or two.
      choices: all values that it accepts, if they are few.
      above, at_least, at_most: bounds of numbers.
      role: what it decides on, one of `ROLES`; empty where it decides what a run is, or
        which films it is of.
      is_path: whether it names a place on this machine, of which none other is told.
      source: the data set that it is of, if it is of one alone.
    """
    assert role in ("", *ROLES), role
    limits = {"above": above, "at_least": at_least, "at_most": at_most}
    about = f"{source}: {help}" if source else help
    metadata = {"help": about, "choices": choices, **limits}
    metadata |= {"role": role, "is_path": is_path, "source": source}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of a config, its sections' included, with what its declaration says."""

    path: str  # dotted, as in "train.steps"
    kind: Any  # its type
    value: Any
    help: str
    choices: tuple[str, ...]
    above: float | None
    at_least: float | None
    at_most: float | None
    role: str
    is_path: bool
    source: str

    @property
    def limits(self) -> str:
        """The bounds in signs, as in ">= 0 and <= 1"; empty without bounds."""
        bounds = {">": self.above, ">=": self.at_least, "<=": self.at_most}
        return " and ".join(f"{k} {v}" for k, v in bounds.items() if v is not None)

    @property
    def accepted(self) -> str:
        """What the field accepts, as the end of a sentence."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return f"{_kind_text(self.kind)} {self.limits}".rstrip()

    def accepts(self, value: Any) -> bool:
        """Whether a value is of the field's type, one of its choices, in its limits."""
        if not _is_a(value, self.kind) or (self.choices and value not in self.choices):
            return False
        numbers = value if isinstance(value, tuple) else (value,)
        return all(
            (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.at_most is None or number <= self.at_most)
            for number in numbers
            if number is not None
        )

    def read(self, text: str) -> Any:
        """The value that a text stands for; `UserError` where it is not accepted."""
        try:
            value = _read(text, self.kind)
        except ValueError as error:
            raise self.error(text) from error
        if not self.accepts(value):
            raise self.error(value)
        return value

    def error(self, value: Any) -> UserError:
        """The sentence for a value that is not accepted."""
        return UserError(f"{self.path} is {value!r}, but must be {self.accepted}")


# The types of the fields of a config or a section, by name; kept, as reading them takes
# most of the time of a table with hundreds of configs.
types_of: Callable[[type], Mapping[str, Any]] = functools.cache(typing.get_type_hints)


def options(section: Any, prefix: str = "") -> dict[str, Option]:
    """All fields of a config, or of one section under `prefix`, by dotted path."""
    found: dict[str, Option] = {}
    kinds = types_of(type(section))
    for field in dataclasses.fields(section):
        path, value = prefix + field.name, getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            found |= options(value, f"{path}.")
        else:
            found[path] = Option(path, kinds[field.name], value, **field.metadata)
    return found


def check(section: Any, prefix: str = "") -> None:
    """Raises `UserError` for the first field with a value that is not accepted."""
    for name, kind in types_of(type(section)).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(kind) and type(value) is not kind:
            raise UserError(f"{prefix}{name} is {value!r}, but must be a section")
    for field in options(section, prefix).values():
        if not field.accepts(field.value):
            raise field.error(field.value)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names that `name` may be a misspelling of, the best guess first."""
    names = list(names)
    last = name.rpartition(".")[2]
    same_field = [other for other in names if other.rpartition(".")[2] == last]
    # Above difflib's 0.6, which calls "--task.dtype" near to "--data.name".
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.75)
    return list(dict.fromkeys(same_field + close))[:3]


def _kind_text(kind):
    if _is_optional(kind):
        return f"none or {_kind_text(_required(kind))}"
    if typing.get_origin(kind) is tuple:
        return "numbers separated by commas, each"
    return {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[
        kind
    ]


def _is_optional(kind):
    return isinstance(kind, types.UnionType)


def _required(kind):
    """X of the type `X | None`."""
    return next(k for k in typing.get_args(kind) if k is not type(None))


def _is_a(value, kind):
    if _is_optional(kind):
        return value is None or _is_a(value, _required(kind))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return isinstance(value, tuple) and all(_is_a(v, item) for v in value)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _read(text, kind):
    """`text` as a value of the type `kind`; `ValueError` where it is none."""
    if _is_optional(kind):
        return None if text == "none" else _read(text, _required(kind))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_read(part, item) for part in text.strip("()[] ").split(","))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)
