import dataclasses

import numpy as np
import pytest
from PIL import ImageDraw

from hapre_jax.data.dataset import NO_BOXES, Dataset
from hapre_jax.reporting import area_history, figures

LABELS = [0, 0, 0, 1, 2, 2, 0, 1]
SHOWN = [0, 3, 4, 1, 7, 5]  # the first of each class, then the second ones
GRAYS = np.array([40, 60, 80, 100, 120, 140, 160, 180], np.uint8)
FILM = 160


class _LazyImages:
    """Films that are read one by one, as `frames.LazyImages` does for an integer."""

    def __getitem__(self, index):
        assert type(index) is int
        return np.full((20, 20, 1), GRAYS[index])


def _source(lung_boxes=NO_BOXES):
    names = tuple(f"film-{n}" for n in range(len(LABELS)))
    return Dataset(
        images=_LazyImages(),
        labels=np.array(LABELS, np.int32),
        names=names,
        groups=names,
        classes=("normal", "bacterial", "viral"),
        lung_boxes=lung_boxes,
    )


def _record(step, area):
    return {"kind": "key_areas", "step": step, "boxes": [area] * len(SHOWN)}


@pytest.fixture
def texts(monkeypatch):
    """All that is written into pictures."""
    written = []
    draw = ImageDraw.ImageDraw.text

    def record(self, place, text, *args, **kwargs):
        written.append(text)
        return draw(self, place, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return written


def _is(picture, color):
    return np.all(np.asarray(picture) == color, axis=-1)


def _corners(picture, gray):
    """Left upper corners of the films of a gray, in a row; one pixel of frame."""
    found = _is(picture, (gray,) * 3)
    rows = np.flatnonzero(found.any(axis=1))
    columns = np.flatnonzero(found.any(axis=0))
    starts = columns[np.diff(columns, prepend=-99) > 10]
    return rows[0] - 1, [int(start) - 1 for start in starts]


def test_a_record_has_the_first_images_of_each_class():
    areas = np.arange(32, dtype=np.float32).reshape(8, 4) / 30
    record = area_history.record(np.array(LABELS), areas)
    assert list(record) == ["boxes"] and len(record["boxes"]) == 6
    assert record["boxes"][1] == [0.4, 0.4333, 0.4667, 0.5]
    np.testing.assert_allclose(record["boxes"], areas[SHOWN], atol=5e-5)


def test_a_row_is_a_film_and_a_column_a_validation(texts):
    records = [
        {"kind": "train", "step": 5},
        _record(10, [0.0, 0.0, 1.0, 1.0]),
        {"kind": "validation", "step": 20, "macro_f1": 0.5},
        _record(2000, [0.25, 0.5, 0.75, 0.75]),
    ]
    picture = area_history.draw(_source(), records)
    # Margins of 26; six rows of a film and a gap, without a gap at the end.
    assert picture.size == (760, 152 + 6 * (FILM + 12) - 12 + 26)
    key = _is(picture, figures.KEY_AREA_COLOR)
    tops = []
    for row in SHOWN:
        inside = (int(GRAYS[row]),) * 3
        top, (first, *_) = _corners(picture, GRAYS[row])
        first -= 3  # hidden by the box of the first column, which is at the edge
        tops.append(top)
        assert key[top, first : first + FILM].all()
        second = first + FILM + 12
        film = key[top : top + FILM, second : second + FILM]
        rows, columns = np.nonzero(film)
        assert (rows.min(), rows.max()) == (40, 119)
        assert (columns.min(), columns.max()) == (80, 119)
        assert _is(picture, inside)[top + 20, second + 20]
    assert tops == [152 + line * (FILM + 12) for line in range(6)]
    assert texts.count("normal") == texts.count("viral") == 2
    assert "step 10" in texts and "step 2,000" in texts
    assert not any("IoU" in text or "lungs" in text for text in texts)
    assert not _is(picture, figures.LUNGS_COLOR).any()


def test_known_lungs_are_dashed_and_their_overlap_is_said(texts):
    lungs = np.tile(np.array([0.0, 0.0, 1.0, 0.5], np.float32), (8, 1))
    lungs[3] = np.nan  # the second row
    records = [_record(10, [0.0, 0.0, 1.0, 1.0]), _record(20, [0.0, 0.0, 0.5, 0.5])]
    picture = area_history.draw(_source(lungs), records)
    assert picture.height == 152 + 6 * (FILM + 12 + 22) - 12 + 26
    # Halves of the whole image, and of the lungs.
    assert texts.count("IoU 0.50") == 10
    dashes = _is(picture, figures.LUNGS_COLOR)
    pitch = FILM + 12 + 22
    for line in range(6):
        top = 152 + line * pitch
        assert dashes[top : top + FILM, 122:].any() == (line != 1)


def test_of_many_validations_eight_are_shown_and_the_last_always(texts):
    whole = [0.0, 0.0, 1.0, 1.0]
    records = [_record(step, whole) for step in range(10, 160, 10)]
    picture = area_history.draw(_source(), records)
    steps = [text for text in texts if text.startswith("step ")]
    assert steps == [f"step {n}" for n in (10, 30, 50, 70, 90, 110, 130, 150)]
    assert picture.width == 2 * 26 + 96 + 8 * (FILM + 12) - 12
    # The frame of the last film ends at the margin.
    assert _is(picture, figures.KEY_AREA_COLOR)[:, -27].any()
    assert (np.asarray(picture)[:, -26:] == figures.SHEET).all()


def test_fewer_images_than_rows_and_long_names(texts):
    source = dataclasses.replace(
        _source(), labels=np.array([0, 1], np.int32), classes=("n" * 60, "b")
    )
    areas = np.tile(np.array([0.2, 0.2, 0.8, 0.8], np.float32), (2, 1))
    record = area_history.record(source.labels, areas)
    records = [{"kind": "key_areas", "step": 1, **record}]
    picture = area_history.draw(source, records)
    assert picture.height == 152 + 2 * (FILM + 12) - 12 + 26
    # The name ends before the film.
    assert (np.asarray(picture)[152:312, 114:122] == figures.SHEET).all()


def test_a_run_that_has_lost_its_records_is_not_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "validation", "step": 4}\n')
    area_history.draw_run(tmp_path, _source())
    assert not (tmp_path / "key_areas_over_time.png").exists()
