"""The card of an exported model: what it is, what it was measured on, its limits.

Mitchell et al., "Model Cards for Model Reporting", 2019.
"""

from hapre_jax import explain
from hapre_jax.config import Config
from hapre_jax.reporting import report


def write(results: dict, config: Config, about: dict, *, with_onnx: bool) -> str:
    """Markdown.

    Args:
      results: of `results.json`.
      config: of the run.
      about: of `bundle.json`.
      with_onnx: whether an ONNX model lies beside it.
    """
    data, test = config.data, results["test"]
    films = f"`{data.name}`"
    if data.name == "phantom":
        films = f"procedural chest phantoms of quality `{data.quality}`, no real films"
    elif data.degrade != "none":
        films += f", degraded to quality `{data.degrade}`"
    rows = {label: test.get(key) for key, label in report.SCORES.items()}
    area = test["key_area"]
    if area:
        rows["key area's lung IoU"] = area["lung_iou"]
        rows["lungs covered by the key area"] = area["lung_coverage"]
        rows["side of the key area"] = area["side_fraction"]
    scores = "\n".join(
        f"| {label} | {value:.3f} |"
        for label, value in rows.items()
        if value is not None
    )
    views = "\n".join(
        f"| {name} | {of['n']} | {of['macro_f1']:.3f} |"
        for name, of in test["views"].items()
    )
    by_view = (
        f"\n| view | films | macro F1 |\n|---|---|---|\n{views}\n" if views else ""
    )
    sees = (
        "A network chooses the key area of a film, which the classifier sees."
        if area
        else "The classifier sees the whole film."
    )
    if not explain.is_of_film(config):
        sees = (
            f"A network chooses what `{config.policy.operation}` makes of a film, and "
            "the classifier sees that."
        )
    temperature = about["temperature"]
    calibrated = (
        ""
        if temperature is None
        else f"Probabilities p are calibrated by p^(1/{temperature:.4g}), scaled to "
        "sum to 1: the temperature was fitted on validation films.\n\n"
    )
    outputs = "`key_area`, `probabilities`" if area else "`probabilities`"
    onnx = (
        "`model.onnx` is the same graph for ONNX runtimes (operator set 17), with its "
        "weights inside. Ask for its outputs by name, they are sorted: "
        f"{outputs}.\n\n"
        if with_onnx
        else ""
    )
    classes = ", ".join(about["classes"])
    return f"""# {config.method} on {data.name}

**Not for clinical use.** A research model, neither reviewed nor approved as a medical
device.

{sees} Method `{config.method}`, classifier `{config.task.net}` on
{config.task.image_size} x {config.task.image_size} pixels; classes: {classes}.

## Use

Input is a film as a square of {data.image_size} x {data.image_size} gray levels
(`u8`), geometry `{data.geometry}`. `python answer.py FILM` answers films with JAX,
NumPy and Pillow; it is short, read it to build this model into a program. With
`hapre_jax`, `python -m hapre_jax.predict` reads DICOM files and archives too, cuts the
key areas out of the films, and says what is odd about a film.

{onnx}{calibrated}Intended for research on chest radiographs like those of its training.
Films of other devices, views, ages or diseases get an answer all the same, and it may
be wrong.

## Training

Films: {films}; divided by {"patient" if data.split_level == "group" else "image"}. Seed
{results["seed"]}, {results["steps"]} updates, the best of them by validation films
({results["best_step"]}). `config.json` has every setting.

## Figures

On {test["n"]} test films of the same source, one seed:

| | |
|---|---|
{scores}
{by_view}
## Limits

One training of one seed: another differs. The figures are of films of the training's
own source; elsewhere they are lower, as a rule (`python -m hapre_jax.evaluate` measures
it). What a data set's labels give away without the lungs, its model may have learned.
"""
