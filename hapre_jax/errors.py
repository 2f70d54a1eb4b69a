"""The one exception that programs show as a sentence instead of a traceback."""

from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something the user can mend: names the thing, its value and what is accepted."""


def check_choice(name: str, value: str, accepted: Iterable[str]) -> None:
    """For functions that a misspelt switch would make do something else.

    Raises:
      ValueError: the value is none of those that are accepted.
    """
    known = tuple(accepted)
    if value not in known:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}")


def no_memory(name: str) -> MemoryError:
    """What to raise where a file found no memory: no `UserError`, which skips it."""
    return MemoryError(f"{name} does not fit into memory")


def listing(names: Sequence[str]) -> str:
    """The first names of many, as a sentence lists them: `a, b, c and 9 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
