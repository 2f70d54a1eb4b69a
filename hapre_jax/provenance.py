"""What made a result: the versions of libraries, and the commit of this one."""

import importlib.metadata
import pathlib
import subprocess

_ROOT = pathlib.Path(__file__).parents[1]
_LIBRARIES = ("jax", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def commit(root: pathlib.Path = _ROOT) -> str | None:
    """The commit that the source is at, `-dirty` behind it where files were changed.

    Args:
      root: the folder of the checkout; that of this package by default.

    Returns:
      Its short hash, or None: the package was installed, or there is no git.
    """
    # Installed below a checkout of something else, it must not claim its commit.
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.strip()
