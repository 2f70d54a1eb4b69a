"""Networks, and the only modules that import Flax."""

import functools
from collections.abc import Callable

import flax.linen as nn

from hapre_jax.nets import densenet, resnet, vgg
from hapre_jax.nets.detector import CenterNet
from hapre_jax.nets.dre_net import PartNet, PyramidNet
from hapre_jax.nets.dueling import DuelingNet
from hapre_jax.nets.mag_sd import MANet
from hapre_jax.nets.output import Output, stages
from hapre_jax.nets.policy_net import PolicyNet
from hapre_jax.nets.unet import UNet

_RESNETS = {
    "resnet8": resnet.resnet8,
    "resnet14": resnet.resnet14,
    "resnet20": resnet.resnet20,
    "resnet10": resnet.resnet10,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
}
# Each takes `num_classes`, `norm`, `dtype` and `rematerialize`.
NETS: dict[str, Callable[..., nn.Module]] = {
    **_RESNETS,
    **{
        f"{name}+{attention}": functools.partial(net, attention=attention)
        for name, net in _RESNETS.items()
        for attention in ("cbam", "danet")
    },
    "densenet121": densenet.densenet121,
    "densenet169": densenet.densenet169,
    "vgg16": vgg.vgg16,
    "vgg19": vgg.vgg19,
}

__all__ = [
    "NETS",
    "CenterNet",
    "DuelingNet",
    "MANet",
    "Output",
    "PartNet",
    "PolicyNet",
    "PyramidNet",
    "UNet",
    "densenet",
    "resnet",
    "stages",
    "vgg",
]
