"""Experiments of a size that tests afford; `--config tests/tiny.py` is one."""

import dataclasses

from hapre_jax import config_file
from hapre_jax.config import Config

# What results.json of a run that never was says beside its scores, and those.
FACTS = {
    "method": "hapre",
    "dataset": "phantom",
    "classes": ["normal", "pneumonia"],
    "config": {},
    "seed": 0,
    "steps": 700,
    "best_step": 600,
    "seconds": 1.5,
    "device": "cpu",
    "versions": {"jax": "0.10.2"},
}
SCORES = {
    "n": 20,
    "classes": ["normal", "pneumonia"],
    "confusion_matrix": [[10, 0], [10, 0]],
    "key_area": None,
    "accuracy": 0.5,
    "macro_precision": 0.25,
    "macro_recall": 0.5,
    "macro_f1": 1 / 3,
}


def get_config() -> Config:
    """The default experiment: HAPre-KRS on phantoms, beside the plain classifier."""
    return shrink(config_file.load("configs/phantom.py"))


def shrink(config: Config) -> Config:
    """The same experiment at sizes that a test affords: a few images, steps and pixels.

    Keeps what makes configs differ: method, learning rule, geometry, normalization,
    schedule, flips, dtype, and a batch of one.
    """
    data = dataclasses.replace(
        config.data,
        name="phantom",
        root="",
        degrade="none",
        bare_groups=False,
        view="all",
        draw=None,
        image_size=32,
        train_images=24,
        validation_images=12,
        test_images=12,
    )
    task = dataclasses.replace(config.task, net="resnet8", image_size=16, pretrained="")
    policy = dataclasses.replace(
        config.policy,
        net="resnet8",
        image_size=16,
        pretrained="",
        grid=8,
        samples=2,
        train_crops=min(config.policy.train_crops, 2),
        warmup_steps=min(config.policy.warmup_steps, 1),
        probe_size=min(config.policy.probe_size, 8),
    )
    train = dataclasses.replace(
        config.train,
        steps=6,
        batch_size=min(config.train.batch_size, 4),
        lr_warmup_steps=min(config.train.lr_warmup_steps, 1),
        log_every=1,
        eval_every=2,
        checkpoint_every=2,
    )
    baseline = dataclasses.replace(
        config.baseline,
        stage_one_net="same",
        stage_one_pretrained="",
        drl_da_steps=8,
        drl_da_length=2,
        drl_da_memory=40,
    )
    return dataclasses.replace(
        config, data=data, task=task, policy=policy, baseline=baseline, train=train
    )
