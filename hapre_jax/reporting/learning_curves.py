"""Curves of a run over the training step, from its `metrics.jsonl`."""

import pathlib

from PIL import Image, ImageDraw

from hapre_jax import log
from hapre_jax.reporting import figures
from hapre_jax.reporting.curve_panel import (
    CELL,
    OTHER_COLOR,
    POLICY_COLOR,
    TASK_COLOR,
    Curve,
    Panel,
    draw_panel,
    points_of,
)

_GAP, _MARGIN, _TOP = 32, 26, 64
_COLUMNS = 3

PANELS = (
    Panel(
        "Loss of the task network",
        (Curve("", "train", "task_loss", TASK_COLOR),),
        shown=(0.0, 0.1),
    ),
    Panel(
        "Reward",
        (Curve("mean", "train", "reward", POLICY_COLOR),),
        band=("reward_p10", "reward_p90"),
    ),
    Panel(
        "Side of the key area / side of the image",
        (
            Curve("train", "train", "side", POLICY_COLOR),
            Curve("validation", "validation", "key_area/side_fraction", TASK_COLOR),
        ),
        shown=(0.0, 1.0),
        level=(1.0, "whole image"),
    ),
    Panel(
        "IoU of the key area with the lungs",
        (
            Curve("train", "train", "lung_iou", POLICY_COLOR),
            Curve("validation", "validation", "key_area/lung_iou", TASK_COLOR),
            Curve(
                "mean lung box",
                "validation",
                "key_area/mean_box_iou",
                figures.INK,
                is_thin=True,
            ),
        ),
        shown=(0.0, 1.0),
    ),
    Panel(
        "Differences between key areas",
        (Curve("", "validation", "key_area/displacement", TASK_COLOR),),
        shown=(0.0, 0.1),
    ),
    Panel(
        "Entropy of the policy, in nats",
        (Curve("", "train", "entropy", POLICY_COLOR),),
    ),
    Panel(
        "Share of images",
        (
            Curve("D1 < 0", "train", "helped", POLICY_COLOR),
            Curve("expanded", "train", "expanded", TASK_COLOR),
            Curve("shrunk", "train", "shrunk", OTHER_COLOR),
        ),
        shown=(0.0, 1.0),
    ),
    Panel(
        "Norm of the gradient",
        (
            Curve("task network", "train", "grad_norm/task", TASK_COLOR),
            Curve("policy", "train", "grad_norm/policy", POLICY_COLOR),
        ),
        is_log=True,
    ),
    Panel(
        "Macro-F1, validation",
        (Curve("", "validation", "macro_f1", TASK_COLOR),),
        shown=(0.0, 1.0),
        rings_best=True,
    ),
    Panel(
        "Dice, validation",
        (Curve("", "validation", "dice", TASK_COLOR),),
        shown=(0.0, 1.0),
        rings_best=True,
    ),
    Panel(
        "Average precision at IoU 0.5, validation",
        (Curve("", "validation", "ap_50", TASK_COLOR),),
        shown=(0.0, 1.0),
        rings_best=True,
    ),
)


def draw_run(workdir: pathlib.Path, *, steps: int, warmup_steps: int) -> None:
    """Writes `learning.png` into a run's folder from the records so far."""
    records = log.read(workdir / "metrics.jsonl")
    picture = draw(records, steps=steps, warmup_steps=warmup_steps)
    figures.save(picture, workdir / "learning.png")


def draw(records: list[dict], *, steps: int, warmup_steps: int = 0) -> Image.Image:
    """A panel for each thing that the records tell about.

    Args:
      records: of `metrics.jsonl`.
      steps: of the whole run, the end of each horizontal axis.
      warmup_steps: marked by a line where there is a policy.

    Returns:
      An RGB picture.
    """
    has_policy = any("policy_loss" in record for record in records)
    if not has_policy:
        warmup_steps = 0
    panels = [p for p in PANELS if any(len(points_of(records, c)[0]) for c in p.curves)]
    width = 2 * _MARGIN + _COLUMNS * (CELL[0] + _GAP) - _GAP
    explanation = figures.wrapped(
        _how_to_read(has_policy, warmup_steps, steps),
        figures.font(16),
        width - 2 * _MARGIN,
    )
    bottom = _TOP + 20 + -(-len(panels) // _COLUMNS) * CELL[1]
    height = bottom + 24 * len(explanation) + _MARGIN
    picture = Image.new("RGB", (width, height), figures.PAPER)
    pen = ImageDraw.Draw(picture)
    title = "How the networks learned" if has_policy else "How the network learned"
    pen.text((_MARGIN, 20), title, figures.INK, figures.font(24))
    for place, panel in enumerate(panels):
        x = _MARGIN + place % _COLUMNS * (CELL[0] + _GAP)
        y = _TOP + place // _COLUMNS * CELL[1]
        draw_panel(picture, x, y, panel, records, steps, warmup_steps)
    for line, text in enumerate(explanation):
        start = (_MARGIN, bottom + 24 * line)
        pen.text(start, text, figures.INK, figures.font(16))
    return picture


def _how_to_read(has_policy, warmup_steps, steps):
    text = "A line is the mean over the steps between two records, a dot a validation."
    text += " The ring marks the validation whose networks are kept."
    if 0 < warmup_steps < steps:
        text += (
            " The vertical line ends the warm-up, in which the policy waits and has no "
            "gradient."
        )
    if has_policy:
        text += (
            " D1 is the loss on the key area less the loss on the whole image, and "
            "noise around 0 where these are the same. A policy that looks leaves the "
            "whole image, and its key areas come to differ between images (standard "
            "deviation of their centers, as a share of a side)."
        )
    return text
