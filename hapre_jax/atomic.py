"""Files that are there whole or not at all, whenever the program ends."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator

from hapre_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields where to write the new content of `path`, which then replaces it at once.

    Where writing fails, the old file stays and nothing of the new one.

    Raises:
      UserError: the folder is missing, full or cannot be written to.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        try:
            yield partial
            with partial.open("rb") as file:
                # Else a power failure could leave the new name and no content.
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written: {reason}") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file; names of files in it need not be UTF-8.

    Raises:
      UserError: see `replacing`.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits: whether it is still whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
