"""The configuration of a run: frozen dataclasses, checked when they are made.

Adding a field is adding a line; see `options`. Files that hold one: `config_file`.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Mapping
from typing import Any

from hapre_jax.errors import UserError
from hapre_jax.options import check, nearest, option, options, types_of

_RESNETS = (
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
)
TRUNKS = (*_RESNETS, "densenet121", "densenet169", "vgg16", "vgg19")
NETS = (*TRUNKS, *(f"{net}+{a}" for net in _RESNETS for a in ("cbam", "danet")))
NORMS = ("batch", "frozen", "group")
AREAS = ("key_area", "mask", "zoom")
_OPERATIONS = (*AREAS, "rotation", "gamma", "contrast", "window", "sharpening", "none")
# A slip of the keyboard may not fill a machine with processes; few have more cores.
_MOST_READERS = 256


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images and how they are stored and split."""

    name: str = option(
        "phantom",
        "Data set: drawn on the fly, or read from data.root.",
        choices=(
            "phantom",
            "ped_pneumonia",
            "rsna_pneumonia",
            "nih_chest_xray",
            "folder",
        ),
    )
    root: str = option(
        "",
        "Folder or zip file of the data set's images, CSV file of your own, or what "
        "hapre_jax.data prepare wrote.",
        role="machine",
        is_path=True,
    )
    image_size: int = option(
        1024,
        "Pixels of a side of the stored square image that key areas are cut from.",
        at_least=8,
        at_most=8192,
        role="appearance",
    )
    geometry: str = option(
        "letterbox",
        "How an image becomes square: padded, stretched, or cut about its center.",
        choices=("letterbox", "squash", "cover"),
        role="appearance",
    )
    quality: str = option(
        "low",
        "how well the films are framed; or what was done to them, where the class is "
        "one that depends on it.",
        choices=("high", "medium", "low", "rotated", "exposed", "rotated_exposed"),
        source="phantom",
    )
    degrade: str = option(
        "none",
        "Real films: shown as a hospital with less careful framing would store them.",
        choices=("none", "medium", "low"),
        role="appearance",
    )
    train_images: int = option(
        3000, "images to train on.", at_least=1, source="phantom"
    )
    validation_images: int = option(
        300, "images to validate on.", at_least=1, source="phantom"
    )
    test_images: int = option(600, "images to test on.", at_least=1, source="phantom")
    split_level: str = option(
        "group",
        "What a split keeps together: all images of a patient, or single images.",
        choices=("group", "image"),
    )
    official_split: bool = option(
        False,
        "Test on the images that the source was published to be tested on, and divide "
        "only the others.",
    )
    split_fractions: tuple[float, ...] = option(
        (0.7, 0.1, 0.2), "Shares of training, validation and test images.", above=0
    )
    bare_groups: bool = option(
        False,
        "films of one number are of one child, whatever the pneumonia.",
        source="ped_pneumonia",
    )
    rsna_labels: str = option(
        "class",
        "Normal against Lung Opacity, or Target 0 against 1.",
        choices=("class", "target"),
        source="rsna_pneumonia",
    )
    view: str = option(
        "all",
        "Views to take, where the source says which film is of which.",
        choices=("all", "PA", "AP"),
    )
    draw: tuple[int, ...] | None = option(
        None,
        "Films of each class to draw by seed, as 1849,1962; none takes all.",
        at_least=1,
    )
    on_error: str = option(
        "skip",
        "What an image that cannot be read does: it is left out, or stops the program.",
        choices=("skip", "stop"),
        role="reading",
    )
    memory_gib: float = option(
        4.0,
        "Images are kept in memory if they take at most this much, else read anew for "
        "each batch.",
        at_least=0,
        role="machine",
    )
    threads: int = option(
        2,
        "Threads that read images; 0 reads them between steps.",
        at_least=0,
        at_most=_MOST_READERS,
        role="machine",
    )
    processes: int = option(
        0,
        "Processes that read images which are not kept in memory; 0 uses threads.",
        at_least=0,
        at_most=_MOST_READERS,
        role="machine",
    )
    flip: str = option(
        "none",
        "Axis along which training images are flipped at random (paper: vertical).",
        choices=("none", "vertical", "horizontal"),
        role="augmentation",
    )
    flip_probability: float = option(
        0.5, "Probability of a flip.", at_least=0, at_most=1, role="augmentation"
    )
    zoom_out: float = option(
        1.0,
        "Training images are shrunk into a black frame by a random factor up to this, "
        "as if exposed from further away; 1 leaves them.",
        at_least=1,
        at_most=8,
        role="augmentation",
    )

    def __post_init__(self):
        check(self, "data.")
        if self.name == "phantom" and self.degrade != "none":
            raise UserError(
                f"data.degrade is {self.degrade}, but is for real films: phantoms have "
                "data.quality"
            )
        shares = self.split_fractions
        if len(shares) != 3 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise UserError(
                f"data.split_fractions is {shares}, but must be three numbers that "
                "sum to 1"
            )


