"""Consolidations of phantoms found by a small detector.

Command:  python launch/detection.py --workdir runs/detection/key_area
          python launch/detection.py --policy.operation none \
              --workdir runs/detection/whole
Hardware: a CPU core, minutes.
Expected result: docs/extending.md.
"""

from hapre_jax.config import Config, DataConfig, PolicyConfig, TaskConfig, TrainConfig


def get_config() -> Config:
    """Films of 64 pixels, of which the networks see 24 and 16."""
    return Config(
        data=DataConfig(image_size=64, train_images=2400, test_images=600),
        task=TaskConfig(image_size=24),
        policy=PolicyConfig(
            image_size=16,
            grid=8,
            # At first a closer look gains too little (docs/extending.md): without a
            # cost of area that falls, the policy stays at the whole film.
            area_cost=1.0,
            final_area_cost=0.1,
            train_crops=2,
        ),
        train=TrainConfig(eval_every=100),
        compare_plain=False,
    )
