"""What is known of each cell of a table, the paper's own figures beside it."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hapre_jax import config as config_lib
from hapre_jax import json_file, result_table, scores
from hapre_jax.data import sources
from hapre_jax.nets import size
from hapre_jax.paper_tables import cross_source, films, layouts
from hapre_jax.paper_tables.films import Source, Tested
from hapre_jax.paper_tables.plan import Cell

# The scores that the paper prints.
PAPER = pathlib.Path(__file__).with_name("paper_results.json")


def describe(cell, reference, *, tested: str = "", paper=None) -> dict[str, Any]:
    """The record of a cell, and where in the table it is; see `scores.record`.

    Args:
      cell: the cell.
      reference: that it is compared with; None, or itself, for none.
      tested: source that it is tested on; its own by default.
      paper: the paper's scores of the same.
    """
    compared = reference.finished if reference not in (None, cell) else []
    elsewhere = "" if tested == cell.source else tested
    place = {"source": cell.source, "tested": tested or cell.source}
    place |= {"net": cell.net, "row": cell.row, "paper": paper}
    return place | scores.record(cell.finished, compared, tested=elsewhere)


def plain_of_same_net(cell, cells) -> Cell | None:
    """The plain classifier with the same network, on the same source."""
    same = [other for other in cells if other.net == cell.net]
    return next((other for other in same if other.row == layouts.REFERENCE), None)


def published(table: str, cell: Cell) -> dict | None:
    """The paper's scores of a cell of Table 2 or 4; those of 5 are of its own films."""
    paper = json_file.read(PAPER)
    rows = {"2": paper["2"], "4": paper["4"].get(cell.net, {})}.get(table, {})
    return rows.get(cell.row, {}).get(cell.source)


def by_source(table: str, cells: Sequence[Cell]) -> list[dict]:
    """What Tables 2, 4 and 5 are made of."""
    records = []
    for cell in cells:
        here = [other for other in cells if other.source == cell.source]
        reference = here[0] if table == "5" else plain_of_same_net(cell, here)
        records.append(describe(cell, reference, paper=published(table, cell)))
    return records


def of_tests(cells: Sequence[Cell], tests: dict[str, Tested]) -> list[dict]:
    """What Table 3 is made of: each source that was trained on, and each test.

    Args:
      cells: all cells.
      tests: films that they were tested on, by name.
    """
    paper, records = json_file.read(PAPER)["3"], []
    for source in dict.fromkeys(cell.source for cell in cells):
        here = [cell for cell in cells if cell.source == source]
        for tested, there in tests.items():
            for cell in here:
                if not cross_source.is_tested(cell, tested, there):
                    continue
                known = paper.get(source, {}).get(cell.net, {}).get(cell.row, {})
                reference = plain_of_same_net(cell, here)
                if reference and not cross_source.is_tested(reference, tested, there):
                    reference = None
                records.append(
                    describe(cell, reference, tested=tested, paper=known.get(tested))
                )
    return records


def to_tables(table: str, records: Sequence[dict]) -> list[result_table.Table]:
    """Tables 2 to 5, one for each source, of their records."""
    layout, tables = layouts.LAYOUTS[table], []
    for source in dict.fromkeys(one["source"] for one in records):
        found = [one for one in records if one["source"] == source]
        lines = [
            layout.line.format(**one | {"row": layouts.TITLES[one["row"]]})
            for one in found
        ]
        tables.append(
            scores.table(
                layout.title.format(films=scores.count_films(found[0]), **found[0]),
                found,
                lines,
                reference=layout.reference.format(**found[0]),
                beside=[layouts.TITLES[row] for row in layouts.BESIDE],
                extra={"parameters": count_parameters} if table == "5" else None,
            )
        )
    return tables


def count_parameters(one: dict) -> str:
    """Millions of the network of a record, for one channel and three classes."""
    parameters = size.measure(one["net"], channels=1).parameters
    return f"{parameters / 1e6:.2f}M"


def of_data_sets(
    chosen: dict[str, Source], root: str
) -> tuple[list[result_table.Table], list[dict]]:
    """Table 1, what the sources hold, and the records that it is made of."""
    paper, records = json_file.read(PAPER)["1"], []
    for name, of in chosen.items():
        recipe = films.recipe_of(of)
        data = config_lib.override_all(recipe, films.fields(of, root)).data
        source = sources.open_source(data, seed=0)
        counts = np.bincount(
            [of.label for of in source.records], minlength=len(source.classes)
        )
        sizes = np.array([(of.height, of.width) for of in source.facts or ()])
        records.append(
            {
                "source": name,
                "images": len(source.records),
                "groups": len({of.group for of in source.records}),
                "classes": dict(zip(source.classes, map(int, counts), strict=True)),
                "heights": sizes[:, 0].tolist() if len(sizes) else None,
                "widths": sizes[:, 1].tolist() if len(sizes) else None,
                "paper": paper.get(name),
            }
        )
    rows = []
    for one in records:
        classes = ", ".join(f"{count} {name}" for name, count in one["classes"].items())
        sides = [
            f"{min(of)} to {max(of)}" if of else "not known before they are read"
            for of in (one["heights"], one["widths"])
        ]
        published = one["paper"] and str(one["paper"]["images"])
        counted = [str(one["images"]), str(one["groups"])]
        rows.append([one["source"], *counted, classes, *sides, published or ""])
        del one["heights"], one["widths"]
    columns = ["", "films", "patients", "classes", "height", "width", "paper's films"]
    return [result_table.make("The data sets", columns, rows)], records
