"""DRL-HAPre: task network x policy network x operation, and the step that trains both.

`make` builds a `Method` from the three; HAPre-KRS (`methods.hapre`) is one instance. A
`Method` is a few pure functions, so the trainer, the evaluation and the tables know no
method by name.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hapre_jax import policy_gradient, rewards
from hapre_jax.errors import check_choice
from hapre_jax.operations import Hybrid, KeyArea, Operation
from hapre_jax.tasks import Task, apply_network, normalize


class Aux(NamedTuple):
    """What a loss gives besides its value."""

    model_state: dict  # new BatchNorm statistics of each network
    metrics: dict[str, jax.Array]  # f32[] each, for the log


class Prediction(NamedTuple):
    """What a method says of images it has never seen."""

    # f32[B, K] of a classifier; of another task what its `Task` answers.
    probabilities: jax.Array
    # What of the film is kept, f32[B, 4] yxyx: the key area, as the policy's valid mean
    # action has it; None where nothing is cut.
    area: jax.Array | None = None
    entropy: jax.Array | None = None  # of the policy at its final width, f32[B], nats
    policy_map: jax.Array | None = None  # sigmoid of the policy's map, f32[B, g, g]
    # What else the mean action sets, in units that a reader knows: f32[B] each.
    parameters: dict[str, jax.Array] | None = None


class Method(NamedTuple):
    """A way to train a task network, as pure functions.

    `params` and `model_state` hold one sub-tree a network: "task", and "policy" where
    there is one; `average` is a pair of both, averaged over the last steps. `batch`
    holds "image" f32[B, H, W, C] in [0, 1], "label" i32[B], "index" i32[B] (rows of the
    training split), and "lung_box" f32[B, 4] in a data set with known lungs; `predict`
    gets the image and the lung box only. A batch of one has a "partner", another such
    batch, where the method needs one.
    """

    init: Callable  # (key, image) -> (params, model_state)
    loss: Callable  # (params, model_state, average, batch, key, step) -> (f32[], Aux)
    predict: Callable  # (params, model_state, batch) -> Prediction
    task_losses: Callable  # (params, model_state, batch, areas [B, 4]) -> f32[B]
    needs_lungs: bool = False  # only of use where the batch has "lung_box"
    needs_partner: bool = False  # mixes images; of a batch of one with its "partner"
    # What is learned before the first step, from the plain classifier's averages:
    # (params, model_state, training batches, validation split, progress) -> a part of
    # the model state.
    prepare: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a policy learns.

    `config.PolicyConfig` says what each field means; action costs are its area costs,
    and `steps` is `train.steps`, in which sigma and the cost change.
    """

    estimator: str
    samples: int
    explore: bool
    sigma: float
    final_sigma: float
    balance: float
    gamma: float
    warmup_steps: int
    steps: int
    random_share: float
    train_crops: int
    train_on: str
    held_out: float
    action_cost: float
    final_action_cost: float
    train_on_original: bool
    reward_weight: str = "published"
    skip_neighbors: bool = False


class Trial(NamedTuple):
    """What trying a few actions on one image taught."""

    policy_loss: jax.Array  # f32[], differentiable in the policy's logits
    optimal: jax.Array  # the actions that the task network is trained on, [k, ...]
    reward: jax.Array  # f32[]
    d1: jax.Array  # f32[], Eq. 5: negative where the policy's action helps
    # i32[] of `rewards.Reward`; None of an estimator that chooses otherwise.
    choice: jax.Array | None = None


def sigma_at(step: jax.Array, learning: Learning) -> jax.Array:
    """Width of the policy `f32[]`: constant in the warm-up, then annealed.

    Geometric from `sigma` to `final_sigma` over the policy's own updates, and at its
    final value for the last tenth of them, so that what is evaluated was trained.
    """
    ratio = learning.final_sigma / learning.sigma
    return learning.sigma * ratio ** _progress(step, learning)


