import csv

import numpy as np
import pytest

from hapre_jax import predictions
from hapre_jax.errors import UserError

CLASSES = ("normal", "bacterial", "viral")
ARRAYS = ("labels", "probabilities", "key_areas")


def _random(count=50, with_areas=True, classes=CLASSES):
    rng = np.random.default_rng(count)
    raw = rng.uniform(size=(count, len(classes))) ** 8
    areas = np.sort(rng.uniform(size=(count, 2, 2)), axis=1).reshape(count, 4)
    return predictions.Predictions(
        names=tuple(f"{classes[k % 2]}/film {k}.png" for k in range(count)),
        groups=tuple(f"patient {k // 3}" for k in range(count)),
        views=tuple(("AP", "PA", "")[k % 3] for k in range(count)),
        classes=classes,
        labels=rng.integers(len(classes), size=count).astype(np.int32),
        probabilities=(raw / raw.sum(axis=1, keepdims=True)).astype(np.float32),
        key_areas=areas.astype(np.float32) if with_areas else None,
    )


def _assert_same(found, expected):
    for name in predictions.Predictions._fields:
        a, b = getattr(found, name), getattr(expected, name)
        if name in ARRAYS and b is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


def _round_trip(folder, given):
    file = folder / "predictions.csv"
    predictions.write(file, given)
    _assert_same(predictions.read(file), given)
    # Neither part of a file nor anything else is left beside it.
    assert list(folder.iterdir()) == [file]
    return file


@pytest.mark.parametrize("with_areas", [True, False])
def test_round_trip_is_exact(tmp_path, with_areas):
    given = _random(500, with_areas)
    file = _round_trip(tmp_path, given)
    assert ("y0" in file.read_text()) == with_areas


def test_every_kind_of_float32_comes_back(tmp_path):
    """Neighbors of 1, which need all digits, the smallest ones, and the ends."""
    one, zero = np.float32(1), np.float32(0)
    below = np.nextafter(one, zero)
    smallest = np.nextafter(zero, one)
    rows = [[below, np.nextafter(below, zero), one], [smallest, 3 * smallest, zero]]
    given = _random(2)._replace(probabilities=np.array(rows, np.float32))
    assert len(set(given.probabilities.ravel())) == 6
    _round_trip(tmp_path, given)


def test_text_of_any_kind_comes_back(tmp_path):
    names = (
        'a, b/"quoted".png',
        "Röntgen/胸部 рентген.png",
        "  spaces and ' and ; and \t.png ",
        "two\nlines\r\nor three.png",
        "a carriage\rreturn.png",
        "",
    )
    classes = ("normal, none", 'the "other"', "肺炎 p_")
    given = _random(6, classes=classes)
    given = given._replace(
        names=names, groups=("é,è", '"', "", "0012", "1e3", "\r"), views=("",) * 6
    )
    _round_trip(tmp_path, given)


def test_the_file_by_hand(tmp_path):
    given = predictions.Predictions(
        names=("a.png", "b,c.png"),
        groups=("p1", "p2"),
        views=("PA", ""),
        classes=("ill", "well"),
        labels=np.array([1, 0], np.int32),
        probabilities=np.array([[0.75, 0.25], [0.1, 0.9]], np.float32),
        key_areas=np.array([[0, 0.125, 1, 0.5], [0, 0, 1, 1]], np.float32),
    )
    file = tmp_path / "predictions.csv"
    predictions.write(file, given)
    assert file.read_bytes().decode() == (
        "path,group,view,label,answer,p_ill,p_well,y0,x0,y1,x1\n"
        "a.png,p1,PA,well,ill,0.75,0.25,0,0.125,1,0.5\n"
        '"b,c.png",p2,,ill,well,0.100000001,0.899999976,0,0,1,1\n'
    )


