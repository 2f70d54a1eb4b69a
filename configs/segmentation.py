"""Lungs segmented on degraded films of Ped-Pneumonia, of which human masks are known.

Command:  python launch/segmentation.py --config configs/segmentation.py --data.root DIR
          DIR as in configs/ped_pneumonia.py, with lung masks beside the films.
Hardware: a CPU core, minutes.
Expected result: docs/extending.md.
"""

from hapre_jax.config import Config, DataConfig, PolicyConfig, TaskConfig, TrainConfig


def get_config() -> Config:
    """Films of 64 pixels, of which the networks see 16."""
    return Config(
        data=DataConfig(
            name="ped_pneumonia",
            image_size=64,
            degrade="low",
            draw=(300, 300, 300),
        ),
        task=TaskConfig(image_size=16),
        policy=PolicyConfig(
            image_size=32,
            # As in configs/hapre_krs_best.py: without a cost of area that falls while
            # the policy settles, it stays at the whole film.
            area_cost=0.5,
            final_area_cost=0.1,
            warmup_steps=200,
            train_crops=2,
        ),
        train=TrainConfig(steps=600, batch_size=16, eval_every=100),
        compare_plain=False,
    )
