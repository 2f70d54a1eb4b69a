"""The baselines of the paper's Table 2, a row an argument, on phantoms.

Command:  python -m hapre_jax.train --config configs/baselines.py:cutmix
          rows: resnet random_aug cutout cutmix mixup cbam danet dre_net
          dre_net_official two_stage mag_sd; other data and sizes by flags.
Hardware: two CPU cores, minutes.
Expected result: not measured yet, but for resnet, which is plain (README).
"""

import pathlib

from hapre_jax import config
from hapre_jax.errors import UserError

_PHANTOM = pathlib.Path(__file__).with_name("phantom.py")
# What each row changes in the experiment of configs/phantom.py.
_ROWS = {
    "resnet": {"method": "plain"},
    "random_aug": {"method": "random_aug"},
    "cutout": {"method": "cutout"},
    "cutmix": {"method": "cutmix"},
    "mixup": {"method": "mixup"},
    "cbam": {"method": "plain", "task.net": "resnet8+cbam"},
    "danet": {"method": "plain", "task.net": "resnet8+danet"},
    "dre_net": {"method": "dre_net"},
    "dre_net_official": {"method": "dre_net_official"},
    "two_stage": {"method": "two_stage"},
    "mag_sd": {"method": "mag_sd"},
}


def get_config(row: str = "resnet") -> config.Config:
    """A method, or an attention in the network, with the budget of the others."""
    if row not in _ROWS:
        raise UserError(f"there is no baseline {row}; there are {', '.join(_ROWS)}")
    changes = _ROWS[row] | {"compare_plain": "false"}
    return config.override_all(config.load(str(_PHANTOM)), changes)
