import html.parser
import shutil
import subprocess
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from hapre_jax.reporting import html_page

_VOID = {"meta", "img", "br"}


class Reader(html.parser.HTMLParser):
    """Refuses tags that are not closed in order; keeps text, tags and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.text.append(data.strip())


def test_a_page_is_whole_and_escapes_what_it_is_given():
    hostile = '<script>alert("1")</script> & more'
    read = Reader(html_page.page(hostile, [html_page.paragraph(hostile, kind="note")]))
    assert read.text.count(hostile) == 3  # title, heading and paragraph
    assert "script" not in [tag for tag, _ in read.tags]
    assert ("html", {"lang": "en"}) in read.tags


def test_a_table_names_its_rows_and_marks_its_best():
    marks = [[0, 1], [0, 2]]
    page = html_page.table("t", ["", "F1"], [["a", "0.9"], ["b<", "0.8"]], marks=marks)
    read = Reader(page)
    assert read.text == ["t", "F1", "a", "0.9", "b<", "0.8"]
    cells = [attributes for tag, attributes in read.tags if tag == "td"]
    assert cells == [{"class": "best"}, {"class": "second"}]
    heads = [attributes["scope"] for tag, attributes in read.tags if tag == "th"]
    assert heads == ["col", "col", "row", "row"]


def test_a_column_of_long_texts_is_wrapped_and_figures_are_not():
    page = html_page.table("t", ["", "F1", "why"], [["a", "0.9", "x" * 49]])
    read = Reader(page)
    assert [of for tag, of in read.tags if tag == "td"] == [{}, {"class": "prose"}]
    heads = [of.get("class") for tag, of in read.tags if tag == "th"]
    assert heads == [None, None, "prose", None]
    assert "prose" not in html_page.table("t", ["", "F1"], [["x" * 49, "x" * 48]])


def test_a_confusion_matrix_shows_counts_and_shares_of_the_true_class():
    page = html_page.confusion("m", ["a", "b"], np.array([[3, 1], [0, 0]]))
    text = Reader(page).text
    assert text[3:] == ["b"] + ["a", "3", "(75%)", "1", "(25%)"] + [
        "b",
        "0",
        "(0%)",
        "0",
        "(0%)",
    ]
    # Half as opaque as its share.
    assert "rgb(0 114 178 / 0.38)" in page


def test_a_chart_is_drawn_in_the_unit_square_without_points_that_are_not_known():
    xs, ys = np.array([0.0, 0.5, 1.0]), np.array([0.0, np.nan, 1.0])
    svg = html_page.chart("c & d", "x", "y", {"one": (xs, ys)}, stepped=True)
    tree = xml.etree.ElementTree.fromstring(svg)
    assert tree.get("aria-label") == "c & d"
    lines = [of.get("points") for of in tree.iter("polyline")]
    # The diagonal, and the line: from the lower left corner to the upper right one.
    assert lines == ["42.0,246.0 262.0,26.0"] * 2
    assert len(list(tree.iter("circle"))) == 2


def test_a_picture_is_in_the_page_itself_and_says_what_it_shows(tmp_path):
    file = tmp_path / "p.png"
    Image.new("RGB", (2, 2)).save(file)
    read = Reader(html_page.picture(file, 'a "film"'))
    ((_, attributes),) = [of for of in read.tags if of[0] == "img"]
    assert attributes["alt"] == 'a "film"'
    assert attributes["src"].startswith("data:image/png;base64,iVBOR")


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [400, 1100])
def test_a_browser_draws_the_page_and_nothing_is_wider_than_the_screen(tmp_path, width):
    wide = html_page.table("wide", [f"column {n}" for n in range(40)], [["x"] * 40])
    probe = (
        "<script>document.title = [document.documentElement.scrollWidth,"
        " getComputedStyle(document.body).color].join(' ')</script>"
    )
    file = tmp_path / "page.html"
    chart = html_page.chart("c", "x", "y", {"l": (np.arange(2), np.arange(2))})
    file.write_text(html_page.page("t", [wide, html_page.row([chart] * 4), probe]))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += ["--no-first-run", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    done = subprocess.run(
        [BROWSER, *flags, f"--window-size={width},800", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    measured, color = title.split(" ", 1)
    # Chromium's smallest window is 500 pixels wide.
    assert 0 < int(measured) <= max(width, 500)
    assert color in ("rgb(31, 35, 40)", "rgb(230, 237, 243)")
