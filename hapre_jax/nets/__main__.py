"""Prints the table of networks: `python -m hapre_jax.nets`."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import rich.console
import rich.table

from hapre_jax import cli
from hapre_jax.nets import NETS

_CLASSES = 3
# Parameters in millions of the paper's Table 5, and how ours are counted to match.
_PAPER = {
    "resnet18": "11.18: 3 classes",
    "resnet34": "21.29: 3 classes",
    "resnet50": "25.55: 1000 classes, truncated",
    "densenet121": "6.87: 3 classes, without norms",
    "densenet169": "12.33: 3 classes, without norms",
    "vgg16": "134.27: 3 classes",
    "vgg19": "139.58: 3 classes",
}


class Size(NamedTuple):
    """What a network costs."""

    parameters: int
    without_norms: int
    gflops: dict[int, float]  # of a forward pass, by pixels of a side
    features: dict[str, tuple[int, ...]]  # (h, w, channels) at 224 pixels


def measure(name: str, num_classes: int = _CLASSES, channels: int = 3) -> Size:
    """Sizes of a network by shapes alone: nothing is computed.

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


def table() -> rich.table.Table:
    """All networks, a line each."""
    lines = rich.table.Table(title=f"Networks for {_CLASSES} classes, 3 channels")
    lines.add_column("--task.net", no_wrap=True)
    for title in ("parameters", "without norms", "GFLOPs 224", "GFLOPs 640"):
        lines.add_column(title, justify="right")
    lines.add_column("features at 224: side x channels")
    lines.add_column("paper's Table 5, millions")
    for name in NETS:
        size = measure(name)
        lines.add_row(
            name,
            f"{size.parameters:,}",
            f"{size.without_norms:,}",
            *(f"{value:.2f}" for value in size.gflops.values()),
            " ".join(f"{h}x{c}" for h, _, c in size.features.values()),
            _PAPER.get(name, ""),
        )
    return lines


def main(argv: list[str]) -> int:
    """The program."""
    cli.Parser(
        prog="python -m hapre_jax.nets",
        description="Print every network that --task.net takes, with its parameters, "
        "operations of a forward pass (a multiply-add is two) and feature shapes.",
    ).parse_args(argv)
    console = rich.console.Console()
    console.print(table())
    count = measure("resnet50", num_classes=1000).parameters
    console.print(f"resnet50 for 1000 classes has {count:,} parameters.")
    return 0


if __name__ == "__main__":
    cli.run(main)
