"""The learning rule that finds the lungs, chosen on validation films.

Command:  python -m hapre_jax.train --config configs/hapre_krs_best.py
          python -m hapre_jax.train --data.root DIR \
              --config configs/hapre_krs_best.py:ped_pneumonia_low
          (also :ped_pneumonia; DIR as in configs/ped_pneumonia.py)
Hardware: two CPU cores, five minutes for phantoms, fifteen for films.
Expected result: see docs/learning_the_key_area.md.
"""

import dataclasses
import pathlib

from hapre_jax import config, config_file
from hapre_jax.errors import UserError


def get_config(source: str = "phantom") -> config.Config:
    """The recipe for phantoms, or for films as they are or degraded."""
    if source == "phantom":
        # The defaults are the recipe: the loss alone leads to the lungs.
        return config_file.load(str(pathlib.Path(__file__).with_name("phantom.py")))
    if source not in ("ped_pneumonia", "ped_pneumonia_low"):
        raise UserError(
            f"there is no recipe for {source}, but for phantom, ped_pneumonia and "
            "ped_pneumonia_low"
        )
    is_low = source == "ped_pneumonia_low"
    degrade = "low" if is_low else "none"
    return config.Config(
        data=config.DataConfig(name="ped_pneumonia", image_size=256, degrade=degrade),
        policy=config.PolicyConfig(
            # Films gain less from a crop than phantoms do: without a cost that falls
            # as the policy settles, it stays at the whole film.
            area_cost=0.5 if is_low else 0.3,
            final_area_cost=0.1 if is_low else 0.0,
            min_side=0.25 if is_low else 0.5,
            train_crops=2,
            warmup_steps=300,
        ),
        train=dataclasses.replace(
            config.TrainConfig(),
            steps=2000 if is_low else 1200,
            task_learning_rate=3e-3,
            eval_every=200,
        ),
    )
