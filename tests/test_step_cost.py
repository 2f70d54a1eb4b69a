"""What one step computes, by XLA's own count, against what Algorithm 1 needs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from hapre_jax import config as config_lib
from hapre_jax import nets, optimization, train_state, train_step
from hapre_jax.methods import METHODS

CLASSES = 3


def _lower(config):
    """The step for shapes: nothing is computed."""
    count, side = config.train.batch_size, config.data.image_size
    method = METHODS[config.method](config, CLASSES)
    batch = {
        "image": jax.ShapeDtypeStruct((count, side, side, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32),
        "index": jax.ShapeDtypeStruct((count,), jnp.int32),
    }
    step = train_step.make_step(method, optimization.make_optimizer(config), config)
    return step.func.lower(*step.args, train_state.blank(method, config), batch)


def _forward(net, side):
    """Operations of one forward pass on one image."""
    image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(net.init, train=False), jax.random.key(0), image
    )
    apply = jax.jit(functools.partial(net.apply, train=False))
    return apply.lower(variables, image).cost_analysis()["flops"]


def _needed(config, *, tried, trained):
    """Operations for an image: probes forward, training three times as much."""
    task, policy = config.task, config.policy
    net = nets.NETS[task.net](num_classes=CLASSES)
    of_probe = _forward(net, policy.probe_size or task.image_size)
    trunk = nets.NETS[policy.net](num_classes=0, norm=policy.norm)
    policy_net = nets.PolicyNet(trunk, grid=policy.grid, width=policy.width)
    of_task = _forward(net, task.image_size)
    of_policy = _forward(policy_net, policy.image_size)
    return tried * of_probe + 3 * trained * of_task + 3 * of_policy


def _config(net, side, batch, **policy):
    config = config_lib.Config(compare_plain=False)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, image_size=side),
        task=dataclasses.replace(config.task, net=net, image_size=side),
        policy=dataclasses.replace(config.policy, net=net, image_size=side, **policy),
        train=dataclasses.replace(config.train, batch_size=batch),
    )


def test_the_compiled_step_computes_nothing_that_algorithm_1_does_not_need():
    """Probed: whole image, detected, expanded, shrunk. Trained on: the best of them."""
    config = _config("resnet8", 64, 4, estimator="paper")
    found = _lower(config).compile().cost_analysis()["flops"]
    needed = 4 * _needed(config, tried=4, trained=1)
    assert 0.95 * needed < found < 1.05 * needed


@pytest.mark.parametrize(
    ("net", "side", "batch", "policy", "tried", "trained"),
    [
        # The published setting.
        ("resnet18", 640, 1, {"estimator": "paper"}, 4, 1),
        # Whole image, mean and four samples; the samples are trained on.
        ("resnet8", 64, 4, {"estimator": "reinforce", "probe_size": 32}, 6, 4),
    ],
)
def test_a_step_asks_for_nothing_more(net, side, batch, policy, tried, trained):
    """Before XLA removes what is computed twice; resampling and Adam included."""
    config = _config(net, side, batch, **policy)
    found = _lower(config).cost_analysis()["flops"]
    needed = batch * _needed(config, tried=tried, trained=trained)
    assert 0.95 * needed < found < 1.05 * needed


def test_probes_in_bfloat16_leave_training_in_float32():
    config = _config("resnet8", 32, 2, estimator="paper", probe_dtype="bfloat16")
    lines = _lower(config).as_text().splitlines()
    convolutions = [line for line in lines if "stablehlo.convolution" in line]
    in_bfloat16 = [line for line in convolutions if "bf16" in line]
    # A forward pass of ResNet-8: the stem and two in each of three blocks, beside 1x1.
    assert len(in_bfloat16) == 7 < len(convolutions)
