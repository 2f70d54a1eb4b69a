"""CSV files whose lines end in a line feed, whatever is in their cells."""

import csv
import io
import pathlib
from collections.abc import Iterable
from typing import IO, Any

from hapre_jax import atomic


def write_row(stream: IO[str], cells: Iterable[Any]) -> None:
    """Writes a line."""
    line = io.StringIO()
    # Of what ends a line, Python before 3.13 quotes only that which ends its own.
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    stream.write(line.getvalue().removesuffix("\r\n") + "\n")


def write(path: pathlib.Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes a table, its header first: the file is there whole or not at all.

    Raises:
      UserError: the folder is missing or cannot be written to.
    """
    text = io.StringIO(newline="")
    for cells in rows:
        write_row(text, cells)
    atomic.write_text(path, text.getvalue())
