"""Phantoms whose right operation is known: is it found?

Command:  python launch/grid.py --config configs/operations.py:rotated \
              --workdir runs/operations/rotated
          also :exposed and :rotated_exposed; one seed of it is
          python -m hapre_jax.train --config configs/operations.py:rotated
Hardware: a CPU core, three to five minutes a seed.
Expected result: docs/extending.md.
"""

from hapre_jax.config import Config, DataConfig, PolicyConfig, TaskConfig, TrainConfig
from hapre_jax.errors import UserError

# What undoes what was done to the films of each quality.
OPERATIONS = {
    "rotated": "rotation",
    "exposed": "gamma",
    "rotated_exposed": "rotation+gamma",
}


def get_config(quality: str = "rotated") -> Config:
    """The operation for a quality, on films of 48 pixels that are shown at 16."""
    if quality not in OPERATIONS:
        raise UserError(f"there is no {quality}, but {', '.join(OPERATIONS)}")
    return Config(
        # With 1,500 films the classifier learns them by heart before it can do both.
        data=DataConfig(
            image_size=48, quality=quality, train_images=4500, test_images=300
        ),
        task=TaskConfig(image_size=16),
        policy=PolicyConfig(
            operation=OPERATIONS[quality], image_size=16, grid=8, train_crops=2
        ),
        train=TrainConfig(batch_size=16, steps=3000),
    )
