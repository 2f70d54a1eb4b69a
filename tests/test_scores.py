"""Records and tables of runs that are made up, against figures worked by hand.

What their answers are worth is in `write_run`: a macro-F1 of 1, with misses of 11/15,
and no resampling of patients changes either.
"""

import json
import shutil

import pytest

from hapre_jax import scores
from hapre_jax.errors import UserError
from hapre_jax.experiments import Experiment

SMALLEST_P = 2 / 2001
ONE_SEED = {"mean": 0.1, "interval": None, "values": [0.1]}


@pytest.fixture
def run(tmp_path, write_run):
    """Makes the run of a row and a seed, with results unless `f1` is None."""

    def make(row, seed, f1=None, **how):
        folder = tmp_path / row / f"seed-{seed}"
        if f1 is not None:
            write_run(folder, f1, **how)
        return Experiment("configs/phantom.py", {"seed": str(seed)}, folder)

    return make


@pytest.mark.parametrize("text", ["{}", "[]", '{"test": null}'])
def test_damaged_results_are_named(run, text):
    one = run("ours", 0, 0.8)
    (one.folder / "results.json").write_text(text)
    with pytest.raises(UserError, match=f"^{one.folder}/results.json .* delete it"):
        scores.record([one])


def test_mean_and_interval_are_over_the_seeds():
    # 12.7062 * (0.1 / sqrt(2)) / sqrt(2) = 12.7062 * 0.05.
    assert scores.across_seeds((0.8, 0.9)) == {
        "mean": pytest.approx(0.85),
        "interval": pytest.approx(0.635310),
        "values": [0.8, 0.9],
    }
    one = scores.across_seeds([0.8])
    assert one == {"mean": 0.8, "interval": None, "values": [0.8]}


def test_record_has_scores_of_the_results_and_intervals_of_the_answers(run):
    runs = [
        run("ours", 0, 0.8, accuracy=0.5, macro_recall=0.25, iou=0.6, minutes=3),
        run("ours", 7, 0.9, accuracy=0.7, macro_recall=0.25, iou=0.4, minutes=5),
    ]
    file = runs[1].folder / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"commit": "abc1234"}))
    spread = pytest.approx(0.635310)
    assert scores.record(runs) == {
        "seeds": [0, 7],
        "images": [20, 20],
        "scores": {
            "accuracy": {
                "mean": pytest.approx(0.6),
                "interval": pytest.approx(2 * 0.635310),
                "values": [0.5, 0.7],
            },
            "macro_precision": {
                "mean": pytest.approx(0.85),
                "interval": spread,
                "values": [0.8, 0.9],
            },
            "macro_recall": {"mean": 0.25, "interval": 0.0, "values": [0.25, 0.25]},
            "macro_f1": {
                "mean": pytest.approx(0.85),
                "interval": spread,
                "values": [0.8, 0.9],
            },
        },
        "f1_over_images": {
            "value": 1.0,
            "low": 1.0,
            "high": 1.0,
            "p": pytest.approx(SMALLEST_P),
        },
        "gain": None,
        "lung_iou": {
            "mean": pytest.approx(0.5),
            "interval": pytest.approx(2 * 0.635310),
            "values": [0.6, 0.4],
        },
        "minutes": 4.0,
        "commits": ["abc1234", "unknown"],
    }


def test_lung_iou_is_of_the_runs_that_have_one(run):
    without = run("ours", 0, 0.5)
    assert scores.record([without])["lung_iou"] is None
    both = scores.record([without, run("ours", 1, 0.5, iou=0.3)])
    assert both["lung_iou"] == {"mean": 0.3, "interval": None, "values": [0.3]}


def test_gain_is_over_the_seeds_that_both_have(run):
    # In seed 0 we would lose, and seed 5 of the reference was never trained.
    ours = [
        run("ours", 0, 0.5, misses=True),
        run("ours", 1, 0.5),
        run("ours", 2, 0.5),
    ]
    reference = [
        run("plain", 5),
        run("plain", 2, 0.5),
        run("plain", 1, 0.5, misses=True),
    ]
    record = scores.record(ours, reference)
    # 1 - 11/15 in seed 1, 0 in seed 2.
    gain = [record["gain"][name] for name in ("value", "low", "high", "p")]
    assert gain == pytest.approx([2 / 15, 2 / 15, 2 / 15, SMALLEST_P])
    # 12.7062 * (4/15 / sqrt(2)) / sqrt(2) = 12.7062 * 2/15.
    over_seeds = record["gain"]["over_seeds"]
    assert over_seeds["mean"] == pytest.approx(2 / 15)
    assert over_seeds["interval"] == pytest.approx(1.694160)
    assert over_seeds["values"] == pytest.approx([4 / 15, 0])
    assert record["seeds"] == [0, 1, 2]
    assert record["f1_over_images"]["value"] == pytest.approx((1 + 1 + 11 / 15) / 3)


