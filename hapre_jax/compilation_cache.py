"""Keeps what XLA compiled on disk, so that a command starts faster the second time.

JAX does the work; this chooses a folder, and keeps it small and free of what a killed
process left half-written.
"""

import hashlib
import os
import pathlib
import re
import warnings
from typing import Any

import jax

# A compiled step takes about a megabyte. Not everybody's disk is large.
_LIMIT = 2 << 30
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")


def use() -> None:
    """Turns the cache on, in the user's cache folder.

    JAX's own variables go before it: `JAX_COMPILATION_CACHE_DIR` names another folder,
    and `JAX_ENABLE_COMPILATION_CACHE=false` turns it off. Where no folder can be made,
    there is no cache.
    """
    config: Any = jax.config  # its attributes have no types
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        everything = pathlib.Path(home, "hapre_jax")
        folder = everything / _machine()
        folder.mkdir(parents=True, exist_ok=True)
        _prune(everything)
    except (OSError, RuntimeError):  # no home, a full disk, another process pruning
        return
    config.update("jax_compilation_cache_dir", str(folder))
    _mend(folder)


def _machine() -> str:
    """A name for what XLA compiles for, which JAX's own key leaves out for CPUs."""
    try:
        information = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        information = ""
    features = re.findall(r"^(?:flags|Features)\s*:.*", information, re.MULTILINE)[:1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return hashlib.sha256(f"{features} {cores}".encode()).hexdigest()[:8]


def _prune(folder: pathlib.Path) -> None:
    """Deletes the oldest files until the others are within the limit."""
    files = [(path, path.stat()) for path in folder.glob("*/*-cache")]
    total = sum(status.st_size for _, status in files)
    for path, status in sorted(files, key=lambda file: file[1].st_mtime):
        if total <= _LIMIT:
            break
        path.unlink(missing_ok=True)
        total -= status.st_size


def _mend(folder: pathlib.Path) -> None:
    """Deletes an entry that cannot be read, where JAX warns about it for ever.

    JAX writes entries in place, so a killed process may leave half of one, and never
    writes over one that is there.
    """
    show = warnings.showwarning

    def delete_or_show(message, *arguments, **keywords):
        if found := _DAMAGED.match(str(message)):
            for path in folder.glob(f"{found[1]}-*-cache"):
                path.unlink(missing_ok=True)
        else:
            show(message, *arguments, **keywords)

    warnings.showwarning = delete_or_show
