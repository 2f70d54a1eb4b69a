"""A run's results in words and tables."""

import rich.markup
import rich.table

# Scores of `evaluate`, and what they are called.
SCORES = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "roc_auc": "area under ROC curve",
    "average_precision": "average precision",
    "calibration_error": "calibration error (0 is best)",
    "scaled_calibration_error": "calibration error with the temperature",
}

_GROUPS = {"views": "view", "framings": "framing"}


def by_group(columns: list[dict]) -> dict[str, list[str]]:
    """Macro-F1 of each view and framing of the test films, where they differ.

    Args:
      columns: test scores of methods on the same films.

    Returns:
      Such as "view AP (200)" -> a figure a column; a dash where an older version did
      not count it.
    """
    rows = {}
    for kind, label in _GROUPS.items():
        groups: dict[str, dict] = next((of[kind] for of in columns if of.get(kind)), {})
        for name, there in groups.items() if len(groups) > 1 else ():
            found = [scores.get(kind, {}).get(name) for scores in columns]
            rows[f"{label} {name} ({there['n']})"] = [
                f"{of['macro_f1']:.3f}" if of else "-" for of in found
            ]
    return rows


def summary_table(results: dict) -> rich.table.Table:
    """The run's scores on the test split, the plain classifier's beside them."""
    test = results["test"]
    title = f"{results['dataset']}: {test['n']} test images, seed {results['seed']}"
    table = rich.table.Table(title=title, min_width=len(title))
    table.add_column("")
    columns = {results["method"]: test}
    if results["plain"]:
        columns = {"plain": results["plain"], **columns}
    for name in columns:
        table.add_column(name, justify="right")
    for key, label in SCORES.items():
        # Results of older versions lack them; without two classes there is no curve.
        known = [scores.get(key) for scores in columns.values()]
        if known[-1] is not None:
            shown = ("-" if value is None else f"{value:.3f}" for value in known)
            table.add_row(label, *shown)
    for label, values in by_group(list(columns.values())).items():
        # A table of films may call its view [a].
        table.add_row(f"macro F1 of {rich.markup.escape(label)}", *values)
    area = test["key_area"]
    if area:
        rows = {
            "lung IoU of the key area": area["lung_iou"],
            "  of the whole image": area["trivial_iou"]["whole"],
            "  of the central 80 %": area["trivial_iou"]["central80"],
            "  of the mean lung box": area["trivial_iou"]["mean_box"],
            "lung coverage": area["lung_coverage"],
            "lesion coverage": area["lesion_coverage"],
            "side fraction": area["side_fraction"],
            "share at a bound": area["at_bound"],
            "policy entropy (nats)": area.get("entropy"),
        }
        table.add_section()
        blanks = [""] * (len(columns) - 1)
        for label, value in rows.items():
            table.add_row(label, *blanks, "-" if value is None else f"{value:.3f}")
    for name, found in test.get("parameters", {}).items():  # not in older versions
        table.add_section()
        rows = {
            f"{name}, mean": found["mean"],
            "  spread": found["std"],
            "  error": found["error"],
            "  error but for a constant": found["error_but_for_a_constant"],
            "  error where nothing is done": found["error_untouched"],
        }
        for label, value in rows.items():
            if value is not None:
                blanks = [""] * (len(columns) - 1)
                table.add_row(label, *blanks, f"{value:.3f}")
    return table


# A policy whose map differs by less from the even one of the start has not moved.
_MOVED = 0.02
# Where the whole image overlaps the lungs by more, it is as good as a key area.
_WELL_FRAMED = 0.7
_PUBLISHED_RULE = (
    "The published rule never pushes away from a box: set policy.estimator to "
    "reinforce, with policy.warmup_steps."
)


def verdict(results: dict) -> str | None:
    """What is wrong where the policy did not learn to look, and what to change."""
    area = results["test"]["key_area"]
    if area is None or results["method"] != "hapre":
        return None
    is_published_rule = results["config"]["policy"]["estimator"] == "paper"
    if area["side_fraction"] > 0.97:
        whole = area["trivial_iou"]["whole"]
        if whole is not None and whole > _WELL_FRAMED:
            return (
                "The key area is the whole image. These films are framed about the "
                f"lungs already (IoU of the whole image {whole:.2f}), so that a crop "
                "has little to gain."
            )
        waits = results["config"]["policy"]["warmup_steps"]
        if waits >= (steps := results["config"]["train"]["steps"]):
            return (
                f"The policy was not trained: policy.warmup_steps is {waits}, and "
                f"train.steps {steps}: raise train.steps, or lower the warm-up."
            )
        # Results of older versions do not say how far the map is from its start.
        if area.get("map_change", 1.0) < _MOVED:
            return (
                "The policy did not move: its key area is the whole image, as at the "
                "start. If the classifier has learned (see learning.png), raise "
                "train.policy_learning_rate or train.steps; if not, raise "
                "policy.warmup_steps or train.task_learning_rate."
            )
        change = (
            "Raise policy.warmup_steps or policy.train_crops, so that the classifier "
            "can read crops before the policy learns."
        )
        if not results["config"]["policy"]["area_cost"]:
            change += (
                " Where a crop is worth little at first, as of most real films, a cost "
                "of area leads away from the whole image: policy.area_cost 0.4 and "
                "policy.final_area_cost 0.1, as in configs/films.py."
            )
        return (
            "The key area is still the whole image: the policy did not learn to crop. "
            + (_PUBLISHED_RULE if is_published_rule else change)
        )
    if area["at_bound"] > 0.5:
        return (
            f"{area['at_bound']:.0%} of the key areas are at a bound of their size: "
            "the policy may have collapsed. Change policy.min_side or policy.max_side, "
            "or lower train.policy_learning_rate."
        )
    if area["displacement"] < 0.02:
        change = (
            "Raise train.steps, policy.samples or policy.image_size, so that it learns "
            "from where the images differ."
        )
        return (
            "The key areas hardly differ between images: the policy found one crop for "
            "all. " + (_PUBLISHED_RULE if is_published_rule else change)
        )
    return None
