"""Shows a run's reward landscape, see `reward_landscape`.

`python -m hapre_jax.landscape RUN`.
"""

import pathlib
from typing import Any

import numpy as np
import rich.console
import rich.table

from hapre_jax import (
    checkpoint,
    cli,
    evaluation,
    json_file,
    log,
    methods,
    other_films,
    reward_landscape,
    run_folder,
    train_state,
)
from hapre_jax.config import AREAS, Config
from hapre_jax.data import dataset as datasets
from hapre_jax.errors import UserError
from hapre_jax.method import Method
from hapre_jax.reporting import figures, landscape_sheet
from hapre_jax.reward_landscape import Landscape


def measure_and_draw(
    config: Config,
    method: Method,
    state: train_state.TrainState,
    source: datasets.Dataset,
    workdir: pathlib.Path,
    *,
    stem: str = "landscape",
) -> Landscape:
    """Measures, and writes `STEM.png` and `STEM.json` into a run's folder."""
    size = min(reward_landscape.BATCH_SIZE, evaluation.batch_size(config))
    landscape = reward_landscape.measure(method, state, source, batch_size=size)
    figures.save(landscape_sheet.draw(landscape), workdir / f"{stem}.png")
    values = {name: _jsonable(value) for name, value in landscape._asdict().items()}
    json_file.write(workdir / f"{stem}.json", {"step": int(state.step), **values})
    return landscape


def _jsonable(value: Any) -> Any:
    """Arrays as lists, with null for NaN, which JSON does not know."""
    if not isinstance(value, np.ndarray):
        return value
    found = value.astype(object)
    found[np.isnan(value)] = None
    return found.tolist()


def table(landscape: Landscape) -> rich.table.Table:
    """The losses over all images: zooms down, shifts across."""
    around = "lungs" if landscape.reference == "lungs" else "policy's key area"
    caption = f"whole image {landscape.whole[-1]:.2f}"
    if landscape.policy is not None:
        caption += f", policy's key area {landscape.policy[-1]:.2f}"
    result = rich.table.Table(
        title=f"Mean loss on boxes around the {around}, {landscape.counts[-1]} images",
        caption=caption,
    )
    result.add_column("side \\ shift", justify="right")
    for shift in landscape.shifts:
        result.add_column(f"{shift:+.2f}" if shift else "0", justify="right")
    best = reward_landscape.lowest(landscape.losses[-1])
    for row, zoom in enumerate(landscape.zooms):
        texts = [f"{loss:.2f}" for loss in landscape.losses[-1, row]]
        if row == best[0]:
            texts[best[1]] = f"[bold]{texts[best[1]]}[/bold]"
        result.add_row(f"{zoom:.2f}", *texts)
    return result


def main(argv: list[str]) -> int:
    """The program."""
    config, arguments = cli.parse(
        argv,
        program="python -m hapre_jax.landscape",
        description="Shows on which boxes a run's task network is good: mean loss on "
        "validation images against size and place of a box around the true lungs. With "
        "--data flags the films are others, and the run's own picture stays.",
        examples=(
            "runs/phantom",
            "runs/phantom/plain",
            "runs/phantom --data.quality medium",
        ),
    )
    console = rich.console.Console()
    workdir = pathlib.Path(arguments.run)
    trained = run_folder.read_config(workdir)
    operations = trained.policy.operations
    if trained.method == "hapre" and not set(operations) & set(AREAS):
        raise UserError(
            f"{workdir} is a run of policy.operation {trained.policy.operation}, which "
            f"keeps no area, but a landscape needs one of {', '.join(AREAS)}"
        )
    run_folder.check_place(workdir, "RUN")  # before what takes long
    config = other_films.config_of(config, trained, program="landscape")
    classes = None
    if (workdir / "results.json").exists():  # a run may still be at work
        classes = tuple(run_folder.read_results(workdir)["classes"])
    with log.progress_bar(console, f"{config.data.name} images") as update:
        films, _, known = other_films.load(
            config,
            trained,
            workdir,
            classes=classes,
            split="validation",
            progress=update,
        )
    if classes is not None and classes != films.classes:
        raise UserError(
            f"the run tells {', '.join(classes)} apart, and these films are "
            f"{', '.join(films.classes)}: a landscape needs the same classes"
        )
    other_films.say_what_is_left_out(known, console)
    method = methods.make(trained, len(films.classes))
    best = checkpoint.restore_best(workdir, trained, method)
    stem = "landscape" if config.data == trained.data else "landscape_elsewhere"
    landscape = measure_and_draw(config, method, best, films, workdir, stem=stem)
    console.print(table(landscape))
    console.print(reward_landscape.verdict(landscape), highlight=False)
    written = f"Written: {workdir}/{stem}.png and {stem}.json"
    console.print(written, soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    cli.run(main)
