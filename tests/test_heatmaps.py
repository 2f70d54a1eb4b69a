"""The program that shows where networks look, on a finished run."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from hapre_jax import config, config_file, explain, json_file
from hapre_jax.errors import UserError

_FILE = pathlib.Path(__file__).parents[1] / "launch" / "heatmaps.py"
_SPEC = importlib.util.spec_from_file_location("heatmaps", _FILE)
heatmaps = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(heatmaps)


def test_a_picture_and_scores_of_runs_side_by_side(finished_run, tmp_path, capsys):
    out = tmp_path / "maps.png"
    runs = [f"plain [/x]={finished_run}/plain", f"HAPre-KRS={finished_run}"]
    assert heatmaps.main([*runs, "--out", str(out), "--films", "4"]) == 0
    with Image.open(out) as picture:
        # Three columns of 200 pixels and their gaps; four rows with their names.
        assert picture.size == (10 + 3 * 210, 70 + 4 * 232)
        pixels = np.asarray(picture).astype(int)
    # Films are gray, maps are not: red is never less than blue, and somewhere more.
    film, heat = pixels[75:265, 15:205], pixels[75:265, 225:415]
    assert np.ptp(film, axis=2).mean() < np.ptp(heat, axis=2).mean()
    said = capsys.readouterr().out
    assert "12 test films" in said and "HAPre-KRS" in said
    assert "plain [/x]" in said  # brackets are no markup
    assert f"Written: {out}" in said


def test_scores_by_hand():
    heat = np.zeros((2, 64, 64), np.float32)
    heat[0, 8, 8] = 1.0  # inside, all of it
    heat[1, 8, 8], heat[1, 60, 60] = 1.0, 3.0  # a quarter, and it points elsewhere
    lungs = np.array([[0, 0, 0.5, 0.5]] * 2, np.float32)
    looks = explain.Looks(heat, np.zeros(2, int), None)
    found = explain.score(looks, lungs)
    assert found == {"pointing": 0.5, "energy": 0.625, "lungs": 0.25, "films": 2}
    lungs[1] = np.nan
    assert explain.score(looks, lungs)["films"] == 1
    lungs[:] = np.nan
    assert explain.score(looks, lungs) is None


def test_what_cannot_be_compared_is_refused(finished_run, tmp_path):
    with pytest.raises(UserError, match="--films is 0, but must be at least 1"):
        heatmaps.main(["a=b", "--films", "0"])
    for out in ("maps.jpg", str(tmp_path / "nowhere" / "maps.png")):
        with pytest.raises(UserError, match=r"is no \.png in a folder that exists"):
            heatmaps.main(["a=b", "--out", out])
    with pytest.raises(UserError, match="^two runs are named alike: a, a$"):
        heatmaps.main([f"a={finished_run}", f"a={finished_run}/plain"])
    with pytest.raises(UserError, match="is not NAME=RUN"):
        heatmaps.main([str(finished_run)])
    with pytest.raises(UserError, match="is no finished run"):
        heatmaps.main([f"a={tmp_path}"])
    with pytest.raises(UserError) as error:
        heatmaps.main([f"a={finished_run}", "--data-root", str(tmp_path)])
    assert str(error.value) == (
        f"--data-root is {tmp_path}, but {finished_run} is of phantoms, which are read "
        "from no files"
    )
    other = tmp_path / "other"
    shutil.copytree(finished_run, other, ignore=shutil.ignore_patterns("*.png"))
    settings = config_file.load(str(finished_run / "config.json"))

    def pretend(**changes):
        changed = dataclasses.replace(settings, **changes)
        json_file.write(other / "config.json", config.to_dict(changed))

    pretend(seed=7)
    with pytest.raises(UserError, match="run b is of other films or another seed"):
        heatmaps.main([f"a={finished_run}", f"b={other}"])
    pretend(data=dataclasses.replace(settings.data, geometry="squash"))
    with pytest.raises(UserError, match="run b is of other films or another seed"):
        heatmaps.main([f"a={finished_run}", f"b={other}"])
    # How they were read, and what was done to those of the training, is not asked.
    pretend(data=dataclasses.replace(settings.data, threads=1, flip="horizontal"))
    out = tmp_path / "maps.png"
    runs = [f"a={finished_run}", f"b={other}", "--films", "1"]
    assert heatmaps.main([*runs, "--out", str(out)]) == 0
    pretend(method="mag_sd")
    with pytest.raises(
        UserError, match="is of method mag_sd: heatmaps are drawn where one"
    ):
        heatmaps.main([f"a={other}"])
    assert json.loads((other / "config.json").read_text())["method"] == "mag_sd"
    pretend(policy=dataclasses.replace(settings.policy, operation="rotation"))
    with pytest.raises(UserError, match=r"policy\.operation rotation, which changes"):
        heatmaps.main([f"a={other}"])
