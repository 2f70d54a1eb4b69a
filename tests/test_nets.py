import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal

from hapre_jax import boxes, config, nets, policy
from hapre_jax.nets import layers, resnet, vgg


def image_shape(height, width, channels=3, batch=1):
    return jax.ShapeDtypeStruct((batch, height, width, channels), jnp.float32)


def init_shapes(net, image):
    """Variables of a network as shapes: traces it, computes nothing."""
    return jax.eval_shape(
        functools.partial(net.init, train=False), jax.random.key(0), image
    )


def output_shapes(net, image):
    variables = init_shapes(net, image)
    return jax.eval_shape(functools.partial(net.apply, train=False), variables, image)


def init(net, image):
    """Variables of a network, by the generator that compiles fastest."""
    key = jax.random.key(0, impl="rbg")
    return jax.jit(functools.partial(net.init, train=False))(key, image)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# torchvision's own counts for its models with a head of that many classes.
@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("resnet18", 3, 11_178_051),
        ("resnet34", 3, 21_286_211),
        ("resnet50", 3, 23_514_179),
        ("resnet50", 1000, 25_557_032),
        ("densenet121", 3, 6_956_931),
        ("densenet169", 3, 12_489_475),
        ("vgg16", 3, 134_272_835),
        ("vgg19", 3, 139_582_531),
        # He et al.'s 6n + 2 layers with projections, by hand: stem, three stages, head.
        ("resnet14", 3, 464 + 9_344 + 33_088 + 131_712 + 195),
        ("resnet20", 3, 464 + 14_016 + 51_648 + 205_696 + 195),
        # Without a head.
        ("resnet18", 0, 11_176_512),
        ("densenet121", 0, 6_953_856),
        ("vgg16", 0, 14_714_688),
        # The authors' CBAM and DANet (three outputs) on top of those.
        ("resnet18+cbam", 3, 11_178_051 + 89_880),
        ("resnet34+cbam", 3, 21_286_211 + 162_796),
        ("resnet50+cbam", 3, 23_514_179 + 2_532_592),
        ("resnet18+danet", 3, 11_176_512 + 1_497_387),
        ("resnet50+danet", 3, 23_508_032 + 23_929_995),
    ],
)
def test_parameter_counts_are_those_of_torchvision(name, classes, parameters):
    variables = init_shapes(nets.NETS[name](num_classes=classes), image_shape(64, 64))
    assert count(variables["params"]) == parameters


def test_one_channel_saves_two_of_three_planes_of_the_stem():
    variables = init_shapes(nets.NETS["resnet18"](3), image_shape(64, 64, channels=1))
    assert count(variables["params"]) == 11_178_051 - 2 * 7 * 7 * 64


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet8", [(64, 64, 16), (32, 32, 32), (16, 16, 64)]),
        ("resnet14", [(64, 64, 16), (32, 32, 32), (16, 16, 64)]),
        ("resnet20", [(64, 64, 16), (32, 32, 32), (16, 16, 64)]),
        ("resnet10", [(16, 16, 16), (8, 8, 32), (4, 4, 64), (2, 2, 128)]),
        ("resnet18", [(16, 16, 64), (8, 8, 128), (4, 4, 256), (2, 2, 512)]),
        ("resnet50", [(16, 16, 256), (8, 8, 512), (4, 4, 1024), (2, 2, 2048)]),
        ("densenet121", [(16, 16, 256), (8, 8, 512), (4, 4, 1024), (2, 2, 1024)]),
        (
            "vgg16",
            [(64, 64, 64), (32, 32, 128), (16, 16, 256), (8, 8, 512), (4, 4, 512)],
        ),
    ],
)
def test_features_of_each_stage(name, shapes):
    output = output_shapes(nets.NETS[name](5), image_shape(64, 64, batch=2))
    expected = {f"stage{i}": (2, *shape) for i, shape in enumerate(shapes, 1)}
    assert {name: x.shape for name, x in output.features.items()} == expected
    assert output.logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("size", "sides"),
    # floor((n + 2 padding - kernel) / stride) + 1 for stem, max-pool and three stages.
    [
        (65, (17, 9, 5, 3)),
        (63, (16, 8, 4, 2)),
        (97, (25, 13, 7, 4)),
        (224, (56, 28, 14, 7)),
    ],
)
def test_odd_sizes_are_padded_as_in_torchvision(size, sides):
    output = output_shapes(nets.NETS["resnet18"](3), image_shape(size, 64))
    heights = [output.features[f"stage{i}"].shape[1] for i in (1, 2, 3, 4)]
    widths = [output.features[f"stage{i}"].shape[2] for i in (1, 2, 3, 4)]
    assert (tuple(heights), widths) == (sides, [16, 8, 4, 2])


