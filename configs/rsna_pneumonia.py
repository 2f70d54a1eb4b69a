"""Key region selection on RSNA's films: as many as the paper used, two classes.

Command:  python -m hapre_jax.train --config configs/rsna_pneumonia.py --data.root DIR
          DIR holds Kaggle's zip, what it holds, or what this wrote:
          python -m hapre_jax.data prepare rsna_pneumonia --root KAGGLE --out DIR
Hardware: one GPU.
Expected result: not measured.
"""

import dataclasses
import pathlib

from hapre_jax import config_file
from hapre_jax.config import Config, DataConfig, TaskConfig, TrainConfig


def get_config() -> Config:
    """The paper's numbers of films; which ones it chose was not published."""
    films = config_file.load(str(pathlib.Path(__file__).with_name("films.py")))
    return Config(
        data=DataConfig(name="rsna_pneumonia", draw=(1849, 1962)),
        task=TaskConfig(net="resnet18", image_size=224),
        policy=dataclasses.replace(films.policy, image_size=128),
        train=TrainConfig(steps=3000, task_learning_rate=1e-3),
    )
