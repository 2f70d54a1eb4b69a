"""The experiment of configs/phantom.py with the learning rule as the paper prints it.

Command:  python -m hapre_jax.train --config configs/phantom_paper.py
Hardware: two CPU cores, minutes.
Expected result: macro-F1 0.60, below plain; the key area stays near the whole film
          (lung IoU 0.26).
"""

import pathlib

from hapre_jax import config, config_file


def get_config() -> config.Config:
    """The published rule has no warm-up and no random areas."""
    phantom = config_file.load(str(pathlib.Path(__file__).with_name("phantom.py")))
    rule = {
        "policy.estimator": "paper",
        "policy.warmup_steps": "0",
        "policy.random_share": "0",
    }
    return config.override_all(phantom, rule)
