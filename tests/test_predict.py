import csv
import dataclasses
import errno
import io
import json
import os
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from hapre_jax import (
    appearance,
    checkpoint,
    config_file,
    csv_file,
    evaluation,
    predict,
)
from hapre_jax.data import images, inputs
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS
from hapre_jax.reporting import figures
from hapre_jax.serving import answer_folder, answering, inference


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _film(seed, shape=(40, 60)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def films(tmp_path):
    """A folder, a zip and a file: five films, and one that is none."""
    root = tmp_path / "films"
    (root / "ward").mkdir(parents=True)
    (root / "ward" / "a.png").write_bytes(_png(_film(0)))
    (root / "ward" / "b, 'c'.png").write_bytes(_png(_film(1, (60, 40))))
    (root / "bad.jpg").write_text("no image")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("x/a.png", _png(_film(2)))
        archive.writestr("x/a.jpg", _png(_film(3)))
        archive.writestr("../../x/a.png", _png(_film(3)))  # left out
    (tmp_path / "single.png").write_bytes(_png(_film(4)))
    return [str(root), str(tmp_path / "more.zip"), str(tmp_path / "single.p*")]


def _table(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_films_of_everywhere_are_answered_and_bad_ones_listed(
    finished_run, films, tmp_path, capsys
):
    out = tmp_path / "out"
    flags = ["--out", str(out), "--crops", "--crop-size", "24", "--overlays"]
    assert predict.main([str(finished_run), *films, "gone.png", *flags]) == 1
    said = capsys.readouterr().out
    assert f"5 films answered: {out}/predictions.csv" in said
    assert f"2 could not be read: {out}/errors.csv" in said
    root, archive, _ = films
    refused = {row["path"]: row["reason"] for row in _table(out / "errors.csv")}
    assert refused == {
        f"{root}/bad.jpg": "bad.jpg cannot be read: not an image",
        "gone.png": "gone.png is not there",
    }
    rows = _table(out / "predictions.csv")
    assert [row["path"] for row in rows] == [
        f"{root}/ward/a.png",
        f"{root}/ward/b, 'c'.png",
        f"{archive}/x/a.jpg",
        f"{archive}/x/a.png",
        str(tmp_path / "single.png"),
    ]
    lines = (out / "predictions.jsonl").read_text().splitlines()
    for row, line in zip(rows, map(json.loads, lines), strict=True):
        assert line["path"] == row["path"] and line["answer"] == row["answer"]
        shares = line["probabilities"]
        assert list(shares) == ["normal", "bacterial", "viral"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=shares.get) == row["answer"]
        assert float(row["p_viral"]) == pytest.approx(shares["viral"], abs=1e-6)
        assert 0 < line["kept"] <= 1
    crops = sorted(p.relative_to(out / "crops") for p in out.glob("crops/**/*.png"))
    # Two films whose names differ by their ending alone.
    assert list(map(str, crops)) == [
        "single.png",
        "ward/a.png",
        "ward/b, 'c'.png",
        "x/a-2.png",
        "x/a.png",
    ]
    with Image.open(out / "crops" / crops[0]) as crop:
        assert crop.size == (24, 24)
    assert len(list(out.glob("overlays/**/*.png"))) == 5


def test_answers_are_those_of_the_run_itself(finished_run, films):
    """One by one through the method, against padded batches of the program."""
    model = inference.load(finished_run)
    settings = config_file.load(str(finished_run / "config.json"))
    method = METHODS["hapre"](settings, 3)
    best = checkpoint.restore_best(finished_run, settings, method)
    direct = evaluation.make_predict(method)
    read = [answering.read(one, settings, keep=False) for one in inputs.find(films)]
    known = [film for film in read if isinstance(film, answering.Film)]
    for film, answered in zip(known, answering.answer(model, known), strict=True):
        one, area = answered.answer, answered.area
        found = direct(*best.average, {"image": film.pixels[None]})
        np.testing.assert_allclose(
            list(one.probabilities.values()), found.probabilities[0], atol=1e-5
        )
        np.testing.assert_allclose(area, found.area[0], atol=1e-5)
        shape = film.height, film.width
        box = images.film_box(area, *shape, settings.data.geometry)
        np.testing.assert_allclose(one.key_area, box, atol=0.051)


def test_films_in_memory_are_answered_as_in_files(finished_run, tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, shape, np.uint8) for shape in ((40, 30), (24, 24))]
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    model = inference.load(str(finished_run))
    in_files = list(answering.answer_all(model, inputs.find([str(tmp_path)])))
    given = [arrays[0], arrays[0] / 255, arrays[1][:, :, None], np.zeros((0, 4))]
    given.append(arrays[0][:8])
    # What cannot be read is said before the batch is answered.
    *refused, first, second = answering.answer_all(model, inputs.from_arrays(given))
    for found, expected in zip((first, second), in_files, strict=True):
        assert found.answer._replace(path="") == expected.answer._replace(path="")
    assert (first.answer.path, second.answer.path) == ("0", "2")
    assert [of.reason.partition(":")[0] for of in refused] == [
        "the array is float64[40, 30], but must be uint8[H, W]",
        "the array is float64[0, 4], but must be uint8[H, W]",
        "4 has 30 x 8 pixels",
    ]


def test_a_list_of_paths_is_read_from_stdin(finished_run, films, tmp_path, monkeypatch):
    # With a mark and a line's end of Windows, and a name that is not UTF-8.
    listed = f"\ufeff{tmp_path}/single.png\r\n\n".encode() + b"caf\xe9.png\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))
    out = tmp_path / "out"
    assert predict.main([str(finished_run), "-", "--out", str(out)]) == 1
    assert [row["path"] for row in _table(out / "errors.csv")] == [r"caf\udce9.png"]
    assert [row["path"] for row in _table(out / "predictions.csv")] == [
        f"{tmp_path}/single.png"
    ]
    assert not (out / "crops").exists()


def test_pictures_of_films_of_one_name_are_told_apart(finished_run, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        Image.fromarray(_film(seed)).save(folder / "IM-1.png")
    out = tmp_path / "out"
    flags = [*map(str, folders), "--crops", "--overlays", "--out", str(out)]
    assert predict.main([str(finished_run), *flags]) == 0
    rows = _table(out / "predictions.csv")
    assert [row["picture"] for row in rows] == ["IM-1.png", "IM-1-2.png"]
    lines = (out / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["picture"] for line in lines] == ["IM-1.png", "IM-1-2.png"]
    for row in rows:
        assert (out / "crops" / row["picture"]).exists()
        assert (out / "overlays" / row["picture"]).exists()


def test_what_films_look_like_must_be_said_whole(finished_run, films, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run / "plain", run)
    for text in ("{}", "[]", '{"mean": [0], "correlation": 0, "contrast": 0}'):
        (run / "appearance.json").write_text(text)
        with pytest.raises(
            UserError, match=r"appearance\.json does not say what films"
        ):
            predict.main([str(run), films[0], "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_run_that_lost_its_checkpoint_says_so(finished_run, films, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run / "plain", run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has lost its checkpoint: delete results.json"):
        predict.main([str(run), films[0], "--out", str(tmp_path / "out")])


def test_a_list_with_nul_is_refused():
    with pytest.raises(UserError, match="holds NUL characters: give a path a line"):
        list(inputs.lines(["a.png\0b.png\0"]))


def test_the_plain_classifier_has_no_key_area(finished_run, films, tmp_path):
    out = tmp_path / "out"
    flags = [str(finished_run / "plain"), films[2], "--out", str(out), "--crops"]
    assert predict.main(flags) == 0
    (row,) = _table(out / "predictions.csv")
    assert row["top"] == row["kept"] == ""
    # Noise is not like a phantom, which the run beside it knows.
    assert row["flags"] == appearance.UNLIKE


def test_a_crop_is_not_what_a_classifier_of_turned_films_sees(
    finished_run, tmp_path, monkeypatch
):
    model = inference.load(finished_run)
    policy = dataclasses.replace(model.config.policy, operation="rotation+key_area")
    config = dataclasses.replace(model.config, policy=policy)
    film = inputs.Input("a", "a", lambda: Image.fromarray(_film(0)))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"operation rotation\+key_area does more to a"):
        answer_folder.predict_films(
            model._replace(config=config), iter([film]), out, crop_size=32
        )
    assert not out.exists()
    # Nor does the program begin a folder that would refuse the corrected command.
    monkeypatch.setattr(inference, "load", lambda _: model._replace(config=config))
    flags = ["--out", str(out), "--crops"]
    with pytest.raises(UserError, match=r"operation rotation\+key_area does more to a"):
        predict.main([str(finished_run), str(tmp_path), *flags])
    assert not out.exists()


def test_more_films_than_a_batch_come_in_order(finished_run, tmp_path):
    model = inference.load(finished_run)
    film = Image.fromarray(_film(0))
    many = [inputs.Input(f"{n}", f"{n}", lambda: film) for n in range(70)]
    seen = []
    done = answer_folder.predict_films(
        model,
        iter(many),
        tmp_path / "out",
        progress=lambda *counts: seen.append(counts),
    )
    assert done == (70, 0) and seen[-1] == (70, 0)
    rows = _table(tmp_path / "out" / "predictions.csv")
    assert [row["path"] for row in rows] == [str(n) for n in range(70)]
    assert len({row["p_viral"] for row in rows}) == 1


def _contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_what_was_interrupted_goes_on_to_the_same_files(
    finished_run, films, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(inference, "BATCH", 2)
    named = [str(finished_run), *films, films[2], "--crops", "--crop-size", "24"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert predict.main([*named, "--out", str(whole)]) == 1
    read_film, count = answering.read, iter(range(100))

    def read(one, *arguments, **options):
        if next(count) == 4:
            raise KeyboardInterrupt
        return read_film(one, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(answering, "read", read)
        patch.setattr(answering, "_AHEAD", 1)
        predict.main([*named, "--out", str(out)])
    capsys.readouterr()
    lines = out / "predictions.jsonl"
    assert 0 < len(lines.read_text().splitlines()) < 6
    # Killed, not stopped: lines that were begun, and a picture that no line has.
    with lines.open("a") as file:
        file.write('{"path": "x", "answ')
    (out / "predictions.csv").write_text("path,ans")
    (out / "crops" / "x").mkdir(exist_ok=True)
    (out / "crops" / "x" / "a-2.png").write_text("old")
    for other in ([*named[:-1], "32"], [named[0], films[0], *named[-3:]]):
        with pytest.raises(UserError, match="begun with another model, other films"):
            predict.main([*other, "--out", str(out)])
    assert predict.main([*named, "--out", str(out)]) == 1
    assert "6 films answered" in capsys.readouterr().out
    assert _contents(out) == _contents(whole)
    # What could not be read is tried again; others are not answered twice.
    (bad,) = (row["path"] for row in _table(out / "errors.csv"))
    pathlib.Path(bad).write_bytes(_png(_film(9)))
    assert predict.main([*named, "--out", str(out)]) == 0
    assert "7 films answered" in capsys.readouterr().out
    assert _table(out / "errors.csv") == []
    assert [row["path"] for row in _table(out / "predictions.csv")][-1] == bad
    with pytest.raises(UserError, match="holds predictions already"):
        predict.main([*named, "--out", str(out)])


def test_its_own_pictures_are_no_films(finished_run, films, tmp_path):
    root = pathlib.Path(films[0])
    (root / "bad.jpg").unlink()
    flags = [str(finished_run), str(root), "--out", str(root / "out"), "--crops"]
    (root / "out" / "crops").mkdir(parents=True)
    (root / "out" / "crops" / "c.png").write_bytes(_png(_film(5)))
    assert predict.main(flags) == 0
    assert len(_table(root / "out" / "predictions.csv")) == 2


def test_films_are_answered_wherever_the_answers_go(
    finished_run, films, tmp_path, monkeypatch
):
    root = pathlib.Path(films[0])
    (root / "bad.jpg").unlink()
    (root / "here").mkdir()
    monkeypatch.chdir(root / "here")
    (root / "here" / "c.png").write_bytes(_png(_film(5)))
    (root / "here" / "overlays").mkdir()
    (root / "here" / "overlays" / "d.png").write_bytes(_png(_film(6)))
    flags = [str(finished_run), "../ward", "c.png", "overlays", "--out", "."]
    assert predict.main(flags) == 0
    names = [row["path"] for row in _table(root / "here" / "predictions.csv")]
    assert [pathlib.Path(n).name for n in names] == ["a.png", "b, 'c'.png", "c.png"]


def test_what_cannot_work_is_refused_in_one_sentence(
    finished_run, films, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match=r"has no results\.json"):
        predict.main([str(tmp_path), films[0]])
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(UserError, match="no film was named"):
        predict.main([str(finished_run), "-", "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="--crop-size is 0"):
        predict.main([str(finished_run), films[0], "--crops", "--crop-size", "0"])
    with pytest.raises(UserError, match="but there are no crops: add --crops"):
        predict.main([str(finished_run), films[0], "--crop-size", "64"])
    out = tmp_path / "out"
    assert predict.main([str(finished_run), films[2], "--out", str(out)]) == 0
    # A folder without a single answer is not worth a word.
    nothing = [str(finished_run), f"{tmp_path}/none.png", "--out", f"{out}-2"]
    assert predict.main(nothing) == 1
    assert predict.main([str(finished_run), films[2], "--out", f"{out}-2"]) == 0
    for name in ("predictions.csv", "errors.csv"):
        assert (out / name).read_text() == (tmp_path / "out-2" / name).read_text()
    with pytest.raises(UserError, match="holds predictions already"):
        predict.main([str(finished_run), films[2], "--out", str(out)])
    for model in (finished_run, finished_run / "plain"):
        with pytest.raises(
            UserError, match=r"is a run or a bundle itself; choose anot"
        ):
            predict.main([str(finished_run), films[2], "--out", str(model)])
    with pytest.raises(UserError, match=r"single\.png is a file; choose another --out"):
        predict.main([str(finished_run), films[2], "--out", f"{tmp_path}/single.png"])


# Inputs.


def test_inputs_are_lazy_and_a_missing_one_says_so(tmp_path):
    (tmp_path / "a.png").write_bytes(_png(_film(0)))

    def paths():
        yield str(tmp_path / "a.png")
        raise AssertionError("asked for before it was needed")

    first = next(inputs.find(paths()))
    assert first.name == "a.png" and first.open().size == (60, 40)
    (gone,) = inputs.find(["nowhere/b.png"])
    with pytest.raises(UserError, match=r"nowhere/b\.png is not there"):
        gone.open()
    (tmp_path / "broken.zip").write_bytes(b"PK")
    (broken,) = inputs.find([str(tmp_path / "broken.zip")])
    with pytest.raises(UserError, match="not a readable zip"):
        broken.open()


def test_paths_are_those_of_the_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films" / "ward").mkdir(parents=True)
    (tmp_path / "films" / "a.png").write_bytes(b"")
    (tmp_path / "films" / "ward" / "b.png").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("x/c.png", b"")
    expected = ["films/a.png", "films/ward/b.png"]
    for named in ("films", "films/", "./films//", "films/**/*.png"):
        assert [one.path for one in inputs.find([named])] == expected
    assert [one.path for one in inputs.find(["more.zip"])] == ["more.zip/x/c.png"]


def test_zips_beside_films_are_read_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films" / "ward").mkdir(parents=True)
    (tmp_path / "films" / "a.png").write_bytes(b"")
    for name in ("b.zip", "ward/c.ZIP"):
        with zipfile.ZipFile(tmp_path / "films" / name, "w") as archive:
            archive.writestr("x.png", b"")
    (tmp_path / "films" / "broken.zip").write_bytes(b"PK")
    found = {one.path: one.name for one in inputs.find(["films"])}
    assert found == {
        "films/a.png": "a.png",
        "films/b.zip/x.png": "b/x.png",
        "films/broken.zip": "broken/broken.zip",
        "films/ward/c.ZIP/x.png": "ward/c/x.png",
    }


def test_a_pattern_names_a_film_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films" / "ward").mkdir(parents=True)
    (tmp_path / "films" / "a.png").write_bytes(b"")
    (tmp_path / "films" / "ward" / "b.png").write_bytes(b"")
    (tmp_path / "films" / "loop").symlink_to(".")
    for pattern in ("film*/**", "films/**/*.png"):
        found = [one.path for one in inputs.find([pattern])]
        assert found == ["films/a.png", "films/ward/b.png"]


def test_a_folder_that_nobody_may_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(_png(_film(0)))
    closed = tmp_path / "closed"
    closed.mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused, film = inputs.find([str(closed), str(tmp_path / "a.png")])
    with pytest.raises(UserError, match=r"closed cannot be read: Permission denied"):
        refused.open()
    assert film.open().size == (60, 40)


def test_a_large_film_is_not_kept_but_read_again_for_its_crop(
    finished_run, tmp_path, monkeypatch
):
    Image.fromarray(_film(0)).save(tmp_path / "a.png")
    crops = []
    for limit in (answering._KEPT_PIXELS, 1):
        monkeypatch.setattr(answering, "_KEPT_PIXELS", limit)
        out = tmp_path / str(limit)
        flags = [str(tmp_path / "a.png"), "--crops", "--out", str(out)]
        assert predict.main([str(finished_run), *flags]) == 0
        crops.append((out / "crops" / "a.png").read_bytes())
    assert crops[0] == crops[1]


def test_a_full_disk_is_named_and_what_was_done_is_said(
    finished_run, films, tmp_path, monkeypatch, capsys
):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(csv_file, "write_row", full)
    with pytest.raises(UserError, match=r"out cannot be written: No space left on"):
        predict.main([str(finished_run), *films, "--out", str(out)])
    said = capsys.readouterr().out
    assert f"Stopped: {out}/predictions.csv has 0 films, not all of them" in said


def test_names_of_films_that_are_no_extensions_are_kept():
    films = ("1.2.840.1", "1.2.840.2", "a.dcm", "a-2.png", "a.JPG", "A.png", "a.gif")
    taken = {}
    assert [figures.picture_name(name, taken) for name in films] == [
        "1.2.840.1.png",
        "1.2.840.2.png",
        "a.png",
        "a-2.png",
        "a-3.png",
        "A-4.png",
        "a-5.png",
    ]


@pytest.mark.parametrize("name", ["../../a.png", "/a.png", "..", "", "x//./a.dcm"])
def test_pictures_stay_in_their_folder(tmp_path, name):
    path = tmp_path / figures.picture_name(name, {})
    assert path.resolve().is_relative_to(tmp_path.resolve())
    assert path.suffix == ".png"


# Places in a film.


@pytest.mark.parametrize("geometry", images.GEOMETRIES)
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_film_box_undoes_frame_box(geometry, shape):
    height, width = shape
    middle = np.array([height, width, height, width]) / 2
    box = middle + np.array([-10, -8, 12, 9], np.float32)
    framed = images.frame_box(box, height, width, geometry)
    np.testing.assert_allclose(
        images.film_box(framed, height, width, geometry), box, atol=1e-4
    )


def test_film_box_by_hand():
    # 40 x 60 in a letterbox: 10 black rows above, 10 below.
    box = images.film_box(np.array([0, 0, 0.5, 1]), 40, 60, "letterbox")
    np.testing.assert_allclose(box, [0, 0, 20, 60])
    box = images.film_box(np.array([0, 0, 0.1, 1]), 40, 60, "letterbox")
    np.testing.assert_allclose(box, [0, 0, 0, 60])  # nothing of the film
    box = images.film_box(np.array([0, 0, 1, 0.5]), 40, 60, "cover")
    np.testing.assert_allclose(box, [0, 10, 40, 30])


@pytest.mark.parametrize("geometry", images.GEOMETRIES)
def test_a_cut_is_the_box_of_the_film(geometry):
    film = Image.fromarray(_film(0, (40, 60)))
    whole = images.cut(film, np.array([0, 0, 1, 1]), size=30, geometry=geometry)
    np.testing.assert_array_equal(
        np.asarray(whole)[:, :, None], images.fit(film, size=30, geometry=geometry)
    )
    if geometry == "letterbox":
        # The lower right quarter of the square: 20 film rows, then 10 black ones.
        part = images.cut(film, np.array([0.5, 0.5, 1, 1]), size=30, geometry=geometry)
        expected = np.zeros((30, 30), np.uint8)
        expected[:20] = np.asarray(film)[20:, 30:]
        np.testing.assert_array_equal(np.asarray(part), expected)


# Appearance.


def _blob(rng):
    """Bright in the middle, as no inverted one is."""
    y, x = np.mgrid[:32, :32] / 31 - 0.5
    gray = 200 * np.exp(-8 * (x**2 + y**2)) + rng.normal(20, 5, (32, 32))
    return np.clip(gray, 0, 255).astype(np.uint8)[:, :, None]


def test_odd_films_are_flagged_and_others_are_not():
    rng = np.random.default_rng(0)
    films = np.stack([_blob(rng) for _ in range(300)])
    typical = appearance.describe(films)
    assert typical == json.loads(json.dumps(typical))

    def flags(pixels, shape=(10, 10)):
        return appearance.flags(pixels, typical, shape=shape)

    assert sum(bool(flags(_blob(rng))) for _ in range(300)) <= 9  # a share of 0.005
    assert flags(255 - films[0]) == [appearance.INVERTED]
    assert flags(np.full((32, 32, 1), 90, np.uint8)) == [appearance.FLAT]
    stripes = np.tile(np.uint8([0, 0, 255, 255]), (32, 8))[:, :, None]
    assert flags(stripes) == [appearance.UNLIKE]
    assert flags(films[0], shape=(30, 10)) == [appearance.ASPECT]


def test_a_large_training_is_described_by_a_sample_of_it():
    class Films:
        read: set = set()

        def __len__(self):
            return 5000

        def __getitem__(self, row):
            self.read.add(int(row))
            return np.full((16, 16, 1), row % 256, np.uint8)

    films = Films()
    appearance.describe(films)
    assert len(films.read) == 1000
