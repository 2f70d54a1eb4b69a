"""Methods: each fills in `method.Method` from a config."""

from hapre_jax.config import Config
from hapre_jax.method import Method
from hapre_jax.methods import (
    cutmix,
    cutout,
    dre_net,
    drl_da,
    hapre,
    mag_sd,
    mixup,
    plain,
    random_aug,
    random_crop,
    true_lungs,
    two_stage,
)

METHODS = {
    "hapre": hapre.make,
    "plain": plain.make,
    "random_crop": random_crop.make,
    "true_lungs": true_lungs.make,
    "mag_sd": mag_sd.make,
    "dre_net": dre_net.make,
    "dre_net_official": dre_net.make_official,
    "two_stage": two_stage.make,
    "drl_da": drl_da.make,
    "random_aug": random_aug.make,
    "cutout": cutout.make,
    "cutmix": cutmix.make,
    "mixup": mixup.make,
}


def make(config: Config, num_classes: int) -> Method:
    """The method that a config names.

    Raises:
      UserError: it cannot be built so; see the method's own `make`.
    """
    return METHODS[config.method](config, num_classes)
