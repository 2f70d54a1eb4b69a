"""The rows of the paper's Table 2, for any source that there is a recipe for.

Command:  python -m hapre_jax.train --config configs/baselines.py:cutmix
          python -m hapre_jax.train --data.root DIR \\
              --config configs/baselines.py:cutmix@ped_pneumonia
          rows: resnet random_aug cutout cutmix mixup drl_da cbam danet dre_net
          dre_net_official two_stage mag_sd hapre_krs; beside the paper's, random_crop
          true_lungs; sources: phantom (default) ped_pneumonia ped_pneumonia_low.
          `launch/tables.py` runs them all.
Hardware: two CPU cores, minutes.
Expected result: docs/baselines.md.
"""

import pathlib

from hapre_jax import config, config_file
from hapre_jax.errors import UserError

_RECIPE = pathlib.Path(__file__).with_name("hapre_krs_best.py")
# What each row changes in HAPre-KRS's experiment: sizes, budget and rates stay.
ROWS = {
    "resnet": {"method": "plain"},
    "random_aug": {"method": "random_aug"},
    "cutout": {"method": "cutout"},
    "cutmix": {"method": "cutmix"},
    "mixup": {"method": "mixup"},
    "drl_da": {"method": "drl_da"},
    "cbam": {"method": "plain", "task.net": "resnet8+cbam"},
    "danet": {"method": "plain", "task.net": "resnet8+danet"},
    "dre_net": {"method": "dre_net"},
    "dre_net_official": {"method": "dre_net_official"},
    "two_stage": {"method": "two_stage"},
    "mag_sd": {"method": "mag_sd"},
    "hapre_krs": {"method": "hapre"},
    # What the paper does not have: the cheap alternative, and the bar.
    "random_crop": {"method": "random_crop"},
    "true_lungs": {"method": "true_lungs"},
}


def get_config(row: str = "resnet") -> config.Config:
    """A method, or an attention in the network, with the budget of the others.

    Args:
      row: `ROW`, or `ROW@SOURCE` for another source than phantoms.
    """
    row, _, source = row.partition("@")
    if row not in ROWS:
        raise UserError(f"there is no baseline {row}; there are {', '.join(ROWS)}")
    changes = ROWS[row] | {"compare_plain": "false"}
    recipe = config_file.load(f"{_RECIPE}:{source or 'phantom'}")
    return config.override_all(recipe, changes)
