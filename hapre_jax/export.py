"""Writes a trained run as a bundle for elsewhere: `python -m hapre_jax.export`."""

import functools
import importlib.metadata
import importlib.util
import pathlib
import shlex
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import safetensors.numpy
from jax import export

from hapre_jax import atomic, cli, json_file, log, run_folder
from hapre_jax import config as config_lib
from hapre_jax.config import Config
from hapre_jax.errors import UserError
from hapre_jax.serving import inference, model_card, standalone

PROGRAM, ONNX = "answer.py", "model.onnx"
# Graphs run on either; a TPU has not been tried.
_PLATFORMS = ("cpu", "cuda")
# Between a graph and the run's own functions, for the checks before a bundle is left.
_TOLERANCE = 1e-4


def write_bundle(
    workdir: pathlib.Path, out: pathlib.Path, *, with_onnx: bool = False
) -> list[str]:
    """Exports the best checkpoint of a finished run.

    Args:
      workdir: the run's folder.
      out: the bundle's folder, which must not exist.
      with_onnx: whether an ONNX model is added.

    Returns:
      The names of its files.

    Raises:
      UserError: `out` exists or cannot be written, the run is not finished, its method
        is told where the lungs are, or has operations that ONNX lacks.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out, or delete it")
    run_folder.check_place(out, "--out")
    if with_onnx and importlib.util.find_spec("onnx") is None:
        raise UserError("--onnx needs the package onnx: pip install 'hapre_jax[onnx]'")
    results = run_folder.read_results(workdir)
    config = run_folder.read_config(workdir)
    classes = results["classes"]
    functions = inference.load_functions(workdir, config, len(classes))
    variables = functions.variables

    def predict(variables, pixels):
        return _outputs(functions.predict(variables, pixels))

    about: dict[str, Any] = {
        "format": 1,
        "classes": classes,
        "method": config.method,
        "input": "image, u8[batch, image_size, image_size, 1]: gray levels",
        "image_size": config.data.image_size,
        "geometry": config.data.geometry,
        "temperature": results["temperature"],
        "typical": inference.read_typical(workdir),
        "test": results["test"],
        "versions": {
            name: importlib.metadata.version(name) for name in ("hapre_jax", "jax")
        },
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Made beside its place and renamed: nobody ever sees half of it.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as made:
            folder = pathlib.Path(made) / "bundle"
            folder.mkdir()
            # Not `save_file`, which lets nobody else read it.
            packed = safetensors.numpy.save(inference.flatten(variables))
            (folder / inference.WEIGHTS).write_bytes(packed)
            difference = _write_graph(
                predict, variables, config, folder / inference.GRAPH
            )
            if look := functions.explain:

                def explain(variables, pixels, look=look):
                    heat, found = look(variables, pixels)
                    return _outputs(found) | {inference.HEAT: heat}

                _write_graph(explain, variables, config, folder / inference.HEAT_GRAPH)
            if with_onnx:
                _write_onnx(
                    functools.partial(predict, variables),
                    config,
                    classes,
                    folder / ONNX,
                )
            about["largest_difference"] = difference
            about["sha256"] = {
                file.name: atomic.digest(file) for file in sorted(folder.iterdir())
            }
            json_file.write(folder / inference.ABOUT, about)
            json_file.write(
                folder / inference.CONFIG, config_lib.to_dict(_without_paths(config))
            )
            shutil.copyfile(standalone.__file__, folder / PROGRAM)
            card = model_card.write(results, config, about, with_onnx=with_onnx)
            atomic.write_text(folder / inference.CARD, card)
            folder.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return sorted(file.name for file in out.iterdir())


def _outputs(found) -> dict[str, jax.Array]:
    outputs = {inference.PROBABILITIES: found.probabilities}
    if found.area is not None:
        outputs[inference.KEY_AREA] = found.area
    return outputs


def _without_paths(config: Config) -> Config:
    """Where the films and weights of the training lay is nobody's business."""
    fields = config_lib.options(config)
    paths = {name: "" for name, field in fields.items() if field.is_path}
    return config_lib.override_all(config, paths)


def _write_graph(
    function: Callable, variables: tuple[dict, dict], config: Config, file: pathlib.Path
) -> float:
    """Writes a function of `(variables, image)` as one of `(weights, image)`.

    The weights are the variables by name, see `inference.flatten`, the batch is free.

    Returns:
      How far what was written is from the function itself.
    """
    weights, tree = inference.flatten(variables), jax.tree.structure(variables)
    # JAX sorts dictionaries; a tree's leaves may stand in another order than names do.
    names = list(weights)

    def of_weights(weights, pixels):
        leaves = [weights[name] for name in names]
        return function(jax.tree.unflatten(tree, leaves), pixels)

    side = config.data.image_size
    (batch,) = export.symbolic_shape("batch")
    pixels = jax.ShapeDtypeStruct((batch, side, side, 1), jnp.uint8)
    shapes = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype)
        for name, array in weights.items()
    }
    graph = export.export(jax.jit(of_weights), platforms=_PLATFORMS)(shapes, pixels)
    file.write_bytes(graph.serialize())
    read = export.deserialize(bytearray(file.read_bytes()))
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 1), np.uint8)
    expected, found = jax.jit(function)(variables, noise), read.call(weights, noise)
    difference = max(
        float(jnp.max(jnp.abs(found[name] - expected[name]))) for name in expected
    )
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{file.name} differs by {difference} from the run that it was made of, "
            f"more than {_TOLERANCE}: this is a fault of hapre_jax, please report it"
        )
    return difference


def _write_onnx(predict, config, classes, file) -> None:
    from hapre_jax.serving import onnx_graph  # needs the extra onnx

    side = config.data.image_size
    model = onnx_graph.convert(
        predict,
        {"image": jax.ShapeDtypeStruct((side, side, 1), jnp.uint8)},
        description=f"hapre_jax {config.method}: {', '.join(classes)}. Gray levels in, "
        f"geometry {config.data.geometry}. Not for clinical use.",
    )
    file.write_bytes(model.SerializeToString())


def main(argv: list[str]) -> int:
    """The program."""
    parser = cli.Parser(
        prog="python -m hapre_jax.export",
        description="Write the best checkpoint of a finished run as a bundle: weights, "
        "a graph of policy, crop and classifier that needs JAX alone, a model card and "
        "a program that answers films.",
        epilog="Examples:\n"
        "  python -m hapre_jax.export runs/phantom --out bundle\n"
        "  python -m hapre_jax.predict bundle films/    # the run is not needed\n"
        "  python bundle/answer.py film.png             # nor is hapre_jax",
    )
    parser.add_argument("run", type=pathlib.Path, help="folder of a finished run")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("bundle"),
        help="folder to write, which must not exist (default %(default)s)",
    )
    parser.add_argument(
        "--onnx",
        action="store_true",
        help="add model.onnx, for ONNX runtimes; needs the extra onnx",
    )
    arguments = parser.parse_args(argv)
    console = rich.console.Console()
    with console.status("Exporting"):
        names = write_bundle(arguments.run, arguments.out, with_onnx=arguments.onnx)
    log.say(console, f"Written to {arguments.out}: {', '.join(names)}")
    bundle = shlex.quote(str(arguments.out))
    log.say(console, f"Next: python -m hapre_jax.predict {bundle} FILMS")
    return 0


if __name__ == "__main__":
    cli.run(main)
