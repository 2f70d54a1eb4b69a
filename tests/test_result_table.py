"""Tables against their text written by hand, and read back by other programs."""

import csv
import json

import pytest

from hapre_jax import result_table


def marks(values):
    """Of a column with these numbers."""
    rows = [["x", "1"] for _ in values]
    made = result_table.make("T", ["", "F1"], rows, ranked={"F1": values})
    assert [of_name for of_name, _ in made.marks] == [0] * len(values)
    return [mark for _, mark in made.marks]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2, 0.9, 0.5, 0.1], [0, 1, 2, 0]),
        ([-0.2, -0.9], [1, 2]),
        ([0.7, 0.5, 0.7, 0.5, 0.1], [1, 2, 1, 2, 0]),
        ([None, 0.9, None, 0.5], [0, 1, 0, 2]),
        ([0.0, None, 0.5], [2, 0, 1]),
        ([0.5], [0]),
        ([None, 0.5], [0, 0]),
        ([0.5, 0.5], [0, 0]),
        ([2 / 3 + 4e-8, 2 / 3, 0.5], [1, 1, 2]),
        ([None, None], [0, 0]),
    ],
    ids=[
        "best and second",
        "below 0",
        "ties",
        "some do not compete",
        "0 competes",
        "one row",
        "one competes",
        "all the same",
        "the same but for rounding",
        "none competes",
    ],
)
def test_best_and_second_are_marked(values, expected):
    assert marks(values) == expected


def test_rows_of_other_contests_do_not_compete():
    rows = [["a", "9"], ["b", "1"], ["c", "2"], ["d", "8"]]
    ranked, contests = {"F1": [9.0, 1.0, 2.0, 8.0]}, ["x", "y", "y", "x"]
    made = result_table.make("T", ["", "F1"], rows, ranked=ranked, contests=contests)
    assert [mark for _, mark in made.marks] == [1, 2, 1, 2]


def table():
    """With what LaTeX reads as commands."""
    rows = [
        ["a_b & 5 %", "−1.5 ± 0.2", "7"],
        ["{#1} ~^$", "+2.0", "7"],
        [r"C:\x", "", ""],
    ]
    ranked = {"Δ_1": [-1.5, 2.0, None]}
    return result_table.make("50 % & more", ["", "Δ_1", "n"], rows, ranked=ranked)


def test_markdown_is_as_written_by_hand():
    assert result_table.markdown(table()) == "\n".join(
        [
            "**50 % & more**",
            "",
            "|  | Δ_1 | n |",
            "| --- | --- | --- |",
            "| a_b & 5 % | <u>−1.5 ± 0.2</u> | 7 |",
            "| {#1} ~^$ | **+2.0** | 7 |",
            "| C:\\x |  |  |",
            "",
        ]
    )


def test_latex_is_as_written_by_hand():
    assert result_table.latex(table()) == "\n".join(
        [
            r"\begin{table}",
            r"\caption{50 \% \& more}",
            r"\begin{tabular}{lrr}",
            r"\toprule",
            r" & Δ\_1 & n \\",
            r"\midrule",
            r"a\_b \& 5 \% & \underline{$-$1.5 $\pm$ 0.2} & 7 \\",
            r"\{\#1\} \textasciitilde{}\textasciicircum{}\$ & \textbf{+2.0} & 7 \\",
            r"C:\textbackslash{}x &  &  \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def test_less_than_is_not_an_exclamation_mark_in_latex():
    made = result_table.make("T", ["", "gain"], [["x", "p < 0.002"]])
    assert "p < 0.002" not in result_table.latex(made)


def test_cell_without_text_stays_empty_whatever_its_mark():
    made = result_table.make("T", ["", "F1"], [["x", ""], ["y", "1"]])
    made = made._replace(marks=[[0, 1], [0, 2]])
    assert "| x |  |\n| y | <u>1</u> |" in result_table.markdown(made)
    assert "x &  \\\\\ny & \\underline{1} \\\\" in result_table.latex(made)


RECORDS = [
    {
        "source": "a, b",
        "classes": ["é", "n"],
        "scores": {"F1": {"mean": 0.1 + 0.2, "interval": None}},
    },
    {"source": "é", "classes": [], "scores": {"F1": {"mean": 1.0}}, "gain": {"p": 0.5}},
]


def test_written_files_hold_the_tables_and_the_records(tmp_path):
    stem = tmp_path / "new" / "folder" / "table2"
    first, second = table(), table()._replace(title="another")
    text = result_table.write(stem, [first, second], RECORDS, notes="Per *cent*.")
    assert sorted(file.name for file in stem.parent.iterdir()) == [
        "table2.csv",
        "table2.json",
        "table2.md",
        "table2.tex",
    ]
    markdown, latex = result_table.markdown, result_table.latex
    assert text == f"{markdown(first)}\n{markdown(second)}\nPer *cent*.\n"
    read = {
        ending: stem.with_suffix(ending).read_text(encoding="utf-8")
        for ending in (".md", ".tex", ".json")
    }
    assert read[".md"] == text
    assert read[".tex"] == f"% Per *cent*.\n{latex(first)}\n{latex(second)}"
    # Not a digit of 0.1 + 0.2 is lost.
    assert json.loads(read[".json"]) == {"notes": "Per *cent*.", "records": RECORDS}


def test_csv_joins_nested_names_by_dots_and_leaves_empty_what_a_record_lacks(tmp_path):
    result_table.write(tmp_path / "t", [table()], RECORDS, notes="")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {
            "source": "a, b",
            "classes": '["\\u00e9", "n"]',
            "scores.F1.mean": "0.30000000000000004",
            "scores.F1.interval": "",
            "gain.p": "",
        },
        {
            "source": "é",
            "classes": "[]",
            "scores.F1.mean": "1.0",
            "scores.F1.interval": "",
            "gain.p": "0.5",
        },
    ]