def test_answers_are_the_most_probable_classes(tmp_path):
    given = _random(4, with_areas=False)
    rows = [[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.3, 0.3, 0.4], [0.4, 0.2, 0.4]]
    given = given._replace(probabilities=np.array(rows, np.float32))
    assert given.answers.dtype == np.int32
    np.testing.assert_array_equal(given.answers, [1, 0, 2, 0])
    predictions.write(tmp_path / "p.csv", given)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    answers = [line["answer"] for line in lines]
    assert answers == ["bacterial", "normal", "viral", "normal"]
    labels = [line["label"] for line in lines]
    assert labels == [CLASSES[label] for label in given.labels]


def test_a_new_table_takes_the_place_of_the_old_one(tmp_path):
    _round_trip(tmp_path, _random(9))
    _round_trip(tmp_path, _random(4, with_areas=False))


def test_a_failure_leaves_the_old_table_whole(tmp_path):
    old = _random(3)
    file = _round_trip(tmp_path, old)
    broken = _random(8)._replace(labels=np.array([0] * 7 + [3], np.int32))
    with pytest.raises(IndexError):
        predictions.write(file, broken)
    _assert_same(predictions.read(file), old)


LINES = (
    "path,group,view,label,answer,p_ill,p_well\n",
    "a.png,p1,PA,well,ill,0.75,0.25\n",
    "b.png,p2,PA,ill,well,0.25,0.75\n",
)


def test_a_table_of_another_hand_is_read(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("\ufeff" + "".join(LINES).replace("\n", "\r\n"))
    found = predictions.read(file)
    assert found.names == ("a.png", "b.png") and found.classes == ("ill", "well")
    np.testing.assert_array_equal(found.labels, [1, 0])
    np.testing.assert_array_equal(found.probabilities, [[0.75, 0.25], [0.25, 0.75]])
    assert found.key_areas is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "no film"),
        (LINES[0].encode(), "no film"),
        (b"path,class\na.png,ill\n", "no column 'group'"),
        (b"\n".join([b"path,label,p_ill", b"a.png,ill,1"]), "no column 'group'"),
        ("".join(LINES).replace("p_", "q_").encode(), "no class 'well'"),
        ("".join(LINES).replace(",well,ill", ",dead,ill").encode(), "no class 'dead'"),
        ("".join(LINES).replace("0.75", "often").encode(), "often"),
        (b"\x89PNG\r\n\x1a\n\xff\xd8", "no column 'path'"),
    ],
    ids=[
        "missing",
        "empty",
        "no image",
        "another header",
        "half a header",
        "no class",
        "unknown label",
        "no number",
        "no text",
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path, content, reason):
    file = tmp_path / "answers of ours.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        predictions.read(file)
    message = str(error.value)
    assert message.startswith(f"{file} cannot be read as a table of predictions (")
    assert reason in message


def test_a_table_that_was_cut_is_noticed(tmp_path):
    file = tmp_path / "predictions.csv"
    file.write_text("".join(LINES))
    assert len(predictions.read(file, count=2).names) == 2
    with pytest.raises(UserError) as error:
        predictions.read(file, count=3)
    assert str(error.value) == (
        f"{file} cannot be read as a table of predictions (it has 2 films, but 3 were "
        "tested): restore it, or delete the JSON file of results beside it and give "
        "its command again"
    )


def test_a_folder_is_refused_by_name(tmp_path):
    with pytest.raises(UserError) as error:
        predictions.read(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("line", ["b.png,p,,ill,ill,0.5", "b.png,p,,ill,ill,0.5,0.5,9"])
def test_a_line_of_another_length_is_refused(tmp_path, line):
    file = tmp_path / "predictions.csv"
    header = "path,group,view,label,answer,p_ill,p_well"
    file.write_text(f"{header}\na.png,p,,ill,ill,0.5,0.5\n{line}\n")
    with pytest.raises(UserError, match=r"predictions\.csv.*number of fields"):
        predictions.read(file)


def test_names_of_files_need_not_be_utf_8(tmp_path):
    file = tmp_path / "predictions.csv"
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    table = predictions.Predictions(
        (name,), ("p",), ("",), ("ill",), np.zeros(1, np.int32), np.ones((1, 1))
    )
    predictions.write(file, table)
    assert predictions.read(file).names == (name,)
