"""DRE-Net, as the paper describes it and as its authors released it.

Reference: Song et al., "Deep Learning Enables Accurate Diagnosis of Novel Coronavirus
(COVID-19) with CT Images", 2021, a row of the paper's Table 2. What the paper (Yuan et
al. 2022) says of it, "a multi-scale based classification model, which introduces
feature pyramid network to extract features with different scales", is not what the
released code does, so there are two methods. The paper fixes no constant of either.

`dre_net` is our reading of the description: the pyramid of Lin et al. 2017 on every
stage of a ResNet, on each level an attention that weighs the places ("details") and a
classifier, and the mean of the levels' logits, trained by cross-entropy. How the
attention looks and how levels meet is our choice: a softmax over places is the simplest
that learns "the importance of each detail", and equal weights favor no scale. The
network is `nets.PyramidNet`. Cost a step and image: one forward of the task network and
the pyramid.

`dre_net_official` is the released code, NTS-Net (Yang et al., "Learning to Navigate for
Fine-grained Classification", 2018) with small changes and without any pyramid of
features. A proposal network scores a box, an anchor, at each place of three grids, by
the task network's last features. The three best small and the three best large anchors
that hardly overlap are cut out, resized to half the image's side, and classified by the
same network; so is the best large anchor, cut from the film as it is stored and resized
to the image's side. The six parts, the whole image and the detail together give the
answer. The loss is the sum of the cross-entropies of the whole image, of the parts and
of everything together, and of a ranking loss, which asks that a part that is
classified better has a score that is higher by 1. The network is `nets.PartNet`. Cost a
step and image: 3.5 forwards of the task network (whole 1, detail 1, six parts of a
quarter of the pixels) and the proposal network.

Where `dre_net_official` differs from the released code:
- One optimizer, the trainer's Adam. Theirs are four of SGD with the same settings,
  which is the same as one: rate 8e-4, momentum 0.9, weight decay 1e-4, divided by 10
  after 60 and 100 of up to 500 epochs; batches of 4.
- Images are those of the data set, without their flips and color jitter and without
  their cutting the lungs out of CT slices, which relies on Hounsfield units.
- Their image has 448 pixels a side. With others the anchors keep their share of the
  image, and lie at the places of the grids that there are. These may be too few for
  three parts that hardly overlap: the best one is then shown again, but counts in the
  losses once. At 448 pixels and stride 32 that does not happen.
- The film is normalized once, before parts are cut, as theirs: around it is the mean
  gray, and a dark part stays dark. The detail is cut from the film of
  `data.image_size` pixels; theirs from one of 600.
- A stem for one channel has 6,272 parameters less: with ResNet-50 and three classes
  26,218,188 instead of 26,224,460.
- Their file of the ResNet is not part of the release. It is torchvision's here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hapre_jax import boxes, losses, nets
from hapre_jax.config import Config
from hapre_jax.method import Aux, Method, Prediction, network_variables, split_variables
from hapre_jax.methods import plain
from hapre_jax.tasks import Classification, normalize, resize

# Of the released code: sides of the anchors of the three grids, in sides of the image.
_SIDES = (48 / 448, 96 / 448, 192 / 448)
_SMALL = 2  # grids of small anchors; the other one's are large
_PARTS = 3  # of each size
_MAX_IOU = 0.1  # of two parts of one size
_MARGIN = 1.0  # by which the score of a better part is higher


def make(config: Config, num_classes: int) -> Method:
    """The plain classifier with a feature pyramid on the config's ResNet."""
    settings = config.task
    trunk = plain.backbone(config, settings)
    network = nets.PyramidNet(
        trunk, num_classes, width=config.baseline.pyramid_width, dtype=settings.dtype
    )
    task = Classification(network, settings.image_size, settings.normalize)

    return plain.classifier(task)._replace(has_one_network=False)


def make_official(config: Config, num_classes: int) -> Method:
    """The released code's method with the config's ResNet."""
    settings = config.task
    trunk = plain.backbone(config, settings, num_classes)
    network = nets.PartNet(trunk, num_classes, dtype=settings.dtype)

    def prepare(film):
        """What the network sees of films, and how it looks closer."""
        image = normalize(resize(film, settings.image_size), settings.normalize)
        film = normalize(film, settings.normalize)
        return image, lambda scores: jax.vmap(look)(image, film, scores)

    def init(key, image):
        variables = network.init(key, *prepare(image), train=False)
        return split_variables({"task": variables})

    def read(params, model_state, film, *, train):
        """The network's `Reading` of films `f32[B, H, W, C]`, and its new state."""
        variables = network_variables("task", params, model_state)
        reading, state = network.apply(
            variables, *prepare(film), train=train, mutable=["batch_stats"]
        )
        return reading, {"task": dict(state)}

    def loss(params, model_state, average, batch, key, step):
        del average, key, step
        reading, state = read(params, model_state, batch["image"], train=True)
        cross_entropy = jax.vmap(losses.cross_entropy)
        label, choice = batch["label"], reading.choice
        of_parts = jax.vmap(cross_entropy, (1, None), 1)(reading.part_logits, label)
        is_found = choice.is_found.astype(jnp.float32)
        ranking = jax.vmap(ranking_loss)(choice.scores, of_parts, choice.is_found)
        parts = {
            "task_loss": jnp.mean(cross_entropy(reading.logits, label)),
            "whole_loss": jnp.mean(cross_entropy(reading.whole_logits, label)),
            "part_loss": losses.weighted_mean(of_parts.ravel(), is_found.ravel()),
            "ranking_loss": jnp.mean(ranking),
        }
        return sum(parts.values()), Aux(state, parts)

    def predict(params, model_state, batch):
        reading, _ = read(params, model_state, batch["image"], train=False)
        return Prediction(jax.nn.softmax(reading.logits))

    def task_losses(params, model_state, batch, areas):
        """Losses on boxes `f32[B, 4]`, each taken for a film of its own."""
        film = batch["image"]

        def cut(film, box):
            return boxes.crop_and_resize(film, box, size=film.shape[0])

        reading, _ = read(params, model_state, jax.vmap(cut)(film, areas), train=False)
        return jax.vmap(losses.cross_entropy)(reading.logits, batch["label"])

    return Method(init, loss, predict, task_losses)


