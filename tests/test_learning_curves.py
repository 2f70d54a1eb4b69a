import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hapre_jax import log
from hapre_jax.reporting import curve_panel, figures, learning_curves

MARGIN, TOP, GAP = 26, 64, 32
CELL_WIDTH, CELL_HEIGHT = curve_panel.CELL
TITLES = [panel.title for panel in learning_curves.PANELS]


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


def _train(**values):
    """Records of ten steps; a value may be given for each of them."""
    return [
        {"kind": "train", "step": step}
        | {name.replace("__", "/"): np.broadcast_to(v, 10)[step - 1].item()
           for name, v in values.items()}
        for step in range(1, 11)
    ]  # fmt: skip


def _validations(*scores, name="macro_f1"):
    return [
        {"kind": "validation", "step": step, name: score}
        for step, score in zip((2, 4, 6, 8, 10), scores, strict=False)
    ]


def _policy_run():
    """What HAPre-KRS logs, lungs known."""
    line = np.linspace(1.0, 0.5, 10)
    records = _train(
        task_loss=line,
        policy_loss=line,
        reward=-line,
        reward_p10=-line - 0.5,
        reward_p90=-line + 0.4,
        side=line,
        lung_iou=line / 2,
        entropy=line,
        helped=line,
        grad_norm__task=line,
        grad_norm__policy=line / 100,
    )
    for record in _validations(0.3, 0.4, 0.5, 0.6, 0.7):
        area = {"side_fraction": 0.7, "lung_iou": 0.4, "displacement": 0.05}
        area |= {"mean_box_iou": 0.3}
        records.append(record | {f"key_area/{k}": v for k, v in area.items()})
    return records


def _is(picture, color):
    return np.all(np.asarray(picture) == color, axis=-1)


def _plot(picture, place):
    """The plotted area of a panel, without its axes."""
    x = MARGIN + place % 3 * (CELL_WIDTH + GAP) + 56
    y = TOP + place // 3 * CELL_HEIGHT + 54
    return picture.crop((x + 1, y, x + 330, y + 155))


def test_everything_that_a_policy_logs_has_a_panel(texts):
    picture = learning_curves.draw(_policy_run(), steps=10, warmup_steps=3)
    assert isinstance(picture, Image.Image) and picture.width == 1274
    # The last two panels are of other tasks.
    assert [text for text in texts if text in TITLES] == TITLES[:9]
    assert texts.count("training step") == 9
    for label in ("10 to 90 % of a batch", "whole image", "mean lung box", "D1 < 0"):
        assert texts.count(label) == 1
    assert "expanded" not in texts and "shrunk" not in texts
    for place in range(9):
        plot = _plot(picture, place)
        colors = (curve_panel.TASK_COLOR, curve_panel.POLICY_COLOR)
        assert any(_is(plot, color).any() for color in colors), TITLES[place]


def test_no_ink_leaves_its_panel():
    picture = learning_curves.draw(_policy_run(), steps=10, warmup_steps=3)
    pixels = np.asarray(picture)
    assert (pixels[:, :MARGIN] == 255).all() and (pixels[:, -12:] == 255).all()
    for column in (1, 2):
        x = MARGIN + column * (CELL_WIDTH + GAP)
        height = TOP + 3 * CELL_HEIGHT
        assert (pixels[60:height, x - 16 : x] == 255).all()


def test_the_published_rule_has_its_choices_in_the_panel_of_shares(texts):
    records = _policy_run()
    for record in records:
        if record["kind"] == "train":
            record |= {"expanded": 0.2, "shrunk": 0.1}
    picture = learning_curves.draw(records, steps=10)
    assert texts.count("expanded") == texts.count("shrunk") == 1
    shares = _plot(picture, TITLES.index("Share of images"))
    assert _is(shares, curve_panel.OTHER_COLOR).any()


def test_a_plain_classifier_has_three_panels_and_no_warm_up(texts):
    records = _train(task_loss=np.linspace(1.0, 0.5, 10), grad_norm__task=0.1)
    records += _validations(0.3, 0.5)
    picture = learning_curves.draw(records, steps=10, warmup_steps=5)
    assert [text for text in texts if text in TITLES] == [
        "Loss of the task network",
        "Norm of the gradient",
        "Macro-F1, validation",
    ]
    without = learning_curves.draw(records, steps=10)
    assert np.array_equal(np.asarray(picture), np.asarray(without))
    assert not any("policy" in text or "warm-up" in text for text in texts)
    assert not _is(picture, curve_panel.POLICY_COLOR).any()


def test_unknown_lungs_have_no_panel(texts):
    records = [{k: v for k, v in r.items() if "iou" not in k} for r in _policy_run()]
    learning_curves.draw(records, steps=10)
    assert "IoU of the key area with the lungs" not in texts
    assert texts.count("training step") == 8


def test_a_curve_lies_at_its_values():
    records = _train(task_loss=np.linspace(2.0, 0.0, 10))
    plot = _plot(learning_curves.draw(records, steps=10), 0)
    ink = _is(plot, curve_panel.TASK_COLOR)
    rows, columns = np.nonzero(ink)
    # Seven pixels inside of 330 x 156; from step 1 of 10 to step 10.
    assert columns.min() == pytest.approx(6 + 0.1 * 315, abs=2)
    assert columns.max() == pytest.approx(6 + 315, abs=2)
    assert rows[columns == columns.min()].mean() == pytest.approx(7, abs=2)
    assert rows[columns == columns.max()].mean() == pytest.approx(148, abs=2)
    middle = rows[columns == round(6 + 0.55 * 315)].mean()
    assert middle == pytest.approx(7 + 141 / 2, abs=2)


