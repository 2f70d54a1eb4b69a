"""What a network costs, by shapes alone."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hapre_jax.nets import NETS


class Size(NamedTuple):
    """What a network costs."""

    parameters: int
    without_norms: int
    gflops: dict[int, float]  # of a forward pass, by pixels of a side
    features: dict[str, tuple[int, ...]]  # (h, w, channels) at 224 pixels


def measure(name: str, num_classes: int = 3, channels: int = 3) -> Size:
    """Sizes of a network of `NETS`; nothing is computed.

    A multiplication and an addition are two operations, as XLA counts them; it leaves
    out those with padding.
    """
    net = NETS[name](num_classes=num_classes)

    def forward(variables, image):
        return net.apply(variables, image, train=False)

    gflops = {}
    for side in (224, 640):
        image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        variables = jax.eval_shape(
            functools.partial(net.init, train=False), jax.random.key(0), image
        )
        cost = jax.jit(forward).lower(variables, image).cost_analysis() or {}
        gflops[side] = cost.get("flops", math.nan) / 1e9
        if side == 224:
            features = jax.eval_shape(forward, variables, image).features
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    sizes = [(jax.tree_util.keystr(path), math.prod(x.shape)) for path, x in leaves]
    return Size(
        sum(size for _, size in sizes),
        sum(size for path, size in sizes if "BatchNorm" not in path),
        gflops,
        {stage: x.shape[1:] for stage, x in features.items()},
    )
