"""Key region selection on films of your own, however they are framed.

Command:  python -m hapre_jax.train --config configs/films.py --data.root DIR
          DIR holds one folder a class, or is a zip of them, or a CSV: docs/data.md.
          With a GPU, more pixels and a deeper network: --task.net resnet18
          --task.image_size 224 --policy.image_size 64 --data.image_size 512.
Hardware: one CPU core, a quarter of an hour.
Expected result: docs/learning_the_key_area.md, "One recipe for all framings".
"""

from hapre_jax.config import Config, DataConfig, PolicyConfig, TrainConfig


def get_config() -> Config:
    """Small networks on 32 pixels of a key area."""
    return Config(
        data=DataConfig(name="folder", image_size=256),
        policy=PolicyConfig(
            # A crop is worth too little at first to leave the whole film. The cost of
            # area asks for small areas until the classifier can tell where the lungs
            # are, and then leaves the size to it.
            area_cost=0.4,
            final_area_cost=0.1,
            # Badly framed lungs are this long; smaller areas only cut larger ones.
            min_side=0.4,
            train_crops=2,
            warmup_steps=300,
        ),
        train=TrainConfig(steps=2000, task_learning_rate=3e-3, eval_every=200),
    )
