"""The one exception that programs show as a sentence instead of a traceback."""

from collections.abc import Sequence


class UserError(ValueError):
    """Something the user can mend: names the thing, its value and what is accepted."""


def listing(names: Sequence[str]) -> str:
    """The first names of many, as a sentence lists them: `a, b, c and 9 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
