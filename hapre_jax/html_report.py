"""A page about a run or a table, in one file: `python -m hapre_jax.html_report FOLDER`.

Words first, then figures, pictures, mistakes and settings. The page needs no network,
so it can be mailed, and read on a phone, in light or dark.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from hapre_jax import atomic, bootstrap, cli, predictions, probabilities, run_folder
from hapre_jax import config as config_lib
from hapre_jax.predictions import Predictions
from hapre_jax.reporting import html_page, report
from hapre_jax.result_table import Table

# Heading -> pictures that a run, or a test, may have left, and what they show.
_PICTURES = {
    "What it looks at": {
        "key_areas.png": "Test films with the key area, the lungs where they are "
        "known, and the key area enlarged.",
        "heatmaps.png": "Where the classifiers look: the brighter, the more a place "
        "speaks for the class that is answered (Grad-CAM); 0 outside of a key area.",
    },
    "How it learned": {
        "learning.png": "Curves over the training step.",
        "key_areas_over_time.png": "How the key areas of six validation films moved "
        "in training.",
        "landscape.png": "The reward landscape: loss of the classifier against zoom "
        "and shift around the lungs, where these are known, else around the key areas; "
        "a class a panel.",
    },
    "The worst mistakes": {
        "mistakes.png": "The wrong answers given with most confidence.",
    },
}


def of_run(workdir: pathlib.Path, results: dict) -> str:
    """The page about a run.

    Args:
      workdir: its folder, with `predictions.csv` and pictures.
      results: what its `results.json` holds, or is about to.

    Raises:
      UserError: the folder has no predictions, or not those of all films.
    """
    ours = predictions.read(workdir / "predictions.csv", count=results["test"]["n"])
    compared = None
    file = workdir / run_folder.PLAIN / "predictions.csv"
    if file.exists():
        compared = predictions.read(file, count=results["test"]["n"])
    methods = {results["method"]: (results["test"], ours)}
    if compared is not None:
        methods["plain"] = (results["plain"], compared)
    title = f"{results['method']} on {results['dataset']}, seed {results['seed']}"
    body = _said(in_words(results, ours, compared), report.verdict(results))
    return html_page.page(title, [*body, *_evidence(results, methods, workdir)])


def of_test(output: pathlib.Path, results: dict, *, trained_on: str) -> str:
    """The page about a test of a run on other films, see `evaluate`.

    Args:
      output: file of the results, with predictions and pictures beside it, called
        after it.
      results: what it holds, or is about to.
      trained_on: name of the films that the run was trained on.

    Raises:
      UserError: there are no predictions.
    """
    prefix = f"{output.stem}_"
    file = output.with_name(f"{prefix}predictions.csv")
    answers = predictions.read(file, count=results["test"]["n"])
    methods = {results["method"]: (results["test"], answers)}
    title = f"{results['method']} on {results['dataset']}, trained on {trained_on}"
    body = _said(in_words(results, answers, None))
    evidence = _evidence(results, methods, output.parent, prefix)
    return html_page.page(title, [*body, *evidence])


def _said(words, warning=None) -> list[str]:
    body = [html_page.paragraph(text, kind="lead") for text in words]
    return body + ([html_page.paragraph(warning, kind="warning")] if warning else [])


def _evidence(results, methods, folder, prefix="") -> list[str]:
    """Figures, pictures, mistakes and settings."""
    return [
        *_scores(methods),
        html_page.heading("Which class for which"),
        html_page.row(_confusions(methods)),
        *_curves(methods),
        *_pictures(folder, prefix),
        *_settings(results),
    ]


def in_words(
    results: dict, ours: Predictions, compared: Predictions | None
) -> list[str]:
    """What came out, in sentences.

    Args:
      results: as in `results.json`.
      ours: answers on the test split.
      compared: those of the plain classifier, if it was trained.
    """
    test = results["test"]
    f1 = bootstrap.mean_f1([ours])
    right = round(test["accuracy"] * test["n"])  # 99.96 % would be shown as 100.0 %
    said = [
        f"On {test['n']} test films it has never seen, {results['method']} has a "
        f"macro-F1 of {f1.value:.3f} (95 % interval over test patients {f1.low:.3f} to "
        f"{f1.high:.3f}) and is right in {right} ({test['accuracy']:.1%})."
    ]
    if compared is not None:
        gain = bootstrap.mean_gain([(ours, compared)])
        chance = (
            "which chance in the choice of test patients may explain"
            if gain.low <= 0 <= gain.high
            else "more than chance in the choice of test patients explains"
        )
        said.append(
            "The plain classifier of the whole film has "
            f"{results['plain']['macro_f1']:.3f}: a difference of {gain.value:+.3f} "
            f"({gain.low:+.3f} to {gain.high:+.3f}), {chance}. Another seed of the "
            "training may differ by more."
        )
    area = test["key_area"]
    if area:
        said.append(_area_in_words(area))
    return said


def _area_in_words(area: dict) -> str:
    text = (
        f"The key area's side is {area['side_fraction']:.0%} of the film's on average"
    )
    if area["lung_iou"] is None:
        return text + ". Where the lungs are is not known of these films."
    mean_box = area["trivial_iou"]["mean_box"]
    text += (
        f". It covers {area['lung_coverage']:.0%} of the lung box and overlaps it with "
        f"an IoU of {area['lung_iou']:.2f}; the whole film has "
        f"{area['trivial_iou']['whole']:.2f}"
    )
    if mean_box is not None:
        text += f", one box for all films, the mean lung box, {mean_box:.2f}"
    return text + "."


def _scores(methods) -> list[str]:
    rows = []
    for key, name in report.SCORES.items():
        values = [scores.get(key) for scores, _ in methods.values()]
        rows.append([name, *("–" if v is None else f"{v:.3f}" for v in values)])
    groups = report.by_group([scores for scores, _ in methods.values()])
    rows += [[f"macro F1 of {label}", *values] for label, values in groups.items()]
    table = html_page.table("Of the test films", ["", *methods], rows)
    return [html_page.heading("Scores"), table]


def _confusions(methods) -> list[str]:
    return [
        html_page.confusion(
            name, scores["classes"], np.array(scores["confusion_matrix"])
        )
        for name, (scores, _) in methods.items()
    ]


def _curves(methods) -> list[str]:
    charts = []
    for name, (_, of) in methods.items():
        lines = {}
        for kind, label in enumerate(of.classes):
            is_kind = of.labels == kind
            if 0 < is_kind.sum() < len(is_kind):
                lines[label] = probabilities.roc_curve(
                    of.probabilities[:, kind], is_kind
                )
        charts.append(
            html_page.chart(
                f"ROC: {name}", "false positive rate", "true positive rate", lines
            )
        )
    calibration = {}
    for name, (_, of) in methods.items():
        bins = probabilities.reliability(of.probabilities, of.labels)
        calibration[name] = bins.confidence, bins.accuracy
    charts.append(
        html_page.chart(
            "Calibration", "confidence", "share right", calibration, stepped=True
        )
    )
    note = (
        "Each class against the rest. A calibrated network's line in the last panel is "
        "the diagonal: of answers given with 80 % confidence, 80 % are right."
    )
    return [
        html_page.heading("How it ranks, and how sure it is"),
        html_page.row(charts),
        html_page.paragraph(note, kind="note"),
    ]


def _pictures(folder, prefix) -> list[str]:
    """Those that are there, under their headings."""
    body = []
    for heading, known in _PICTURES.items():
        files = {folder / f"{prefix}{name}": text for name, text in known.items()}
        shown = [html_page.picture(f, text) for f, text in files.items() if f.exists()]
        body += [html_page.heading(heading), *shown] if shown else []
    return body


def _settings(results) -> list[str]:
    given = config_lib.options(config_lib.from_dict(results["config"]))
    default = config_lib.options(config_lib.Config())
    rows = {
        path: [path, config_lib.to_text(field.value), field.help]
        for path, field in given.items()
    }
    changed = [rows[p] for p in rows if given[p].value != default[p].value]
    environment = {**results["versions"], "device": results["device"]}
    # Results of older versions lack it, installed packages do not know it.
    environment["commit of hapre_jax"] = results.get("commit") or "unknown"
    environment["training"] = f"{results['seconds'] / 60:.1f} minutes"
    environment["best step"] = f"{results['best_step']} of {results['steps']}"
    columns = ["field", "value", "what it is"]
    return [
        html_page.heading("Settings and environment"),
        html_page.table("Fields that are not the default", columns, changed),
        html_page.details(
            "All fields", [html_page.table("", columns, list(rows.values()))]
        ),
        html_page.table(
            "Environment", ["", ""], [[k, str(v)] for k, v in environment.items()]
        ),
        html_page.paragraph("Not for clinical use.", kind="note"),
    ]


def of_table(title: str, tables: Sequence[Table], notes: str) -> str:
    """The page about tables, with notes in Markdown."""
    body = []
    for one in tables:
        if one.words:
            body += [html_page.heading(one.title), html_page.paragraph(one.words)]
        body.append(html_page.table(one.title, one.columns, one.rows, marks=one.marks))
    plain = notes.replace("**", "").replace("`", "")
    plain = plain.replace("<u>", "").replace("</u>", "")
    return html_page.page(title, [*body, html_page.paragraph(plain, kind="note")])


def write(workdir: pathlib.Path, results: dict) -> pathlib.Path:
    """Writes `report.html` of a run, see `of_run`; returns where."""
    file = workdir / "report.html"
    atomic.write_text(file, of_run(workdir, results))
    return file


def main(argv: list[str]) -> int:
    """The program."""
    parser = cli.Parser(
        prog="python -m hapre_jax.html_report",
        description="Write the page about a finished run again, as report.html of its "
        "folder.",
    )
    parser.add_argument("run", type=pathlib.Path, help="folder of a finished run")
    workdir = parser.parse_args(argv).run
    print(write(workdir, run_folder.read_results(workdir)))
    return 0


if __name__ == "__main__":
    cli.run(main)
