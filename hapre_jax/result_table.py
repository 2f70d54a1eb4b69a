"""Tables of results as Markdown, LaTeX, CSV and JSON, the best figures marked."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hapre_jax import atomic, csv_file, json_file

_BEST, _SECOND = 1, 2
_SAME = 6  # decimals, beyond which figures differ by the rounding of float32


class Table(NamedTuple):
    """Text in cells, and where the best figures are."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    marks: list[list[int]]  # of each cell: 0 none, 1 best, 2 second
    words: str = ""  # what it says, for those who read no table


def make(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    ranked: Mapping[str, Sequence[float | None]] | None = None,
    contests: Sequence[str] | None = None,
) -> Table:
    """A table whose best figures are marked.

    Args:
      title: above it.
      columns: their names.
      rows: a text for each column.
      ranked: name of a column -> a number for each row, the highest is best, equal
        to six decimals share their place; None for a row that does not compete.
      contests: of each row; only rows of the same one compete. One for all by default.
    """
    marks = [[0] * len(columns) for _ in rows]
    contests = contests or [""] * len(rows)
    for name, values in (ranked or {}).items():
        column = tuple(columns).index(name)
        for contest in set(contests):
            rivals = {
                row: round(value, _SAME)
                for row, value in enumerate(values)
                if contests[row] == contest and value is not None
            }
            order = sorted(set(rivals.values()), reverse=True)
            for row, value in rivals.items():
                if len(order) > 1 and value in order[:2]:
                    marks[row][column] = 1 + order.index(value)
    return Table(title, tuple(columns), [list(row) for row in rows], marks)


def markdown(table: Table) -> str:
    """GitHub's tables; the best bold, the second underlined."""
    shown = [
        [
            _mark(text, mark, "**{}**", "<u>{}</u>")
            for text, mark in zip(*row, strict=True)
        ]
        for row in zip(table.rows, table.marks, strict=True)
    ]
    lines = [table.columns, ["---"] * len(table.columns), *shown]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{table.title}**\n\n{body}\n"


def latex(table: Table) -> str:
    """A `tabular` of booktabs in a `table`; the best bold, the second underlined."""
    shown = [
        [
            _mark(_escape(text), mark, r"\textbf{{{}}}", r"\underline{{{}}}")
            for text, mark in zip(*row, strict=True)
        ]
        for row in zip(table.rows, table.marks, strict=True)
    ]
    layout = "l" + "r" * (len(table.columns) - 1)
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escape(table.title)}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        " & ".join(map(_escape, table.columns)) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in shown),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _mark(text, mark, best, second):
    if not text or not mark:
        return text
    return (best if mark == _BEST else second).format(text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "<": "$<$",
    ">": "$>$",
}


def _escape(text):
    return "".join(_LATEX.get(letter, letter) for letter in text)


def write(
    stem: pathlib.Path,
    tables: Sequence[Table],
    records: Sequence[dict],
    *,
    notes: str,
) -> str:
    """Writes `STEM.md`, `.tex`, `.csv` and `.json`.

    Args:
      stem: where, without an ending.
      tables: for readers.
      records: the same for programs: nested dicts of numbers, texts and lists.
      notes: what a reader must know, in Markdown.

    Returns:
      What the Markdown file holds.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(markdown, tables)) + f"\n{notes}\n"
    flat = [_flatten(one) for one in records]
    columns = list(dict.fromkeys(name for one in flat for name in one))
    atomic.write_text(stem.with_suffix(".md"), text)
    comment = "".join(f"% {line}\n" for line in notes.splitlines())
    latex_text = comment + "\n".join(map(latex, tables))
    atomic.write_text(stem.with_suffix(".tex"), latex_text)
    cells = [[one.get(name, "") for name in columns] for one in flat]
    csv_file.write(stem.with_suffix(".csv"), [columns, *cells])
    json_file.write(stem.with_suffix(".json"), {"notes": notes, "records": records})
    return text


def _flatten(value: dict, prefix: str = "") -> dict[str, Any]:
    """Nested names joined by dots; lists as JSON."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flatten(inner, f"{prefix}{name}.")
        else:
            is_list = isinstance(inner, list)
            flat[prefix + name] = json.dumps(inner) if is_list else inner
    return flat
