"""Learning rates and Adam, of each network its own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from hapre_jax.config import Config, TrainConfig


def schedule(
    peak: float, train: TrainConfig, *, start: int = 0
) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of a step: 0 until `start`, linear rise, then as configured."""
    rise = train.lr_warmup_steps
    length = max(train.steps - start - rise, 1)

    def rate(count):
        since = count - start
        rising = since / max(rise, 1) if rise else jnp.where(since < 0, 0.0, 1.0)
        falling = jnp.ones(())
        if train.schedule == "cosine":
            progress = jnp.clip((since - rise) / length, 0.0, 1.0)
            falling = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * jnp.clip(rising, 0.0, 1.0) * falling

    return rate


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with its own learning rate for each network (paper, section 4.2).

    A policy has its own; all other networks have the task network's. Each network's
    gradient is clipped by itself. In the policy's warm-up its gradients are 0, which
    Adam counts: its bias correction is spent then, and the policy's first updates are
    up to twice as large as with an Adam that begins after it.
    """
    train = config.train

    def adam(rate, *, b2=0.999):
        clip = (
            _clip_each_network(train.clip_norm) if train.clip_norm else optax.identity()
        )
        return optax.chain(clip, optax.adam(rate, b2=b2))

    warmup = config.policy.warmup_steps
    return optax.multi_transform(
        {
            "task": adam(schedule(train.task_learning_rate, train)),
            # Policy gradients change their size as the policy narrows: a memory of a
            # hundred steps follows, one of a thousand would freeze it.
            "policy": adam(
                schedule(train.policy_learning_rate, train, start=warmup),
                b2=train.policy_adam_b2,
            ),
        },
        lambda params: {name: name if name == "policy" else "task" for name in params},
    )


def _clip_each_network(norm: float) -> optax.GradientTransformation:
    clip = optax.clip_by_global_norm(norm)

    def update(gradients, params):
        del params
        return {
            name: clip.update(of_one, clip.init(of_one))[0]
            for name, of_one in gradients.items()
        }

    return optax.stateless(update)
