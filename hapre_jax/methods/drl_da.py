"""DRL-DA: an agent learns which operations make a film more useful to train on.

Reference: Qin et al., "Automatic Data Augmentation via Deep Reinforcement Learning for
Effective Kidney Tumor Segmentation", ICASSP 2020, a row of the paper's Table 2. The
authors released no code; details are those of code that descends from theirs. Theirs
segments; here it is moved to classification.

1. The plain classifier is trained (the run in the folder `plain`), and frozen.
2. An agent learns. In an episode it changes one film by up to `baseline.drl_da_length`
   operations, one after the other, of `ACTIONS`, until it stops. It sees the last
   features of the frozen classifier on the film as it is now, resized to 10 x 10. After
   each operation a copy of the classifier takes one step of gradient descent on the
   changed film, and the reward is 100 times the change of its mean cross-entropy on
   validation films, from -1 to 1; better is positive. Each episode starts from the
   frozen classifier. Learned is Q by a dueling network, double Q-learning and
   prioritized replay, in `baseline.drl_da_steps` operations.
3. A new classifier is trained, on films as they are and on what the agent, now without
   exploring, makes of them, half of each batch each.

Where this differs from that code:
- The reward is of the mean cross-entropy of `baseline.drl_da_films` validation films,
  not of the Dice of all of them: of a classifier's F1 a single step seldom changes
  anything.
- The classifier's step on one film keeps the statistics of BatchNorm, since one film
  has none, and its gradient is clipped to norm 1, without which one odd film ruins the
  classifier. At its rate, `baseline.drl_da_rate`, few rewards on phantoms are cut.
- An operation of the agent acts on what the task network sees; shifts are the same
  share of the film, 20 of 320 pixels.
- The warp moves a grid of 4 x 4 points and is bilinear between them, not affine in
  triangles.
- Learning is a hundred times shorter than their 55 epochs of episodes: exploration
  falls from 1 to 0.01 with a fifth of the steps as time constant, the target network
  follows every tenth episode, not every 30th, and Adam takes the place of RMSprop.
  Learning starts with the first 32 transitions.
- That code keeps its discount and the size of its memory in a file that is not there:
  `baseline.drl_da_discount`, 0.9, and `drl_da_memory` are our choice.
- They make one changed copy of each film, once. Here a film is changed anew each time
  it is trained on: only noise and warp differ.

Predictions are those of the plain classifier. Cost: a whole training of the plain
classifier; for each operation of the agent's training one forward and backward of one
film and a forward of the validation films; then for each step and image one forward and
backward, and for half of the images up to `baseline.drl_da_length` forwards more.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hapre_jax import image_ops, nets, q_learning, replay
from hapre_jax.config import Config
from hapre_jax.data.dataset import Dataset
from hapre_jax.method import Aux, Method, network_variables, to_float
from hapre_jax.methods import plain
from hapre_jax.tasks import Classification, resize

_SHIFT = 20 / 320  # of a translation, share of the side
_FEATURES = 10  # cells of a side of the state
_BATCH = 32  # transitions of an update
_TARGET_EPISODES = 10  # until the target network follows
_FIRST_EPSILON, _LAST_EPSILON = 1.0, 0.01
_FIRST_BETA = 0.4  # of the weights of prioritized replay; the last is 1
_KEEP = ((0, 0, 0), (0, 1, 0), (0, 0, 0))
_SHARPEN = ((0, -1, 0), (-1, 5, -1), (0, -1, 0))
_SMOOTH = ((0.1, 0.1, 0.1), (0.1, 0.2, 0.1), (0.1, 0.1, 0.1))


class Change(NamedTuple):
    """What an action does to an image; by default nothing.

    All actions are one formula with other numbers, so that under `jax.vmap` each image
    is computed once, not once for each action that it might have been.
    """

    turn: float = 0.0  # degrees counterclockwise
    scale: tuple[float, float] = (1.0, 1.0)  # y and x; below 0 mirrors
    shift: tuple[float, float] = (0.0, 0.0)  # y and x, shares of the side
    warp: float = 0.0  # largest deviation of a grid point, share of the side
    kernel: tuple[tuple[float, ...], ...] = _KEEP  # of a 3 x 3 filter
    brighten: float = 0.0  # gray added, white being 1
    noise: float = 0.0  # deviation of the gray of each pixel


ACTIONS = {
    "mirror": Change(scale=(1, -1)),
    "flip": Change(scale=(-1, 1)),
    "rotate_left": Change(turn=5),
    "rotate_right": Change(turn=-5),
    "warp": Change(warp=0.02),
    "zoom": Change(scale=(1.1, 1.1)),
    "noise": Change(noise=0.05),
    "lighter": Change(brighten=0.075),
    "darker": Change(brighten=-0.075),
    "left": Change(shift=(0, -_SHIFT)),
    "right": Change(shift=(0, _SHIFT)),
    "up": Change(shift=(-_SHIFT, 0)),
    "down": Change(shift=(_SHIFT, 0)),
    "sharpen": Change(kernel=_SHARPEN),
    "smooth": Change(kernel=_SMOOTH),
    "stop": Change(),
}
STOP = len(ACTIONS) - 1


def apply_action(key: jax.Array, image: jax.Array, action: jax.Array) -> jax.Array:
    """An image `f32[S, S, 1]` in [0, 1] after an action `i32[]`; `STOP` keeps it."""
    chex.assert_shape(image, (None, None, 1))
    columns = zip(*ACTIONS.values(), strict=True)
    turn, scale, shift, warp, kernel, brighten, noise = (
        jnp.array(values, jnp.float32)[action] for values in columns
    )
    scale_key, warp_key, noise_key = jax.random.split(key, 3)
    side = len(image)
    cosine, sine = jnp.cos(jnp.deg2rad(turn)), jnp.sin(jnp.deg2rad(turn))
    linear = jnp.array([[cosine, sine], [-sine, cosine]]) / scale[None]
    middle = jnp.full(2, side / 2)
    offset = middle - linear @ middle - side * shift
    image = image_ops.transform(image, jnp.column_stack([linear, offset]))
    deviation = side * warp * jax.random.uniform(scale_key)
    image = image_ops.warp(image, deviation * jax.random.normal(warp_key, (4, 4, 2)))
    image = image_ops.filter3(image, kernel)
    grain = noise * jax.random.normal(noise_key, image.shape)
    return jnp.clip(image + brighten + grain, 0, 1).astype(image.dtype)


def reward(before: jax.Array, after: jax.Array) -> jax.Array:
    """From -1 to 1, of losses `f32[]` before and after a step of gradient descent."""
    return jnp.clip(100 * (before - after), -1, 1)


def make(config: Config, num_classes: int) -> Method:
    """The plain classifier, trained on films as they are and as an agent made them."""
    task = plain.classification(config, num_classes)
    base = plain.classifier(task)
    length = config.baseline.drl_da_length

    def init(key, image):
        params, model_state = base.init(key, image)
        classifier = network_variables("task", params, model_state)
        features = see(task, classifier, resize(image, task.image_size))
        agent = nets.DuelingNet(len(ACTIONS)).init(key, features)
        guide = {"classifier": classifier, "agent": agent}
        return params, model_state | {"guide": guide}

    def loss(params, model_state, average, batch, key, step):
        del average, step
        change_key, choice_key, network_key = jax.random.split(key, 3)
        image = resize(batch["image"], task.image_size)
        count = max(len(image) // 2, 1)
        guide = model_state["guide"]
        changed = augment(task, guide, change_key, image[:count], length=length)
        if len(image) == 1:  # has no half: every other step, in the mean
            is_changed = jax.random.bernoulli(choice_key)
            changed = jnp.where(is_changed, changed, image)
        image = jax.lax.stop_gradient(image.at[:count].set(changed))
        variables = network_variables("task", params, model_state)
        outputs, state = task.apply(variables, image, train=True, key=network_key)
        task_loss = jnp.mean(task.loss(outputs, batch["label"]))
        return task_loss, Aux({"task": state, "guide": guide}, {"task_loss": task_loss})

    def prepare(params, model_state, batches, validation, progress):
        """The guide, as the agent learned it from the plain classifier."""
        classifier = network_variables("task", params, model_state)
        agent = train_agent(config, task, classifier, batches, validation, progress)
        return {"guide": {"classifier": classifier, "agent": agent}}

    return base._replace(init=init, loss=loss, prepare=prepare)


def see(task: Classification, classifier: dict, image: jax.Array) -> jax.Array:
    """States `f32[B, 10, 10, C]` of images `f32[B, S, S, 1]`: the last features."""
    outputs, _ = task.apply(classifier, image, train=False)
    last = nets.stages(outputs.features)[-1]
    features = outputs.features[last].astype(jnp.float32)
    shape = (len(image), _FEATURES, _FEATURES, features.shape[-1])
    return jax.image.resize(features, shape, "linear")


def augment(
    task: Classification, guide: dict, key: jax.Array, image: jax.Array, *, length: int
) -> jax.Array:
    """Images after the agent's most valuable actions.

    Args:
      task: the task network.
      guide: variables of the frozen "classifier" and of the "agent".
      key: PRNG key.
      image: `f32[B, S, S, 1]` in [0, 1].
      length: of an episode.
    """
    network: Any = nets.DuelingNet(len(ACTIONS))

    def act(carry, key):
        image, is_over = carry
        values = network.apply(guide["agent"], see(task, guide["classifier"], image))
        action = jnp.where(is_over, STOP, jnp.argmax(values, axis=1))
        keys = jax.random.split(key, len(image))
        changed = jax.vmap(apply_action)(keys, image, action)
        return (changed, is_over | (action == STOP)), None

    start = (image, jnp.zeros(len(image), bool))
    # Unrolled: XLA's CPU backend runs convolutions inside a loop many times slower.
    keys = jax.random.split(key, length)
    return jax.lax.scan(act, start, keys, unroll=True)[0][0]


class World(NamedTuple):
    """What an agent plays in; it stays as it is."""

    classifier: dict  # variables of the trained plain classifier
    image: jax.Array  # f32[V, S, S, 1] in [0, 1], validation films
    label: jax.Array  # i32[V]
    loss: jax.Array  # f32[], the classifier's mean loss on these films


class Episode(NamedTuple):
    """Where an episode is."""

    image: jax.Array  # f32[S, S, 1], as changed up to now
    label: jax.Array  # i32[]
    state: jax.Array  # f32[10, 10, C]
    params: Any  # of the task network, after a step on each changed image
    loss: jax.Array  # f32[], mean on the validation films
    taken: jax.Array  # i32[], actions


class Learner(NamedTuple):
    """All that changes while an agent learns."""

    episode: Episode
    episodes: jax.Array  # i32[], finished
    memory: replay.Memory
    agent: Any  # variables of the Q-network
    target: Any
    opt_state: optax.OptState
    step: jax.Array  # i32[]


def mean_loss(
    task: Classification, variables: dict, image: jax.Array, label: jax.Array
) -> jax.Array:
    """`f32[]` of images `f32[B, S, S, 1]`, statistics kept."""
    outputs, _ = task.apply(variables, image, train=False)
    return jnp.mean(task.loss(outputs, label))


def make_world(
    task: Classification, classifier: dict, image: jax.Array, label: jax.Array
) -> World:
    """The world of a classifier and validation films; see `World`."""
    loss = mean_loss(task, classifier, image, label)
    return World(classifier, image, label, loss)


def begin(
    task: Classification, world: World, image: jax.Array, label: jax.Array
) -> Episode:
    """An episode on an image `f32[S, S, 1]` of a label `i32[]`."""
    state = see(task, world.classifier, image[None])[0]
    params, taken = world.classifier["params"], jnp.zeros((), jnp.int32)
    return Episode(image, label, state, params, world.loss, taken)


def play(
    task: Classification,
    world: World,
    key: jax.Array,
    episode: Episode,
    action: jax.Array,
    *,
    rate: float,
) -> tuple[Episode, jax.Array]:
    """The episode after an action `i32[]`, and the action's reward `f32[]`.

    Args:
      task: the task network.
      world: where it is played.
      key: PRNG key.
      episode: up to now.
      action: of `ACTIONS`, or `STOP`.
      rate: of the classifier's step on the changed film.
    """
    image = apply_action(key, episode.image, action)

    def loss_on(params, image, label):
        return mean_loss(task, world.classifier | {"params": params}, image, label)

    gradient = jax.grad(loss_on)(episode.params, image[None], episode.label[None])
    # With its statistics kept, BatchNorm does not bound what one odd film can do.
    size = rate / jnp.maximum(optax.tree.norm(gradient), 1.0)
    params = jax.tree.map(lambda p, g: p - size * g, episode.params, gradient)
    loss = loss_on(params, world.image, world.label)
    worth = jnp.where(action == STOP, 0.0, reward(episode.loss, loss))
    state = see(task, world.classifier, image[None])[0]
    after = Episode(image, episode.label, state, params, loss, episode.taken + 1)
    return after, worth


def make_learner(config: Config, task: Classification) -> tuple[Callable, Callable]:
    """What trains an agent, as pure functions.

    Returns:
      `start(key, world, image f32[S, S, 1], label i32[]) -> Learner`, and
      `act(key, world, learner, image, label) -> (Learner, metrics)`: one action and
      one update; the image is that of the next episode, should this one end.
    """
    settings = config.baseline
    network: Any = nets.DuelingNet(len(ACTIONS))
    optimizer = optax.adam(config.train.policy_learning_rate)
    error = functools.partial(q_learning.td_error, discount=settings.drl_da_discount)

    def start(key, world, image, label):
        episode = begin(task, world, image, label)
        agent = network.init(key, episode.state[None])
        memory = replay.empty(episode.state, size=settings.drl_da_memory)
        none = jnp.zeros((), jnp.int32)
        return Learner(episode, none, memory, agent, agent, optimizer.init(agent), none)

    def update(key, learner):
        """The learner after an update of the agent, and the loss."""
        progress = jnp.minimum(learner.step / settings.drl_da_steps, 1.0)
        beta = _FIRST_BETA + (1 - _FIRST_BETA) * progress
        drawn = replay.draw(key, learner.memory, count=_BATCH, beta=beta)
        seen = drawn.transitions
        later = network.apply(learner.target, seen.next_state)

        def loss(agent):
            values = network.apply(agent, seen.state)
            next_values = network.apply(agent, seen.next_state)
            errors = jax.vmap(error)(
                values, seen.action, seen.reward, next_values, later, seen.is_last
            )
            return jnp.mean(drawn.weights * errors**2), errors

        (value, errors), gradient = jax.value_and_grad(loss, has_aux=True)(
            learner.agent
        )
        change, opt_state = optimizer.update(gradient, learner.opt_state)
        agent = optax.apply_updates(learner.agent, change)
        memory = replay.reprioritize(learner.memory, drawn.rows, errors)
        return learner._replace(agent=agent, opt_state=opt_state, memory=memory), value

    def act(key, world, learner, image, label):
        choice_key, play_key, draw_key = jax.random.split(key, 3)
        fall = jnp.exp(-learner.step / (settings.drl_da_steps / 5))
        epsilon = _LAST_EPSILON + (_FIRST_EPSILON - _LAST_EPSILON) * fall
        before = learner.episode
        values = network.apply(learner.agent, before.state[None])[0]
        action = q_learning.explore(choice_key, values, epsilon)
        rate = settings.drl_da_rate
        after, worth = play(task, world, play_key, before, action, rate=rate)
        is_last = (action == STOP) | (after.taken == settings.drl_da_length)
        memory = replay.add(
            learner.memory,
            replay.Transition(before.state, action, worth, after.state, is_last),
        )
        anew = begin(task, world, image, label)
        learner = learner._replace(
            episode=_choose(is_last, anew, after),
            episodes=learner.episodes + is_last,
            memory=memory,
        )
        updated, td_loss = update(draw_key, learner)
        learner = _choose(memory.added >= _BATCH, updated, learner)
        follows = is_last & (learner.episodes % _TARGET_EPISODES == 0)
        target = _choose(follows, learner.agent, learner.target)
        learner = learner._replace(target=target, step=learner.step + 1)
        return learner, {"td_loss": td_loss, "reward": worth, "action": action}

    return start, act


def _choose(condition, first, second):
    """One of two trees, by `bool[]`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def train_agent(
    config: Config,
    task: Classification,
    classifier: dict,
    batches: Iterator[dict],
    validation: Dataset,
    progress: Callable[[int, int, str], None],
) -> dict:
    """The variables of the Q-network after `baseline.drl_da_steps` actions.

    Args:
      config: of the run.
      task: the task network.
      classifier: its variables, of the trained plain classifier.
      batches: of training films, as `feed.TrainIterator` gives them.
      validation: split, for the rewards.
      progress: called with actions taken, of how many, and a word on how it goes.
    """
    settings = config.baseline
    rows = np.random.default_rng(config.seed).permutation(len(validation))
    chosen = validation.take(rows[: settings.drl_da_films])
    root = jax.random.fold_in(jax.random.key(config.seed), STOP)
    start, act = make_learner(config, task)

    @jax.jit
    def shrink(pixels):
        return resize(to_float({"image": pixels})["image"], task.image_size)

    @functools.partial(jax.jit, donate_argnums=0)
    def act_once(learner, world, image, label):
        key = jax.random.fold_in(root, learner.step)
        return act(key, world, learner, image, label)

    world = jax.jit(functools.partial(make_world, task))(
        classifier, shrink(chosen.images), jnp.asarray(chosen.labels)
    )
    films = _films(batches, shrink)
    learner = jax.jit(start)(root, world, *next(films))
    # Donated arrays must be apart: the agent and its target start as one.
    learner = jax.device_put(learner, jax.local_devices()[0], may_alias=False)
    rewards: list[jax.Array] = []
    for taken in range(1, settings.drl_da_steps + 1):
        learner, metrics = act_once(learner, world, *next(films))
        rewards.append(metrics["reward"])
        if taken % config.train.log_every == 0 or taken == settings.drl_da_steps:
            mean, rewards = float(np.mean(rewards)), []
            progress(taken, settings.drl_da_steps, f"reward {mean:+.3f}")
    return learner.agent


def _films(batches, shrink) -> Iterator[tuple]:
    """Images and labels one by one."""
    for batch in batches:
        yield from zip(shrink(batch["image"]), batch["label"], strict=True)