def cost_at(step: jax.Array, learning: Learning) -> jax.Array:
    """Weight of an action's cost `f32[]`: from first to last as sigma, but linearly."""
    change = learning.final_action_cost - learning.action_cost
    return learning.action_cost + change * _progress(step, learning)


def _progress(step, learning):
    updates = max(0.9 * (learning.steps - learning.warmup_steps), 1.0)
    return jnp.clip((step - learning.warmup_steps) / updates, 0.0, 1.0)


# An estimator tries actions on one image. `evaluate` gives the task loss `f32[A]` of
# valid actions `[A, ...]`; it is called once, so that all candidates share one pass.
# Called with `needed`, `bool[]`, too, it may give zeros instead where that is false.


def paper(operation: Operation, learning: Learning, evaluate, logits, key, sigma):
    """Algorithm 1: reward-weighted imitation of the detected or a rescaled key area."""
    mean = operation.mean(logits)
    detected = operation.sample(key, mean, sigma, 2)[0] if learning.explore else mean
    detected = jax.lax.stop_gradient(operation.clip(detected))
    first = jnp.stack([operation.identity(), detected])
    neighbors = operation.neighbors(detected)
    actions = jnp.concatenate([first, neighbors])
    if learning.skip_neighbors:
        original, kept = evaluate(first)
        others = evaluate(neighbors, kept >= original)
        task_losses = jnp.stack([original, kept, *others])
    else:
        task_losses = evaluate(actions)
    outcome = rewards.paper_reward(*task_losses, balance=learning.balance)
    optimal = actions[1 + outcome.choice]
    weight = {
        "published": outcome.reward,
        "constant": jnp.ones_like(outcome.reward),
        # Bounded, so that one bad area does not outweigh a batch.
        "inverted": jnp.exp(jnp.clip(-outcome.d2, -1.0, 1.0)),
    }[learning.reward_weight]
    loss = operation.imitation_loss(logits, optimal, weight, learning.gamma)
    return Trial(loss, optimal[None], outcome.reward, outcome.d1, outcome.choice)


def reinforce(operation: Operation, learning: Learning, evaluate, logits, key, sigma):
    """Eq. 2: raise the density of sampled actions that beat their siblings."""
    mean = operation.mean(logits)
    samples = operation.sample(key, mean, sigma, learning.samples)
    samples = jax.lax.stop_gradient(samples)
    valid = jax.vmap(operation.clip)(samples)
    still = jax.lax.stop_gradient(operation.clip(mean))
    task_losses = evaluate(jnp.stack([operation.identity(), still, *valid]))
    log_probs = jax.vmap(lambda a: operation.log_prob(a, mean, sigma))(samples)
    # The score grows as 1 / sigma; times sigma, annealing does not change the scale.
    loss = sigma * policy_gradient.reinforce_loss(log_probs, task_losses[2:])
    loss += policy_gradient.bound_loss(mean, still)
    seen = _seen(learning, still, valid)
    return Trial(loss, seen, -task_losses[1], task_losses[1] - task_losses[0])


def pathwise(operation: Operation, learning: Learning, evaluate, logits, key, sigma):
    """Follow the task loss itself, through the crop, to the policy's mean.

    The same objective as `reinforce`, the mean loss of sampled actions, by the gradient
    of the operation instead of the score. Less noisy, but only for operations that are
    differentiable, and blind to what lies outside of an action.
    """
    mean = operation.mean(logits)
    samples = operation.sample(key, mean, sigma, learning.samples)
    valid = jax.vmap(operation.clip)(samples)
    still = jax.lax.stop_gradient(operation.clip(mean))
    task_losses = evaluate(jnp.stack([operation.identity(), still, *valid]))
    loss = jnp.mean(task_losses[2:]) + policy_gradient.bound_loss(mean, still)
    seen = _seen(learning, still, valid)
    return Trial(loss, seen, -task_losses[1], task_losses[1] - task_losses[0])