NORM = 1 / math.sqrt(1 + 1e-5)  # frozen statistics of a new network: mean 0, variance 1


def convolve(x, kernel, stride=1):
    """torch.nn.Conv2d with padding k // 2 on one channel, then `NORM`."""
    full = scipy.signal.correlate2d(x, kernel[:, :, 0, 0], mode="same")
    return full[::stride, ::stride] * NORM


def random_block(block, x):
    """Output of a block with positive and negative random kernels, and the kernels."""
    net = block(features=1, stride=2, norm="frozen")
    variables = init(net, x[None, :, :, None])
    output = jax.jit(functools.partial(net.apply, train=True))(
        variables, x[None, :, :, None]
    )
    kernels = {
        name: np.asarray(value["kernel"])
        for name, value in variables["params"].items()
        if "kernel" in value
    }
    return np.asarray(output)[0], kernels


def test_basic_block_equals_its_definition():
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    # Stride 2 of one channel: shapes differ, so the shortcut is a convolution.
    output, kernels = random_block(resnet.BasicBlock, x)
    y = np.maximum(convolve(x, kernels["conv1"], 2), 0)
    y = convolve(y, kernels["conv2"])
    expected = np.maximum(y + convolve(x, kernels["downsample_conv"], 2), 0)
    assert expected.max() > 0.1
    np.testing.assert_allclose(output[..., 0], expected, atol=1e-5)


def test_bottleneck_has_its_stride_in_the_3x3_convolution():
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    output, kernels = random_block(resnet.Bottleneck, x)
    y = np.maximum(convolve(x, kernels["conv1"]), 0)
    y = np.maximum(convolve(y, kernels["conv2"], 2), 0)
    for channel in range(4):
        wide = convolve(y, kernels["conv3"][..., channel : channel + 1])
        shortcut = kernels["downsample_conv"][..., channel : channel + 1]
        expected = np.maximum(wide + convolve(x, shortcut, 2), 0)
        np.testing.assert_allclose(output[..., channel], expected, atol=1e-5)


def test_stem_equals_its_definition():
    # Even sides, also after the convolution, tell (1, 1) from "SAME" padding.
    x = np.random.default_rng(0).normal(size=(16, 20)).astype(np.float32)
    net = resnet.ResNet(num_classes=2, stage_sizes=(), width=1, norm="frozen")
    variables = init(net, x[None, :, :, None])
    apply = jax.jit(functools.partial(net.apply, train=False))
    logits = apply(variables, x[None, :, :, None]).logits
    params = variables["params"]
    y = convolve(x, np.asarray(params["stem_conv"]["kernel"]), 2)
    pooled = scipy.ndimage.maximum_filter(np.maximum(y, 0), 3, mode="constant")
    expected = pooled[::2, ::2].mean() * params["head"]["kernel"][0]
    np.testing.assert_allclose(logits[0], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 6, 2), (2, 7, 5, 1), (1, 1, 2, 1)])
def test_stem_pool_and_its_gradient_are_those_of_max_pool(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    def oracle(x):
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    np.testing.assert_array_equal(layers.stem_pool(x), oracle(x))
    found, known = (
        jax.grad(lambda x, pool=pool: jnp.sum(pool(x) ** 3))(x)
        for pool in (layers.stem_pool, oracle)
    )
    np.testing.assert_allclose(found, known, rtol=1e-6)


def test_convolutions_start_as_in_torchvision():
    # kaiming_normal_(mode="fan_out"): variance 2 / (3 * 3 * 64 output channels).
    block = resnet.BasicBlock(features=64)
    variables = init(block, jnp.zeros((1, 4, 4, 16)))
    kernel = np.asarray(variables["params"]["conv1"]["kernel"])
    assert kernel.shape == (3, 3, 16, 64)
    assert kernel.std() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.03)
    assert abs(kernel).max() > 3 * kernel.std()  # not truncated
    assert not any("bias" in variables["params"][f"conv{i}"] for i in (1, 2))


