"""How a policy learns from actions that are tried on one image: the learning rules."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hapre_jax import policy_gradient, rewards
from hapre_jax.config import PolicyConfig
from hapre_jax.operations import Operation


class Trial(NamedTuple):
    """What trying a few actions on one image taught."""

    policy_loss: jax.Array  # f32[], differentiable in the policy's logits
    optimal: jax.Array  # the actions that the task network is trained on, [k, ...]
    reward: jax.Array  # f32[]
    # f32[], Eq. 5: negative where the policy's action helps. What actions cost, see
    # `cost_at`, counts here and in the reward.
    d1: jax.Array
    # i32[] of `rewards.Reward`; None of an estimator that chooses otherwise.
    choice: jax.Array | None = None


def summarize(trials: Trial, neighbor_names: Sequence[str]) -> dict[str, jax.Array]:
    """What to log of a batch of trials, whose first axis is the images.

    Args:
      trials: of all images.
      neighbor_names: see `Operation.neighbor_names`.
    """
    tenth, median, ninetieth = jnp.percentile(
        trials.reward, jnp.array([10.0, 50.0, 90.0], trials.reward.dtype)
    )
    metrics = {
        "reward": jnp.mean(trials.reward),
        "reward_std": jnp.std(trials.reward),
        "reward_p10": tenth,
        "reward_p50": median,
        "reward_p90": ninetieth,
        "d1": jnp.mean(trials.d1),
        "helped": jnp.mean(trials.d1 < 0),
    }
    if trials.choice is not None:
        for choice, name in enumerate(neighbor_names, 1):
            metrics[name] = jnp.mean(trials.choice == choice)
    return metrics


def annealed(step: jax.Array, *, warmup_steps: int, steps: int) -> jax.Array:
    """How far sigma and the cost have changed `f32[]`, from 0 to 1.

    They wait for the end of the warm-up, and are at their final values for the last
    tenth of the policy's own updates, so that what is evaluated was trained.
    """
    updates = max(0.9 * (steps - warmup_steps), 1.0)
    return jnp.clip((step - warmup_steps) / updates, 0.0, 1.0)


def sigma_at(annealed: jax.Array, settings: PolicyConfig) -> jax.Array:
    """Width of the policy `f32[]`: geometric from `sigma` to `final_sigma`."""
    ratio = settings.final_sigma / settings.sigma
    return settings.sigma * ratio**annealed


def cost_at(annealed: jax.Array, settings: PolicyConfig) -> jax.Array:
    """Weight of an action's cost `f32[]`: linear from first to last."""
    change = settings.final_area_cost - settings.area_cost
    return settings.area_cost + change * annealed


# An estimator tries actions on one image. `evaluate` gives the task loss `f32[A]` of
# valid actions `[A, ...]`, which share one pass: call it once for all of them. Called
# with `needed`, `bool[]`, too, it may give zeros instead where that is false.


def paper(
    operation: Operation, settings: PolicyConfig, evaluate, logits, key, sigma
) -> Trial:
    """Algorithm 1: reward-weighted imitation of the detected or a rescaled key area."""
    mean = operation.mean(logits)
    detected = operation.sample(key, mean, sigma, 2)[0] if settings.explore else mean
    detected = jax.lax.stop_gradient(operation.clip(detected))
    first = jnp.stack([operation.identity(), detected])
    neighbors = operation.neighbors(detected)
    actions = jnp.concatenate([first, neighbors])
    if settings.skip_neighbors:
        original, kept = evaluate(first)
        others = evaluate(neighbors, kept >= original)
        task_losses = jnp.stack([original, kept, *others])
    else:
        task_losses = evaluate(actions)
    outcome = rewards.paper_reward(*task_losses, balance=settings.balance)
    optimal = actions[1 + outcome.choice]
    weight = {
        "published": outcome.reward,
        "constant": jnp.ones_like(outcome.reward),
        # Bounded, so that one bad area does not outweigh a batch.
        "inverted": jnp.exp(jnp.clip(-outcome.d2, -1.0, 1.0)),
    }[settings.reward_weight]
    loss = operation.imitation_loss(logits, optimal, weight, settings.gamma)
    return Trial(loss, optimal[None], outcome.reward, outcome.d1, outcome.choice)


def reinforce(
    operation: Operation, settings: PolicyConfig, evaluate, logits, key, sigma
) -> Trial:
    """Eq. 2: raise the density of sampled actions that beat their siblings."""
    mean = operation.mean(logits)
    samples = operation.sample(key, mean, sigma, settings.samples)
    samples = jax.lax.stop_gradient(samples)
    valid = jax.vmap(operation.clip)(samples)
    still = jax.lax.stop_gradient(operation.clip(mean))
    task_losses = evaluate(jnp.stack([operation.identity(), still, *valid]))
    log_probs = jax.vmap(lambda a: operation.log_prob(a, mean, sigma))(samples)
    # The score grows as 1 / sigma; times sigma, annealing does not change the scale.
    loss = sigma * policy_gradient.reinforce_loss(log_probs, task_losses[2:])
    loss += policy_gradient.bound_loss(mean, still)
    return _trial(settings, loss, still, valid, task_losses)


def pathwise(
    operation: Operation, settings: PolicyConfig, evaluate, logits, key, sigma
) -> Trial:
    """Follow the task loss itself, through the crop, to the policy's mean.

    The same objective as `reinforce`, the mean loss of sampled actions, by the gradient
    of the operation instead of the score. Less noisy, but only for operations that are
    differentiable, and blind to what lies outside of an action.
    """
    mean = operation.mean(logits)
    samples = operation.sample(key, mean, sigma, settings.samples)
    valid = jax.vmap(operation.clip)(samples)
    still = jax.lax.stop_gradient(operation.clip(mean))
    task_losses = evaluate(jnp.stack([operation.identity(), still, *valid]))
    loss = jnp.mean(task_losses[2:]) + policy_gradient.bound_loss(mean, still)
    return _trial(settings, loss, still, valid, task_losses)


def elite(
    operation: Operation, settings: PolicyConfig, evaluate, logits, key, sigma
) -> Trial:
    """Imitate the best of the samples and the neighbors, where it beats the mean."""
    mean = operation.mean(logits)
    still = jax.lax.stop_gradient(operation.clip(mean))
    samples = operation.sample(key, mean, sigma, settings.samples)
    valid = jax.lax.stop_gradient(jax.vmap(operation.clip)(samples))
    tried = jnp.concatenate([valid, operation.neighbors(still)])
    task_losses = evaluate(jnp.stack([operation.identity(), still, *tried]))
    best, improvement = policy_gradient.elite(task_losses[2:], task_losses[1])
    loss = operation.imitation_loss(logits, tried[best], improvement, settings.gamma)
    return _trial(settings, loss, still, valid, task_losses)


def _trial(settings, loss, still, valid, task_losses) -> Trial:
    """Of a rule that tries the whole image first, and then the mean action."""
    # The task network is trained on samples, or on the mean.
    seen = still[None] if settings.train_on == "mean" else valid[: settings.train_crops]
    return Trial(loss, seen, -task_losses[1], task_losses[1] - task_losses[0])


ESTIMATORS = {
    "paper": paper,
    "reinforce": reinforce,
    "pathwise": pathwise,
    "elite": elite,
}
