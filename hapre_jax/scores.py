"""Scores of runs over seeds, as records for JSON and as tables for readers."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hapre_jax import (
    bootstrap,
    json_file,
    metrics,
    predictions,
    result_table,
)
from hapre_jax.errors import UserError
from hapre_jax.experiments import Experiment

METRICS = {
    "accuracy": "Acc",
    "macro_precision": "Pre",
    "macro_recall": "Rec",
    "macro_f1": "F1",
}


def known(results: Sequence[dict], path: str) -> list[float]:
    """What runs found of one kind, without those that do not say it.

    Args:
      results: of runs, as in their `results.json`.
      path: names within each other, such as "test.key_area.lung_iou".
    """
    found: list[Any] = list(results)
    for name in path.split("."):
        found = [(of or {}).get(name) for of in found]
    return [value for value in found if value is not None]


def across_seeds(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, half a 95 % t-interval, and the values themselves; None of no values."""
    if not values:
        return None
    return {
        "mean": float(np.mean(values)),
        "interval": metrics.interval(values),
        "values": list(values),
    }


def record(
    runs: Sequence[Experiment],
    reference: Sequence[Experiment] = (),
    *,
    tested: str = "",
) -> dict[str, Any]:
    """All that is known of finished runs that differ in the seed.

    Args:
      runs: with one or more seeds.
      reference: runs that they are compared with, seed by seed, on the same films;
        seeds that only one has do not count.
      tested: source that they were tested on, if it is not their own: then results are
        in `on/SOURCE.json` of each run's folder.

    Raises:
      UserError: files are missing or damaged, or a run and its reference were tested on
        other films.
    """
    results, answers = zip(*(_read(run, tested) for run in runs), strict=True)
    rivals = {run.values["seed"]: run for run in reference}
    pairs = []
    for run, of in zip(runs, answers, strict=True):
        if beside := rivals.get(run.values["seed"]):
            pairs.append((of, _read(beside, tested)[1]))
            if not bootstrap.is_pair(*pairs[-1]):
                raise UserError(
                    f"{run.folder} and {beside.folder} were tested on other films"
                    + (
                        f" of {tested}: delete on/{tested}.json in both"
                        if tested
                        else ""
                    )
                )
    scores = {
        name: across_seeds([of["test"][name] for of in results]) for name in METRICS
    }
    return {
        "seeds": [int(run.values["seed"]) for run in runs],
        "images": [of["test"]["n"] for of in results],
        "scores": scores,
        "f1_over_images": bootstrap.mean_f1(answers)._asdict(),
        "gain": _gain(pairs) if pairs else None,
        "lung_iou": across_seeds(known(results, "test.key_area.lung_iou")),
        "minutes": float(np.mean([of["seconds"] / 60 for of in results])),
        # Older versions did not write it.
        "commits": sorted({of.get("commit") or "unknown" for of in results}),
    }


def _gain(pairs) -> dict[str, Any]:
    """What is gained, with what it depends on: the test patients, and the seeds."""
    return {
        **bootstrap.mean_gain(pairs)._asdict(),
        "seeds": len(pairs),
        "over_seeds": across_seeds(bootstrap.gains(pairs)),
    }


def _read(run: Experiment, tested: str):
    """Results and predictions of a run, on its own source or another."""
    if tested:
        file = run.folder / "on" / f"{tested}.json"
        answers = file.with_name(f"{tested}_predictions.csv")
    else:
        file, answers = run.folder / "results.json", run.folder / "predictions.csv"
    results = json_file.read(file)
    if not isinstance(results, dict) or "n" not in (results.get("test") or ()):
        raise UserError(f"{file} holds no results; delete it")
    return results, predictions.read(answers, count=results["test"]["n"])


def shown(score: dict | None, *, per_cent: bool = True) -> str:
    """The mean, in per cent or as it is, with half of the interval over seeds."""
    if score is None:
        return ""
    factor, digits = (100, 1) if per_cent else (1, 3)
    parts = [part for part in (score["mean"], score["interval"]) if part is not None]
    return " ± ".join(f"{factor * part:.{digits}f}" for part in parts)


def over_patients(score: dict) -> str:
    """The interval over test patients of a score, in per cent."""
    return f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def gained(gain: dict | None, seeds: int = 0) -> str:
    """Points more than the reference, ± over seeds and [ ] over test patients.

    Args:
      gain: of a record, or None.
      seeds: of the whole table; a gain of fewer says so.
    """
    if gain is None:
        return ""
    low, high = (_signed(100 * gain[end]) for end in ("low", "high"))
    p = "p < 0.002" if gain["p"] < 0.002 else f"p = {gain['p']:.3f}"
    fewer = f" (seeds: {gain['seeds']})" if gain["seeds"] < seeds else ""
    interval = gain["over_seeds"]["interval"]
    spread = "" if interval is None else f" ± {100 * interval:.1f}"
    return f"{_signed(100 * gain['value'])}{spread} [{low}, {high}], {p}{fewer}"


