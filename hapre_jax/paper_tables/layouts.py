"""What the tables of trained networks are made of: rows, networks, films, sizes."""

from collections.abc import Callable
from typing import NamedTuple

from hapre_jax import config as config_lib
from hapre_jax import config_file

REFERENCE = "resnet"  # the row that others are compared with

# Rows of configs/baselines.py under the paper's names.
TITLES = {
    "resnet": "ResNet",
    "random_aug": "Random Aug",
    "cutout": "Cutout",
    "cutmix": "CutMix",
    "mixup": "Mixup",
    "drl_da": "DRL-DA",
    "cbam": "CBAM",
    "danet": "DANet",
    "dre_net": "DRE-Net",
    "dre_net_official": "DRE-Net, as released",
    "two_stage": "Two-Stage",
    "mag_sd": "MAG-SD",
    "hapre_krs": "HAPre-KRS",
    "random_crop": "random crops",
    "true_lungs": "true lung box",
}
# Those that the paper does not have, and that do not compete.
BESIDE = ("random_crop", "true_lungs")


class Preset(NamedTuple):
    """How large everything is."""

    nets: tuple[str, ...]  # depths of the ResNet; Table 2 has the first
    backbones: tuple[str, ...]
    values: dict[str, str]


_SMALL = ("resnet8", "resnet14", "resnet20")
_DEEP = ("resnet18", "resnet34", "resnet50")
_BACKBONES = (*_DEEP, "densenet121", "densenet169", "vgg16", "vgg19")


def presets(name: str) -> Preset:
    """`cpu`: the recipes as they are; `gpu`: 224 pixels; `paper`: as the paper trains.

    Only `cpu` was ever run.
    """
    if name == "cpu":
        # ResNet-18 and deeper have one pixel left of 32 at their last stage.
        return Preset(_SMALL, _SMALL, {})
    if name == "gpu":
        values = {
            "task.image_size": "224",
            "policy.image_size": "64",
            "data.image_size": "512",
            "train.steps": "4000",
        }
        return Preset(_DEEP, _BACKBONES, values)
    paper = config_lib.options(config_file.load("configs/hapre_krs.py"))
    sections = ("task.", "policy.", "train.", "data.image_size", "data.geometry")
    values = {
        path: config_lib.to_text(field.value)
        for path, field in paper.items()
        if path.startswith(sections)
    }
    values |= {"data.flip": config_lib.to_text(paper["data.flip"].value)}
    return Preset(_DEEP, _BACKBONES, values)


class Layout(NamedTuple):
    """What a table of trained networks is made of, and how it reads."""

    rows: tuple[str, ...]
    title: str  # of the part of one source; fields are those of a record, and `films`
    line: str  # the name of a line, likewise
    reference: str  # what gains are measured against
    networks: Callable[[Preset], tuple[str, ...]] = lambda preset: preset.nets
    # If no sources are named: without films, and those that films add.
    sources: tuple[str, ...] = ("phantom_low",)
    of_films: tuple[str, ...] = ("ped_pneumonia",)


LAYOUTS = {
    "2": Layout(
        rows=tuple(TITLES),
        title="{source}, {net}, {films} test films",
        line="{row}",
        reference=TITLES[REFERENCE],
        networks=lambda preset: preset.nets[:1],
    ),
    "3": Layout(
        rows=("resnet", "hapre_krs"),
        title="trained on {source}",
        line="{tested}: {net}, {row}",
        reference=TITLES[REFERENCE],
        sources=("phantom_high", "phantom_medium", "phantom_low"),
        of_films=("ped_pneumonia", "ped_pneumonia_low"),
    ),
    "4": Layout(
        rows=("resnet", "cbam", "danet", "hapre_krs"),
        title="{source}, {films} test films",
        line="{net}, {row}",
        reference="the plain one of its depth",
    ),
    "5": Layout(
        rows=("resnet",),
        title="{source}, {films} test films",
        line="{net}",
        reference="{net}",  # the first
        networks=lambda preset: preset.backbones,
    ),
}