def check_net(section: Any, prefix: str) -> None:
    """Raises `UserError` where a network cannot be built as a section asks."""
    if section.net.startswith(("densenet", "vgg")) and section.image_size < 32:
        raise UserError(
            f"{prefix}image_size is {section.image_size}, but {section.net} halves it "
            "five times and must have at least 32"
        )
    if section.pretrained and section.norm == "group":
        raise UserError(
            f"{prefix}pretrained weights come with the statistics of BatchNorm: "
            f"{prefix}norm must be batch or frozen, not group"
        )


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task network, which classifies the key area."""

    net: str = option("resnet8", "Architecture.", choices=NETS)
    image_size: int = option(
        32, "Pixels of a side of the crop that it sees.", at_least=8, at_most=8192
    )
    norm: str = option(
        "batch",
        "Normalization layers: frozen keeps the stored statistics in training too.",
        choices=NORMS,
    )
    normalize: str = option(
        "image",
        "Gray levels: each crop less its mean, over its deviation, or ImageNet's fixed "
        "values.",
        choices=("image", "fixed"),
    )
    dtype: str = option(
        "float32",
        "Type of the computation; parameters are float32.",
        choices=("float32", "bfloat16"),
    )
    pretrained: str = option(
        "",
        "File of torchvision weights to start from, .safetensors or .pth.",
        is_path=True,
    )

    def __post_init__(self):
        check(self, "task.")
        check_net(self, "task.")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The policy network, which proposes the key area, and its learning rule."""

    net: str = option("resnet8", "Architecture of the trunk.", choices=TRUNKS)
    image_size: int = option(
        32,
        "Pixels of a side of the whole image that it sees; a multiple of policy.grid.",
        at_least=8,
        at_most=8192,
    )
    grid: int = option(
        16, "Cells of a side of the key area map.", at_least=2, at_most=512
    )
    width: int = option(
        32, "Channels of the pyramid on the trunk.", at_least=1, at_most=4096
    )
    norm: str = option("group", "Normalization layers.", choices=NORMS)
    dtype: str = option(
        "float32",
        "Type of the computation; parameters and logits are float32.",
        choices=("float32", "bfloat16"),
    )
    pretrained: str = option(
        "", "File of torchvision weights that the trunk starts from.", is_path=True
    )
    operation: str = option(
        "key_area",
        "Pre-processing that it decides on; several, in order, joined by +: "
        f"{', '.join(_OPERATIONS)}.",
    )
    max_angle: float = option(
        45.0, "rotation: largest angle, degrees.", above=0, at_most=180
    )
    max_gamma: float = option(
        3.0,
        "gamma: largest power of gray levels; the smallest is its inverse.",
        above=1,
    )
    estimator: str = option(
        "reinforce",
        "Learning rule: as published, score function, gradient through the crop, or "
        "imitation of the best box.",
        choices=("paper", "reinforce", "pathwise", "elite"),
    )
    samples: int = option(4, "Boxes drawn for an image; even.", at_least=2)
    explore: bool = option(
        True, "Draw boxes in training; false takes the mean box (estimator paper)."
    )
    sigma: float = option(
        0.35,
        "Width of the policy at the start, in relative shift and log size.",
        above=0,
    )
    final_sigma: float = option(0.12, "Width of the policy at the end.", above=0)
    alpha: float = option(
        1.25, "Factor by which a key area is expanded and shrunk.", above=1
    )
    neighbors: str = option(
        "rescale",
        "Boxes beside a key area that estimators paper and elite try: expanded and "
        "shrunk; also shifted; also made wider and taller.",
        choices=("rescale", "shift", "stretch"),
    )
    readout: str = option(
        "moments",
        "How a box is read off the map: by its moments; as the mean of boxes that its "
        "cells propose (dense anchors); or as the box with the largest sum of logits, "
        "which has no gradient (estimators paper and elite).",
        choices=("moments", "anchors", "max_sum"),
    )
    reward_weight: str = option(
        "published",
        "Weight of the detection loss (estimator paper): e^D, smaller for better "
        "areas; the same for all; or e^-D, larger for better ones.",
        choices=("published", "constant", "inverted"),
    )
    balance: float = option(
        0.5, "lambda of the paper's D2 (Eq. 7).", at_least=0, at_most=1
    )
    gamma: float = option(2.0, "gamma of the focal loss (Eq. 4).", at_least=0)
    min_side: float = option(
        0.25, "Shortest side of a key area, share of the image.", above=0, at_most=1
    )
    max_side: float = option(
        1.0, "Longest side of a key area, share of the image.", above=0, at_most=1
    )
    warmup_steps: int = option(
        200, "Steps in which only the task network learns.", at_least=0
    )
    random_share: float = option(
        0.25,
        "Share of the key areas that the task network is trained on that are random.",
        at_least=0,
        at_most=1,
    )
    area_cost: float = option(
        0.0,
        "What keeping the whole image costs the policy at first, in units of the task "
        "loss; a smaller area costs its share.",
        at_least=0,
    )
    final_area_cost: float = option(
        0.0, "What it costs at the end; it changes with policy.sigma.", at_least=0
    )
    train_crops: int = option(
        4,
        "Boxes drawn for an image that the task network is trained on, all where "
        "policy.samples are fewer; the published rule has one.",
        at_least=1,
    )
    train_on: str = option(
        "samples",
        "Key areas that the task network is trained on: boxes drawn around the "
        "policy's mean, or the mean box itself; estimator paper has its optimal one.",
        choices=("samples", "mean"),
    )
    held_out: float = option(
        0.0,
        "Share of the training images that only the policy learns from: their losses "
        "are those of images that the task network was never trained on.",
        at_least=0,
        at_most=0.9,
    )
    probe_size: int = option(
        0,
        "Pixels of a side of the crops that are only tried, not trained on; 0 is "
        "task.image_size.",
        at_least=0,
    )
    probe_dtype: str = option(
        "same",
        "Type in which they are tried; same is task.dtype.",
        choices=("same", "float32", "bfloat16"),
    )
    skip_neighbors: bool = option(
        False,
        "Try the neighbors only where some image of a batch is not helped by its key "
        "area (estimator paper): the same result, sooner with small batches.",
    )
    train_on_original: bool = option(
        False, "Train the task network on the whole image too."
    )

    def __post_init__(self):
        check(self, "policy.")
        check_net(self, "policy.")
        self._check_operations()
        if self.image_size % self.grid:
            raise UserError(
                f"policy.image_size is {self.image_size}, but must be a multiple of "
                f"policy.grid, which is {self.grid}"
            )
        if 0 < self.probe_size < 8:
            raise UserError(
                f"policy.probe_size is {self.probe_size}, but must be 0 or at least 8"
            )
        if self.samples % 2:
            raise UserError(f"policy.samples is {self.samples}, but must be even")
        if self.operations == ("none",) and self.estimator == "paper":
            raise UserError(
                "policy.estimator is paper, which tries neighbors of an action, but "
                "policy.operation none has no action: it takes reinforce, pathwise or "
                "elite"
            )
        if self.readout == "max_sum" and self.estimator not in ("paper", "elite"):
            raise UserError(
                f"policy.estimator is {self.estimator}, but policy.readout max_sum has "
                "no gradient: it takes paper or elite, which imitate"
            )
        if self.min_side > self.max_side:
            raise UserError(
                f"policy.min_side is {self.min_side}, but must be at most "
                f"policy.max_side, which is {self.max_side}"
            )

    def _check_operations(self):
        names = self.operations
        for name in names:
            if name not in _OPERATIONS:
                raise UserError(
                    f"policy.operation is {self.operation}, but must be of "
                    f"{', '.join(_OPERATIONS)}, several joined by +"
                )
        if len(set(names)) < len(names) or sum(name in AREAS for name in names) > 1:
            raise UserError(
                f"policy.operation is {self.operation}, but may have each operation "
                f"once, and one of {', '.join(AREAS)}"
            )

    @property
    def operations(self) -> tuple[str, ...]:
        """The names of the operations, in order."""
        return tuple(self.operation.split("+"))


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """What the methods beside key area selection need to know."""

    crop_area: float = option(
        0.3,
        "random_crop: smallest area of a crop, share of the image, before a side "
        "that is longer than the image is cut; 0.08 in torchvision, which often cuts "
        "the lungs off.",
        above=0,
        at_most=1,
    )
    lung_scale: float = option(
        1.0, "true_lungs: side of the area shown, in sides of the lung box.", above=0
    )
    attention_maps: int = option(32, "mag_sd: attention maps.", at_least=1)
    random_aug: str = option(
        "chest",
        "random_aug: operations to draw from, those usual for chest films or the 14 of "
        "RandAugment.",
        choices=("chest", "randaugment"),
    )
    random_aug_operations: int = option(
        2, "random_aug: operations drawn for an image.", at_least=1, at_most=6
    )
    random_aug_magnitude: int = option(
        9, "random_aug: strength of RandAugment's operations.", at_least=0, at_most=30
    )
    cutout_side: float = option(
        0.5,
        "cutout: side of the hole, share of the image's; cut at the border.",
        above=0,
        at_most=1,
    )
    cutout_fill: str = option(
        "mean",
        "cutout: gray of the hole, the normalized image's 0 or black.",
        choices=("mean", "black"),
    )
    cutmix_beta: float = option(
        1.0, "cutmix: both parameters of the Beta of the share that is kept.", above=0
    )
    cutmix_probability: float = option(
        1.0,
        "cutmix: probability that a batch is mixed; 1 for ImageNet, 0.5 for CIFAR.",
        at_least=0,
        at_most=1,
    )
    mixup_alpha: float = option(
        0.2, "mixup: both parameters of the Beta of an image's weight.", above=0
    )
    mixup_ratio: float | None = option(
        None,
        "mixup: fixed weight of an image, the partner has the rest; none draws it.",
        at_least=0,
        at_most=1,
    )
    pyramid_width: int = option(
        32,
        "dre_net: channels of its feature pyramid; 256 in the pyramid's reference.",
        at_least=1,
    )
    two_stage: str = option(
        "gate",
        "two_stage: what stage 1 decides, whether a film is normal; or, by its class "
        "activation map, which part of it stage 2 sees.",
        choices=("gate", "cam"),
    )
    stage_one_net: str = option(
        "same",
        "two_stage: network of stage 1, densenet121 in the published one; same is that "
        "of task.net.",
        choices=("same", *NETS),
    )
    stage_one_pretrained: str = option(
        "",
        "two_stage: file of torchvision weights that stage 1 starts from.",
        is_path=True,
    )
    cam_threshold: float = option(
        0.5,
        "two_stage: where the part begins that is kept (baseline.two_stage cam), "
        "between the coldest, 0, and the hottest place, 1, of the map.",
        above=0,
        at_most=1,
    )
    drl_da_steps: int = option(
        2000, "drl_da: actions of the agent's training.", at_least=1
    )
    drl_da_length: int = option(
        10, "drl_da: actions of an episode, at most.", at_least=1
    )
    drl_da_films: int = option(
        64, "drl_da: validation films that rewards are measured on.", at_least=1
    )
    drl_da_rate: float = option(
        2e-3,
        "drl_da: learning rate of the step that an action is rewarded by.",
        above=0,
    )
    drl_da_discount: float = option(
        0.9,
        "drl_da: weight of the next reward in the last one's.",
        at_least=0,
        at_most=1,
    )
    drl_da_memory: int = option(
        1000, "drl_da: transitions that are replayed.", at_least=1
    )
    normal_class: int | None = option(
        None,
        "two_stage: which class of a folder is normal; its classes are sorted by name "
        "and counted from 0. Of other data sets with such a class it is known.",
        at_least=0,
    )

    def __post_init__(self):
        check(self, "baseline.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimization and what is written when."""

    steps: int = option(700, "Updates of the task network.", at_least=1, at_most=10**9)
    batch_size: int = option(32, "Images in a step.", at_least=1)
    task_learning_rate: float = option(
        2e-3, "Largest learning rate of the task network.", above=0
    )
    policy_learning_rate: float = option(
        2e-3, "Largest learning rate of the policy network.", above=0
    )
    schedule: str = option(
        "cosine",
        "Learning rates after the warm-up: kept, or falling to 0.",
        choices=("constant", "cosine"),
    )
    lr_warmup_steps: int = option(
        100, "Steps in which the learning rates rise from 0.", at_least=0
    )
    clip_norm: float = option(
        1.0, "Largest norm of a network's gradient; 0 does not clip.", at_least=0
    )
    policy_adam_b2: float = option(
        0.99, "Adam's b2 of the policy network.", at_least=0, at_most=0.9999
    )
    average_decay: float = option(
        0.97,
        "Decay of the moving average of all weights, which gives rewards and answers.",
        at_least=0,
        at_most=0.9999,
    )
    devices: int = option(
        1,
        "Devices that share each batch; 0 takes all. Several round sums otherwise.",
        at_least=0,
        role="machine",
    )
    model_devices: int = option(
        1,
        "Of these, devices that share the channels of each image, for networks that do "
        "not fit on one.",
        at_least=1,
        role="machine",
    )
    distributed: bool = option(
        False,
        "This command was started in several processes, by Slurm, Open MPI or "
        "Kubernetes, whose devices all share one run.",
        role="machine",
    )
    on_nonfinite: str = option(
        "stop",
        "What a step does whose loss, gradients or weights are not finite: it stops "
        "the run, or is skipped.",
        choices=("stop", "skip"),
    )
    steps_per_call: int = option(
        1,
        "Steps that a device makes without the host; more are for GPUs and small "
        "steps, as on a CPU convolutions in a loop take several times as long. Divides "
        "train.steps and all that counts them.",
        at_least=1,
    )
    parts: int = option(
        1,
        "Parts of a batch that are computed one after the other, to save memory; each "
        "has its own batch statistics. Slow on a CPU, for the same reason.",
        at_least=1,
    )
    rematerialize: bool = option(
        False,
        "Gradients compute the inside of each block of a network again instead of "
        "keeping it: less memory for up to a third more operations. Not for CPUs, for "
        "which XLA plans no less.",
        role="machine",
    )
    tensorboard: bool = option(False, "Write TensorBoard files too.")
    log_every: int = option(20, "Steps between two lines of metrics.", at_least=1)
    eval_every: int = option(250, "Steps between two validations.", at_least=1)
    checkpoint_every: int = option(250, "Steps between two checkpoints.", at_least=1)

    def __post_init__(self):
        check(self, "train.")
        for name in ("steps", "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, name) % self.steps_per_call:
                raise UserError(
                    f"train.{name} is {getattr(self, name)}, but must be a multiple of "
                    f"train.steps_per_call, which is {self.steps_per_call}"
                )
        if self.batch_size % self.parts:
            raise UserError(
                f"train.batch_size is {self.batch_size}, but must be a multiple of "
                f"train.parts, which is {self.parts}"
            )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run can be told."""

    method: str = option(
        "hapre",
        "Key area selection; or a classifier of the whole image, of random crops in "
        "training, or of the true lung box; or MAG-SD, DRE-Net as described or as "
        "released, or Two-Stage; or a classifier of the whole image that is trained on "
        "images changed at random or by a learned agent, with a hole, with a part of "
        "another one, or mixed with another one.",
        choices=(
            "hapre",
            "plain",
            "random_crop",
            "true_lungs",
            "mag_sd",
            "dre_net",
            "dre_net_official",
            "two_stage",
            "drl_da",
            "random_aug",
            "cutout",
            "cutmix",
            "mixup",
        ),
    )
    seed: int = option(
        0, "Seed of everything random in the run.", at_least=0, at_most=2**32 - 1
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    baseline: BaselineConfig = dataclasses.field(default_factory=BaselineConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    compare_plain: bool = option(
        True,
        "Also train the plain classifier with the same budget, unless method is it.",
    )

    def __post_init__(self):
        check(self)
        parts = self.train.parts
        if self.method in ("cutmix", "mixup") and 1 < parts == self.train.batch_size:
            raise UserError(
                f"train.parts is {parts}, as train.batch_size, but method "
                f"{self.method} mixes the images of a part, which must be two or more"
            )
        if self.policy.held_out and parts > 1:
            raise UserError(
                f"policy.held_out is {self.policy.held_out} and train.parts {parts}: "
                "parts with other shares of held-out films would count alike; one of "
                "the two must be left at its default"
            )
        net = self.task.net
        base, _, attention = net.partition("+")
        if 0 < self.policy.probe_size < 32 and net.startswith(("densenet", "vgg")):
            raise UserError(
                f"policy.probe_size is {self.policy.probe_size}, but {net} halves it "
                "five times and must have at least 32"
            )
        if self.method in ("mag_sd", "dre_net", "dre_net_official") and (
            base not in _RESNETS or attention == "danet"
        ):
            raise UserError(
                f"task.net is {net}, but method {self.method} has a head of its own on "
                f"a ResNet: it takes {', '.join(_RESNETS)}, each with +cbam or without"
            )

    @property
    def stage_one_net(self) -> str:
        """The network of two_stage's first stage."""
        named = self.baseline.stage_one_net
        return self.task.net if named == "same" else named


def override(config: Config, path: str, text: str) -> Config:
    """`config` with the field at a dotted path set to `text`, read as its type."""
    return override_all(config, {path: text})


def override_all(config: Config, texts: Mapping[str, str]) -> Config:
    """`config` with several fields set at once, so that only the result is checked.

    Args:
      config: stays as it is.
      texts: dotted path -> value as typed: `true` and `false`, numbers separated by
        commas, `none` where a field may be None.

    Raises:
      UserError: an unknown field, named with the nearest ones, or a value that is not
        accepted.
    """
    known, values = options(config), to_dict(config)
    for path, text in texts.items():
        if path not in known:
            raise _unknown(path, known)
        *sections, name = path.split(".")
        section = functools.reduce(operator.getitem, sections, values)
        section[name] = known[path].read(text)
    return from_dict(values)


def to_text(value: Any) -> str:
    """A value as `override` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(to_text, value))
    return (
        str(value).lower() if value is None or isinstance(value, bool) else str(value)
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dicts of values that JSON keeps as they are: tuples become lists."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def from_dict(values: Mapping[str, Any]) -> Config:
    """The config that `to_dict` described; fields that are not given keep defaults.

    Raises:
      UserError: an unknown field, named with the nearest ones, or a value that is not
        accepted.
    """
    known = set()  # "train" and "train.steps"
    for path in options(Config()):
        known |= set(itertools.accumulate(path.split("."), "{}.{}".format))
    unknown = [path for path in _leaves(values) if path not in known]
    if len(unknown) > 1:  # most probably of another version
        raise UserError(f"config has no fields {', '.join(unknown)}; --help lists all")
    return _from_dict(Config, values, "")


def _leaves(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _from_dict(kind, values, prefix):
    kinds, arguments = types_of(kind), {}
    for name, value in values.items():
        path = prefix + name
        if name not in kinds:
            raise _unknown(path, options(Config()))
        if dataclasses.is_dataclass(kinds[name]):
            if not isinstance(value, Mapping):
                raise UserError(f"{path} is {value!r}, but must be a section")
            value = _from_dict(kinds[name], value, f"{path}.")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def _unknown(path, names):
    guesses = nearest(path, names)
    hint = f"did you mean {' or '.join(guesses)}?" if guesses else "--help lists all"
    return UserError(f"config has no field {path}; {hint}")
