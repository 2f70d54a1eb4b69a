import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hapre_jax import heatmap, nets
from hapre_jax.nets import resnet

net = resnet.ResNet(num_classes=3, stage_sizes=(1, 1), width=8, small_stem=True)


@pytest.fixture(scope="module")
def example():
    image = np.random.default_rng(0).uniform(size=(8, 8, 1)).astype(np.float32)
    variables = net.init(jax.random.key(0), image[None], train=False)
    return variables, jnp.array(image)


def output(variables, image):
    return net.apply(variables, image[None], train=False)


def test_cam_weighs_the_channels():
    feature = jnp.array([[[1.0, 2.0], [0.0, 1.0]]])
    weights = jnp.array([3.0, -1.0])
    assert heatmap.cam(feature, weights).tolist() == [[1.0, -1.0]]


def test_mean_of_cam_is_the_logit(example):
    variables, image = example
    answer, head = output(*example), variables["params"]["head"]
    for label in range(3):
        mean = heatmap.cam(
            answer.features["stage2"][0], head["kernel"][:, label]
        ).mean()
        expected = answer.logits[0, label] - head["bias"][label]
        assert mean == pytest.approx(float(expected), abs=1e-5)


def test_grad_cam_of_the_last_feature_is_cam_rectified(example, variant):
    # The gradient of a mean is one over the number of places, 4 x 4.
    variables, image = example
    feature = output(*example).features["stage2"][0]
    grad_cam = variant(functools.partial(heatmap.grad_cam, net, feature="stage2"))
    for label in range(3):
        kernel = variables["params"]["head"]["kernel"][:, label]
        expected = np.maximum(heatmap.cam(feature, kernel), 0) / 16
        np.testing.assert_allclose(
            grad_cam(variables, image, label), expected, atol=1e-6
        )


def test_grad_cam_of_an_inner_feature_has_the_gradient_of_the_logit(example):
    variables, image = example
    feature = output(*example).features["stage1"]

    def logit(change):
        perturbed = {**variables, "perturbations": {"stage1": change}}
        return net.apply(perturbed, image[None], train=False).logits[0, 1]

    # Central differences along each channel: the sum over places is 64 times a mean.
    # They meet kinks of rectifiers, so they are only near.
    step, gradient = 1e-2, []
    for channel in range(8):
        change = jnp.zeros_like(feature).at[..., channel].set(step)
        gradient.append((logit(change) - logit(-change)) / (2 * step) / 64)
    expected = np.maximum(feature[0] @ np.array(gradient), 0)
    heat = heatmap.grad_cam(net, variables, image, 1, "stage1")
    assert heat.shape == (8, 8) and heat.max() > 0
    np.testing.assert_allclose(heat, expected, atol=0.05 * float(heat.max()))


def test_grad_cam_of_bfloat16_is_that_of_float32(example):
    variables, image = example
    half = dataclasses.replace(net, dtype=jnp.bfloat16)
    found, expected = (
        heatmap.grad_cam(each, variables, image, 1, "stage2") for each in (half, net)
    )
    assert found.dtype == expected.dtype == jnp.float32
    assert float(expected.max()) > 0
    np.testing.assert_allclose(found, expected, atol=0.03 * float(expected.max()))
    # Sums of channels have more digits than bfloat16, whose last 16 bits are 0.
    assert (np.asarray(found).view(np.uint32) & 0xFFFF).any()


def test_grad_cam_of_a_policy_network(example):
    trunk = resnet.ResNet(num_classes=0, stage_sizes=(1, 1), width=8, small_stem=True)
    policy = nets.PolicyNet(trunk, grid=4, width=8)
    variables = policy.init(jax.random.key(0), example[1][None], train=False)
    kernel = variables["params"]["logits"]["kernel"]
    variables["params"]["logits"]["kernel"] = jnp.ones_like(kernel)
    heats = [
        heatmap.grad_cam(policy, variables, example[1], jnp.array(cell), "stage2")
        for cell in ((0, 0), (3, 3))
    ]
    assert heats[0].shape == (4, 4)
    assert np.abs(heats[0] - heats[1]).max() > 1e-5


TRUNK = resnet.ResNet(num_classes=0, stage_sizes=(1, 1), width=8, small_stem=True)


