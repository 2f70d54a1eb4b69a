"""DRL-HAPre: task network x policy network x operation, and the loss that trains both.

`make` builds a `Method` from the three; HAPre-KRS (`methods.hapre`) is one instance.
How the policy learns from what it tries is in `estimators`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from hapre_jax import batching, estimators, losses
from hapre_jax.config import Config, PolicyConfig
from hapre_jax.method import (
    Aux,
    Method,
    Prediction,
    network_variables,
    split_variables,
)
from hapre_jax.operations import Operation
from hapre_jax.tasks import Task, apply_network, normalize, resize


def make(
    task: Task,
    policy_network: Any,
    operation: Operation,
    config: Config,
    *,
    prober: Task | None = None,
) -> Method:
    """The DRL-HAPre `Method` of a task, a policy network and an operation.

    Args:
      task: see `tasks.Task`.
      policy_network: Linen module called with `f32[B, S, S, C]` and `train`, without a
        key for dropout. The operation reads its `Output.logits`, see
        `Operation.logits_shape`; of its variables, "batch_stats" may change.
      operation: see `operations.Operation`.
      config: how the policy learns and what it sees of an image. The networks and the
        operation are those above, whatever it says of them.
      prober: the task as it is when actions are only tried: the same parameters, on
        smaller images or in another type. By default it is the task itself.

    Raises:
      ValueError: the config's estimator cannot teach the operation.
    """
    _check_estimator(config.policy.estimator, operation)
    made = _Framework(task, prober or task, policy_network, operation, config)
    return Method(
        made.init, made.loss, made.predict, made.task_losses, has_one_network=True
    )


def _check_estimator(name: str, operation: Operation) -> None:
    if name == "paper":
        near = jax.eval_shape(lambda: operation.neighbors(operation.identity()))
        if not near.shape[0]:
            raise ValueError(f"estimator paper tries neighbors; {operation} has none")
    elif name != "elite" and not operation.has_gradient:
        raise ValueError(f"estimator {name} needs the gradient that {operation} lacks")


@dataclasses.dataclass(frozen=True, eq=False)
class _Framework:
    """The functions of a `Method`, over what `make` was given."""

    task: Task
    prober: Task
    policy_network: Any
    operation: Operation
    config: Config

    @property
    def settings(self) -> PolicyConfig:
        return self.config.policy

    def init(self, key, image):
        task_key, policy_key = jax.random.split(key)
        seen = self._thumbnail(image)
        policy_variables = self.policy_network.init(policy_key, seen, train=False)
        task_variables = self.task.init(task_key, resize(image, self.task.image_size))
        return split_variables({"task": task_variables, "policy": policy_variables})

    def loss(self, params, model_state, average, batch, key, step):
        trial_key, random_key, share_key, dropout_key = jax.random.split(key, 4)
        policy_loss, optimal, policy_state, metrics = self._learn_policy(
            params, model_state, average, batch, trial_key, step
        )
        # In the warm-up the policy waits, and the task network sees random actions, so
        # that it can tell good from bad ones later. Selected, not branched: XLA's CPU
        # backend computes gradients of convolutions inside a branch ten times slower.
        is_warmup = step < self.settings.warmup_steps
        policy_loss = jnp.where(is_warmup, 0.0, policy_loss)
        policy_state = jax.tree.map(
            lambda old, new: jnp.where(is_warmup, old, new),
            model_state["policy"],
            policy_state,
        )
        share = jnp.where(is_warmup, 1.0, self.settings.random_share)
        actions = self._mix_in_random(optimal, share, random_key, share_key)
        task_loss, task_state = self._learn_task(
            params, model_state, batch, jax.lax.stop_gradient(actions), dropout_key
        )
        # The two losses share no parameters, so their sum has both gradients.
        return task_loss + policy_loss, Aux(
            {"task": task_state, "policy": policy_state},
            {"task_loss": task_loss, **metrics},
        )

    def predict(self, params, model_state, batch):
        operation, image = self.operation, batch["image"]
        logits = self._propose(params, model_state, image, train=False)[0].logits
        mean = jax.vmap(operation.mean)(logits)
        action = jax.vmap(operation.clip)(mean)
        seen = jax.vmap(self._see)(image, action)
        variables = network_variables("task", params, model_state)
        outputs, _ = self.task.apply(variables, seen, train=False)
        policy_map = _first_map(logits)
        sigma = jnp.asarray(self.settings.final_sigma)
        return Prediction(
            self.task.whole_answers(outputs, operation, action),
            jax.vmap(operation.area)(action),
            jax.vmap(lambda m: operation.entropy(m, sigma))(mean),
            None if policy_map is None else jax.nn.sigmoid(policy_map),
            jax.vmap(operation.parameters)(action),
        )

    def task_losses(self, params, model_state, batch, areas):
        actions = jax.vmap(self.operation.from_area)(areas)
        crops = jax.vmap(self._see)(batch["image"], actions)
        targets = self.task.target(batch)
        average = params, model_state
        return self._probe(self.task, average, crops, targets, actions)

    def _learn_policy(self, params, model_state, average, batch, key, step):
        """Policy loss, actions to train the task network on, new state, metrics."""
        operation, settings = self.operation, self.settings
        output, state = self._propose(params, model_state, batch["image"], train=True)
        annealed = estimators.annealed(
            step, warmup_steps=settings.warmup_steps, steps=self.config.train.steps
        )
        sigma = estimators.sigma_at(annealed, settings)
        cost = estimators.cost_at(annealed, settings)
        # Rewards come from the averaged task network, which is less noisy.
        trials = self._try_actions(average, batch, output.logits, key, sigma, cost)
        mean = jax.vmap(operation.mean)(output.logits)
        weights = divide(batch, settings.held_out)[0]
        policy_loss = losses.weighted_mean(trials.policy_loss, weights)
        metrics = {
            "policy_loss": policy_loss,
            **estimators.summarize(trials, operation.neighbor_names()),
            "sigma": sigma,
            "entropy": jnp.mean(jax.vmap(lambda m: operation.entropy(m, sigma))(mean)),
            **operation.metrics(jax.vmap(operation.clip)(mean), batch),
        }
        return policy_loss, trials.optimal, state, metrics

    def _try_actions(self, average, batch, logits, key, sigma, cost):
        """What trying actions on each image taught: a `Trial` with a first axis B."""
        operation, prober = self.operation, self.prober
        estimator = estimators.ESTIMATORS[self.settings.estimator]

        def losses_of(image, target, actions):
            see = jax.vmap(self._see, (None, 0, None))
            crops = see(image, actions, prober.image_size)
            targets = jnp.broadcast_to(target, (len(actions), *target.shape))
            costs = cost * jax.vmap(operation.cost)(actions)
            found = self._probe(
                prober, average, crops, targets, actions, is_vmapped=True
            )
            return found + costs

        def try_one(image, target, logits, key):
            def evaluate(actions, needed=None):
                if needed is None:
                    return losses_of(image, target, actions)
                return batching.compute_if_any_needs(losses_of)(
                    needed, image, target, actions
                )

            return estimator(operation, self.settings, evaluate, logits, key, sigma)

        keys = jax.random.split(key, len(batch["image"]))
        return jax.vmap(try_one)(batch["image"], self.task.target(batch), logits, keys)

    def _mix_in_random(self, actions, share, random_key, share_key):
        """Actions `[B, k, ...]` with a share of them at random instead."""
        is_random = jax.random.uniform(share_key, actions.shape[:2]) < share
        keys = jax.random.split(random_key, actions.shape[:2])
        randoms = jax.vmap(jax.vmap(self.operation.random))(keys)
        return jnp.where(is_random[:, :, None], randoms, actions)

    def _learn_task(self, params, model_state, batch, actions, key):
        """Loss `f32[]` of the task network on actions `[B, k, ...]`, and its state."""
        inputs, targets, weights = self._show(batch, actions)
        variables = network_variables("task", params, model_state)
        outputs, state = self.task.apply(variables, inputs, train=True, key=key)
        return losses.weighted_mean(self.task.loss(outputs, targets), weights), state

    def _show(self, batch, actions):
        """What the task network learns of actions `[B, k, ...]`, one after the other.

        Inputs, their targets and weights; with `train_on_original`, whole images too.
        """
        task, operation = self.task, self.operation

        def show_target(target, action):
            return task.show_target(target, operation, action)

        target = task.target(batch)
        inputs = jax.vmap(jax.vmap(self._see, (None, 0)))(batch["image"], actions)
        moved = jax.vmap(jax.vmap(show_target, (None, 0)))(target, actions)
        inputs, moved = (x.reshape(-1, *x.shape[2:]) for x in (inputs, moved))
        image_weights = divide(batch, self.settings.held_out)[1]
        weights = jnp.repeat(image_weights, actions.shape[1])
        if self.settings.train_on_original:
            originals = resize(batch["image"], task.image_size)
            inputs = jnp.concatenate([inputs, originals])
            shape = (len(originals), *actions.shape[2:])
            whole = jnp.broadcast_to(operation.identity(), shape)
            moved = jnp.concatenate([moved, jax.vmap(show_target)(target, whole)])
            weights = jnp.concatenate([weights, image_weights])
        return inputs, moved, weights

    def _propose(self, params, model_state, image, *, train):
        variables = network_variables("policy", params, model_state)
        seen = self._thumbnail(image)
        return apply_network(self.policy_network, variables, seen, train=train)

    def _probe(self, by, average, crops, targets, actions, *, is_vmapped=False):
        """Losses of a task with all statistics fixed: they differ by the crop alone."""
        variables = network_variables("task", *average)

        def see(crops):
            return by.apply(variables, crops, train=False)[0]

        if is_vmapped:
            see = batching.as_one_batch(see)
        return by.whole_loss(see(crops), targets, self.operation, actions)

    def _see(self, image, action, size=None):
        return self.operation.apply(image, action, size or self.task.image_size)

    def _thumbnail(self, image):
        small = resize(image, self.settings.image_size)
        return normalize(small, self.config.task.normalize)


def _first_map(logits):
    """Of the maps `f32[B, g, g]` of an area the first, which says where it is."""
    for leaf in jax.tree.leaves(logits):
        if leaf.ndim > 2:
            return leaf if leaf.ndim == 3 else leaf[..., 0]
    return None


def divide(batch: dict, held_out: float) -> tuple[jax.Array, jax.Array]:
    """Weights `f32[B]` of each image: in the policy's loss, in the task network's.

    Both learn from all images; or, where some are held out, the policy from these and
    the task network from the others, so that no reward is one of a memorized image
    (the batch statistics of its training still see all).
    Which ones is fixed by their row in the training split, `batch["index"]` i32[B].

    Args:
      batch: see `Method`.
      held_out: share of images that only the policy learns from.
    """
    if not held_out:
        ones = jnp.ones(len(batch["image"]))
        return ones, ones
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["index"])
    is_held_out = jax.vmap(jax.random.uniform)(keys) < held_out
    return is_held_out.astype(jnp.float32), 1.0 - is_held_out
