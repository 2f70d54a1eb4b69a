import pathlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hapre_jax.data.dataset import NO_BOXES, Dataset
from hapre_jax.errors import UserError
from hapre_jax.method import Prediction
from hapre_jax.reporting import figures, landscape_sheet
from hapre_jax.reward_landscape import Landscape

GRAY = 77
CLASSES = ("normal", "bacterial", "viral")


@pytest.fixture
def texts(monkeypatch):
    """All that is written into pictures, as (text, color)."""
    written = []
    draw = ImageDraw.ImageDraw.text

    def record(self, place, text, color, *args, **kwargs):
        written.append((text, color))
        return draw(self, place, text, color, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return written


def _films(grays, labels, lung_boxes=NO_BOXES):
    images = np.empty((len(grays), 22, 22, 1), np.uint8)
    images[:] = np.reshape(grays, (-1, 1, 1, 1))
    return Dataset(
        images=images,
        labels=np.array(labels, np.int32),
        names=tuple(f"film-{n}" for n in range(len(grays))),
        groups=tuple(f"film-{n}" for n in range(len(grays))),
        classes=CLASSES,
        lung_boxes=lung_boxes,
    )


def _predictions(boxes, answers):
    """Each answer with probability 0.8."""
    probabilities = np.full((len(answers), 3), 0.1, np.float32)
    probabilities[np.arange(len(answers)), answers] = 0.8
    return Prediction(probabilities, np.array(boxes, np.float32))


def _is(picture, color):
    return np.all(np.asarray(picture) == color, axis=-1)


def test_box_lies_where_it_says():
    pixels = np.full((22, 22, 1), GRAY, np.uint8)
    film = figures.film_with_boxes(pixels, np.array([0.25, 0.5, 0.75, 0.9]))
    assert film.size == (220, 220)
    rows, columns = np.nonzero(_is(film, figures.KEY_AREA_COLOR))
    # Half-open, so pixels 55 to 164 and 110 to 197 of 220.
    assert (rows.min(), rows.max()) == (55, 164)
    assert (columns.min(), columns.max()) == (110, 197)
    # A row across the middle: frame, film, three pixels of color between dark ones.
    across = np.asarray(film)[110]
    dark, key, gray = (0, 0, 0), figures.KEY_AREA_COLOR, (GRAY,) * 3
    expected = [gray, dark, key, key, key, dark, gray]
    np.testing.assert_array_equal(across[108:115], expected)
    np.testing.assert_array_equal(across[193:200], expected)
    assert not _is(film, figures.LUNGS_COLOR).any()


def test_film_of_another_size():
    pixels = np.full((22, 22, 1), GRAY, np.uint8)
    film = figures.film_with_boxes(pixels, np.array([0.25, 0.5, 0.75, 0.9]), size=100)
    assert film.size == (100, 100)
    rows, columns = np.nonzero(_is(film, figures.KEY_AREA_COLOR))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (25, 74, 50, 89)


def test_a_picture_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    figures.save(Image.new("RGB", (2, 2), (1, 2, 3)), path)
    before = path.read_bytes()

    def fail(self, file, **kwargs):
        pathlib.Path(file).write_bytes(b"half of a picture")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match=f"^{path} cannot be written: no space left$"):
        figures.save(Image.new("RGB", (4, 4)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_box_of_the_whole_image_is_visible_on_all_sides():
    pixels = np.full((22, 22, 1), GRAY, np.uint8)
    film = figures.film_with_boxes(pixels, np.array([0.0, 0.0, 1.0, 1.0]))
    key = _is(film, figures.KEY_AREA_COLOR)
    assert key[0].all() and key[-1].all() and key[:, 0].all() and key[:, -1].all()


def test_lungs_are_dashed_and_do_not_hide_the_key_area():
    pixels = np.full((22, 22, 1), GRAY, np.uint8)
    box = np.array([0.1, 0.1, 0.9, 0.9])
    film = figures.film_with_boxes(pixels, box, box)
    lungs, key = _is(film, figures.LUNGS_COLOR), _is(film, figures.KEY_AREA_COLOR)
    top = slice(22, 198)  # columns of the box
    assert lungs[22, 22] and 0.5 < lungs[22, top].mean() < 0.7
    assert (lungs[22, top] | key[22, top]).all()
    rows, columns = np.nonzero(lungs)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (22, 197, 22, 197)


def test_sheet_shows_the_film_and_beside_it_what_the_key_area_keeps():
    source = _films([GRAY], [0])
    source.images[0, 3:13, 8:18] = 200
    # Two pixels inside: a bicubic kernel reaches that far.
    box = np.array([[5, 10, 11, 16]]) / 22
    sheet = figures.key_area_sheet(source, _predictions(box, [0]))
    rows, columns = np.nonzero(_is(sheet, (GRAY,) * 3))
    # One pixel of frame around the film.
    top, left = rows.min() - 1, columns.min() - 1
    assert columns.max() < left + 220 and rows.max() < top + 220
    key = _is(sheet, figures.KEY_AREA_COLOR)[top:, left : left + 220]
    rows, columns = np.nonzero(key)
    assert (rows.min(), rows.max() + 1) == (50, 110)
    assert (columns.min(), columns.max() + 1) == (100, 160)
    # The crop is bright up to its outline.
    crop = np.asarray(sheet)[top : top + 140, left + 228 : left + 368]
    np.testing.assert_array_equal(crop[0, 0], figures.KEY_AREA_COLOR)
    np.testing.assert_array_equal(crop[2:-2, 2:-2], 200)


def test_sheet_takes_the_first_images_of_each_class_in_turn():
    grays = [40, 60, 80, 100, 120, 140]
    source = _films(grays, [0, 0, 0, 1, 2, 2])
    boxes = np.tile([0.2, 0.2, 0.8, 0.8], (6, 1))
    sheet = figures.key_area_sheet(source, _predictions(boxes, source.labels), count=5)
    places = {}
    for gray in grays:
        found = np.argwhere(_is(sheet, (gray,) * 3))
        if len(found):
            places[gray] = tuple(found[0])  # the first in reading order
    assert sorted(places, key=places.get) == [40, 100, 120, 60, 140]
    assert places[40][0] == places[100][0] == places[120][0] < places[60][0]


def test_sheet_captions(texts):
    lungs = np.array([[0, 0, 1, 0.5], [np.nan] * 4], np.float32)
    source = _films([GRAY, GRAY], [0, 2], lungs)
    boxes = [(0, 0, 1, 1), (0.2, 0.2, 0.8, 0.8)]
    figures.key_area_sheet(source, _predictions(boxes, [0, 1]))
    written = [text for text, _ in texts]
    # The overlap of the whole with its left half is 1/2; the other lungs are unknown.
    assert "p 0.80    IoU 0.50" in written and "p 0.80" in written
    assert any("on average 0.50 over 1 image." in text for text in written)
    colors = {}
    for text, color in texts:
        colors.setdefault(text, []).append(color)
    assert set(colors["bacterial"]) == set(colors["wrong answer"])
    assert len(colors["normal"]) == 2 and len(set(colors["normal"])) == 1
    assert set(colors["normal"]) == set(colors["viral"]) != set(colors["bacterial"])


def test_lungs_are_drawn_beside_key_areas_alone(texts):
    lungs = np.array([[0.1, 0.1, 0.9, 0.9]], np.float32)
    source = _films([GRAY], [0], lungs)
    wrong = Prediction(np.eye(3, dtype=np.float32)[[1]])
    sheet = figures.mistakes_sheet(source, wrong)
    assert not _is(sheet, figures.LUNGS_COLOR).any()
    assert not any("lungs" in text for text, _ in texts)


def test_sheet_without_known_lungs_does_not_speak_of_them(texts):
    boxes = [(0.1, 0.1, 0.7, 0.7)]
    unknown = np.full((1, 4), np.nan, np.float32)
    for lung_boxes in (NO_BOXES, unknown):
        source = _films([GRAY], [0], lung_boxes)
        sheet = figures.key_area_sheet(source, _predictions(boxes, [0]))
        assert not _is(sheet, figures.LUNGS_COLOR).any()
        assert _is(sheet, figures.KEY_AREA_COLOR).any()
    assert not any("IoU" in text or "lungs" in text for text, _ in texts)


def test_sheet_of_color_images_and_long_class_names():
    source = _films([GRAY], [0])
    source = Dataset(
        images=np.tile(np.array([90, 20, 40], np.uint8), (1, 22, 22, 1)),
        labels=source.labels,
        names=source.names,
        groups=source.groups,
        classes=("normal_" * 30, "b", "c"),
    )
    prediction = _predictions([(0.1, 0.1, 0.7, 0.7)], [0])
    sheet = figures.key_area_sheet(source, prediction)
    assert _is(sheet, (90, 20, 40)).any()
    # Whatever the name, it ends with the crop above it and leaves the margin clear.
    corner = np.asarray(sheet)[0, 0]
    assert (np.asarray(sheet)[:, 26 + 368 : 26 + 368 + 20][150:] == corner).all()


def _landscape(losses, *, reference="lungs", policy=None, classes=("a",)):
    losses = np.array(losses, np.float32)
    return Landscape(
        losses=losses,
        zooms=np.array([0.8, 1.0, 1.25], np.float32),
        shifts=np.array([-0.25, 0.0], np.float32),
        classes=classes,
        counts=np.array([7] * len(losses)),
        reference=reference,
        whole=np.full(len(losses), 1.0, np.float32),
        policy=policy,
    )


def _frames(picture):
    """The black outlines, left to right, as (left, top, right, bottom)."""
    black = _is(picture, (0, 0, 0))
    frames = []
    columns = np.flatnonzero(black.any(axis=0))
    for group in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
        rows = np.flatnonzero(black[:, group].any(axis=1))
        if len(group):
            frames.append((group[0], rows[0], group[-1], rows[-1]))
    return frames


def test_heatmap_outlines_the_lowest_cell_of_each_panel(texts):
    class_a = [[1.3, 1.2], [1.1, 0.9], [0.25, 0.8]]
    everything = [[1.2, 0.75], [1.0, 0.9], [1.1, 1.4]]
    picture = landscape_sheet.draw(
        _landscape([class_a, everything], policy=np.array([0.61, 0.62]))
    )
    frames = _frames(picture)
    assert len(frames) == 2
    pixels = np.asarray(picture)
    # All classes come first. A corner of the cell shows its color: 0.75 is a quarter
    # below the whole image, a third of the largest difference, which is 0.75.
    colors = [pixels[top + 4, left + 4] for left, top, _, _ in frames]
    np.testing.assert_array_equal(
        colors[0], landscape_sheet.diverging_color(-0.25 / 0.75)
    )
    np.testing.assert_array_equal(colors[1], landscape_sheet.diverging_color(-1.0))
    # Row 0 of the first panel, row 2 of the second; a row is 34 pixels high.
    assert frames[1][1] - frames[0][1] == 2 * 34
    written = [text for text, _ in texts]
    for row in class_a + everything:
        assert all(f"{loss:.2f}" in written for loss in row)
    assert "whole image 1.00   policy's key area 0.62" in written
    assert "side of the box / side of the true lungs" in written
    assert "horizontal shift / width of the lungs" in written
    assert written.count("-0.25") == 2 and "-0.75" in written  # ticks; color scale


def test_heatmap_says_that_the_boxes_lie_around_the_policys_key_area(texts):
    losses = np.linspace(0.5, 1.5, 12).reshape(2, 3, 2)
    landscape_sheet.draw(_landscape(losses, reference="policy"))
    written = " ".join(text for text, _ in texts)
    assert "side of the policy's key area" in written
    assert "The true lungs are not known here" in written
    assert "side of the true lungs" not in written


def test_heatmap_of_a_class_without_images_is_empty(texts):
    losses = np.linspace(0.5, 1.5, 6).reshape(1, 3, 2)
    with_empty = np.concatenate([np.full((1, 3, 2), np.nan), losses])
    picture = landscape_sheet.draw(_landscape(with_empty))
    assert len(_frames(picture)) == 1
    assert [text for text, _ in texts].count("-") == 6


def test_heatmap_of_small_differences_stays_pale():
    losses = np.full((2, 3, 2), 1.0)
    losses[:, 1, 1] = 0.98
    picture = landscape_sheet.draw(_landscape(losses))
    left, top, _, _ = _frames(picture)[0]
    color = np.asarray(picture)[top + 4, left + 4]
    # A fifth of the way from white to blue, as full color means at least 0.1 nats.
    np.testing.assert_array_equal(color, (204, 218, 232))


def test_heatmap_of_many_classes_wraps():
    losses = np.linspace(0.5, 1.5, 36).reshape(6, 3, 2)
    five = landscape_sheet.draw(_landscape(losses, classes=tuple("abcde")))
    three = landscape_sheet.draw(_landscape(losses[:4], classes=tuple("abc")))
    assert five.width == three.width and five.height > three.height + 3 * 34


@pytest.mark.parametrize(
    ("strength", "color"),
    [
        (-3.0, (33, 102, 172)),
        (-1.0, (33, 102, 172)),
        (0.0, (247, 247, 247)),
        (0.5, (236, 184, 134)),  # 235.5, 183.5 and 133.5; round half to even
        (2.0, (224, 120, 20)),
    ],
)
def test_diverging_color(strength, color):
    assert landscape_sheet.diverging_color(strength) == color


# Mistakes.


def test_worst_mistakes_are_wrong_and_the_surest_first():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    rows = figures.worst_mistakes(probabilities, np.array([0, 0, 0, 1]))
    np.testing.assert_array_equal(rows, [1, 2])


def test_no_sheet_without_a_mistake_and_one_without_key_areas():
    source = _films([50, 100, 150], [0, 1, 2])
    right = Prediction(np.eye(3, dtype=np.float32)[source.labels])
    assert figures.mistakes_sheet(source, right) is None
    wrong = Prediction(np.eye(3, dtype=np.float32)[(source.labels + 1) % 3])
    sheet = figures.mistakes_sheet(source, wrong)
    assert sheet.width > 1000
    # Nothing is called a key area, not even the whole film.
    colors = {color for _, color in sheet.getcolors(1 << 20)}
    assert figures.WRONG_COLOR in colors and figures.KEY_AREA_COLOR not in colors
    area = wrong._replace(area=np.array([[0.2, 0.2, 0.8, 0.8]] * 3, np.float32))
    sheet = figures.mistakes_sheet(source, area)
    colors = {color for _, color in sheet.getcolors(1 << 20)}
    assert figures.KEY_AREA_COLOR in colors
