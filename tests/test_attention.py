import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.special

from hapre_jax import nets
from hapre_jax.nets import attention
from hapre_jax.nets.output import Output
from hapre_jax.tasks import Classification


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def randomize(tree):
    """The tree with values of a new generator: initial zeros would hide errors."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), tree)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_cbam_equals_its_definition():
    x = random(2, 5, 6, 32)
    net = attention.CBAM(norm="frozen")
    variables = net.init(jax.random.key(0), x, train=False)
    params = randomize(variables["params"])
    output = net.apply({**variables, "params": params}, x, train=False)

    def mlp(v):
        reduce, expand = params["reduce"], params["expand"]
        hidden = np.maximum(v @ reduce["kernel"] + reduce["bias"], 0)
        assert hidden.shape == (2, 2)  # 32 / 16
        return hidden @ expand["kernel"] + expand["bias"]

    gate = scipy.special.expit(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))
    gated = x * gate[:, None, None]
    kernel = params["spatial_conv"]["kernel"]  # [7, 7, (max, mean), 1]
    norm = params["spatial_norm"]["BatchNorm"]
    for image, expected in zip(gated, output, strict=True):
        places = sum(
            scipy.signal.correlate2d(plane, kernel[:, :, i, 0], mode="same")
            for i, plane in enumerate((image.max(-1), image.mean(-1)))
        )
        places = places / math.sqrt(1 + 1e-5) * norm["scale"] + norm["bias"]
        factor = scipy.special.expit(places)[..., None]
        np.testing.assert_allclose(image * factor, expected, atol=1e-5)


def test_cbam_starts_with_places_at_one_half():
    x = random(1, 4, 4, 16)
    net = attention.CBAM()
    variables = net.init(jax.random.key(0), x, train=False)
    variables["params"]["expand"] = jax.tree.map(
        jnp.zeros_like, variables["params"]["expand"]
    )
    # Channels at one half too, where their layer says nothing.
    output = net.apply(variables, x, train=False)
    np.testing.assert_allclose(output, x / 4, atol=1e-6)


def test_position_attention_equals_its_definition():
    query, key, value = random(3, 2, 4), random(3, 2, 4)[::-1], random(3, 2, 5)
    output = attention.position_attention(*map(jnp.array, (query, key, value)))
    for place in np.ndindex(3, 2):
        weights = scipy.special.softmax(np.einsum("d,hwd->hw", query[place], key))
        expected = np.einsum("hw,hwc->c", weights, value)
        np.testing.assert_allclose(output[place], expected, atol=1e-5)


def test_channel_attention_prefers_unlike_channels():
    x = random(3, 2, 4)
    output = attention.channel_attention(jnp.array(x))
    for channel in range(4):
        energy = np.einsum("hw,hwc->c", x[..., channel], x)
        weights = scipy.special.softmax(energy.max() - energy)
        assert weights.argmax() == energy.argmin()
        np.testing.assert_allclose(output[..., channel], x @ weights, atol=1e-5)


def test_attention_of_bfloat16_is_that_of_float32():
    # Sums over 400 places are in the hundreds, and what the softmax sees differences.
    x = jnp.abs(jax.random.normal(jax.random.key(0), (20, 20, 8))).astype(jnp.bfloat16)
    exact = x.astype(jnp.float32)
    found = attention.channel_attention(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        found.astype(jnp.float32), attention.channel_attention(exact), rtol=0.02
    )
    query = 9 * x
    found = attention.position_attention(query, x, x).astype(jnp.float32)
    expected = attention.position_attention(query.astype(jnp.float32), exact, exact)
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_danet_head_starts_without_attention():
    # Both factors start at zero, so only then do queries not matter.
    x = random(2, 3, 3, 64)
    head = attention.DANetHead(num_classes=3, norm="frozen")
    variables = head.init(jax.random.key(0), x, train=False)
    other = {**variables["params"], "query": randomize(variables["params"]["query"])}
    before, parts = head.apply(variables, x, train=False)
    after, _ = head.apply({**variables, "params": other}, x, train=False)
    np.testing.assert_array_equal(before, after)
    assert parts == ()
    gamma = {"position_gamma": jnp.ones(()), "channel_gamma": jnp.ones(())}
    attending, _ = head.apply(
        {**variables, "params": {**other, **gamma}}, x, train=False
    )
    assert np.abs(attending - after).max() > 1e-3


@pytest.mark.parametrize(
    ("channels", "parameters"), [(512, 1_497_387), (2048, 23_929_995)]
)
def test_danet_head_has_the_parameters_of_its_authors(channels, parameters):
    head = attention.DANetHead(num_classes=3)
    image = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
    init = functools.partial(head.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), image)
    assert count(variables["params"]) == parameters


def test_auxiliary_logits_learn_and_do_not_answer():
    task = Classification(nets.NETS["resnet8+danet"](num_classes=3), image_size=8)
    image, target = jnp.array(random(2, 8, 8, 1)), jnp.array([0, 2])
    variables = task.init(jax.random.key(0), image)

    @jax.jit
    def run(variables):
        trained, _ = task.apply(variables, image, train=True, key=jax.random.key(1))
        answered, _ = task.apply(variables, image, train=False)
        return trained, answered

    trained, answered = run(variables)
    assert len(trained.auxiliary) == 2 and answered.auxiliary == ()
    parts = [task.loss(Output(x, {}), target) for x in (trained[0], *trained.auxiliary)]
    np.testing.assert_allclose(task.loss(trained, target), sum(parts), rtol=1e-6)


def test_dropout_differs_between_keys():
    net = nets.NETS["resnet8+danet"](num_classes=3, norm="frozen")
    image = jnp.array(random(2, 8, 8, 1))
    variables = net.init(jax.random.key(0), image, train=False)

    @jax.jit
    def logits(key):
        return net.apply(variables, image, train=True, rngs={"dropout": key}).logits

    first, again, other = (logits(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
