"""HAPre-KRS as the paper trains it (section 4.2), on Ped-Pneumonia in three classes.

Command:  python -m hapre_jax.train --config configs/hapre_krs.py --data.root DIR
          DIR holds chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}, or is its zip file.
Hardware: one GPU.
Expected result: not measured. With ImageNet weights, as in the paper: add
          --task.pretrained FILE --policy.pretrained FILE
"""

from hapre_jax.config import Config, DataConfig, PolicyConfig, TaskConfig, TrainConfig


def get_config() -> Config:
    """What the paper states; the README's table says what it leaves open."""
    return Config(
        data=DataConfig(
            name="ped_pneumonia", image_size=640, geometry="squash", flip="vertical"
        ),
        task=TaskConfig(
            net="resnet18", image_size=640, norm="frozen", normalize="fixed"
        ),
        policy=PolicyConfig(
            net="resnet18",
            image_size=640,
            width=64,
            norm="frozen",
            estimator="paper",
            warmup_steps=0,
            random_share=0.0,
        ),
        train=TrainConfig(
            # Not stated in the paper: about 30 passes over its training images.
            steps=120_000,
            batch_size=1,
            task_learning_rate=1e-5,
            policy_learning_rate=1e-6,
            schedule="constant",
            lr_warmup_steps=0,
            clip_norm=0.0,
            policy_adam_b2=0.999,
            average_decay=0.0,
            eval_every=4000,
            checkpoint_every=4000,
        ),
        compare_plain=False,
    )