class Choice(NamedTuple):
    """The P parts of an image: small ones, then large ones, the best of each first."""

    boxes: jax.Array  # f32[P, 4] yxyx, may stick out of the image
    scores: jax.Array  # f32[P]
    is_found: jax.Array  # bool[P]; false where the best one is shown again


def look(
    image: jax.Array, film: jax.Array, scores: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array, Choice]:
    """What is seen of one image after its places were scored.

    Args:
      image: `f32[S, S, C]`, normalized: beside it there is 0.
      film: `f32[H, H, C]`, the same in the size it is stored.
      scores: of the places of three grids, each `f32[n, n]`.

    Returns:
      Parts `f32[P, S // 2, S // 2, C]`, the detail `f32[S, S, C]` and the choice.
    """
    choice = choose(scores)
    size = image.shape[0]
    margin = size // 2
    padded = jnp.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    placed = (choice.boxes * size + margin) / (size + 2 * margin)
    parts = jax.vmap(lambda box: boxes.crop_and_resize(padded, box, size=margin))(
        placed
    )
    largest = jnp.clip(choice.boxes[_PARTS], 0.0, 1.0)
    return parts, boxes.crop_and_resize(film, largest, size=size), choice


def choose(scores: Sequence[jax.Array]) -> Choice:
    """The best anchors of the small and of the large ones, by their scores.

    Args:
      scores: of the places of three grids, each `f32[n, n]`.
    """
    chex.assert_rank(list(scores), 2)
    areas = anchors([len(grid) for grid in scores])
    chosen = []
    for group in (slice(_SMALL), slice(_SMALL, None)):
        group_areas = jnp.concatenate([jnp.asarray(area) for area in areas[group]])
        group_scores = jnp.concatenate([grid.ravel() for grid in scores[group]])
        index, is_found = suppress(
            group_areas, group_scores, count=_PARTS, max_iou=_MAX_IOU
        )
        chosen.append(Choice(group_areas[index], group_scores[index], is_found))
    return jax.tree.map(lambda *of_size: jnp.concatenate(of_size), *chosen)


def anchors(sides: Sequence[int]) -> list[np.ndarray]:
    """The box at each place of three grids, row by row: `f32[n * n, 4]` yxyx each.

    A place of the first grid, of n a side, has the side 1 / n of the image; those of
    the next grids have twice and four times that. A center beyond the image, where that
    is more than the image has, moves to its border; of 14 places, with 448 pixels and
    stride 32, none is.

    Args:
      sides: places of a side of each grid.
    """
    found = []
    for level, (side, length) in enumerate(zip(sides, _SIDES, strict=True)):
        line = np.minimum((np.arange(side) + 0.5) * 2**level / sides[0], 1.0)
        center = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
        box = np.concatenate([center - length / 2, center + length / 2], axis=1)
        found.append(box.astype(np.float32))
    return found


def suppress(
    areas: jax.Array, scores: jax.Array, *, count: int, max_iou: float
) -> tuple[jax.Array, jax.Array]:
    """The best boxes that hardly overlap: non-maximum suppression of a fixed size.

    The best box is taken, those that overlap it too much are dropped, and so on.

    Args:
      areas: `f32[N, 4]` yxyx.
      scores: `f32[N]`, finite; of equal ones the first box is taken.
      count: P, boxes to take.
      max_iou: largest IoU of two boxes that are taken.

    Returns:
      Indices `i32[P]`, the best first; and `bool[P]`, false where no box remained: the
      index is then that of the best one.
    """
    chex.assert_shape([areas, scores], [(len(scores), 4), (len(scores),)])
    remains = jnp.ones(len(scores), bool)
    taken: list[jax.Array] = []
    is_found: list[jax.Array] = []
    for _ in range(count):
        best = jnp.argmax(jnp.where(remains, scores, -jnp.inf))
        is_found.append(remains[best])
        best = jnp.where(remains[best], best, taken[0] if taken else best)
        taken.append(best)
        overlap = jax.vmap(boxes.iou, (None, 0))(areas[best], areas)
        # The box itself too, were it empty.
        remains = (remains & (overlap <= max_iou)).at[best].set(False)
    return jnp.stack(taken), jnp.stack(is_found)


def ranking_loss(
    scores: jax.Array, part_losses: jax.Array, is_found: jax.Array
) -> jax.Array:
    """Hinge on every two parts: the one of the smaller loss has the higher score.

    Args:
      scores: `f32[P]`, the only ones with a gradient.
      part_losses: `f32[P]`, whose order counts, not their size.
      is_found: `bool[P]`; the others do not count.

    Returns:
      `f32[]`: the sum of max(0, 1 - (score of the better - score of the worse)).
    """
    chex.assert_equal_shape([scores, part_losses, is_found])
    is_better = part_losses[:, None] < part_losses[None, :]
    counts = is_better & is_found[:, None] & is_found[None, :]
    hinge = jax.nn.relu(_MARGIN - scores[:, None] + scores[None, :])
    return jnp.sum(jnp.where(counts, hinge, 0.0))
