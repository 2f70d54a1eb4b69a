import pathlib
import zipfile

import pytest

from hapre_jax import errors
from hapre_jax.data import folder


def write(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_first_level_is_the_class(tmp_path):
    write(tmp_path, ["sick/b.png", "sick/ward 7/a.JPG", "fine/c.tif", "fine/notes.txt"])
    tree, records, classes = folder.scan(str(tmp_path))
    assert classes == ("fine", "sick")
    assert [(r.name, r.label, r.group) for r in records] == [
        ("fine/c.tif", 0, "fine/c.tif"),
        ("sick/b.png", 1, "sick/b.png"),
        ("sick/ward 7/a.JPG", 1, "sick/ward 7/a.JPG"),
    ]
    assert tree.read("sick/ward 7/a.JPG") == b"sick/ward 7/a.JPG"


def test_what_our_programs_made_is_no_film(tmp_path, caplog):
    names = ["sick/b.png", "fine/c.png", "fine/crops/d.png"]  # a ward of that name
    run = ["config.json", "checkpoints/last/1/d/x", "learning.png", "plain/a.png"]
    names += [f"runs/films/{name}" for name in run]
    names += [f"sick/predicted/{n}" for n in ("predictions.jsonl", "crops/sick/b.png")]
    write(tmp_path, names)
    with pytest.raises(errors.UserError, match="^class folder 'runs' in .* no image"):
        folder.scan(str(tmp_path))
    assert caplog.messages == [
        f"{tmp_path} holds what our programs made, which is left out: runs/films, "
        "sick/predicted/crops"
    ]
    (tmp_path / "runs").rename(tmp_path / "fine" / "runs")
    _, records, classes = folder.scan(str(tmp_path))
    assert classes == ("fine", "sick")
    assert [record.name for record in records] == [
        "fine/c.png",
        "fine/crops/d.png",
        "sick/b.png",
    ]


@pytest.mark.parametrize("prefix", ["", "data/", "data/set/"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_single_roots_and_splits_are_looked_through(tmp_path, prefix, kind):
    names = ["train/a/1.png", "train/b/2.png", "Test/a/3.png", "valid/c/x/4.png"]
    if kind == "zip":
        root = tmp_path / "films.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for name in [*names, "__MACOSX/train/a/._1.png"]:
                archive.writestr(prefix + name, b"")
    else:
        root = write(tmp_path, [prefix + name for name in names])
    _, records, classes = folder.scan(str(root))
    assert classes == ("a", "b", "c")
    expected = {"train/a/1.png": 0, "Test/a/3.png": 0, "train/b/2.png": 1}
    expected = {**expected, "valid/c/x/4.png": 2}
    got = {record.name: record.label for record in records}
    assert got == {prefix + name: label for name, label in expected.items()}


@pytest.mark.parametrize("place", ["", "data/"])
def test_groups_file(tmp_path, place):
    write(tmp_path, ["data/a/1.png", "data/a/2.png", "data/b/3.png"])
    (tmp_path / place / "groups.csv").write_text(
        "path,age,group\na/1.png,7,ann\na/2.png,8,bob\ndata/b/3.png,7,ann\n"
    )
    _, records, _ = folder.scan(str(tmp_path))
    assert [record.group for record in records] == ["ann", "bob", "ann"]


def test_other_words_for_splits(tmp_path):
    names = ["Training/a/1.png", "Testing/b/2.png", "notes/x.txt"]
    _, records, classes = folder.scan(str(write(tmp_path, names)))
    assert classes == ("a", "b")
    assert [record.official for record in records] == ["test", "train"]


def test_groups_file_beside_the_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        archive.writestr("a/1.png", b"")
        archive.writestr("b/2.png", b"")
    (tmp_path / "groups.csv").write_text("path,group\na/1.png,x\nb/2.png,y\n")
    _, records, _ = folder.scan(str(tmp_path))
    assert [record.group for record in records] == ["x", "y"]


def test_groups_file_beside_a_zip_that_is_named(tmp_path):
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"")
        archive.writestr("b/2.png", b"")
    (tmp_path / "groups.csv").write_text("path,group\na/1.png,x\nb/2.png,x\n")
    _, records, _ = folder.scan(str(path))
    assert [record.group for record in records] == ["x", "x"]


def table(root, text):
    write(root, ["a/1.png", "b/2.png", "b/3.png"])
    (root / "films.csv").write_text(text)
    return str(root / "films.csv")


def test_table(tmp_path):
    text = "label,path,split,view,group\nill,./a/1.png,Val,PA,x\nwell,b/2.png,,,y\n"
    source = folder.source(table(tmp_path, text))
    assert source.classes == ("ill", "well")
    assert source.records == [
        ("a/1.png", 0, "x", "PA", "validation"),
        ("b/2.png", 1, "y", "", ""),
    ]
    # As a spreadsheet writes it: a mark, semicolons, spaces after names.
    sheet = folder.source(
        table(
            tmp_path,
            f"\ufeffpath;label;group\r\na\\1.png;ill ;x\r\n"
            f"{tmp_path}/b/2.png;well;x \r\nb/3.png;ill;y\r\n",
        )
    )
    assert sheet.classes == ("ill", "well")
    assert [(r.name, r.group) for r in sheet.records] == [
        ("a/1.png", "x"),
        ("b/2.png", "x"),
        ("b/3.png", "y"),
    ]
    text = " Path ,LABEL,View\nb/3.png,1,pa\na/1.png,0,Lateral\n"
    spaced = folder.source(table(tmp_path, text))
    assert [record.view for record in spaced.records] == ["Lateral", "pa"]
    bare = folder.source(table(tmp_path, "path,label\nb/3.png,1\na/1.png,0\n"))
    assert [record.group for record in bare.records] == ["a/1.png", "b/3.png"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,kind\na/1.png,x\n", "not path,label"),
        ("path,label\na/1.png,x\nb/2.png,x\n", "at least two"),
        ("path,label\na/1.png,x\nb/2.png,\n", "one in each row"),
        ("path,label\na/1.png,x\n,y\n", "a row without a path, of the label 'y'"),
        ("path,label\na/1.png,x\nb/9.png,y\n", "b/9.png, which is not in its folder"),
        ("path,label\na/1.png,x\n./a/1.png,y\n", "lists a/1.png twice"),
        ("path,label\na/1.png,Ill\nb/2.png,ill\nb/3.png,y\n", "'Ill' and 'ill'"),
        ("path,label,split\na/1.png,x,dev\nb/2.png,y,\n", "the split 'dev'"),
        ("path,label,group\na/1.png,x,p\nb/2.png,y,\n", "no group for b/2.png"),
        (
            'path,label\na/1.png,"x\nb/2.png,y\n',
            "is not a CSV file from line 2 on: unex",
        ),
        (
            'path,label\na/1.png,"x\nb/2.png,y"\nb/3.png,y\n',
            "a line break in the label or group of a/1.png: is a quotation mark left",
        ),
    ],
)
def test_wrong_tables(tmp_path, text, said):
    with pytest.raises(errors.UserError, match=said):
        folder.source(table(tmp_path, text))


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(errors.UserError, match="films.csv does not exist"):
        folder.source(str(tmp_path / "films.csv"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,group\na/1.png,x\na/1.png,y\nb/2.png,x\n", "gives a/1.png two groups"),
        ("path,group\na/1.png,x\n", "no group for b/2.png"),
        ("path,group\na/1.png,x\nb/2.png,\n", "no group for b/2.png"),
        ("file;group\n", "not path,group"),
        ("", "is empty: it needs path,group"),
    ],
)
def test_incomplete_groups_file(tmp_path, text, said):
    write(tmp_path, ["a/1.png", "b/2.png"])
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(errors.UserError, match=said):
        folder.scan(str(tmp_path))


def test_a_folder_called_as_a_split_may_be_a_class(tmp_path):
    names = ["test/p1/1.png", "test/p2/2.png", "control/p3/3.png", "control/p4/4.png"]
    write(tmp_path, names)
    _, records, classes = folder.scan(str(tmp_path))
    assert classes == ("control", "test") and len(records) == 4


def test_groups_of_any_case_and_beside_a_table(tmp_path):
    path = table(tmp_path, "path,label\na/1.png,x\nb/2.png,y\nb/3.png,y\n")
    rows = "path,group\na/1.png,p\nb/2.png,p\nb/3.png,q\n"
    (tmp_path / "Groups.csv").write_text(rows)
    for records in (folder.source(path).records, folder.scan(str(tmp_path))[1]):
        assert [record.group for record in records] == ["p", "p", "q"]
    (tmp_path / "Groups.csv").write_text("path,group\na/1.png,p\n")
    with pytest.raises(errors.UserError, match=r"no group for b/2\.png"):
        folder.source(path)
    # Of other films, as it lies among them.
    (tmp_path / "Groups.csv").rename(tmp_path / "b" / "groups.csv")
    assert [record.group for record in folder.source(path).records][0] == "a/1.png"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a/1.png", "a/2.png"], "1 class folder"),
        (["1.png", "2.png"], "0 class folder"),
        (["train/1.png", "test/2.png"], "at least two; test, train are taken for spl"),
        (["train/a/1.png", "test/a/2.png"], "1 class folder"),
        (["a/1.png", "b/2.png", "stray.png"], "stray.png .* outside the class folders"),
        (["a/1.png", "b/2.txt"], "class folder 'b' .* holds no image"),
        (["a/1.txt", "b/2.txt"], "holds no image"),
        (["train/A/1.png", "test/a/2.png", "test/b/3.png"], "classes 'A' and 'a'"),
        (
            ["train/a/1.png", "test/a/2.png", "more/b/3.png"],
            "holds test, train and beside them more",
        ),
        (
            ["train/a/1.png", "train/b/2.png", "dev/a/3.png", "dev/b/4.png"],
            "holds train and beside them dev, so what are splits",
        ),
    ],
)
def test_wrong_trees(tmp_path, names, said):
    write(tmp_path, names)
    with pytest.raises(errors.UserError, match=said):
        folder.scan(str(tmp_path))


