import io

import pytest
import rich.console

from hapre_jax.config import Config, options
from hapre_jax.reporting import report

AREA = {
    "lung_iou": 0.71234,
    "lung_coverage": 0.9,
    "lesion_coverage": None,
    "trivial_iou": {"whole": 0.21, "central80": 0.32, "mean_box": None},
    "side_fraction": 0.5,
    "at_bound": 0.125,
    "displacement": 0.1,
    "entropy": -2.5,
    "map_change": 0.3,
}


def _scores(accuracy, key_area=None):
    return {
        "n": 600,
        "accuracy": accuracy,
        "macro_precision": 0.5,
        "macro_recall": 0.6,
        "macro_f1": 0.7,
        "confusion_matrix": [[1]],
        "views": {},
        "key_area": key_area,
    }


def _results(method, test, plain=None, **policy):
    return {
        "method": method,
        "dataset": "phantom",
        "seed": 3,
        "test": test,
        "plain": plain,
        "config": {
            "policy": {"estimator": "reinforce", "area_cost": 0.0, "warmup_steps": 30}
            | policy,
            "train": {"steps": 700},
        },
    }


def _shown(results):
    console = rich.console.Console(file=io.StringIO(), width=100)
    console.print(report.summary_table(results))
    lines = console.file.getvalue().splitlines()
    # Cells of the lines that have any.
    table = [
        [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]
        for line in lines
        if line[0] in "│┃"
    ]
    return lines[0].strip(), table


def test_table_of_a_run_beside_the_plain_classifier():
    title, rows = _shown(_results("hapre", _scores(0.9, AREA), _scores(0.8)))
    assert title == "phantom: 600 test images, seed 3"
    assert rows == [
        ["", "plain", "hapre"],
        ["accuracy", "0.800", "0.900"],
        ["macro precision", "0.500", "0.500"],
        ["macro recall", "0.600", "0.600"],
        ["macro F1", "0.700", "0.700"],
        ["lung IoU of the key area", "", "0.712"],
        ["of the whole image", "", "0.210"],
        ["of the central 80 %", "", "0.320"],
        ["of the mean lung box", "", "-"],
        ["lung coverage", "", "0.900"],
        ["lesion coverage", "", "-"],
        ["side fraction", "", "0.500"],
        ["share at a bound", "", "0.125"],
        ["policy entropy (nats)", "", "-2.500"],
    ]


def test_views_have_lines_of_their_own():
    views = {"AP": {"n": 200, "macro_f1": 0.5}, "[/pa]": {"n": 400, "macro_f1": 0.75}}
    test = _scores(0.8) | {"views": views}
    _, rows = _shown(_results("plain", test))
    assert rows[-2:] == [
        ["macro F1 of view AP (200)", "0.500"],
        ["macro F1 of view [/pa] (400)", "0.750"],
    ]


def test_framings_have_lines_where_they_differ():
    test = _scores(0.8) | {"framings": {"low": {"n": 600, "macro_f1": 0.5}}}
    _, rows = _shown(_results("hapre", test))
    assert not any("framing" in row[0] for row in rows)
    test["framings"]["high"] = {"n": 200, "macro_f1": 0.75}
    # Of a plain classifier that an older version has scored.
    _, rows = _shown(_results("hapre", test, _scores(0.7)))
    assert rows[-2:] == [
        ["macro F1 of framing low (600)", "-", "0.500"],
        ["macro F1 of framing high (200)", "-", "0.750"],
    ]


def test_parameters_of_operations_have_lines_beside_the_truth():
    found = {"mean": 2.0, "std": 1.5, "error": 0.5, "correlation": 0.9}
    found |= {"error_but_for_a_constant": 0.25, "error_untouched": 9.0}
    unknown = dict.fromkeys(found) | {"mean": 0.1, "std": 0.0}
    test = _scores(0.9) | {"parameters": {"rotation": found, "window_level": unknown}}
    _, rows = _shown(_results("hapre", test, _scores(0.8)))
    assert rows[-7:] == [
        ["rotation, mean", "", "2.000"],
        ["spread", "", "1.500"],
        ["error", "", "0.500"],
        ["error but for a constant", "", "0.250"],
        ["error where nothing is done", "", "9.000"],
        ["window_level, mean", "", "0.100"],
        ["spread", "", "0.000"],
    ]