def elite(operation: Operation, learning: Learning, evaluate, logits, key, sigma):
    """Imitate the best of the samples and the neighbors, where it beats the mean."""
    mean = operation.mean(logits)
    still = jax.lax.stop_gradient(operation.clip(mean))
    samples = operation.sample(key, mean, sigma, learning.samples)
    valid = jax.lax.stop_gradient(jax.vmap(operation.clip)(samples))
    tried = jnp.concatenate([valid, operation.neighbors(still)])
    task_losses = evaluate(jnp.stack([operation.identity(), still, *tried]))
    best, improvement = policy_gradient.elite(task_losses[2:], task_losses[1])
    loss = operation.imitation_loss(logits, tried[best], improvement, learning.gamma)
    seen = _seen(learning, still, valid)
    return Trial(loss, seen, -task_losses[1], task_losses[1] - task_losses[0])


def _seen(learning, still, valid):
    """The actions that the task network is trained on: samples, or the mean."""
    return still[None] if learning.train_on == "mean" else valid[: learning.train_crops]


ESTIMATORS = {
    "paper": paper,
    "reinforce": reinforce,
    "pathwise": pathwise,
    "elite": elite,
}


def make(
    task: Task,
    policy_network: Any,
    operation: Operation,
    learning: Learning,
    *,
    policy_image_size: int,
    policy_normalize: str,
    prober: Task | None = None,
) -> Method:
    """The DRL-HAPre `Method` of a task, a policy network and an operation.

    Args:
      task: see `tasks.Task`.
      policy_network: Linen module whose `Output.logits` the operation reads.
      operation: see `operations.Operation`.
      learning: the learning rule.
      policy_image_size: pixels of a side of the downscaled image the policy sees.
      policy_normalize: see `tasks.normalize`.
      prober: the task as it is when actions are only tried: the same parameters, on
        smaller images or in another type. By default it is the task itself.
    """
    prober = prober or task
    first = operation.parts[0] if isinstance(operation, Hybrid) else operation
    check_choice("estimator", learning.estimator, ESTIMATORS)
    estimator = ESTIMATORS[learning.estimator]

    def thumbnail(image):
        return normalize(resize(image, policy_image_size), policy_normalize)

    def see(image, action, size=task.image_size):
        return operation.apply(image, action, size)

    def show_target(target, action):
        return task.show_target(target, operation, action)

    def init(key, image):
        task_key, policy_key = jax.random.split(key)
        policy_variables = policy_network.init(
            policy_key, thumbnail(image), train=False
        )
        task_variables = task.init(task_key, resize(image, task.image_size))
        return split_variables({"task": task_variables, "policy": policy_variables})

    def propose(params, model_state, image, *, train):
        variables = {"params": params["policy"], **model_state["policy"]}
        return apply_network(policy_network, variables, thumbnail(image), train=train)

    def probe(by, params, model_state, crops, targets, actions):
        """Task losses with all statistics fixed: they differ by the crop alone."""
        variables = {"params": params["task"], **model_state["task"]}
        outputs, _ = by.apply(variables, crops, train=False)
        return by.whole_loss(outputs, targets, operation, actions)

    def task_losses(params, model_state, batch, areas):
        actions = jax.vmap(operation.from_area)(areas)
        crops = jax.vmap(see)(batch["image"], actions)
        return probe(task, params, model_state, crops, task.target(batch), actions)

    def try_actions(params, model_state, batch, logits, key, sigma, cost):
        def losses_of(image, target, actions):
            crops = jax.vmap(see, (None, 0, None))(image, actions, prober.image_size)
            targets = jnp.broadcast_to(target, (len(actions), *target.shape))
            costs = cost * jax.vmap(operation.cost)(actions)
            losses = probe(prober, params, model_state, crops, targets, actions)
            return losses + costs

        def try_one(image, target, logits, key):
            def evaluate(actions, needed=None):
                if needed is None:
                    return losses_of(image, target, actions)
                return unless_nobody_asks(losses_of)(needed, image, target, actions)

            return estimator(operation, learning, evaluate, logits, key, sigma)

        keys = jax.random.split(key, len(batch["image"]))
        return jax.vmap(try_one)(batch["image"], task.target(batch), logits, keys)

    def learn_policy(params, model_state, average, batch, key, step):
        """Policy loss, actions to train the task network on, new state, metrics."""
        output, state = propose(params, model_state, batch["image"], train=True)
        sigma = sigma_at(step, learning)
        # Rewards come from the averaged task network, which is less noisy.
        cost = cost_at(step, learning)
        trials = try_actions(*average, batch, output.logits, key, sigma, cost)
        mean = jax.vmap(operation.mean)(output.logits)
        weights = divide(batch, learning)[0]
        policy_loss = weighted_mean(trials.policy_loss, weights)
        metrics = {
            "policy_loss": policy_loss,
            **summarize(trials, of_area=isinstance(first, KeyArea)),
            "sigma": sigma,
            "entropy": jnp.mean(jax.vmap(lambda m: operation.entropy(m, sigma))(mean)),
            **operation.metrics(jax.vmap(operation.clip)(mean), batch),
        }
        return policy_loss, trials.optimal, state, metrics

    def show(batch, actions):
        """What the task network learns of actions `[B, k, ...]`, one after the other.

        Inputs, their targets and weights; with `train_on_original`, whole images too.
        """
        target = task.target(batch)
        inputs = jax.vmap(jax.vmap(see, (None, 0)))(batch["image"], actions)
        moved = jax.vmap(jax.vmap(show_target, (None, 0)))(target, actions)
        inputs, moved = (x.reshape(-1, *x.shape[2:]) for x in (inputs, moved))
        image_weights = divide(batch, learning)[1]
        weights = jnp.repeat(image_weights, actions.shape[1])
        if learning.train_on_original:
            originals = resize(batch["image"], task.image_size)
            inputs = jnp.concatenate([inputs, originals])
            shape = (len(originals), *actions.shape[2:])
            whole = jnp.broadcast_to(operation.identity(), shape)
            moved = jnp.concatenate([moved, jax.vmap(show_target)(target, whole)])
            weights = jnp.concatenate([weights, image_weights])
        return inputs, moved, weights

    def loss(params, model_state, average, batch, key, step):
        trial_key, random_key, share_key, dropout_key = jax.random.split(key, 4)
        policy_loss, optimal, policy_state, metrics = learn_policy(
            params, model_state, average, batch, trial_key, step
        )
        # In the warm-up the policy waits, and the task network sees random actions, so
        # that it can tell good from bad ones later. Selected, not branched: XLA's CPU
        # backend computes gradients of convolutions inside a branch ten times slower.
        is_warmup = step < learning.warmup_steps
        policy_loss = jnp.where(is_warmup, 0.0, policy_loss)
        policy_state = jax.tree.map(
            lambda old, new: jnp.where(is_warmup, old, new),
            model_state["policy"],
            policy_state,
        )
        share = jnp.where(is_warmup, 1.0, learning.random_share)
        is_random = jax.random.uniform(share_key, optimal.shape[:2]) < share
        keys = jax.random.split(random_key, optimal.shape[:2])
        randoms = jax.vmap(jax.vmap(operation.random))(keys)
        actions = jnp.where(is_random[:, :, None], randoms, optimal)
        inputs, targets, weights = show(batch, jax.lax.stop_gradient(actions))
        variables = {"params": params["task"], **model_state["task"]}
        outputs, task_state = task.apply(variables, inputs, train=True, key=dropout_key)
        task_loss = weighted_mean(task.loss(outputs, targets), weights)
        # The two losses share no parameters, so their sum has both gradients.
        return task_loss + policy_loss, Aux(
            {"task": task_state, "policy": policy_state},
            {"task_loss": task_loss, **metrics},
        )

    def predict(params, model_state, batch):
        image = batch["image"]
        logits = propose(params, model_state, image, train=False)[0].logits
        mean = jax.vmap(operation.mean)(logits)
        action = jax.vmap(operation.clip)(mean)
        variables = {"params": params["task"], **model_state["task"]}
        outputs, _ = task.apply(variables, jax.vmap(see)(image, action), train=False)
        # Of several maps of an area the first, which says where it is.
        maps = [
            leaf if leaf.ndim == 3 else leaf[..., 0]
            for leaf in jax.tree.leaves(logits)
            if leaf.ndim > 2
        ]
        return Prediction(
            task.whole_answers(outputs, operation, action),
            jax.vmap(operation.area)(action),
            jax.vmap(lambda m: operation.entropy(m, learning.final_sigma))(mean),
            jax.nn.sigmoid(maps[0]) if maps else None,
            jax.vmap(operation.parameters)(action),
        )

    return Method(init, loss, predict, task_losses)


