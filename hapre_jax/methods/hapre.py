"""DRL-HAPre with a classifier as task; with the key area as operation, HAPre-KRS."""

import dataclasses
from collections.abc import Callable

from hapre_jax import framework, nets, operations, tasks
from hapre_jax.config import Config, PolicyConfig
from hapre_jax.method import Method
from hapre_jax.methods import plain


def _on_area(kind) -> Callable[[PolicyConfig], operations.Operation]:
    return lambda settings: kind(
        settings.alpha,
        settings.min_side,
        settings.max_side,
        settings.neighbors,
        settings.readout,
    )


OPERATIONS: dict[str, Callable[[PolicyConfig], operations.Operation]] = {
    "key_area": _on_area(operations.KeyArea),
    "mask": _on_area(operations.Mask),
    "zoom": _on_area(operations.Zoom),
    "rotation": lambda settings: operations.Rotation(settings.max_angle),
    "gamma": lambda settings: operations.Gamma(settings.max_gamma),
    "contrast": lambda settings: operations.Contrast(),
    "window": lambda settings: operations.Window(),
    "sharpening": lambda settings: operations.Sharpening(),
    "none": lambda settings: operations.Numbers(),
}


def operation(settings: PolicyConfig) -> operations.Operation:
    """What a config's policy decides on."""
    parts = tuple(OPERATIONS[name](settings) for name in settings.operations)
    return parts[0] if len(parts) == 1 else operations.Hybrid(parts)


def policy_network(config: Config, chosen: operations.Operation) -> nets.PolicyNet:
    """The network that an operation's actions are read off."""
    settings = config.policy
    trunk = plain.backbone(config, settings)
    shape = chosen.logits_shape(settings.grid)
    return nets.PolicyNet(
        trunk, settings.grid, settings.width, settings.dtype, shape=shape
    )


def make(config: Config, num_classes: int) -> Method:
    """The method of Yuan et al. 2022, section 3, with the config's learning rule."""
    task = plain.classification(config, num_classes)
    return of_task(config, task, prober=_prober(config, num_classes))


def of_task(
    config: Config, task: tasks.Task, *, prober: tasks.Task | None = None
) -> Method:
    """The same with any task; see `framework.make` for the prober."""
    chosen = operation(config.policy)
    return framework.make(
        task,
        policy_network(config, chosen),
        chosen,
        config,
        prober=prober,
    )


def _prober(config, num_classes):
    settings, task = config.policy, config.task
    task = dataclasses.replace(
        task,
        image_size=settings.probe_size or task.image_size,
        dtype=task.dtype if settings.probe_dtype == "same" else settings.probe_dtype,
    )
    return plain.classification(dataclasses.replace(config, task=task), num_classes)
