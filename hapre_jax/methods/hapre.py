"""HAPre-KRS: DRL-HAPre with a classifier as task and the key area as operation."""

import dataclasses

from hapre_jax import framework, nets
from hapre_jax.config import Config
from hapre_jax.methods import plain
from hapre_jax.operations import KeyArea


def make(config: Config, num_classes: int) -> framework.Method:
    """The method of Yuan et al. 2022, section 3, with the config's learning rule."""
    settings = config.policy
    trunk = nets.NETS[settings.net](
        num_classes=0, norm=settings.norm, dtype=settings.dtype
    )
    return framework.make(
        plain.classification(config, num_classes),
        nets.PolicyNet(trunk, settings.grid, settings.width, settings.dtype),
        KeyArea(
            settings.alpha,
            settings.min_side,
            settings.max_side,
            settings.neighbors,
            settings.readout,
        ),
        framework.Learning(
            estimator=settings.estimator,
            samples=settings.samples,
            explore=settings.explore,
            sigma=settings.sigma,
            final_sigma=settings.final_sigma,
            balance=settings.balance,
            gamma=settings.gamma,
            warmup_steps=settings.warmup_steps,
            steps=config.train.steps,
            random_share=settings.random_share,
            train_crops=settings.train_crops,
            train_on=settings.train_on,
            held_out=settings.held_out,
            action_cost=settings.area_cost,
            final_action_cost=settings.final_area_cost,
            train_on_original=settings.train_on_original,
            reward_weight=settings.reward_weight,
        ),
        policy_image_size=settings.image_size,
        policy_normalize=config.task.normalize,
        prober=_prober(config, num_classes),
    )


def _prober(config, num_classes):
    settings = config.policy
    changed = {"image_size": settings.probe_size or config.task.image_size}
    changed["dtype"] = settings.probe_dtype
    if settings.probe_dtype == "same":
        changed["dtype"] = config.task.dtype
    task = dataclasses.replace(config.task, **changed)
    return plain.classification(dataclasses.replace(config, task=task), num_classes)