def test_batch_norm_keeps_nine_tenths_of_its_statistics():
    x = jnp.arange(8.0).reshape(2, 2, 2, 1)
    net = layers.Norm("batch")
    variables = net.init(jax.random.key(0), x, train=False)
    y, changed = net.apply(variables, x, train=True, mutable="batch_stats")
    stats = changed["batch_stats"]["BatchNorm"]
    # Mean 3.5 and variance 5.25 of the batch; 0 and 1 before.
    assert stats["mean"].tolist() == pytest.approx([0.35])
    # The running variance is unbiased, 6, though the batch is divided by the other one.
    assert stats["var"].tolist() == pytest.approx([0.9 + 0.6])
    expected = (np.arange(8) - 3.5) / math.sqrt(5.25 + 1e-5)
    np.testing.assert_allclose(y.ravel(), expected, atol=1e-5)


# Two blocks and 8 pixels: what is computed needs no more, and compiles in a second.
tiny_resnet = functools.partial(
    resnet.ResNet, stage_sizes=(1, 1), width=8, small_stem=True
)


def small_images():
    rng = np.random.default_rng(0)
    return jnp.array(rng.uniform(size=(2, 8, 8, 1)), jnp.float32)


@pytest.fixture(scope="module", params=layers.NORMS)
def trained(request):
    """Variables of a network, its inference output, and both after a training pass."""
    net = tiny_resnet(3, norm=request.param)
    x = small_images()
    variables = init(net, x)

    @jax.jit
    def run(variables):
        inference = net.apply(variables, x, train=False)
        training, changed = net.apply(variables, x, train=True, mutable="batch_stats")
        return inference, training, changed

    return request.param, variables, *run(variables)


def test_only_norm_batch_changes_its_statistics_in_training(trained):
    norm, variables, _, _, changed = trained
    if norm == "group":
        assert set(variables) == {"params"} and not changed
        return
    before, after = variables["batch_stats"], changed["batch_stats"]
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before, after)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert set(jax.tree.leaves(same)) == {norm == "frozen"}


def test_only_norm_batch_computes_something_else_in_training(trained):
    norm, _, inference, training, _ = trained
    equal = np.allclose(inference.logits, training.logits, atol=1e-5)
    assert equal is (norm != "batch")


def test_logits_are_the_head_of_the_mean_features(trained):
    _, variables, inference, _, _ = trained
    head = variables["params"]["head"]
    pooled = np.asarray(inference.features["stage2"]).mean((1, 2))
    expected = pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(inference.logits, expected, atol=1e-5)


