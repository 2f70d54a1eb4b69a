"""What made a result: the versions of libraries, and the commit of this one."""

import functools
import importlib.metadata
import pathlib
import subprocess

_ROOT = pathlib.Path(__file__).parents[1]
_LIBRARIES = ("jax", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


@functools.cache
def commit(root: pathlib.Path = _ROOT) -> str | None:
    """The commit that the source is at, `-dirty` behind it where files were changed.

    It is that of the first call: the source may change under a program at work.

    Args:
      root: the folder of the checkout; that of this package by default.

    Returns:
      Its short hash, or None: the package was installed, or there is no git.
    """
    # Installed below a checkout of something else, it must not claim its commit.
    if not (root / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", str(root), "describe"]
    git += ["--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.strip()
