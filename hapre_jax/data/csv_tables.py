"""Tables of labels and patients that come with films, as CSV."""

import codecs
import csv
import io
from collections.abc import Sequence

from hapre_jax.data import files, film_tables
from hapre_jax.errors import UserError

_DELIMITERS = ",;\t"  # the second where a comma is the decimal point


def read(
    tree: files.Tree, base_name: str, columns: Sequence[str]
) -> list[dict[str, str]] | None:
    """The rows of a CSV file that comes with the images.

    Returns:
      The rows; None if there is no such file.

    Raises:
      UserError: see `film_tables.read` and `parse`.
    """
    data = film_tables.read(tree, base_name)
    if data is None:
        return None
    return parse(data, columns, name=f"{base_name} of {tree.root}")


def parse(
    data: bytes, columns: Sequence[str], *, optional: Sequence[str] = (), name: str
) -> list[dict[str, str]]:
    """The rows of a CSV file, with the columns asked for and no others.

    Rows that have nothing in them are left out.

    Args:
      data: the file; its first line names the columns, in letters of either case.
        Commas, semicolons or tabs are between them.
      columns: that it must have.
      optional: columns that it may have; without them, and in short rows, fields are
        empty.
      name: of the file, for messages.

    Raises:
      UserError: a column is missing or there twice, a row is longer than the header, or
        a quotation has no end.
    """
    # Names of files need not be UTF-8; "Unicode text" of spreadsheets is UTF-16.
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if is_utf_16 else "utf-8-sig"
    text = data.decode(encoding, "replace" if is_utf_16 else "surrogateescape")
    wanted = (*columns, *optional)

    def lines():
        return io.StringIO(text, newline="")

    def header(delimiter):
        """The columns by the names that were asked for, where they have such."""
        # Not strict: quotation marks are in order for the right delimiter alone.
        first = next(csv.reader(lines(), delimiter=delimiter), [])
        known = {column.casefold(): column for column in wanted}
        return [known.get(column.strip().casefold(), column) for column in first]

    line = 1
    try:
        headers = {delimiter: header(delimiter) for delimiter in _DELIMITERS}
        fitting = [d for d, found in headers.items() if set(columns) <= set(found)]
        if not fitting:
            found, wanted_text = headers[_DELIMITERS[0]], ",".join(columns)
            if not found:
                raise UserError(f"{name} is empty: it needs {wanted_text}")
            raise UserError(f"{name} has the columns {found}, not {wanted_text}")
        found = headers[fitting[0]]
        for column in wanted:
            if found.count(column) > 1:
                raise UserError(f"{name} has the column {column} more than once")
        reader = csv.DictReader(
            lines(), found, restval="", delimiter=fitting[0], strict=True
        )
        next(reader)  # the header
        rows, line = [], reader.line_num + 1
        for row in reader:
            if any(cell.strip() for cell in row.get(None) or ()):
                raise UserError(
                    f"{name} has more cells than columns in line {line}: put quotation "
                    "marks around a text with a comma"
                )
            # Spreadsheets leave rows of nothing but commas.
            if any(cell.strip() for name, cell in row.items() if name is not None):
                rows.append({column: row.get(column, "") for column in wanted})
            line = reader.line_num + 1
    except csv.Error as error:
        where = f"from line {line} on: {error}"
        raise UserError(f"{name} is not a CSV file {where}") from error
    return rows