def test_norm_group_takes_channels_that_8_does_not_divide():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 12)) * 3 + 1
    y, _ = layers.Norm("group").init_with_output(jax.random.key(0), x, train=False)
    np.testing.assert_allclose(jnp.mean(y, axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.var(y, axis=(1, 2, 3)), 1, atol=1e-4)


def test_batch_and_frozen_share_their_parameters():
    # So that pretrained weights serve both.
    batch, frozen = (
        init_shapes(nets.NETS["resnet8"](3, norm=norm), image_shape(16, 16))
        for norm in ("batch", "frozen")
    )
    assert batch == frozen


@pytest.mark.parametrize("norm", layers.NORMS)
def test_bfloat16_computes_in_it_and_keeps_float32_parameters_and_logits(norm):
    net = nets.NETS["resnet18"](3, norm=norm, dtype=jnp.bfloat16)
    variables = init_shapes(net, image_shape(64, 64))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    output = output_shapes(net, image_shape(64, 64))
    assert {x.dtype.name for x in output.features.values()} == {"bfloat16"}
    assert output.logits.dtype == jnp.float32


def policy_net(trunk="resnet8", **options):
    return nets.PolicyNet(nets.NETS[trunk](1, norm="group"), **options)


@pytest.mark.parametrize("grid", [8, 16])
@pytest.mark.parametrize(
    ("trunk", "size"),
    [("resnet8", 32), ("resnet8", 64), ("resnet18", 128), ("resnet18", 96)],
)
def test_policy_logits_are_one_grid_an_image(trunk, size, grid):
    image = image_shape(size, size, channels=1, batch=2)
    output = output_shapes(policy_net(trunk, grid=grid, width=24), image)
    assert output.logits.shape == (2, grid, grid)
    assert set(output.features) >= {"stage1", "stage2", "stage3", "pyramid"}
    assert output.features["pyramid"].shape == (2, grid, grid, 24)


def test_policy_net_gives_numbers_or_several_outputs_as_they_are_asked_for():
    image = image_shape(32, 32, channels=1, batch=2)
    numbers = output_shapes(policy_net(shape=(3,)), image).logits
    assert (numbers.shape, numbers.dtype.name) == ((2, 3), "float32")
    several = output_shapes(
        policy_net(shape=((16, 16), (1,), (16, 16, 3))), image
    ).logits
    assert [of.shape for of in several] == [(2, 16, 16), (2, 1), (2, 16, 16, 3)]
    nothing = output_shapes(policy_net(shape=(0,)), image).logits
    assert nothing.shape == (2, 0)


def test_numbers_start_at_zero_and_can_leave_it():
    net = nets.PolicyNet(tiny_resnet(1, norm="group"), grid=4, width=8, shape=(2,))
    variables = init(net, small_images())

    @jax.jit
    def logits_and_gradient(variables):
        def total(variables):
            logits = net.apply(variables, small_images(), train=False).logits
            return jnp.sum(logits), logits

        gradient, logits = jax.grad(total, has_aux=True)(variables)
        return logits, gradient["params"]["logits"]["kernel"]

    logits, gradient = logits_and_gradient(variables)
    assert not jnp.any(logits) and jnp.any(gradient != 0)


def test_policy_net_in_bfloat16_keeps_float32_parameters_and_logits():
    net = nets.PolicyNet(
        nets.NETS["resnet18"](1, dtype=jnp.bfloat16), dtype=jnp.bfloat16
    )
    variables = init_shapes(net, image_shape(64, 64))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    output = output_shapes(net, image_shape(64, 64))
    assert output.features["pyramid"].dtype == jnp.bfloat16
    assert output.logits.dtype == jnp.float32


@pytest.fixture(scope="module")
def new_policy():
    net = nets.PolicyNet(tiny_resnet(1, norm="group"), grid=4, width=8)
    return net, init(net, small_images())


def test_new_policy_keeps_the_whole_image(new_policy):
    net, variables = new_policy
    apply = jax.jit(functools.partial(net.apply, train=False))
    logits = apply(variables, small_images()).logits
    np.testing.assert_array_equal(logits, np.zeros((2, 4, 4)))
    whole = np.tile(boxes.WHOLE, (2, 1))
    np.testing.assert_allclose(jax.vmap(policy.mean_box)(logits), whole, atol=1e-6)


def test_policy_learns_a_box_for_each_image(new_policy):
    # The zero start must not block learning: two images, two key areas.
    net, variables = new_policy
    targets = np.full((2, 4, 4), -2.0, np.float32)
    targets[0, :2, :2] = targets[1, 2:, 1:] = 2.0

    @jax.jit
    def fit(params):
        def loss(params):
            logits = net.apply({"params": params}, small_images(), train=True).logits
            return jnp.mean((logits - targets) ** 2)

        def update(_, params):
            return jax.tree.map(
                lambda p, g: p - 0.02 * g, params, jax.grad(loss)(params)
            )

        return loss(params), loss(jax.lax.fori_loop(0, 300, update, params))

    before, after = fit(variables["params"])
    assert before == pytest.approx(4) and after < 1


def test_networks_take_the_common_arguments():
    for name, make in nets.NETS.items():
        net = make(num_classes=2, norm="frozen", dtype=jnp.bfloat16)
        assert isinstance(net, nn.Module), name


@pytest.mark.parametrize("side", [3, 7, 20, 28])
def test_adaptive_pool_averages_windows_that_cover_the_image(side):
    x = np.random.default_rng(0).normal(size=(2, side, 20, 3)).astype(np.float32)
    expected = np.empty((2, 7, 7, 3))
    for i in range(7):
        for j in range(7):
            rows = slice(math.floor(i * side / 7), math.ceil((i + 1) * side / 7))
            columns = slice(math.floor(j * 20 / 7), math.ceil((j + 1) * 20 / 7))
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    pooled = vgg.adaptive_average_pool(jnp.array(x), 7)
    np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_config_names_the_networks_there_are():
    assert set(config.NETS) == set(nets.NETS)
    assert not any("+" in name for name in config.TRUNKS)
    assert config.NORMS == layers.NORMS
