"""Networks, and the only modules that import Flax."""

from hapre_jax.nets import resnet
from hapre_jax.nets.output import Output
from hapre_jax.nets.policy_net import PolicyNet

NETS = {
    "resnet8": resnet.resnet8,
    "resnet10": resnet.resnet10,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
}

__all__ = ["NETS", "Output", "PolicyNet", "resnet"]
