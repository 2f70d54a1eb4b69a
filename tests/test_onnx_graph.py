"""ONNX models against JAX, run by ONNX Runtime."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from hapre_jax import nets
from hapre_jax.errors import UserError
from hapre_jax.method import to_float
from hapre_jax.methods import METHODS
from hapre_jax.serving import onnx_graph


def _run(model, image):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": image}), strict=True))


def _shaken(variables):
    """Variables none of which is at its special start of 0 or 1."""
    random = np.random.default_rng(0)

    def shake(array):
        if array.dtype != jnp.float32:
            return array
        # Without a direction, or activations would explode from layer to layer.
        return array + 0.02 * random.standard_normal(array.shape, np.float32)

    return jax.tree.map(shake, variables)


def _check(function, image, *, tolerance=1e-4):
    shape = jax.ShapeDtypeStruct(image.shape[1:], image.dtype)
    model = onnx_graph.convert(function, {"image": shape})
    expected = jax.jit(function)(image)
    for count in (len(image), 1):  # the batch is free
        found = _run(model, image[:count])
        assert set(found) == set(expected)
        for name, array in found.items():
            wanted = np.asarray(expected[name])
            atol = tolerance * np.abs(wanted).max()
            np.testing.assert_allclose(array, wanted[:count], tolerance, atol)
    return model


_FAST = ("resnet8", "resnet8+cbam", "resnet8+danet")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in _FAST else pytest.mark.slow)
        for name in nets.NETS
    ],
)
def test_every_network_gives_the_same_logits(name):
    network = nets.NETS[name](num_classes=3, norm="batch")
    image = np.random.default_rng(1).random((2, 64, 64, 1), np.float32)
    variables = _shaken(network.init(jax.random.key(0), image, train=False))
    model = _check(
        lambda image: {"logits": network.apply(variables, image, train=False).logits},
        image,
    )
    operators = [node.op_type for node in model.graph.node]
    if "+" not in name:
        # Normalization has become part of the convolutions before it.
        folds = not name.startswith("densenet")  # which normalizes before them
        assert ("Sub" not in operators) == folds or name.startswith("vgg")


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("hapre", {}),
        ("hapre", {"readout": "anchors"}),
        ("hapre", {"readout": "max_sum", "estimator": "elite"}),
        ("hapre", {"operation": "key_area+rotation+gamma"}),
        ("hapre", {"operation": "rotation+zoom"}),
        ("mag_sd", {}),
        ("two_stage", {}),
        pytest.param("dre_net", {}, marks=pytest.mark.slow),
    ],
)
def test_methods_give_the_same_answers(tiny_config, name, policy):
    policy = dataclasses.replace(tiny_config.policy, **policy)
    config = dataclasses.replace(tiny_config, method=name, policy=policy)
    method = METHODS[name](config, 3)
    side = config.data.image_size
    image = np.random.default_rng(1).integers(0, 256, (3, side, side, 1), np.uint8)
    variables = _shaken(method.init(jax.random.key(0), jnp.zeros((1, side, side, 1))))

    def predict(image):
        found = method.predict(*variables, to_float({"image": image}))
        outputs = {"probabilities": found.probabilities}
        return outputs if found.area is None else outputs | {"area": found.area}

    model = _check(predict, image)
    assert ("area" in {output.name for output in model.graph.output}) == (
        name == "hapre"
    )
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == [
        "batch",
        side,
        side,
        1,
    ]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.where(x > 0.5, jnp.log1p(x), -x),
        lambda x: jnp.clip(jnp.tanh(x) ** 3, 0.1, 0.4),
        lambda x: x[:, 1:3][:, :, ::2],
        lambda x: x[:, 2:, 1] + x[:, :-2, 0],
        lambda x: x[:, jnp.array([2, 0, 0])],
        lambda x: jax.lax.rsqrt(x + 1) + jnp.floor(4 * x) + jnp.sign(x - 0.5),
        lambda x: jnp.argmax(x, axis=1).astype(jnp.float32),
        lambda x: jnp.max(x, axis=(1, 2)) - jnp.min(x, axis=(1, 2)),
        lambda x: jnp.prod(x, axis=3, keepdims=True),
        lambda x: jnp.stack([x, jnp.ones_like(x)], axis=2).reshape(x.shape[0], -1),
        lambda x: jnp.einsum("bhwc,bhvc->bcwv", x, x),
        lambda x: jnp.sum(jnp.broadcast_to(x[:, :1], x.shape), axis=1),
        lambda x: jax.nn.softmax(x.reshape(x.shape[0], -1) @ jnp.ones((60, 2)) * 2 + 1),
        lambda x: (x[..., :1] != x).astype(jnp.int32) * 3,
    ],
)
def test_operations_by_themselves(function):
    image = np.random.default_rng(2).random((2, 4, 5, 3), np.float32)
    _check(lambda x: {"y": function(x)}, image, tolerance=1e-6)


def test_a_factor_and_an_offset_become_part_of_the_product_before():
    weight = jnp.array([[1.0, 2.0], [3.0, 4.0]])

    def function(x):
        return {"y": (x @ weight + jnp.array([[1.0, -1.0]])) * jnp.array([[2.0, 10.0]])}

    model = onnx_graph.convert(function, {"image": jax.ShapeDtypeStruct((2,), "f4")})
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Identity"]
    values = {
        one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer
    }
    _, weight, bias = model.graph.node[0].input
    np.testing.assert_array_equal(values[weight], [[2, 20], [6, 40]])
    np.testing.assert_array_equal(values[bias], [2, -10])


def test_a_product_that_is_read_twice_is_written_once():
    weight = jnp.ones((2, 2))

    def function(x):
        y = x @ weight
        return {"y": y * 2 + y}

    model = onnx_graph.convert(function, {"image": jax.ShapeDtypeStruct((2,), "f4")})
    assert [node.op_type for node in model.graph.node].count("Gemm") == 1
    _check(function, np.ones((3, 2), np.float32))


def test_what_onnx_lacks_is_named():
    shape = {"image": jax.ShapeDtypeStruct((4,), "f4")}
    with pytest.raises(UserError, match="operation 'sort' cannot be written as ONNX"):
        onnx_graph.convert(lambda x: {"y": jnp.sort(x)}, shape)
