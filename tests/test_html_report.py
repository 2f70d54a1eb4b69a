import json
import shutil

import numpy as np
import pytest
from test_html_page import Reader

from hapre_jax import html_report, predictions, result_table
from hapre_jax.errors import UserError


def test_the_page_of_a_run_has_its_figures_pictures_and_settings(finished_run):
    page = (finished_run / "report.html").read_text()
    results = json.loads((finished_run / "results.json").read_text())
    read = Reader(page)
    assert "http" not in page.replace("http://www.w3.org", "")
    assert f"{results['test']['macro_f1']:.3f}" in read.text
    assert f"{results['plain']['macro_f1']:.3f}" in read.text
    pictures = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(pictures) == 6 and all(of["alt"] for of in pictures)
    charts = [of["aria-label"] for tag, of in read.tags if tag == "svg"]
    assert charts == ["ROC: hapre", "ROC: plain", "Calibration"]
    for word in ("policy.warmup_steps", "Not for clinical use.", "jax"):
        assert word in read.text
    # The run's policy did not learn in six steps, and the page says so.
    assert any(text.startswith("The policy did not move") for text in read.text)


def test_the_page_is_made_again_by_the_program(finished_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    (workdir / "report.html").unlink()
    assert html_report.main([str(workdir)]) == 0
    assert capsys.readouterr().out == f"{workdir}/report.html\n"
    again = (workdir / "report.html").read_bytes()
    assert again == (finished_run / "report.html").read_bytes()


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no results\.json"):
        html_report.main([str(tmp_path)])


def _answers(right):
    """Ten patients with a film each; `right` of the first five of class 0 are right."""
    labels = np.repeat([0, 1], 5)
    sure = np.where(np.arange(10) < right, labels, 1 - labels)
    sure[5:] = 1
    return predictions.Predictions(
        names=tuple(map(str, range(10))),
        groups=tuple(map(str, range(10))),
        views=("",) * 10,
        classes=("a", "b"),
        labels=labels,
        probabilities=np.eye(2)[sure],
    )


def _results(area=None):
    test = {"n": 10, "accuracy": 0.9, "macro_f1": 0.9, "key_area": area}
    return {"method": "hapre", "test": test, "plain": {"macro_f1": 0.333}}


def test_words_say_whether_chance_explains_a_difference():
    (alone,) = html_report.in_words(_results(), _answers(4), None)
    assert alone.startswith("On 10 test films it has never seen, hapre has a macro-F1")
    assert alone.endswith("and is right in 9 (90.0%).")
    # One film of ten apart: chance.
    close = html_report.in_words(_results(), _answers(5), _answers(4))[1]
    assert "which chance in the choice of test patients may explain" in close
    far = html_report.in_words(_results(), _answers(5), _answers(0))[1]
    # F1 1 against 1/3: 0 of class 0, and 2 * 5 / 15 of class 1.
    assert "a difference of +0.667" in far and "more than chance" in far


def test_words_about_key_areas():
    area = {
        "side_fraction": 0.5,
        "lung_iou": 0.7,
        "lung_coverage": 0.9,
        "trivial_iou": {"whole": 0.2, "mean_box": 0.4},
    }
    said = html_report.in_words(_results(area), _answers(5), None)[1]
    assert said == (
        "The key area's side is 50% of the film's on average. It covers 90% of the "
        "lung box and overlaps it with an IoU of 0.70; the whole film has 0.20, one "
        "box for all films, the mean lung box, 0.40."
    )
    unknown = area | {"lung_iou": None}
    said = html_report.in_words(_results(unknown), _answers(5), None)[1]
    assert said.endswith("Where the lungs are is not known of these films.")


def test_the_page_of_tables_has_their_marks():
    ranked = {"F1": [0.9, 0.8]}
    rows = [["a, b", "90.0 ± 1.0", "+1 [+0, +2], p"], ["b", "80.0", ""]]
    table = result_table.make("s", ["", "F1", "gain"], rows, ranked=ranked)
    page = html_report.of_table("Table 2", [table], "Best **bold**, `code`.")
    read = Reader(page)
    # Lines break outside of a figure and its interval only.
    assert read.text[read.text.index("a, b") :][1:3] == [
        "90.0\u00a0±\u00a01.0",
        "+1 [+0,\u00a0+2], p",
    ]
    assert read.text[-1] == "Best bold, code."
    assert html_report.of_table("T", [table._replace(words="b < a")], "").count(
        "<p>b &lt; a</p>"
    )
    assert [of for tag, of in read.tags if tag == "td"] == [
        {"class": "best"},
        {},
        {"class": "second"},
        {},
    ]
