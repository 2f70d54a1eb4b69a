"""Two-Stage: one network says whether a film is normal, or where to look; one the rest.

Reference: Chaudhary et al., "Detecting COVID-19 and Community Acquired Pneumonia Using
Chest CT Scan Images with Deep Learning", ICASSP 2021, a row of the paper's Table 2. The
paper (Yuan et al. 2022) says that it "uses a detection network to focus on important
areas first and then perform fine-grained classification". The authors' released code
detects no areas: its first stage tells infected slices of a CT scan from others, its
second one classifies slices in three classes. So `baseline.two_stage` has two readings:

- `gate`, the released code's. Stage 1 is a classifier of normal against all that is
  not, stage 2 one of all classes, both of the whole film. The probability of normal is
  stage 1's; the rest of it is divided among the other classes as stage 2 does. With two
  classes stage 1 thus decides alone.
- `cam`, the paper's sentence. The class activation map of stage 1 (Zhou et al.,
  "Learning Deep Features for Discriminative Localization", 2016), of its evidence
  against normal, gives a box, and stage 2 classifies what is in the box, cut from the
  film as it is stored. Its answer is the method's.

Stage 2 is the task network, "task" of the parameters; stage 1, "gate", is another
network (`baseline.stage_one_net`), with the task network's image size, normalization
and learning rate. Each has a cross-entropy of its own, and both learn in the same
steps. Cost a step and image: one forward of each.

Where this differs from the released code:
- Films, not scans: no slices that stage 1 labels for stage 2, and no vote of slices.
- Both stages learn at once, on the same batches and with the trainer's Adam; theirs one
  after the other, Adam of rate 2e-4 and b1 0.5, on batches of 10 that are balanced by
  drawing fewer normal slices, at 512 pixels.
- Stage 1 is one network with two logits; theirs are two DenseNet-121, one for each
  disease, with a hidden layer of 1,024 and one sigmoid each. Stage 2 is `task.net`
  with its own head; theirs is an EfficientNet-B5 with hidden layers of 2,048 and 1,024.

Of reading `cam` nothing is published. The box holds all places from
`baseline.cam_threshold` up, where 0 is the coldest and 1 the hottest place of the map.
Zhou et al. take 0.2 and of these places the largest connected part. Here all count,
since two lungs are two parts, which asks for a higher threshold: 0.5. The box's sides
are bounded by `policy.min_side` and `policy.max_side`, as HAPre-KRS's are. In the first
steps the boxes are as good as random.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp

from hapre_jax import boxes, heatmap, nets
from hapre_jax.config import Config
from hapre_jax.data.phantom import QUALITIES
from hapre_jax.errors import UserError
from hapre_jax.method import Aux, Method, Prediction, network_variables, split_variables
from hapre_jax.methods import plain
from hapre_jax.operations import KeyArea
from hapre_jax.tasks import crop, resize

# Data sets of ours whose first class is "normal"; of phantoms, those of a disease,
# which have the qualities of the paper.
_NORMAL_FIRST = ("phantom", "ped_pneumonia", "rsna_pneumonia", "nih_chest_xray")
# Of what stage 1 tells apart; the other one, 1, is everything that is not normal.
_NORMAL = 0


def make(config: Config, num_classes: int) -> Method:
    """The method in the reading that `baseline.two_stage` names.

    Raises:
      UserError: it is not known which class is normal, or stage 1 has no class
        activation map or cannot be built.
    """
    normal = normal_class(config, num_classes)
    task = plain.classification(config, num_classes)
    if config.baseline.stage_one_pretrained and config.task.norm == "group":
        raise UserError(
            "baseline.stage_one_pretrained weights come with the statistics of "
            "BatchNorm: task.norm must be batch or frozen, not group"
        )
    net = config.stage_one_net
    stage_one = dataclasses.replace(config.task, net=net, pretrained="")
    gate = plain.classification(dataclasses.replace(config, task=stage_one), 2)
    is_spatial = config.baseline.two_stage == "cam"
    # What the map weighs is the head on the mean of the last features.
    if is_spatial and (net.startswith("vgg") or net.endswith("+danet")):
        raise UserError(
            f"baseline.two_stage is cam, but {net} has no class activation map: "
            "baseline.stage_one_net must be a ResNet without danet or a DenseNet"
        )
    key_area = KeyArea(min_side=config.policy.min_side, max_side=config.policy.max_side)

    def init(key, image):
        task_key, gate_key = jax.random.split(key)
        image = resize(image, task.image_size)
        return split_variables(
            {"task": task.init(task_key, image), "gate": gate.init(gate_key, image)}
        )

    def place(params, outputs):
        """The boxes `f32[B, 4]` that stage 1 finds; no gradient."""
        last = nets.stages(outputs.features)[-1]
        feature = outputs.features[last].astype(jnp.float32)
        kernel = params["gate"]["head"]["kernel"]
        evidence = kernel[:, 1 - _NORMAL] - kernel[:, _NORMAL]

        def box(feature):
            heat = heatmap.cam(feature, evidence)
            found = heat_box(heat, threshold=config.baseline.cam_threshold)
            return key_area.clip(found)

        return jax.lax.stop_gradient(jax.vmap(box)(feature))

    def run(params, model_state, image, *, train, keys=(None, None)):
        """Outputs of stage 1 and of stage 2, new state, and the boxes or None."""
        task_variables = network_variables("task", params, model_state)
        gate_variables = network_variables("gate", params, model_state)
        whole = resize(image, task.image_size)
        first, gate_state = gate.apply(gate_variables, whole, train=train, key=keys[1])
        areas = place(params, first) if is_spatial else None
        seen = whole if areas is None else crop(image, areas, task.image_size)
        second, task_state = task.apply(task_variables, seen, train=train, key=keys[0])
        return first, second, {"task": task_state, "gate": gate_state}, areas

    def loss(params, model_state, average, batch, key, step):
        del average, step
        first, second, state, areas = run(
            params,
            model_state,
            batch["image"],
            train=True,
            keys=jax.random.split(key),
        )
        label = batch["label"]
        is_ill = (label != normal).astype(jnp.int32)
        task_loss = jnp.mean(task.loss(second, label))
        gate_loss = jnp.mean(gate.loss(first, is_ill))
        metrics = {"task_loss": task_loss, "gate_loss": gate_loss}
        if areas is not None:
            metrics |= key_area.metrics(areas, batch)
        # The two share no parameters, so their sum has both gradients.
        return task_loss + gate_loss, Aux(state, metrics)

    def predict(params, model_state, batch):
        first, second, _, areas = run(params, model_state, batch["image"], train=False)
        if is_spatial:
            return Prediction(task.probabilities(second), areas)
        ill = gate.probabilities(first)[:, 1 - _NORMAL]
        join = functools.partial(combine, normal=normal)
        return Prediction(jax.vmap(join)(ill, second.logits))

    # Of stage 2, wherever stage 1 looks.
    return Method(init, loss, predict, plain.classifier(task).task_losses)


def normal_class(config: Config, num_classes: int) -> int:
    """The index of the class "normal".

    Raises:
      UserError: nothing says which it is, there is none, or there are fewer classes.
    """
    index, data = config.baseline.normal_class, config.data
    if index is None and data.name == "phantom" and data.quality not in QUALITIES:
        raise UserError(
            f"phantoms of quality {data.quality} have no class that is normal, which "
            "method two_stage tells from the others: data.quality must be one of "
            f"{', '.join(QUALITIES)}"
        )
    if index is None and data.name in _NORMAL_FIRST:
        index = 0
    if index is None:
        raise UserError(
            f"method two_stage must know which class of {data.name} is normal: "
            "set baseline.normal_class to its place among the names of the classes, "
            "sorted and counted from 0"
        )
    if index >= num_classes:
        raise UserError(
            f"baseline.normal_class is {index}, but there are {num_classes} classes, "
            "counted from 0"
        )
    return index


def combine(ill: jax.Array, logits: jax.Array, *, normal: int) -> jax.Array:
    """Probabilities of all classes from both stages.

    Args:
      ill: `f32[]`, stage 1's probability of not being normal.
      logits: `f32[K]`, stage 2's; that of the class normal does not count.
      normal: index of this class.

    Returns:
      `f32[K]`, whose sum is 1.
    """
    chex.assert_rank([ill, logits], [0, 1])
    is_normal = jnp.arange(len(logits)) == normal
    split = jax.nn.softmax(jnp.where(is_normal, -jnp.inf, logits))
    return jnp.where(is_normal, 1 - ill, ill * split)


def heat_box(heat: jax.Array, *, threshold: float) -> jax.Array:
    """The smallest box around all cells of a map that are hot.

    Args:
      heat: `f32[h, w]`, of any sign.
      threshold: where hot begins, from 0, the coldest cell, to 1, the hottest one.

    Returns:
      `f32[4]` yxyx, with its edges between cells; of an even map the whole image.
    """
    chex.assert_rank(heat, 2)
    low, high = jnp.min(heat), jnp.max(heat)
    is_hot = heat >= low + threshold * (high - low)
    # Rounding may put the threshold above the hottest cell itself.
    is_hot |= heat == high

    return boxes.bounding_box(is_hot)