def test_table_of_the_plain_classifier_alone():
    _, rows = _shown(_results("plain", _scores(0.8)))
    assert rows[0] == ["", "plain"]
    assert [row[0] for row in rows[1:]] == [
        "accuracy",
        "macro precision",
        "macro recall",
        "macro F1",
    ]


WHOLE = {"side_fraction": 0.98, "at_bound": 1.0, "displacement": 0.0}


def _verdict(changes, **kwargs):
    return report.verdict(_results("hapre", _scores(0.9, AREA | changes), **kwargs))


@pytest.mark.parametrize(
    ("changes", "said", "settings"),
    [
        (
            WHOLE,
            "The key area is still the whole image: the policy did not learn to crop.",
            (
                "policy.warmup_steps",
                "policy.train_crops",
                "policy.area_cost",
                "policy.final_area_cost",
            ),
        ),
        (
            WHOLE | {"map_change": 0.019},
            "The policy did not move",
            (
                "train.policy_learning_rate",
                "train.steps",
                "policy.warmup_steps",
                "train.task_learning_rate",
            ),
        ),
        (
            {"at_bound": 0.75, "displacement": 0.0},
            "75% of the key areas are at a bound of their size",
            ("policy.min_side", "policy.max_side", "train.policy_learning_rate"),
        ),
        (
            {"displacement": 0.01},
            "The key areas hardly differ between images",
            ("train.steps", "policy.samples", "policy.image_size"),
        ),
    ],
)
def test_verdict_says_what_went_wrong_and_what_to_change(changes, said, settings):
    sentences = _verdict(changes)
    assert sentences.startswith(said)
    assert "\n" not in sentences and sentences.endswith(".")
    known = options(Config())
    for name in settings:
        assert name in sentences and name in known


def test_verdict_on_a_run_that_ended_in_its_warmup_blames_that():
    for changes in (WHOLE, WHOLE | {"map_change": 0.0}):
        assert _verdict(changes, warmup_steps=700) == (
            "The policy was not trained: policy.warmup_steps is 700, and train.steps "
            "700: raise train.steps, or lower the warm-up."
        )


def test_verdict_asks_for_a_cost_of_area_where_there_is_none():
    assert "policy.area_cost" not in _verdict(WHOLE, area_cost=0.4)
    assert "configs/films.py" in _verdict(WHOLE)


@pytest.mark.parametrize("changes", [WHOLE, {"displacement": 0.01}])
def test_verdict_on_the_published_rule_does_not_name_what_it_lacks(changes):
    sentences = _verdict(changes, estimator="paper")
    assert "set policy.estimator to reinforce" in sentences
    assert "policy.train_crops" not in sentences and "policy.samples" not in sentences


def test_verdict_on_films_that_need_no_crop_asks_for_no_change():
    framed = {"trivial_iou": {"whole": 0.774, "central80": 0.7, "mean_box": 0.88}}
    assert _verdict(WHOLE | framed | {"map_change": 0.0}) == (
        "The key area is the whole image. These films are framed about the lungs "
        "already (IoU of the whole image 0.77), so that a crop has little to gain."
    )
    unknown = {"trivial_iou": {"whole": None, "central80": None, "mean_box": None}}
    assert _verdict(WHOLE | unknown).startswith("The key area is still the whole image")


def test_verdict_on_results_of_an_older_version():
    area = {k: v for k, v in (AREA | WHOLE).items() if k != "map_change"}
    sentences = report.verdict(_results("hapre", _scores(0.9, area)))
    assert sentences.startswith("The key area is still the whole image")


def test_verdict_is_silent_where_the_policy_looks():
    assert report.verdict(_results("hapre", _scores(0.9, AREA))) is None
    assert report.verdict(_results("plain", _scores(0.9))) is None
    # Two-Stage has areas, and no policy that might have learned nothing.
    whole = {name: of for name, of in AREA.items() if name != "entropy"}
    whole |= {"side_fraction": 1.0, "at_bound": 1.0}
    assert report.verdict(_results("two_stage", _scores(0.9, whole))) is None
    assert _shown(_results("two_stage", _scores(0.9, whole)))[1][-1][-1] == "-"
