"""Prints the table of networks: `python -m hapre_jax.nets`."""

import rich.console
import rich.table

from hapre_jax import cli
from hapre_jax.nets import NETS
from hapre_jax.nets.size import measure

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


def table() -> rich.table.Table:
    """All networks, a line each."""
    lines = rich.table.Table(title=f"Networks for {_CLASSES} classes, 3 channels")
    lines.add_column("--task.net", no_wrap=True)
    for title in ("parameters", "without norms", "GFLOPs 224", "GFLOPs 640"):
        lines.add_column(title, justify="right")
    lines.add_column("features at 224: side x channels")
    lines.add_column("paper's Table 5, millions")
    for name in NETS:
        size = measure(name, num_classes=_CLASSES)
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
