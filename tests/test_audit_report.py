"""What is said of made-up audits, and the program as a user runs it."""

import io
import json

import numpy as np
import pytest
import rich.console
from PIL import Image

from hapre_jax import errors
from hapre_jax.data import __main__ as program
from hapre_jax.data import audit_report
from hapre_jax.data.audit import Audit, Copies, Groups

PROPERTIES = (
    "aspect ratio",
    "width",
    "height",
    "area",
    "channels",
    "bits",
    "EXIF",
    "JPEG",
    "file size",
    "bytes a pixel",
)
CLEAN = "No shortcut found in the shape and kind of the files: AUC 0.50."
SEPARATED = "The shape and kind of the files alone separate "


def audited(aucs=(), copies=(), groups=(), **fields):
    """An audit that has nothing to tell but what is given."""
    none = dict.fromkeys(
        ("sets", "of_several_classes", "of_several_groups", "of_several_splits"), ()
    )
    good = {
        "number": 150,
        "of_several_films": 0.3,
        "of_several_classes": 0.0,
        "image_level_leak": 0.02,
        "official_leak": None,
    }
    defaults = {
        "name": "my films",
        "classes": ("normal", "viral"),
        "counts": (100, 120),
        "official_counts": {},
        "unreadable": {},
        "view": "",
        "aucs": dict.fromkeys(PROPERTIES, 0.5) | dict(aucs),
        "together": (0.5, 0.5),
        "chance": 0.6,
        "copies": Copies(**none | dict(copies)),
        "groups": Groups(**good | dict(groups)),
    }
    return Audit(**defaults | fields)


def printed(audit):
    console = rich.console.Console(width=100, file=io.StringIO())
    for table in audit_report.tables(audit):
        console.print(table)
    return console.file.getvalue()


def rows(audit):
    """The cells of each line that is printed of the tables."""
    lines = printed(audit).replace("┃", "│").splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_nothing_to_tell():
    assert audit_report.verdict(audited()) == [CLEAN]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("aspect ratio", "--data.geometry cover is the only"),
        *((k, "resizing hides it") for k in ("width", "height", "area", "JPEG")),
        *((k, "hidden from a network here") for k in ("channels", "bits", "EXIF")),
    ],
)
def test_a_property_of_shape_or_kind(name, advice):
    first, second = audit_report.verdict(audited({name: 0.1}, together=(0.9, 0.9)))
    assert first.startswith(f"{SEPARATED}normal from the rest with AUC 0.90, ")
    assert first.endswith(f" Of single properties, {name} tells normal best, AUC 0.90.")
    assert second.startswith(f"By {name} (AUC 0.90, lower in normal): {advice}")
    is_hidden = advice.startswith("hidden")
    assert ("but by nothing that a network sees." in first) == is_hidden
    assert ("so a network can score without looking" in first) != is_hidden


@pytest.mark.parametrize("name", ["file size", "bytes a pixel"])
def test_what_depends_on_the_pixels_proves_nothing_by_itself(name):
    first, second = audit_report.verdict(audited({name: 0.9}))
    assert first == CLEAN
    assert second.startswith(f"By {name} (AUC 0.90, higher in normal): the classes")


def test_the_view():
    films = audited({"view": 0.74, "width": 0.3}, view="PA", together=(0.7, 0.7))
    first, second, third = audit_report.verdict(films)
    assert "Of single properties, width tells normal best, AUC 0.70." in first
    assert second.startswith("By width (AUC 0.70, lower in normal)")
    assert third == (
        "By share of PA views (AUC 0.74, higher in normal): the view is visible in the "
        "picture; --data.view PA, or AP, takes one view only, and scores are reported "
        "per view."
    )
    assert ["share of PA views", "0.740", "higher"] in rows(films)
    films = audited({"view": 0.26}, view="AP", groups={"official_leak": 0.1})
    first, second, _ = audit_report.verdict(films)
    assert first == CLEAN and "share of AP views (AUC 0.74, lower in" in second
    assert audit_report.verdict(audited({"view": 0.6}, view="PA")) == [CLEAN]


