"""Parts of a page that needs no network: text, tables, pictures and charts inline.

Every function returns HTML in which all given text is escaped.
"""

import base64
import html
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

# Of Okabe and Ito's palette, the last two darker: each has a contrast of 3 to white and
# to near black. Dashes tell the lines apart without colors.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07a00", "#3392c9")
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 4", "1 4")
_LONG = 48  # letters of a cell that is read, not compared: longer than any figure
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --pale: #59636e; --paper: #ffffff;
  --line: #d1d9e0; --band: #f6f8fa; --accent: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --pale: #9198a1;
  --paper: #0d1117; --line: #3d444d; --band: #151b23; --accent: #6cb0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 76rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere; }
p, figcaption { max-width: 52rem; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
.lead { font-size: 1.1rem; }
.warning { border-left: .3rem solid #d55e00; padding: .4rem .8rem;
  background: var(--band); }
.note, figcaption, caption { color: var(--pale); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: top; overflow-wrap: normal; }
td { white-space: nowrap; }
.prose { min-width: 16rem; text-align: left; white-space: normal; }
th:first-child { text-align: left; }
tbody th { min-width: 6.5rem; }
table:not(:has(.prose)) th:first-child { position: sticky; left: 0;
  background: var(--paper); }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
.best { font-weight: 700; } .second { text-decoration: underline; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
.row > * { min-width: 0; max-width: 100%; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
svg { width: 21rem; max-width: 100%; height: auto; }
svg text { fill: currentColor; font: 11px system-ui, sans-serif; }
summary { cursor: pointer; color: var(--accent); padding: .3rem 0; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document, in light or dark as the reader's system is."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{_text(title)}</h1>\n" + "\n".join(body) + "\n</main>\n</body>\n"
        "</html>\n"
    )


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{_text(text)}</h2>"


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph; of a kind "lead", "warning" or "note", or of none."""
    return f'<p class="{kind}">{_text(text)}</p>' if kind else f"<p>{_text(text)}</p>"


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    marks: Sequence[Sequence[int]] | None = None,
) -> str:
    """A table whose first column names the rows.

    A figure stays on one line; a column of long texts is wrapped, and begins on the
    left. Figures that are wider than the screen scroll past the names of the rows.

    Args:
      caption: above it; may be empty.
      columns: heads.
      rows: of texts.
      marks: of each cell: 1 for the best figure, 2 for the second, else 0.
    """
    names = ("", "best", "second")
    kinds = [
        "prose" if column and any(len(row[column]) > _LONG for row in rows) else ""
        for column in range(len(columns))
    ]
    lines = []
    for number, row in enumerate(rows):
        row_marks = marks[number] if marks else [0] * len(row)
        classes = [
            _class(names[mark], kind)
            for mark, kind in zip(row_marks, kinds, strict=True)
        ]
        cells = [f'<th scope="row"{classes[0]}>{_text(row[0])}</th>']
        cells += [
            f"<td{of}>{_text(text)}</td>"
            for of, text in zip(classes[1:], row[1:], strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(
        f'<th scope="col"{_class(kind)}>{_text(name)}</th>'
        for name, kind in zip(columns, kinds, strict=True)
    )
    named = f"<caption>{_text(caption)}</caption>" if caption else ""
    return _scroll(
        caption,
        f"<table>{named}<thead><tr>{heads}</tr></thead><tbody>\n"
        f"{chr(10).join(lines)}\n</tbody></table>",
    )


def confusion(caption: str, classes: Sequence[str], matrix: np.ndarray) -> str:
    """A confusion matrix: a cell is the darker, the larger its share of the row."""
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    lines = []
    for name, counts, row in zip(classes, matrix, shares, strict=True):
        cells = "".join(
            f'<td style="background: rgb(0 114 178 / {0.5 * share:.2f})">'
            f"{count} <small>({share:.0%})</small></td>"
            for count, share in zip(counts, row, strict=True)
        )
        lines.append(f'<tr><th scope="row">{_text(name)}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in classes)
    return _scroll(
        caption,
        f"<table><caption>{_text(caption)}</caption>"
        f'<thead><tr><th scope="col">true \\ answer</th>{heads}</tr></thead><tbody>\n'
        f"{chr(10).join(lines)}\n</tbody></table>",
    )


def picture(file: pathlib.Path, description: str) -> str:
    """A PNG file, in the page itself; what it shows is its caption and alternative."""
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><img alt="{_text(description)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(description)}</figcaption></figure>"
    )


def chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    stepped: bool = False,
) -> str:
    """Lines in the unit square with its diagonal.

    Args:
      title: above it, and what it is for those who do not see it.
      x_label, y_label: of the axes.
      lines: name -> x and y of points, each in 0..1; NaN leaves a point out.
      stepped: whether points are marked.
    """
    left, top, side = 42, 26, 220

    def place(x, y):
        return f"{left + side * x:.1f},{top + side * (1 - y):.1f}"

    parts = [
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" '
        'stroke="currentColor" stroke-opacity=".35"/>',
        f'<polyline points="{place(0, 0)} {place(1, 1)}" fill="none" '
        'stroke="currentColor" stroke-opacity=".35" stroke-dasharray="3 3"/>',
        f'<text x="{left}" y="16">{_text(title)}</text>',
        f'<text x="{left + side / 2}" y="{top + side + 30}" text-anchor="middle">'
        f"{_text(x_label)}</text>",
        f'<text x="12" y="{top + side / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {top + side / 2})">{_text(y_label)}</text>',
    ]
    for tick in (0.0, 0.5, 1.0):
        x, y = left + side * tick, top + side * (1 - tick)
        parts.append(
            f'<text x="{x}" y="{top + side + 14}" text-anchor="middle">{tick:g}</text>'
        )
        parts.append(
            f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{tick:g}</text>'
        )
    for number, (name, (xs, ys)) in enumerate(lines.items()):
        color, dash = (of[number % len(_COLORS)] for of in (_COLORS, _DASHES))
        known = [(x, y) for x, y in zip(xs, ys, strict=True) if np.isfinite(x + y)]
        points = " ".join(place(x, y) for x, y in known)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" '
            f'stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        if stepped:
            for point in known:
                x, y = place(*point).split(",")
                parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color}"/>')
        y = top + side + 48 + 16 * number
        parts.append(
            f'<line x1="{left}" y1="{y - 4}" x2="{left + 26}" y2="{y - 4}" '
            f'stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/>'
            f'<text x="{left + 32}" y="{y}">{_text(name)}</text>'
        )
    height = top + side + 42 + 16 * len(lines)
    return (
        f'<svg viewBox="0 0 {left + side + 14} {height}" role="img" '
        f'aria-label="{_text(title)}">{"".join(parts)}</svg>'
    )


def row(parts: Sequence[str]) -> str:
    """Parts side by side where the screen is wide enough."""
    return f'<div class="row">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def details(summary: str, parts: Sequence[str]) -> str:
    """Parts that show when the reader asks for them."""
    inner = "\n".join(parts)
    return f"<details><summary>{_text(summary)}</summary>\n{inner}\n</details>"


def _class(*names: str) -> str:
    """The attribute, or nothing without a name."""
    given = " ".join(filter(None, names))
    return f' class="{given}"' if given else ""


def _scroll(name: str, wide: str) -> str:
    """What may be wider than a phone; the keyboard reaches it, by its name."""
    label = _text(name or "table")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"{wide}</div>"
    )


def _text(text: str) -> str:
    return html.escape(str(text), quote=True)
