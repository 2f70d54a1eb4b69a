"""Consolidations found by a small detector, with learned pre-processing or without.

python launch/detection.py --workdir runs/detection/key_area
python launch/detection.py --workdir runs/detection/whole --policy.operation none

On phantoms of quality `low`, a third of which has a consolidation; outside of the lungs
are blobs that look like one. The loop is the framework's; boxes are shown as the
operation shows the film, and what is found is brought back to the whole film, where it
is scored. Takes the flags of hapre_jax.train and goes on as it does; any data set whose
lesion boxes are known will do. answers.png has films with the most probable box.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from hapre_jax import cli, metrics, nets, task_program
from hapre_jax.config import Config
from hapre_jax.data import dataset
from hapre_jax.errors import UserError
from hapre_jax.method import Method, Prediction
from hapre_jax.methods import hapre, plain
from hapre_jax.reporting import figures
from hapre_jax.tasks import Detection

# Cells a side that middles are told apart by: a consolidation is two to four wide.
_GRID = 8
_FILMS, _SIDE = 8, 160  # in the picture, and pixels of a side


def check(config: Config, data: dataset.Splits) -> None:
    """Raises `UserError` for a split without lesions: it has no average precision."""
    if not all(any(map(len, split.lesion_boxes or ())) for split in data):
        raise UserError(
            f"no lesion boxes are known of {config.data.name}, or of one of its splits"
        )


def make(config: Config) -> Method:
    """The framework's method with a detector as task network."""
    settings = config.task
    trunk = plain.backbone(config, settings)
    task = Detection(
        nets.CenterNet(trunk, grid=_GRID, dtype=settings.dtype),
        settings.image_size,
        normalize=settings.normalize,
    )
    return hapre.of_task(config, task)


def score(
    answers: Iterable[tuple[slice, Prediction]], films: dataset.Dataset
) -> dict[str, float]:
    """Average precision on whole films."""
    found = np.concatenate([of.probabilities for _, of in answers])
    truth = films.lesion_boxes
    assert truth is not None
    return {
        f"ap_{round(100 * min_iou)}": metrics.average_precision(
            found[..., 0], found[..., 1:], truth, min_iou=min_iou
        )
        for min_iou in (0.25, 0.5)
    }


def draw(found: Prediction, films: dataset.Dataset) -> Image.Image:
    """Films that have a lesion, with its box and the most probable one."""
    assert films.lesion_boxes is not None
    sick = [row for row, of in enumerate(films.lesion_boxes) if len(of)][:_FILMS]
    picture = Image.new("RGB", (_SIDE * max(1, len(sick)), _SIDE))
    for place, row in enumerate(sick):
        boxes = found.probabilities[row, 0, 1:], films.lesion_boxes[row][0]
        drawn = figures.film_with_boxes(films.images[row], *boxes, size=_SIDE)
        picture.paste(drawn, (place * _SIDE, 0))
    return picture


PROGRAM = task_program.Program(
    "detection", make, score, "ap_50", draw, "boxes", check=check
)


def main(argv: list[str]) -> int:
    """The program."""
    return task_program.run(
        argv,
        PROGRAM,
        name="python launch/detection.py",
        description="Find lesions with a detector behind a learned operation.",
        default_config="configs/detection.py",
    )


if __name__ == "__main__":
    cli.run(main)
