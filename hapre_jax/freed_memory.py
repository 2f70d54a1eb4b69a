"""Has the C library keep the memory that XLA frees, for the next step."""

import ctypes
import os

# Parameters of glibc's `mallopt` (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep() -> None:
    """Keeps it until the process ends.

    XLA's CPU backend asks for the room of a whole step at once, and glibc would give it
    back after each, so that the system clears it page by page for the next: a tenth of
    a step's time (docs/performance.md). Where the C library is another one, or the
    user's environment sets glibc's (`MALLOC_...`), nothing is changed.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; not even POSIX
        return
    mallopt(_MMAP_MAX, 0)  # nothing in pages of its own, which are always given back
    mallopt(_TRIM_THRESHOLD, -1)  # never
    mallopt(_ARENA_MAX, 1)  # those of other threads give theirs back all the same