def test_the_end_of_the_warm_up_is_a_vertical_line():
    records = _policy_run()
    pictures = [learning_curves.draw(records, steps=10, warmup_steps=n) for n in (3, 0)]
    for place in range(9):
        plots = [np.asarray(_plot(picture, place)) for picture in pictures]
        changed = np.any(plots[0] != plots[1], axis=(0, 2))
        assert np.flatnonzero(changed).tolist() == [round(7 + 0.3 * 315) - 1]
        column = plots[0][:, changed]
        assert (column == figures.PALE).all(axis=-1).mean() > 0.8


def test_the_band_lies_between_the_percentiles():
    records = _train(policy_loss=0.0, reward=0.5, reward_p10=0.0, reward_p90=1.0)
    plot = _plot(learning_curves.draw(records, steps=10), 0)
    band = np.asarray(plot)[:, 200]
    rows = np.flatnonzero((band == (250, 219, 196)).all(axis=-1))
    assert rows.min() == pytest.approx(7, abs=2)
    assert rows.max() == pytest.approx(148, abs=2)


def test_a_gradient_of_zero_is_left_out_of_the_logarithmic_axis(texts):
    policy = np.array([0, 0, 0, 0, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01])
    records = _train(grad_norm__task=1.0, grad_norm__policy=policy)
    plot = _plot(learning_curves.draw(records, steps=10), 0)
    rows, columns = np.nonzero(_is(plot, curve_panel.POLICY_COLOR))
    assert columns.min() == pytest.approx(6 + 0.5 * 315, abs=2)
    assert rows.mean() == pytest.approx(148, abs=2)
    assert "0.01" in texts and "0.1" in texts and "0.001" not in texts
    nothing = _train(task_loss=1.0, grad_norm__task=0.0)
    learning_curves.draw(nothing, steps=10)


def test_the_ring_is_around_the_last_of_the_best_validations():
    records = _validations(0.2, 0.9, 0.4, 0.9, 0.3)
    plot = _plot(learning_curves.draw(records, steps=10), 0)
    columns = np.flatnonzero(_is(plot, figures.INK).any(axis=0))
    assert columns.mean() == pytest.approx(6 + 0.8 * 315, abs=1)
    assert np.ptp(columns) == pytest.approx(12, abs=3)


def test_a_single_record_is_a_dot():
    records = [{"kind": "train", "step": 5, "task_loss": 0.7, "policy_loss": 0.0}]
    plot = _plot(learning_curves.draw(records, steps=10, warmup_steps=20), 0)
    ink = _is(plot, curve_panel.TASK_COLOR)
    assert 15 < ink.sum() < 50
    assert np.nonzero(ink)[1].mean() == pytest.approx(6 + 0.5 * 315, abs=1)


def test_there_are_no_halves_of_a_step(texts):
    learning_curves.draw(_validations(0.5), steps=2)
    numbers = [text for text in texts if text[0].isdigit()]
    assert sorted(numbers) == sorted(["0.0", "0.5", "1.0", "0", "1", "2"])


def test_a_long_run_is_drawn_as_means_and_quickly():
    rng = np.random.default_rng(0)
    records = [
        {"kind": "train", "step": step, "task_loss": value}
        for step, value in enumerate(rng.choice([0.0, 1.0], 20_000), 1)
    ]
    started = time.perf_counter()
    plot = _plot(learning_curves.draw(records, steps=20_000), 0)
    assert time.perf_counter() - started < 5
    rows, columns = np.nonzero(_is(plot, curve_panel.TASK_COLOR))
    # Means of 121 values that are 0 or 1 lie far above 0, the lower end of the axis.
    assert rows.max() < 7 + 0.7 * 141
    assert np.ptp(columns) > 300


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.0", "0.5", "1.0"]),
        (0.0, 0.1, ["0.00", "0.05", "0.10"]),
        (0.0, 1000.0, ["0", "500", "1,000"]),
        (-1.36, -0.75, ["-1.2", "-1.0", "-0.8"]),
        (0.0, 6.0, ["0", "2", "4", "6"]),
        (3.0, 3.0004, ["3.0000", "3.0001", "3.0002", "3.0003", "3.0004"]),
        (-2.5, 1.5, ["-2", "-1", "0", "1"]),
    ],
)
def test_round_numbers(low, high, texts):
    found = curve_panel.round_numbers(low, high)
    assert [text for _, text in found] == texts
    for value, text in found:
        assert value == pytest.approx(float(text.replace(",", "")), abs=1e-9)
        assert low - 1e-9 <= value <= high + 1e-9


def test_picture_of_a_run(tmp_path):
    metrics = log.MetricsLog(tmp_path, step=0)
    for record in _policy_run():
        values = {k: v for k, v in record.items() if k not in ("kind", "step")}
        metrics.write(record["kind"], record["step"], values)
    metrics.close()
    learning_curves.draw_run(tmp_path, steps=10, warmup_steps=3)
    expected = learning_curves.draw(_policy_run(), steps=10, warmup_steps=3)
    with Image.open(tmp_path / "learning.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl", "learning.png"}
