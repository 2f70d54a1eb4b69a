"""Gradients that compute the inside of blocks again: `train.rematerialize`."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hapre_jax import heatmap, nets, optimization, train_state, train_step
from hapre_jax.methods import METHODS
from hapre_jax.nets import densenet, resnet, vgg

KEY = jax.random.key(0)
RESNET = functools.partial(
    resnet.ResNet, num_classes=3, stage_sizes=(1, 2), width=8, small_stem=True
)
SMALL = {
    "resnet": RESNET,
    "cbam": functools.partial(RESNET, stage_sizes=(1,), attention="cbam"),
    "bottleneck": functools.partial(
        RESNET, stage_sizes=(2,), block=resnet.Bottleneck, norm="group"
    ),
    "densenet": functools.partial(densenet.DenseNet, 3, (2, 1)),
    "vgg": functools.partial(vgg.VGG, 0, (1, 2, 1, 1, 1)),
    "unet": functools.partial(nets.UNet, levels=2, width=8),
}


def _shapes(net, side=32):
    image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    return jax.eval_shape(functools.partial(net.init, train=False), KEY, image)


@pytest.mark.parametrize("name", nets.NETS)
def test_variables_have_the_same_names_and_shapes(name):
    without, with_it = (
        _shapes(nets.NETS[name](num_classes=3, rematerialize=on))
        for on in (False, True)
    )
    assert without["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(without, with_it)


def _gradients(net, image):
    """All that a network starts with, gives and learns from an image."""

    def loss(params, rest):
        output, new = net.apply(
            {**rest, "params": params}, image, train=True, mutable=["batch_stats"]
        )
        answers = (output.logits, output.features)
        squares = [
            jnp.mean(x.astype(jnp.float32) ** 2)
            for x in jax.tree.leaves(answers)
            if x.size
        ]
        return sum(squares), {"answers": answers, "statistics": new}

    @jax.jit
    def run(key):
        rest = dict(net.init(key, image, train=False))
        params = rest.pop("params")
        gradients, given = jax.grad(loss, has_aux=True)(params, rest)
        return {"start": params, "gradients": gradients, **given}

    return run(KEY)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *(
            # A minute of compilation; each is wrapped as the ResNet or the U-Net is.
            pytest.param(
                name,
                jnp.float32,
                1e-5,
                marks=() if name in ("resnet", "unet") else pytest.mark.slow,
            )
            for name in SMALL
        ),
        ("resnet", jnp.bfloat16, 0.02),  # whose steps are 2^-8
    ],
)
def test_start_answers_statistics_and_gradients_are_the_same(name, dtype, tolerance):
    side = 32 if name in ("densenet", "vgg") else 16
    image = jax.random.normal(jax.random.key(1), (2, side, side, 1))
    without, with_it = (
        _gradients(SMALL[name](rematerialize=on, dtype=dtype), image)
        for on in (False, True)
    )
    chex.assert_trees_all_close(without["start"], with_it["start"], rtol=1e-6)
    for what in ("gradients", "answers", "statistics"):
        one, two = (
            jax.tree.map(lambda x: x.astype(jnp.float32), of[what])
            for of in (without, with_it)
        )
        size = float(optax.tree.norm(one))
        has_none = what == "statistics" and name in ("bottleneck", "vgg")
        assert has_none or size > 1e-2, what
        distance = float(optax.tree.norm(optax.tree.sub(one, two)))
        assert distance <= tolerance * size, what


def test_each_image_of_a_batch_has_its_gradient():
    net = RESNET(norm="frozen", rematerialize=True)
    images = jax.random.normal(jax.random.key(1), (3, 1, 16, 16, 1))
    variables = net.init(KEY, images[0], train=False)

    def loss(image, net=net):
        return jnp.sum(net.apply(variables, image, train=True).logits ** 2)

    found = jax.jit(jax.vmap(jax.grad(loss)))(images)
    plain = jax.jit(jax.grad(functools.partial(loss, net=RESNET(norm="frozen"))))
    expected = jnp.stack([plain(image) for image in images])
    assert float(jnp.abs(expected).max()) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_grad_cam_is_the_same():
    image = jax.random.normal(jax.random.key(1), (16, 16, 1))
    variables = RESNET().init(KEY, image[None], train=False)
    found, expected = (
        heatmap.grad_cam(RESNET(rematerialize=on), variables, image, 1, "stage1")
        for on in (True, False)
    )
    assert float(expected.max()) > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_forward_pass_keeps_the_inputs_of_blocks_alone():
    """Of a deep network, as it is traced: what XLA then plans is up to XLA."""

    def kept(on):
        net = RESNET(num_classes=0, stage_sizes=(6,), norm="group", rematerialize=on)
        image = jnp.zeros((1, 16, 16, 1))
        params = _shapes(net, 16)["params"]

        def backward(params):
            def answer(params):
                output = net.apply({"params": params}, image, train=True)
                return output.features["stage1"]

            return jax.vjp(answer, params)[1]

        arrays = jax.tree.leaves(jax.eval_shape(backward, params))
        # Not the parameters, which are there anyway.
        return sum(x.shape == (1, 16, 16, 8) for x in arrays)

    # The inputs of six blocks; the stem's normalization and rectifier keep some too.
    assert kept(True) <= 6 + 4
    assert kept(False) >= 6 * 4


def _lower(config):
    """The step for shapes: nothing is computed."""
    count, side = config.train.batch_size, config.data.image_size
    method = METHODS[config.method](config, 3)
    batch = {
        "image": jax.ShapeDtypeStruct((count, side, side, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((count,), jnp.int32),
        "index": jax.ShapeDtypeStruct((count,), jnp.int32),
    }
    step = train_step.make_step(method, optimization.make_optimizer(config), config)
    return step.func.lower(*step.args, train_state.blank(method, config), batch)


@pytest.mark.parametrize(
    ("method", "blocks"),
    [
        # Three of a ResNet-8 for each of its passes: of the policy's too, of four
        # images (MAG-SD), of whole, parts and detail (DRE-Net), of both stages.
        ("hapre", 2 * 3),
        ("mag_sd", 4 * 3),
        ("dre_net", 3),
        ("dre_net_official", 3 * 3),
        ("two_stage", 2 * 3),
    ],
)
def test_every_gradient_of_a_step_computes_blocks_again(tiny_config, method, blocks):
    config = dataclasses.replace(tiny_config, method=method)
    if method == "two_stage":
        config = dataclasses.replace(
            config, baseline=dataclasses.replace(config.baseline, normal_class=0)
        )
    train = dataclasses.replace(config.train, rematerialize=True)
    again = _lower(dataclasses.replace(config, train=train))
    # One more is of the optimizer's update.
    assert again.as_text().count("optimization_barrier") == blocks + 1
    if method == "hapre":
        assert _lower(config).as_text().count("optimization_barrier") == 1


def test_what_is_only_tried_is_computed_once(tiny_config):
    """At most one more forward pass of what is trained: not of the probes."""
    settings = {"image_size": 32, "samples": 8, "train_crops": 1}
    policy = dataclasses.replace(tiny_config.policy, **settings)
    counted = []
    for on in (False, True):
        config = dataclasses.replace(
            tiny_config,
            policy=policy,
            task=dataclasses.replace(tiny_config.task, image_size=32),
            train=dataclasses.replace(tiny_config.train, rematerialize=on),
        )
        counted.append(_lower(config).cost_analysis()["flops"])
    # Ten are tried; one and the policy's are trained, at three forward passes each.
    forward = counted[0] / (10 + 3 + 3)
    assert 1.4 * forward < counted[1] - counted[0] < 2.1 * forward
