import json
import shutil

import numpy as np
import pytest
from test_html_page import BROWSER, Reader

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
    rows = [["a", "90.0 ± 1.0", "+1 [+0, +2], p"], ["b", "80.0", ""]]
    table = result_table.make("s", ["", "F1", "gain"], rows, ranked=ranked)
    page = html_report.of_table("Table 2", [table], "Best **bold**, `code`.")
    read = Reader(page)
    assert read.text[read.text.index("a") :][1:3] == ["90.0 ± 1.0", "+1 [+0, +2], p"]
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


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


# What a reader has before their eyes, in the order of the page.
LOOK = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const lines = (cell) => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    return new Set([...range.getClientRects()].map((of) => Math.round(of.top))).size;
  };
  const screen = document.scrollingElement;
  const named = (table) => table.caption || all("h2, summary").some(
    (of) => of.compareDocumentPosition(table) & Node.DOCUMENT_POSITION_FOLLOWING);
  return {
    wider: screen.scrollWidth - screen.clientWidth,
    ink: getComputedStyle(document.body).color,
    paper: getComputedStyle(document.body).backgroundColor,
    headings: all("h1, h2, h3, h4, h5, h6").map((of) => Number(of.tagName[1])),
    first: all("main p, main table, main figure, main svg")[0].outerHTML,
    silent: all("img").filter((of) => !of.alt.trim()).length,
    pictures: all("img").filter((of) => of.complete && of.naturalWidth > 0).length,
    tables: all("table").length,
    unnamed: all("table").filter((of) => !named(of)).length,
    scrolled: all(".scroll").filter((of) => of.scrollWidth > of.clientWidth).length,
    broken: all("td:not(.prose)").filter(
      (of) => !of.children.length && lines(of) > 1).map((of) => of.innerText),
  };
}"""


def _look(browser, file, width, scheme):
    """What is seen of a page that asks for nothing else and complains of nothing."""
    window = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    asked, said = [], []
    page = window.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((of) => of.open = 1)")
    seen = page.evaluate(LOOK)
    window.close()
    assert asked == [file.as_uri()] and said == []
    return seen


def _check(seen, scheme):
    assert seen["wider"] == 0
    dark, light = "rgb(13, 17, 23)", "rgb(255, 255, 255)"
    assert seen["paper"] == (dark if scheme == "dark" else light)
    light, dark = "rgb(31, 35, 40)", "rgb(230, 237, 243)"
    assert seen["ink"] == (dark if scheme == "dark" else light)
    assert seen["headings"][0] == 1 and set(seen["headings"][1:]) == {2}
    assert seen["silent"] == seen["unnamed"] == 0
    assert seen["broken"] == []


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_run_is_read_in_a_browser(browser, finished_run, width, scheme):
    seen = _look(browser, finished_run / "report.html", width, scheme)
    _check(seen, scheme)
    words = '<p class="lead">On 12 test films it has never seen, hapre has a macro-F1'
    assert seen["first"].startswith(words)
    assert seen["pictures"] == 6
    # Scores, two matrices, changed fields, all fields and the environment.
    assert seen["tables"] == 6


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tables_are_read_in_a_browser(browser, tmp_path, width, scheme):
    columns = ["", "Acc", "Pre", "Rec", "F1", "F1 more than ResNet", "lung IoU"]
    gain = "+0.9 [−0.4, +2.0], p = 0.180 (seeds: 1)"
    rows = [
        ["ResNet", *["78.8 ± 3.1"] * 4, "", ""],
        ["HAPre-KRS", *["80.0 ± 2.4"] * 4, gain, "51.6 ± 16.2"],
    ]
    ranked = {name: [78.8, 80.0] for name in columns[1:5]}
    table = result_table.make("phantom_low, 600 films", columns, rows, ranked=ranked)
    table = table._replace(words="The best macro-F1 has HAPre-KRS.")
    notes = (
        "Made by `python launch/tables.py --sources phantom_low," + "nih," * 30 + "`"
    )
    file = tmp_path / "table.html"
    file.write_text(html_report.of_table("Table 2", [table, table], notes))
    seen = _look(browser, file, width, scheme)
    _check(seen, scheme)
    assert seen["first"] == "<p>The best macro-F1 has HAPre-KRS.</p>"
    # On a phone figures scroll, in their own region, and the page does not.
    assert seen["scrolled"] == (2 if width == 390 else 0)
