"""What `launch/sweep.py` searches: the learning rule of HAPre-KRS on phantoms.

Search:   python launch/sweep.py --config configs/sweep_phantom.py --trials 30
Command:  python -m hapre_jax.train --config configs/sweep_phantom.py
Hardware: two CPU cores, three minutes a trial; fewer where one is pruned.
Expected result: of 14 trials by two workers (`--trials 14`), one of them stopped and
          taken up again, seven were pruned; validation macro-F1 0.57 to 0.78, the best
          with two crops and `pathwise`. 30 trials were not run.
"""

import dataclasses
import pathlib

from hapre_jax import config, config_file


def get_config() -> config.Config:
    """The experiment that all trials share: phantoms, half of the usual updates."""
    phantom = config_file.load(str(pathlib.Path(__file__).with_name("phantom.py")))
    train = dataclasses.replace(phantom.train, steps=350, eval_every=50)
    policy = dataclasses.replace(phantom.policy, warmup_steps=150)
    return dataclasses.replace(phantom, train=train, policy=policy, compare_plain=False)


def get_space() -> dict:
    """Config field -> Optuna's distribution of its values."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    return {
        "train.task_learning_rate": FloatDistribution(5e-4, 5e-3, log=True),
        "train.policy_learning_rate": FloatDistribution(5e-4, 5e-3, log=True),
        "policy.sigma": FloatDistribution(0.2, 0.5),
        "policy.random_share": FloatDistribution(0.0, 0.5),
        "policy.train_crops": IntDistribution(1, 4),
        "policy.estimator": CategoricalDistribution(("reinforce", "pathwise")),
    }
