"""A trained method ready to answer films: of a run, or of an exported bundle."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from hapre_jax import (
    appearance,
    atomic,
    checkpoint,
    explain,
    json_file,
    methods,
    pretrained,
    run_folder,
)
from hapre_jax.config import Config
from hapre_jax.errors import UserError
from hapre_jax.method import Prediction, of_networks, to_float

BATCH = 32  # films in a forward pass, a shape that is compiled once
# Files of a bundle.
ABOUT, CARD, CONFIG = "bundle.json", "README.md", "config.json"
WEIGHTS, GRAPH, HEAT_GRAPH = "weights.safetensors", "model.stablehlo", "heat.stablehlo"
# Outputs of its graphs.
PROBABILITIES, KEY_AREA, HEAT = "probabilities", "key_area", "heat"


class Model(NamedTuple):
    """What answers `u8[B, S, S, 1]`, squares made as `config.data` says."""

    config: Config
    classes: tuple[str, ...]
    predict: Callable[[np.ndarray], Prediction]
    # The same with `f32[B, 64, 64]`, where the network looks, before it; or None.
    explain: Callable[[np.ndarray], tuple[jax.Array, Prediction]] | None
    temperature: float | None  # see `probabilities.fit_temperature`
    typical: dict[str, Any] | None  # see `appearance.describe`


class Functions(NamedTuple):
    """The functions of a run, and the variables that are their first argument."""

    variables: tuple[dict, dict]  # averages of (params, model_state)
    predict: Callable  # (variables, u8[B, S, S, 1]) -> Prediction
    explain: Callable | None  # (variables, u8[B, S, S, 1]) -> (heat, Prediction)


def load(folder: str | pathlib.Path) -> Model:
    """The model of a finished run, or of a bundle.

    `answering.answer_all` asks it, of films in files or in memory.

    Raises:
      UserError: it is neither, it is damaged, or it needs to be told where the lungs
        are.
    """
    folder = pathlib.Path(folder)
    if (folder / ABOUT).exists():
        return _load_bundle(folder)
    results = run_folder.read_results(folder)
    config = run_folder.read_config(folder)
    functions = load_functions(folder, config, len(results["classes"]))
    predict = jax.jit(functions.predict)
    explain_films = functions.explain and jax.jit(functions.explain)
    return Model(
        config,
        tuple(results["classes"]),
        lambda pixels: predict(functions.variables, pixels),
        explain_films and (lambda pixels: explain_films(functions.variables, pixels)),
        results["temperature"],
        read_typical(folder),
    )


def identity(folder: pathlib.Path) -> str:
    """What tells the model of a finished run, or of a bundle, from all others.

    Raises:
      UserError: it is neither.
    """
    if (folder / ABOUT).exists():
        return atomic.digest(folder / ABOUT)
    run_folder.read_results(folder)
    return atomic.digest(folder / "results.json")


def load_functions(
    workdir: pathlib.Path, config: Config, num_classes: int
) -> Functions:
    """The best checkpoint of a run and what can be asked of it.

    Raises:
      UserError: there is none, or the method needs to be told where the lungs are.
    """
    method = methods.make(config, num_classes)
    if method.needs_lungs:
        raise UserError(
            f"method {config.method} must be told where the lungs are, which of new "
            "films nobody knows"
        )
    best = checkpoint.restore_best(workdir, config, method)
    look = explain.make(config, num_classes)
    variables = of_networks(*best.average)  # DRL-DA's guide answers no film

    def predict(variables, pixels):
        return method.predict(*variables, to_float({"image": pixels}))

    if look is None:
        return Functions(variables, predict, None)

    def explain_films(variables, pixels):
        return look(*variables, to_float({"image": pixels}))

    return Functions(variables, predict, explain_films)


def read_typical(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What the run's training films look like; None of runs of older versions.

    Raises:
      UserError: the file is damaged.
    """
    file = run_folder.find(workdir, appearance.FILE)
    if file is None:
        return None
    found = json_file.read(file)
    if not appearance.is_description(found):
        raise UserError(f"{file} does not say what films look like; delete it")
    return found


def flatten(variables: tuple[dict, dict]) -> dict[str, np.ndarray]:
    """Arrays by name, such as "params.task.head.bias"."""
    named = dict(zip(("params", "state"), variables, strict=True))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(array)
        for path, array in jax.tree_util.tree_flatten_with_path(named)[0]
    }


def _load_bundle(folder: pathlib.Path) -> Model:
    about = _read_about(folder)
    config = run_folder.read_config(folder)
    weights = jax.device_put(pretrained.read(folder / WEIGHTS))
    side = config.data.image_size
    film = jax.ShapeDtypeStruct((1, side, side, 1), np.uint8)

    def load_graph(name):
        try:
            graph = export.deserialize(bytearray((folder / name).read_bytes()))
            answer = jax.eval_shape(graph.call, weights, film)
            if answer[PROBABILITIES].shape[1] != len(about["classes"]):
                raise ValueError("it is of other classes")
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise UserError(f"{folder / name} {reason}") from error
        except Exception as error:  # of flatbuffers and MLIR, which have many
            raise UserError(
                f"{folder / name} is damaged, or does not fit the files beside it; "
                "export it anew"
            ) from error
        return jax.jit(graph.call)

    graph = load_graph(GRAPH)

    def as_prediction(found):
        return Prediction(found[PROBABILITIES], found.get(KEY_AREA))

    def predict(pixels):
        return as_prediction(graph(weights, pixels))

    explain_films = None
    if (folder / HEAT_GRAPH).exists():
        heat_graph = load_graph(HEAT_GRAPH)

        def explain_films(pixels):
            found = heat_graph(weights, pixels)
            return found[HEAT], as_prediction(found)

    return Model(
        config,
        tuple(about["classes"]),
        predict,
        explain_films,
        about["temperature"],
        about["typical"],
    )


def _read_about(folder):
    """What a bundle says of itself, checked, as are the files that it names."""
    about = json_file.read(folder / ABOUT)
    is_whole = (
        isinstance(about, dict)
        and {"classes", "temperature", "typical"} <= about.keys()
        and run_folder.are_classes(about["classes"])
        and run_folder.is_temperature(about["temperature"])
        and (about["typical"] is None or appearance.is_description(about["typical"]))
        and isinstance(about.get("sha256", {}), dict)  # older ones have none
    )
    if not is_whole:
        raise UserError(f"{folder / ABOUT} is damaged; export it anew")
    for name in (WEIGHTS, GRAPH, HEAT_GRAPH):
        expected = about.get("sha256", {}).get(name)
        is_there = expected is not None and (folder / name).is_file()
        if is_there and atomic.digest(folder / name) != expected:
            raise UserError(
                f"{folder / name} is damaged, or of another bundle; export it anew"
            )
    return about