def test_properties_with_one_advice_share_a_sentence():
    sentences = audit_report.verdict(audited({"area": 0.9, "width": 0.2}))
    assert sentences[1].startswith(
        "By width (AUC 0.80, lower in normal), area (AUC 0.90, higher in normal): "
    )
    assert len(sentences) == 2


def test_of_equal_properties_the_aspect_ratio_is_named():
    first, *_ = audit_report.verdict(audited({"aspect ratio": 0.101, "area": 0.9}))
    assert "Of single properties, aspect ratio tells normal best, AUC 0.90." in first


def test_a_weak_shortcut():
    first, *others = audit_report.verdict(audited(together=(0.7, 0.72)))
    assert first.startswith(
        f"{SEPARATED}viral from the rest with AUC 0.72, so a network can score a little"
    )
    assert not others


def test_another_class_is_told_best():
    films = audited(
        {"width": 0.25},
        classes=("a", "b", "c"),
        counts=(60, 60, 60),
        together=(0.75, 0.75, 1.0),
    )
    first, *_ = audit_report.verdict(films)
    assert first.startswith(f"{SEPARATED}c from the rest with AUC 1.00")
    assert first.endswith("Of single properties, width tells a best, AUC 0.75.")
    assert ["mean", "0.833", ""] in rows(films)


def test_a_hidden_property_does_not_excuse_what_the_classifier_saw():
    first, *_ = audit_report.verdict(audited({"EXIF": 0.3}, together=(0.95, 0.95)))
    assert "0.95, so a network can score without looking" in first


def test_chance():
    films = audited(dict.fromkeys(PROPERTIES, 0.2), chance=0.85, counts=(50, 60))
    assert audit_report.verdict(films) == [
        f"{CLEAN.replace('0.50.', '0.80')}, where chance may reach 0.85."
    ]
    # Where nothing could be found, none is called clean.
    films = audited(dict.fromkeys(PROPERTIES, 0.0), chance=1.0, counts=(50, 60))
    assert audit_report.verdict(films) == [
        "There are too few films, or patients, to say whether the shape and kind of "
        "the files tell the classes apart: by chance alone the AUC may reach 1.00."
    ]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            {"copies": {"of_several_classes": (("a/1.png", "b/1.png"),)}},
            "Byte-identical files lie in several classes, of which at most one is "
            "right: correct or remove a/1.png, b/1.png.",
        ),
        (
            {"copies": {"of_several_splits": (("1", "2"), ("3", "4", "5"))}},
            "Byte-identical files lie in several official splits, whose scores are "
            "optimistic: 1, 2, 3 and 2 more.",
        ),
        (
            {"groups": {"official_leak": 0.25}},
            "25.0% of the official test images belong to a group of the official "
            "training split: scores on them are optimistic.",
        ),
        (
            {"groups": {"image_level_leak": 0.4}},
            "Dividing single images at random would put 40.0% of the test images in a "
            "group that is trained on: split by group, the default.",
        ),
        (
            {"copies": {"of_several_groups": (("1", "2"),)}},
            "Byte-identical files belong to several groups, and are kept in one split "
            "here, but not by every program: 1, 2.",
        ),
        (
            {"groups": {"of_several_films": 0.0, "image_level_leak": None}},
            "Each film is a group of its own: those of one patient may be divided "
            "between training and test. For your own films, groups.csv names patients.",
        ),
        (
            {"counts": (49, 50)},
            "Fewer than 50 films of normal (49): one test film more or less moves the "
            "recall by 10 points or more. Repeat with several seeds.",
        ),
        (
            {"counts": (400, 100)},
            "There are 4.0 times as many films of normal as of viral: judge by "
            "macro-F1, not by accuracy.",
        ),
        (
            {"together": None},
            "Too few groups in a class for a classifier of the file properties: they "
            "were judged one by one only.",
        ),
        (
            {"unreadable": {"a.png": "a.png cannot be read: not an image"}},
            "1 file(s) were left out: a.png cannot be read: not an image.",
        ),
    ],
)
def test_other_findings(found, sentence):
    assert audit_report.verdict(audited(**found)) == [sentence, CLEAN]