def unless_nobody_asks(function: Callable) -> Callable:
    """The same function of `(needed, *arguments)`, or zeros where it is not needed.

    Under `vmap` a condition becomes a selection, which computes both sides. Here the
    elements decide together: all are computed where `needed`, `bool[]`, is true of one
    of them, and none where it is of none.

    Args:
      function: of arrays, to one array. Its gradient is not asked for.
    """

    def compute(needed, function, *arguments):
        result = jax.eval_shape(function, *arguments)
        zeros = jnp.zeros(result.shape, result.dtype)
        return jax.lax.cond(needed, function, lambda *_: zeros, *arguments)

    @jax.custom_batching.custom_vmap
    def one(needed, *arguments):
        return compute(needed, function, *arguments)

    @one.def_vmap
    def of_all(_, is_batched, needed, *arguments):
        axes = [0 if each else None for each in is_batched[1:]]
        together = jax.vmap(function, axes)
        return compute(jnp.any(needed), together, *arguments), True

    return one


def divide(batch: dict, learning: Learning) -> tuple[jax.Array, jax.Array]:
    """Weights `f32[B]` of each image: in the policy's loss, in the task network's.

    Both learn from all images; or, where some are held out, the policy from these and
    the task network from the others, so that no reward is one of a memorized image
    (the batch statistics of its training still see all).
    Which ones is fixed by their row in the training split, `batch["index"]` i32[B].
    """
    if not learning.held_out:
        ones = jnp.ones(len(batch["label"]))
        return ones, ones
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["index"])
    is_held_out = jax.vmap(jax.random.uniform)(keys) < learning.held_out
    return is_held_out.astype(jnp.float32), 1.0 - is_held_out


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean `f32[]` of values `f32[N]` of weight 1, not of those of weight 0."""
    return jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), 1.0)


def summarize(trials: Trial, *, of_area: bool = True) -> dict[str, jax.Array]:
    """What to log of a batch of trials, whose first axis is the images.

    Args:
      trials: of all images.
      of_area: whether the first two neighbors are the area expanded and shrunk.
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
    if trials.choice is not None and of_area:
        metrics["expanded"] = jnp.mean(trials.choice == 1)
        metrics["shrunk"] = jnp.mean(trials.choice == 2)
    return metrics


def resize(image: jax.Array, size: int) -> jax.Array:
    """Whole images `f32[B, H, W, C]` at `f32[B, size, size, C]`, antialiased."""
    shape = (image.shape[0], size, size, image.shape[-1])
    return jax.image.resize(image, shape, "linear")


def split_variables(variables: dict) -> tuple[dict, dict]:
    """Flax variables of each network as (parameters, all that is not learned)."""
    params = {name: tree["params"] for name, tree in variables.items()}
    state = {
        name: {k: v for k, v in tree.items() if k != "params"}
        for name, tree in variables.items()
    }
    return params, state