def is_clear(gain: dict) -> bool:
    """Whether neither the test patients nor the seeds may be all there is to a gain.

    Of one seed it is never clear: another training may differ by more.
    """
    seeds, either = gain["over_seeds"], (gain["low"], gain["high"])
    if seeds["interval"] is None or min(either) <= 0 <= max(either):
        return False
    return abs(seeds["mean"]) > seeds["interval"]


def count_films(one: dict) -> str:
    """How many test films a record is of, which may differ between seeds."""
    least, most = min(one["images"]), max(one["images"])
    return str(most) if least == most else f"{least} to {most}"


def in_words(lines: Sequence[tuple[dict, str]], reference: str) -> str:
    """What records and their names say, for those who read no table."""
    said = []
    if len({one.get("tested", "") for one, _ in lines}) == 1 and len(lines) > 1:
        means = [round(one["scores"]["macro_f1"]["mean"], 6) for one, _ in lines]
        best = [
            line for line, mean in zip(lines, means, strict=True) if mean == max(means)
        ]
        found = [f"{name}, {shown(one['scores']['macro_f1'])}" for one, name in best]
        verb = "has" if len(best) == 1 else "have"
        said.append(f"The best macro-F1 {verb} {'; '.join(found)} per cent.")
    gains: dict[str, list[str]] = {"better": [], "worse": []}
    for one, name in lines:
        if (gain := one["gain"]) and is_clear(gain):
            way = "better" if gain["value"] > 0 else "worse"
            gains[way].append(f"{name} ({_signed(100 * gain['value'])})")
    for way, found in gains.items():
        if found:
            said.append(
                f"With intervals over seeds and over test patients that leave out 0, "
                f"{way} than {reference} by points of macro-F1: {', '.join(found)}."
            )
    measured = [one["gain"] for one, _ in lines if one["gain"]]
    if measured and all(gain["over_seeds"]["interval"] is None for gain in measured):
        said.append("Differences are of one seed: another training may have others.")
    elif measured and not any(gains.values()):
        said.append(
            f"No difference from {reference} has intervals over seeds and over test "
            "patients that both leave out 0."
        )
    return " ".join(said)


def _signed(points):
    return f"{round(points, 1) + 0.0:+.1f}".replace("-", "−")


def table(
    title: str,
    records: Sequence[dict],
    names: Sequence[str],
    *,
    reference: str,
    beside: Sequence[str] = (),
    extra: dict[str, Callable[[dict], str]] | None = None,
) -> result_table.Table:
    """A line a record: the paper's four metrics, and what they are worth.

    Args:
      title: of the table.
      records: see `record`; a "paper" holds the paper's scores of the same, and those
        of the same "tested" compete for the best figure.
      names: of the lines.
      reference: name of what gains are measured against.
      beside: names of lines that do not compete for the best figure; nor do those of
        fewer seeds than others.
      extra: more columns: name -> text of a record.
    """
    extra = dict(extra or {})
    if any(one["lung_iou"] for one in records):
        extra["lung IoU"] = lambda one: shown(one["lung_iou"])
    if any(one.get("paper") for one in records):
        extra["paper's F1"] = lambda one: (
            f"{100 * one['paper']['macro_f1']:.1f}" if one["paper"] else ""
        )
    if len({count_films(one) for one in records}) > 1:
        extra["films"] = count_films
    most = max(len(one["seeds"]) for one in records)
    if any(len(one["seeds"]) < most for one in records):
        extra["seeds"] = lambda one: str(len(one["seeds"]))
    columns = ["", *METRICS.values(), "F1 over patients"]
    columns += [f"F1 more than {reference}", *extra]
    rows = [
        [
            name,
            *(shown(one["scores"][metric]) for metric in METRICS),
            over_patients(one["f1_over_images"]),
            gained(one["gain"], most),
            *(text(one) for text in extra.values()),
        ]
        for name, one in zip(names, records, strict=True)
    ]
    competes = [
        name not in beside and len(one["seeds"]) == most
        for name, one in zip(names, records, strict=True)
    ]
    ranked = {
        column: [
            one["scores"][metric]["mean"] if is_rival else None
            for one, is_rival in zip(records, competes, strict=True)
        ]
        for metric, column in METRICS.items()
    }
    contests = [one.get("tested", "") for one in records]
    table = result_table.make(title, columns, rows, ranked=ranked, contests=contests)
    rivals = itertools.compress(zip(records, names, strict=True), competes)
    return table._replace(words=in_words(list(rivals), reference))