def test_a_shortcut_is_said_first():
    leak = {"official_leak": 0.1}
    first, *_ = audit_report.verdict(audited({"width": 0.0}, groups=leak))
    assert first.startswith(SEPARATED)


def test_tables():
    films = audited(
        classes=("[i]ll", "well"),
        counts=(30, 90),
        official_counts={"train": (20, 80), "test": (10, 10)},
        copies={"sets": (("1", "2"), ("3", "4", "5"))},
        groups={"image_level_leak": 0.25},
    )
    lines = rows(films)
    assert ["class", "films", "share", "train", "test"] in lines
    assert ["[i]ll", "30", "25.0%", "20", "10"] in lines
    assert ["property", "AUC", "in [i]ll"] in lines
    assert ["shape and kind together: [i]ll", "0.500", ""] in lines
    assert ["possible by chance", "0.600", ""] in lines
    assert ["sets of identical files", "2"] in lines and ["files in them", "5"] in lines
    assert ["leak of an image-level split", "25.0%"] in lines
    assert ["leak of the official split", "-"] in lines
    assert not any("mean" in line for line in lines)


def test_the_strongest_property_is_the_first_row():
    lines = rows(audited({"bits": 0.2, "area": 0.9}))
    start = lines.index(["property", "AUC", "in normal"]) + 2
    assert lines[start : start + 3] == [
        ["area", "0.900", "higher"],
        ["bits", "0.800", "lower"],
        ["aspect ratio", "0.500", "-"],
    ]


@pytest.fixture
def table(tmp_path):
    """A CSV file of narrow normal films and wide viral ones, and one broken file."""
    rng = np.random.default_rng(0)
    lines = ["path,label,group,view"]
    for label, width, view in (("normal", 20, "PA"), ("viral", 40, "AP")):
        for index in range(12):
            name = f"{label}-{index}.png"
            pixels = rng.integers(0, 256, (30, width)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
            lines.append(f"{name},{label},{label}{index},{view}")
    (tmp_path / "broken.png").write_text("no image")
    lines.append("broken.png,viral,nobody,")
    path = tmp_path / "films.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_program(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    out = tmp_path / "audit.json"
    arguments = ["audit", "folder", "--root", str(table), "--json", str(out)]
    assert program.main(arguments) == 0
    text = capsys.readouterr().out
    assert "folder files 25/25" in text and f"Written to {out}." in text
    assert "share of PA views" in text and "shape and kind together: viral" in text
    saved = json.loads(out.read_text())
    assert saved["aucs"].keys() == {*PROPERTIES, "view"}
    assert saved["aucs"]["aspect ratio"] == 0 and saved["aucs"]["view"] == 1
    assert saved["counts"] == [12, 12] and saved["view"] == "PA"
    assert saved["verdict"][0].startswith(f"{SEPARATED}normal from the rest with AUC")
    # All of the verdict is printed, wrapped.
    for sentence in saved["verdict"]:
        assert f"* {sentence}" in " ".join(text.split())
    verdict = text[text.index("* The shape") : text.index("Written to")]
    assert max(map(len, verdict.splitlines())) <= 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["phantom", "--root", "films"], "invalid choice: 'phantom'"),
        (["folder"], "arguments are required: --root"),
        (["folder", "--root", "nowhere"], "^nowhere does not exist: give a folder or"),
    ],
)
def test_program_refuses(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError, match=message):
        program.main(["audit", *arguments])


def test_figures_that_cannot_be_written(table, tmp_path):
    out = tmp_path / "nowhere" / "audit.json"
    with pytest.raises(errors.UserError, match=f"^--json {out} is in no folder"):
        program.main(["audit", "folder", "--root", str(table), "--json", str(out)])
