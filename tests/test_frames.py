import numpy as np
import pytest
from PIL import Image

from hapre_jax import config
from hapre_jax.data import dataset, degrade, frames


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