def test_a_pair_of_other_films_is_named(run):
    ours, plain = run("ours", 0, 0.5), run("plain", 0, 0.5)
    file = plain.folder / "predictions.csv"
    file.write_text(file.read_text().replace("film-7", "film-70"))
    with pytest.raises(UserError) as error:
        scores.record([ours], [plain])
    assert str(error.value) == (
        f"{ours.folder} and {plain.folder} were tested on other films"
    )
    # The films of a folder, of which there are more by now.
    for one in (ours, plain):
        (one.folder / "on").mkdir()
        for end in ("results.json", "predictions.csv"):
            there = "mine.json" if end == "results.json" else "mine_predictions.csv"
            shutil.copy(one.folder / end, one.folder / "on" / there)
    with pytest.raises(UserError, match=r"films of mine: delete on/mine\.json in both"):
        scores.record([ours], [plain], tested="mine")


def test_no_seed_in_common_is_no_gain(run):
    ours, reference = [run("ours", 0, 0.5)], [run("plain", 1, 0.5)]
    assert scores.record(ours, reference)["gain"] is None


def test_tested_elsewhere_is_read_from_the_other_sources_files(run):
    ours = run("ours", 0, 0.9, iou=0.6)
    run("ours", 0, 0.4, misses=True, tested="rsna", iou=0.2)
    plain = run("plain", 0, 0.8, misses=True)
    run("plain", 0, 0.3, tested="rsna")
    own = scores.record([ours], [plain])
    assert own["scores"]["macro_f1"]["values"] == [0.9]
    assert own["gain"]["value"] == pytest.approx(4 / 15)
    assert own["lung_iou"]["values"] == [0.6]
    there = scores.record([ours], [plain], tested="rsna")
    assert there["scores"]["macro_f1"]["values"] == [0.4]
    assert there["f1_over_images"]["value"] == pytest.approx(11 / 15)
    assert there["gain"]["value"] == pytest.approx(-4 / 15)
    assert there["lung_iou"]["values"] == [0.2]


def test_run_without_results_is_named(run):
    with pytest.raises(UserError, match=r"ours/seed-0/results\.json cannot be read"):
        scores.record([run("ours", 0)])
    finished = run("ours", 0, 0.5)
    with pytest.raises(UserError, match=r"ours/seed-0/on/rsna\.json cannot be read"):
        scores.record([finished], tested="rsna")


def test_scores_are_shown_in_per_cent():
    score = {"mean": 0.83333, "interval": 0.0126, "values": []}
    assert scores.shown(score) == "83.3 ± 1.3"
    assert scores.shown(score | {"interval": 0.0}) == "83.3 ± 0.0"
    assert scores.shown(score | {"interval": None}) == "83.3"
    assert scores.shown({"mean": 1.0, "interval": None, "values": []}) == "100.0"
    assert scores.shown(None) == ""
    assert scores.shown(score, per_cent=False) == "0.833 ± 0.013"


@pytest.mark.parametrize(
    ("gain", "text"),
    [
        ((0.0432, -0.0123, 0.1, 0.0321), "+4.3 [−1.2, +10.0], p = 0.032"),
        ((-0.0432, -0.1, -0.0123, SMALLEST_P), "−4.3 [−10.0, −1.2], p < 0.002"),
        ((0.0, 0.0, 0.0, 1.0), "+0.0 [+0.0, +0.0], p = 1.000"),
        ((0.01, 0.0, 0.02, 0.00199), "+1.0 [+0.0, +2.0], p < 0.002"),
        ((0.01, 0.0, 0.02, 0.00201), "+1.0 [+0.0, +2.0], p = 0.002"),
    ],
)
def test_gains_are_shown_in_points_with_a_sign(gain, text):
    names = ("value", "low", "high", "p")
    gain = dict(zip(names, gain, strict=True)) | {"seeds": 2, "over_seeds": ONE_SEED}
    spread = {"over_seeds": ONE_SEED | {"interval": 0.0123}}
    assert scores.gained(gain | spread) == text.replace(" [", " ± 1.2 [")
    assert scores.gained(gain) == scores.gained(gain, 2) == text
    assert scores.gained(gain, 3) == f"{text} (seeds: 2)"


@pytest.mark.parametrize(
    ("patients", "mean", "interval", "is_clear"),
    [
        ((0.01, 0.05), 0.03, 0.02, True),
        ((-0.05, -0.01), -0.03, 0.02, True),
        ((0.01, 0.05), 0.03, 0.04, False),  # another training may have none
        ((-0.01, 0.05), 0.02, 0.01, False),  # other patients may
        ((0.01, 0.05), 0.03, None, False),  # of one seed
    ],
)
def test_a_gain_is_clear_over_patients_and_over_seeds(
    patients, mean, interval, is_clear
):
    seeds = {"mean": mean, "interval": interval, "values": []}
    low, high = patients
    gain = {"value": mean, "low": low, "high": high, "p": 0.01, "over_seeds": seeds}
    assert scores.is_clear(gain) == is_clear


def test_no_gain_is_shown_as_nothing():
    assert scores.gained(None) == ""


