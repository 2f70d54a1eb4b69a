"""A run's results in words and tables."""

import rich.table


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
    for key in ("accuracy", "macro_precision", "macro_recall", "macro_f1"):
        row = [f"{scores[key]:.3f}" for scores in columns.values()]
        table.add_row(key.replace("_", " "), *row)
    for view, there in test["views"].items():
        row = [
            f"{scores['views'][view]['macro_f1']:.3f}" for scores in columns.values()
        ]
        table.add_row(f"macro f1 of view {view} ({there['n']})", *row)
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
            "policy entropy (nats)": area["entropy"],
        }
        table.add_section()
        blanks = [""] * (len(columns) - 1)
        for label, value in rows.items():
            table.add_row(label, *blanks, "-" if value is None else f"{value:.3f}")
    return table


def verdict(results: dict) -> str | None:
    """One plain sentence where the policy did not learn to look, else None."""
    area = results["test"]["key_area"]
    if area is None:
        return None
    if area["side_fraction"] > 0.97:
        return (
            "The key area is still the whole image: the policy did not learn to crop."
        )
    if area["at_bound"] > 0.5:
        return (
            f"{area['at_bound']:.0%} of the key areas are at a bound of their size: "
            "the policy may have collapsed; see policy.min_side and policy.max_side."
        )
    if area["displacement"] < 0.02:
        return "The key areas hardly differ between images: the policy found one crop."
    return None
