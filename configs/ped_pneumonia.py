"""Key region selection on Ped-Pneumonia (Kermany et al., 2018): three classes.

Command:  python -m hapre_jax.train --config configs/ped_pneumonia.py --data.root DIR
          DIR holds chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}, or is its zip file.
Hardware: two CPU cores; a GPU for another task.net than resnet8.
Expected result: macro-F1 0.80 against 0.79 plain; the key area stays the whole film.
"""

from hapre_jax.config import Config, DataConfig, PolicyConfig, TaskConfig, TrainConfig


def get_config() -> Config:
    """A small network at 128 pixels; the films are already well framed."""
    return Config(
        data=DataConfig(name="ped_pneumonia", image_size=256, geometry="letterbox"),
        task=TaskConfig(net="resnet10", image_size=128),
        # Lungs fill more than half of these films: smaller key areas only cut them.
        policy=PolicyConfig(
            image_size=64,
            min_side=0.4,
            warmup_steps=300,
            random_share=0.0,
            train_crops=1,
        ),
        train=TrainConfig(steps=1500, task_learning_rate=5e-3),
    )
