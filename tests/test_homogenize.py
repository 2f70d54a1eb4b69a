"""A data set in homogeneous form, read back as a data set."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

from hapre_jax import homogenize, predict
from hapre_jax.data import folder
from hapre_jax.errors import UserError
from hapre_jax.reporting import figures
from hapre_jax.serving import inference


@pytest.fixture
def hospital(tmp_path):
    """Six films in a folder a class, two of them of one name, and a broken one.

    The name of the last is not UTF-8.
    """
    random = np.random.default_rng(0)
    rows = [("path", "group")]
    for number, name in enumerate(["a/1", "a/2", "a/ward/1", "b/1", "b/2", "b/\udce9"]):
        path = tmp_path / "hospital" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (70, 90), np.uint8)).save(path)
        rows.append((f"{name}.png", f"patient-{number // 2}"))
    (tmp_path / "hospital" / "b" / "4.png").write_text("broken")
    rows.append(("b/4.png", "patient-9"))
    groups = tmp_path / "hospital" / "groups.csv"
    with open(groups, "w", newline="", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "hospital"


def test_a_hospital_becomes_a_data_set_of_key_areas(
    finished_run, hospital, tmp_path, capsys
):
    out = tmp_path / "out"
    flags = ["--data.name", "folder", "--data.root", str(hospital), "--out", str(out)]
    assert homogenize.main([str(finished_run), *flags, "--size", "48"]) == 1
    said = capsys.readouterr().out
    assert "6 films written" in said and "1 could not be read" in said
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert names == ["a/1-2.png", "a/1.png", "a/2.png"] + [
        f"b/{name}.png" for name in (1, 2, "\udce9")
    ]
    tree, records, classes = folder.scan_table(str(out / "films.csv"))
    assert classes == ("a", "b")
    groups = {record.name: record.group for record in records}
    assert groups["a/1.png"] == groups["a/2.png"] == "patient-0"
    assert groups["a/1-2.png"] == groups["b/1.png"] == "patient-1"
    assert groups["b/\udce9.png"] == "patient-2"
    assert (out / "errors.csv").read_text().splitlines()[1].startswith("b/4.png,")

    # The pictures are those that predict makes of the same films.
    crops = ["--crops", "--crop-size", "48", "--out", str(tmp_path / "predicted")]
    assert predict.main([str(finished_run), str(hospital / "b" / "2.png"), *crops]) == 0
    with (
        Image.open(tmp_path / "predicted" / "crops" / "2.png") as expected,
        Image.open(out / "b" / "2.png") as found,
    ):
        assert found.size == (48, 48)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_what_was_interrupted_goes_on_to_the_same_files(
    finished_run, hospital, tmp_path, monkeypatch
):
    films = ["--data.name", "folder", "--data.root", str(hospital), "--size", "24"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert homogenize.main([str(finished_run), *films, "--out", str(whole)]) == 1
    save, saved = figures.save, []

    def save_two(picture, path):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        save(picture, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(figures, "save", save_two)
        homogenize.main([str(finished_run), *films, "--out", str(out)])
    assert not (out / "films.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in saved}
    broken = hospital / "b" / "4.png"
    broken.rename(hospital / "a" / "4.png")
    (hospital / "groups.csv").rename(tmp_path / "groups.csv")
    with pytest.raises(UserError, match="was begun with another model, other films"):
        homogenize.main([str(finished_run), *films, "--out", str(out)])
    (hospital / "a" / "4.png").rename(broken)
    (tmp_path / "groups.csv").rename(hospital / "groups.csv")
    assert homogenize.main([str(finished_run), *films, "--out", str(out)]) == 1
    assert before == {path: path.stat().st_mtime_ns for path in saved}

    def contents(folder):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder): path.read_bytes() for path in files}

    assert contents(out) == contents(whole)


def test_what_cannot_work_is_refused_in_one_sentence(
    finished_run, hospital, tmp_path, monkeypatch
):
    films = ["--data.name", "folder", "--data.root", str(hospital)]
    with pytest.raises(UserError, match="lies among the films of"):
        homogenize.main([str(finished_run), *films, "--out", str(hospital)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="is not empty"):
        homogenize.main([str(finished_run), *films, "--out", str(tmp_path / "full")])
    with pytest.raises(UserError, match="--size is 0"):
        homogenize.main([str(finished_run), *films, "--size", "0"])
    model = inference.load(finished_run)
    policy = dataclasses.replace(model.config.policy, operation="mask")
    turned = model._replace(config=dataclasses.replace(model.config, policy=policy))
    source = folder.source(str(hospital))
    with pytest.raises(UserError, match=r"operation mask does more to a film"):
        homogenize.homogenize(turned, source, tmp_path / "new", size=32)
    with monkeypatch.context() as patch:
        patch.setattr(inference, "load", lambda _: turned)
        new = ["--out", str(tmp_path / "new")]
        with pytest.raises(UserError, match=r"operation mask does more to a film"):
            homogenize.main([str(finished_run), *films, *new])
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="homogenize takes --data flags only"):
        homogenize.main([str(finished_run), *films, "--policy.alpha", "2"])


def test_the_help_says_which_flags_do_not_count(capsys):
    with pytest.raises(SystemExit):
        homogenize.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "data.degrade, data.geometry and, except for phantoms, data.image_size do not "
        "count" in said
    )
