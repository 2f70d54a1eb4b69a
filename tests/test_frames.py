import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hapre_jax import config
from hapre_jax.data import dataset, degrade, frames

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("geometry", ["squash", "letterbox"])
def test_lungs_of_a_degraded_film_are_those_of_the_mask(monkeypatch, geometry):
    """In a frame as large as the film, nothing moves; what is unknown is no lung."""
    as_it_is = degrade.Level((1.0, 1.0), 0, 0, 0, 0, 0)
    monkeypatch.setitem(degrade.LEVELS, "low", as_it_is)
    lungs = np.zeros((64, 128), np.uint8)
    lungs[:8] = 127
    lungs[16:48, 32:96] = 255
    facts = dataset.Facts("0" * 64, 64, 128)
    film = dataset.Film(Image.new("L", (128, 64), 90), b"", facts, lungs)
    data = config.DataConfig(
        name="folder", image_size=128, geometry=geometry, degrade="low"
    )
    box = frames.present(film, data, seed=0).lung_box
    # Squashed, the quarters of the film are those of the frame; letterboxed, the film
    # is half as high as the frame.
    height = 0.5 if geometry == "squash" else 0.25
    assert box[2] - box[0] == pytest.approx(height, abs=1e-6)
    assert box[[1, 3]] == pytest.approx([0.25, 0.75], abs=1e-6)


def test_the_sheet_of_degraded_films(tmp_path):
    """The program of the README's picture, on a film of unknown and of sure lungs."""
    mask = np.zeros((64, 128), np.uint8)
    mask[:8], mask[16:48, 32:96] = 127, 255
    for folder, pixels, end in (
        ("chest_xray", np.full((64, 128), 90, np.uint8), "jpeg"),
        ("chest_xray_lungmasks", mask, "png"),
    ):
        path = tmp_path / folder / f"train/NORMAL/IM-0001-0001.{end}"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    sheet = ROOT / "launch" / "degrade_sheet.py"
    out = tmp_path / "sheet.png"
    words = [sys.executable, sheet, tmp_path, "--films", "1", "--out", out]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    picture = np.asarray(Image.open(out).convert("RGB")).astype(int)
    # The film as it is, letterboxed in 180 pixels: the lungs' edges are colored.
    colored = np.ptp(picture[:180], axis=-1) > 40
    rows, columns = np.flatnonzero(colored.any(1)), np.flatnonzero(colored.any(0))
    found = np.array([rows[0], columns[0], rows[-1], columns[-1]]) / 180
    np.testing.assert_allclose(found, [0.375, 0.25, 0.625, 0.75], atol=0.01)