def test_years_that_are_taken_for_classes_are_doubted(tmp_path, caplog):
    names = [
        f"{year}/{name}/1.png" for year in (2019, 2020) for name in ("ill", "well")
    ]
    _, _, classes = folder.scan(str(write(tmp_path, names)))
    assert classes == ("2019", "2020")
    assert caplog.messages == [
        f"2019, 2020 in {tmp_path} are taken for the classes; all of them hold the "
        "folders ill, well: if those are the classes, give a table of the films "
        "(docs/data.md)"
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["ill/PA/1.png", "well/AP/2.png"],
        ["ill/ward 7/1.png", "well/ward 7/2.png"],
        ["ill/1.png", "well/2.png"],
    ],
)
def test_folders_below_a_class_are_no_doubt(tmp_path, caplog, names):
    folder.scan(str(write(tmp_path, names)))
    assert not caplog.messages


@pytest.mark.parametrize("name", ["groups.csv", "Groups.CSV"])
def test_patients_beside_a_zip_are_found_in_any_case(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        for path in ("a/1.png", "b/2.png"):
            archive.writestr(path, path)
    (tmp_path / name).write_text("path,group\na/1.png,x\nb/2.png,x\n")
    (tmp_path / "films.csv").write_text("path,label\na/1.png,0\nb/2.png,1\n")
    for root in ("films.zip", "films.csv"):
        records = folder.source(str(tmp_path / root)).records
        assert [record.group for record in records] == ["x", "x"]
    (tmp_path / "GROUPS.csv").write_text("path,group\n")
    with pytest.raises(errors.UserError, match=r"holds .*GROUPS\.csv.*: keep one"):
        folder.source(str(tmp_path / "films.zip"))


def test_a_patient_is_one_however_the_name_is_composed(tmp_path):
    text = "path,label,group\na/1.png,0,M\u00fcller\nb/2.png,1,Mu\u0308ller \n"
    records = folder.source(table(tmp_path, text)).records
    assert {record.group for record in records} == {"M\u00fcller"}
    (tmp_path / "films.csv").unlink()
    rows = ["a/1.png,M\u00fcller", "b/2.png,Mu\u0308ller", "b/3.png,x"]
    (tmp_path / "groups.csv").write_text("\n".join(["path,group", *rows]))
    records = folder.source(str(tmp_path)).records
    assert [record.group for record in records] == ["M\u00fcller"] * 2 + ["x"]


def test_classes_are_called_in_utf_8(tmp_path):
    path = table(tmp_path, "")
    text = "path,label\na/1.png,Entz\u00fcndung\nb/2.png,gesund\n"
    pathlib.Path(path).write_bytes(text.encode("cp1252"))
    with pytest.raises(errors.UserError, match="not UTF-8: call it otherwise, or save"):
        folder.source(path)
    pathlib.Path(path).unlink()
    (tmp_path / "\udcfc").mkdir()
    (tmp_path / "\udcfc" / "1.png").write_bytes(b"")
    with pytest.raises(errors.UserError, match=r"class '\\udcfc', which is not UTF-8"):
        folder.source(str(tmp_path))