def record(f1, *, accuracy=0.5, gain=None, iou=None, **more):
    def score(value):
        return {"mean": value, "interval": None, "values": [value]}

    values = dict.fromkeys(scores.METRICS, f1) | {"accuracy": accuracy}
    return {
        "scores": {name: score(value) for name, value in values.items()},
        "f1_over_images": {"value": 0.5, "low": 0.4125, "high": 0.6, "p": 0.001},
        "gain": gain,
        "lung_iou": None if iou is None else score(iou),
        "minutes": 1.5,
        "seeds": [0],
        "images": [20],
        **more,
    }


def test_table_has_the_four_metrics_and_the_gain():
    gain = {"value": 0.1, "low": 0.05, "high": 0.15, "p": 0.02, "seeds": 3}
    gain["over_seeds"] = ONE_SEED | {"interval": 0.04}
    records = [record(0.7, accuracy=0.9), record(0.8, accuracy=0.6, gain=gain)]
    table = scores.table("T", records, ["plain", "ours"], reference="plain")
    assert table.title == "T"
    assert table.columns[:5] == ("", "Acc", "Pre", "Rec", "F1")
    assert table.columns[5:] == ("F1 over patients", "F1 more than plain")
    gained = "+10.0 ± 4.0 [+5.0, +15.0], p = 0.020"
    assert table.rows == [
        ["plain", "90.0", "70.0", "70.0", "70.0", "[41.2, 60.0]", ""],
        ["ours", "60.0", "80.0", "80.0", "80.0", "[41.2, 60.0]", gained],
    ]
    assert table.words == (
        "The best macro-F1 has ours, 80.0 per cent. With intervals over seeds and over "
        "test patients that leave out 0, better than plain by points of macro-F1: "
        "ours (+10.0)."
    )
    # Each metric has a best of its own.
    assert table.marks == [[0, 1, 2, 2, 2, 0, 0], [0, 2, 1, 1, 1, 0, 0]]


def test_columns_that_some_record_needs_are_added_in_order():
    paper = {"accuracy": 0.1, "macro_f1": 0.8279}
    records = [
        record(0.7, iou=0.61, paper=None),
        record(0.8, paper=paper),
        record(0.6, paper=None),
    ]
    minutes = {"minutes": lambda one: f"{one['minutes']} min"}
    names = ["a", "b", "c"]
    table = scores.table("T", records, names, reference="a", extra=minutes)
    assert table.columns[6:] == ("F1 more than a", "minutes", "lung IoU", "paper's F1")
    assert [row[7:] for row in table.rows] == [
        ["1.5 min", "61.0", ""],
        ["1.5 min", "", "82.8"],
        ["1.5 min", "", ""],
    ]
    assert list(minutes) == ["minutes"]  # the caller's dict stays as it was
    bare = scores.table("T", [record(0.6, paper=None)], ["c"], reference="a")
    assert bare.columns[-1] == "F1 more than a"


def test_rows_of_fewer_seeds_do_not_compete_and_say_so():
    gain = {"value": 0.2, "low": 0.1, "high": 0.3, "p": 0.01, "seeds": 1}
    gain["over_seeds"] = ONE_SEED
    of_two = {"low": -0.1, "seeds": 2, "over_seeds": ONE_SEED | {"interval": 0.01}}
    records = [
        record(0.7, seeds=[0, 1]),
        record(0.9, seeds=[0], gain=gain),
        record(0.6, seeds=[0, 1], gain=gain | of_two),
    ]
    table = scores.table("T", records, ["plain", "once", "ours"], reference="plain")
    assert [marks[4] for marks in table.marks] == [1, 0, 2]
    assert table.columns[-1] == "seeds"
    assert [row[-1] for row in table.rows] == ["2", "1", "2"]
    assert table.rows[1][6].endswith("p = 0.010 (seeds: 1)")
    assert table.words == (
        "The best macro-F1 has plain, 70.0 per cent. No difference from plain has "
        "intervals over seeds and over test patients that both leave out 0."
    )
    same = [record(2 / 3), record(2 / 3 + 4e-8), record(0.6)]
    words = scores.table("T", same, ["plain", "ours", "c"], reference="plain").words
    assert words == "The best macro-F1 have plain, 66.7; ours, 66.7 per cent."
    single = [record(0.7), record(0.9, gain=gain)]
    words = scores.table("T", single, ["plain", "ours"], reference="plain").words
    assert words.endswith(
        "Differences are of one seed: another training may have others."
    )


def test_numbers_of_films_are_told_where_they_differ():
    records = [record(0.7, images=[20, 20]), record(0.6, images=[19, 21])]
    table = scores.table("T", records, ["a", "b"], reference="a")
    films = table.columns.index("films")
    assert [row[films] for row in table.rows] == ["20", "19 to 21"]


def test_rows_that_stand_beside_do_not_compete():
    records = [record(0.7), record(0.99), record(0.8), record(0.6)]
    names = ["plain", "true box", "ours", "cutout"]
    table = scores.table("T", records, names, reference="plain", beside=["true box"])
    f1 = table.columns.index("F1")
    assert [marks[f1] for marks in table.marks] == [2, 0, 1, 0]
    assert table.rows[1][f1] == "99.0"
