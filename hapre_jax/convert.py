"""Converts PyTorch weights once, so that training needs no PyTorch.

`python -m hapre_jax.convert resnet50.pth resnet50.safetensors`
"""

import pathlib

import safetensors.numpy

from hapre_jax import atomic, cli, pretrained
from hapre_jax.errors import UserError


def convert(source: pathlib.Path, target: pathlib.Path) -> int:
    """Writes the tensors of `source` to `target`, under their names, in float32.

    Returns:
      The number of tensors.

    Raises:
      UserError: `source` cannot be read, or `target` is no .safetensors file or cannot
        be written.
    """
    if target.suffix != ".safetensors":
        raise UserError(f"{str(target)!r} must end in .safetensors")
    tensors = pretrained.read(source)
    # A transposed tensor would be written in the order of its memory.
    packed = safetensors.numpy.save(
        {name: value.copy(order="C") for name, value in tensors.items()}
    )
    # Not `save_file`, which lets nobody else read it, and has errors of its own.
    with atomic.replacing(target) as partial:
        partial.write_bytes(packed)
    return len(tensors)


def main(argv: list[str]) -> int:
    """The program."""
    parser = cli.Parser(
        prog="python -m hapre_jax.convert",
        description="Convert a PyTorch state_dict, read without executing anything in "
        "it, to a safetensors file for --task.pretrained and --policy.pretrained.",
    )
    parser.add_argument("source", type=pathlib.Path, help="IN.pth or IN.pt")
    parser.add_argument("target", type=pathlib.Path, help="OUT.safetensors")
    arguments = parser.parse_args(argv)
    count = convert(arguments.source, arguments.target)
    print(f"{arguments.target}: {count} tensors")
    print(
        "Next: python -m hapre_jax.train --task.net NAME --task.normalize fixed "
        f"--task.pretrained {arguments.target}"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
