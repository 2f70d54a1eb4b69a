"""Lungs segmented by a U-Net, with learned pre-processing or of the whole film.

python launch/segmentation.py --workdir runs/segmentation/key_area
python launch/segmentation.py --workdir runs/segmentation/whole --policy.operation none
python launch/segmentation.py --config configs/segmentation.py --data.root DIR

The loop is the framework's, the task another: the operation is applied to film and
mask, and the network's answer is brought back to the whole film, where it is scored.
Takes the flags of hapre_jax.train and goes on as it does; the network is a U-Net
whatever task.net says. answers.png has films, true masks and answers.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from hapre_jax import cli, metrics, nets, task_program
from hapre_jax.config import Config
from hapre_jax.data import dataset
from hapre_jax.errors import UserError
from hapre_jax.method import Method, Prediction
from hapre_jax.methods import hapre
from hapre_jax.tasks import Segmentation

_FILMS = 8  # in the picture


def make(config: Config) -> Method:
    """The framework's method with a U-Net as task network."""
    if config.task.image_size % 4:
        raise UserError(
            f"task.image_size is {config.task.image_size}, but the U-Net halves it "
            "twice: it must be a multiple of 4"
        )
    task = Segmentation(
        nets.UNet(
            norm=config.task.norm,
            dtype=config.task.dtype,
            rematerialize=config.train.rematerialize,
        ),
        config.task.image_size,
        whole_size=config.data.image_size,
        normalize=config.task.normalize,
    )
    return hapre.of_task(config, task)


def score(
    answers: Iterable[tuple[slice, Prediction]], films: dataset.Dataset
) -> dict[str, float]:
    """Mean Dice and IoU of the masks on whole films."""
    scores: dict[str, list] = {"dice": [], "iou": []}
    for rows, found in answers:
        masks = jnp.array(found.probabilities > 0.5), jnp.array(films.masks[rows] > 127)
        scores["dice"].append(jax.vmap(metrics.dice)(*masks))
        scores["iou"].append(jax.vmap(metrics.mask_iou)(*masks))
    return {name: float(np.mean(np.concatenate(of))) for name, of in scores.items()}


def draw(found: Prediction, films: dataset.Dataset) -> Image.Image:
    """A row a film: as it is stored, its mask and the answer."""
    answers = np.uint8(255) * (found.probabilities[:_FILMS] > 0.5)
    rows = zip(films.images, films.masks, answers, strict=False)
    return Image.fromarray(np.vstack([np.hstack(row)[..., 0] for row in rows]))


PROGRAM = task_program.Program("segmentation", make, score, "dice", draw, "masks")


def main(argv: list[str]) -> int:
    """The program."""
    return task_program.run(
        argv,
        PROGRAM,
        name="python launch/segmentation.py",
        description="Segment lungs with a U-Net behind a learned operation.",
        default_config="configs/phantom.py",
    )


if __name__ == "__main__":
    cli.run(main)