@pytest.mark.parametrize(
    ("network", "label"),
    [
        (nets.MANet(TRUNK, 3, maps=4), 1),
        (nets.CenterNet(TRUNK, grid=4, width=8), [1, 2, 0]),
        (nets.PolicyNet(TRUNK, grid=4, width=8), [1, 2]),
    ],
)
def test_grad_cam_reaches_every_feature(network, label, example):
    image = example[1]
    variables = network.init(jax.random.key(0), image[None], train=False)
    # Layers that start at zero would send nothing back.
    variables = jax.tree.map(lambda x: jnp.where(x == 0, 0.1, x), variables)
    features = network.apply(variables, image[None], train=False).features
    for feature in features:
        heat = heatmap.grad_cam(network, variables, image, jnp.array(label), feature)
        assert heat.max() > 0, feature


def test_unknown_feature_names_the_known_ones(example):
    with pytest.raises(ValueError, match="no feature 'stage9', but stage1, stage2"):
        heatmap.grad_cam(net, *example, 0, "stage9")


@pytest.mark.parametrize("label", [7, -1, (0, 1)])
def test_a_logit_that_is_not_there_is_refused(example, label):
    with pytest.raises(ValueError, match="but there are .3,. logits"):
        heatmap.grad_cam(net, *example, jnp.array(label), "stage2")


def test_energy_of_a_signed_map_is_that_of_what_is_above_0():
    heat = jnp.array([[1.0, -5.0], [3.0, -2.0]])
    top = jnp.array([0.0, 0.0, 0.5, 1.0])
    assert heatmap.energy_inside(heat, top) == 0.25


def test_overlay_shows_the_image_where_it_is_cold_and_light_where_it_is_hot():
    image = np.full((6, 9, 1), 0.2, np.float32)
    heat = np.zeros((2, 3), np.float32)
    heat[:, 2] = 7.0
    heat[:, 0] = -7.0
    picture = np.asarray(heatmap.overlay(image, heat, opacity=0.5))
    assert picture.shape == (6, 9, 3)
    assert picture[0, 0].tolist() == [51, 51, 51]  # 0.2 * 255
    assert picture[0, -1].tolist() == [153, 153, 153]  # (0.2 + 1) / 2 * 255


def test_overlay_of_no_heat_is_the_image():
    image = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    picture = np.asarray(heatmap.overlay(image, np.zeros((2, 2))))
    np.testing.assert_array_equal(picture[..., 0], np.round(image * 255))


def test_overlay_is_not_of_bytes():
    with pytest.raises(AssertionError, match="expected"):
        heatmap.overlay(np.full((4, 4), 51, np.uint8), np.zeros((2, 2)))


# Maps of key areas in the whole image.


def test_a_pasted_map_is_zero_outside_of_its_area(variant):
    paste = variant(functools.partial(heatmap.paste, size=4))
    left = paste(jnp.ones((2, 2)), jnp.array([0.0, 0.0, 1.0, 0.5]))
    np.testing.assert_allclose(left, [[1, 1, 0, 0]] * 4, atol=1e-6)
    # Of the cells that the area cuts in half, half.
    middle = paste(jnp.ones((3, 3)), jnp.array([0.125, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(middle[:, 0], [0.5, 1, 1, 1], atol=1e-6)


def test_a_map_pasted_into_the_whole_image_is_resized(variant):
    heat = jax.random.uniform(jax.random.key(0), (3, 3))
    paste = variant(functools.partial(heatmap.paste, size=9))
    found = paste(heat, jnp.array([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(
        found, jax.image.resize(heat, (9, 9), "linear"), atol=1e-5
    )


def test_energy_and_pointing_by_hand(variant):
    heat = jnp.array([[0.0, 2.0], [1.0, 1.0]])
    energy, points = variant(heatmap.energy_inside), variant(heatmap.points_inside)
    right, left = jnp.array([0.0, 0.5, 1.0, 1.0]), jnp.array([0.0, 0.0, 1.0, 0.5])
    assert energy(heat, right) == 0.75 and energy(heat, left) == 0.25
    assert points(heat, right) and not points(heat, left)
    # Half of each cell of the upper row: 1 of 4.
    assert energy(heat, jnp.array([0.0, 0.0, 0.25, 1.0])) == 0.25
    empty = jnp.zeros((2, 2))
    assert energy(empty, right) == 0 and not points(empty, right)
