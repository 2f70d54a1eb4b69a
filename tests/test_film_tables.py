"""Tables that come with films: where they are found, what they hold and list."""

import logging

import pytest
from test_files import write_folder, write_zip

from hapre_jax import errors
from hapre_jax.data import csv_tables, files, film_tables


def test_tables_lie_beside_the_zip_or_in_the_tree(tmp_path):
    write_zip(tmp_path / "x.zip", {"a.png": b"", "deep/t.csv": b"inside", "u.csv": b""})
    for root in (tmp_path, tmp_path / "x.zip"):
        tree = files.open_tree(str(root))
        assert film_tables.read(tree, "t.csv") == b"inside"
        assert film_tables.read(tree, "missing.csv") is None
        assert csv_tables.read(tree, "missing.csv", ("a",)) is None
    write_folder(tmp_path, {"t.csv": b"beside"})
    assert film_tables.read(tree, "t.csv") == b"beside"
    write_folder(tmp_path / "f", {"root/a.png": b"", "t.csv": b"a,b\n1,2\n"})
    tree = files.open_tree(str(tmp_path / "f" / "root"))
    assert film_tables.read(tree, "t.csv") is None  # not above a folder
    tree = files.open_tree(str(tmp_path / "f"))
    assert csv_tables.read(tree, "t.csv", ("b",)) == [{"b": "2"}]
    write_folder(tmp_path / "f", {"root/t.csv": b"a,b\n"})
    tree = files.open_tree(str(tmp_path / "f"))
    with pytest.raises(errors.UserError, match=r"t.csv 2 times \(root/t.csv, t.csv\)"):
        csv_tables.read(tree, "t.csv", ("a",))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (b"a,b\n1,2\n", [("1", "2", "")]),
        (b"\xef\xbb\xbfb,x,a,c\r\n2,0,1,3\r\n", [("1", "2", "3")]),
        (b"a,b,,\n1,2,,\n3,4,,,,\n", [("1", "2", ""), ("3", "4", "")]),
        (b"a,c,b\n1\n\n2,3,4", [("1", "", ""), ("2", "4", "3")]),
        (b'a,b\n"1,\n0",\xff\n', [("1,\n0", "\udcff", "")]),
        (b"a,b\n", []),
        (b"\xef\xbb\xbfa;b\r\n1;2,5\r\n", [("1", "2,5", "")]),
        (b"a\tb\n1\t2\n", [("1", "2", "")]),
        (b"a,b\n1,2,, \n", [("1", "2", "")]),  # as spreadsheets fill up
        (b"a,b\n,\n1,2\n , \n", [("1", "2", "")]),
        (b'"a";"b"\n"1";"2,5"\n', [("1", "2,5", "")]),
        (b'"A"\t" b "\n"1"\t"2"\n', [("1", "2", "")]),
        ("a\tb\n1\tö\n".encode("utf-16"), [("1", "ö", "")]),
    ],
)
def test_rows_of_a_table(text, rows):
    found = csv_tables.parse(text, ("a", "b"), optional=("c",), name="t.csv")
    assert found == [dict(zip("abc", row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a:b\n1:2\n", r"t.csv has the columns \['a:b'\], not a,b"),
        (b"", "t.csv is empty: it needs a,b"),
        (
            b'a,b\n0,0\n1,"' + b"2" * 200_000,
            "t.csv is not a CSV file from line 3 on: field larger",
        ),
        (b'a,b\n0,0\n1,"2\n3,4\n', "not a CSV file from line 3 on: unexpected end"),
        (b"a,A,b\n1,2,3\n", "t.csv has the column a more than once"),
        (
            b"a,b\n0,0\n1,2, with 3\n",
            "t.csv has more cells than columns in line 3: put",
        ),
    ],
)
def test_other_tables_are_named(text, said):
    with pytest.raises(errors.UserError, match=said):
        csv_tables.parse(text, ("a", "b"), name="t.csv")


def test_films_are_found_by_stem(tmp_path, caplog):
    names = ["b/1.png", "a/2.jpg", "a/3.png", "a/4.png"]
    tree = files.open_tree(str(write_folder(tmp_path, dict.fromkeys(names, b""))))
    known = {str(number) for number in range(1, 9)} - {"4"}
    with caplog.at_level(logging.WARNING):
        found = film_tables.find_films(tree, names, wanted=known - {"3"}, known=known)
    assert list(found.items()) == [("2", "a/2.jpg"), ("1", "b/1.png")]
    assert [record.message for record in caplog.records] == [
        f"left out 4 of 6 labelled films, which are not in {tmp_path}: 5, 6, 7 and 1 "
        "more",
        f"left out 1 of 4 films in {tmp_path}, which have no label: 4",
    ]
    with pytest.raises(errors.UserError, match="none of the labelled films: 7, 8"):
        film_tables.find_films(tree, names, wanted={"7", "8"}, known=known)
    with pytest.raises(errors.UserError, match="film 1 twice, as b/1.png and c/1.png"):
        film_tables.find_films(tree, [*names, "c/1.png"], wanted=known, known=known)
