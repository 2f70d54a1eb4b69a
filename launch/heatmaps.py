"""Where trained classifiers look, side by side (the paper's Fig. 5).

python launch/heatmaps.py --out runs/heatmaps.png plain=runs/phantom/plain \
    HAPre-KRS=runs/phantom

Each NAME=RUN is a finished run; all must have been trained on the same films with the
same seed. A row is a test film, the first ones of each class; a column is a run, with
the Grad-CAM of the class that it answers, at the network's last features. Of a run with
key areas the map is that of the area, put back in its place. Where the lungs are known,
all test films give two scores: how often the hottest place lies in the lung box, and
the share of the heat in it.
"""

import argparse
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from PIL import Image, ImageDraw

from hapre_jax import (
    boxes,
    checkpoint,
    cli,
    evaluation,
    figures,
    heatmap,
    log,
    other_films,
    run_folder,
)
from hapre_jax import config as config_lib
from hapre_jax import explain as explain_lib
from hapre_jax.config import Config
from hapre_jax.data import dataset as datasets
from hapre_jax.data import feed, pipeline
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS
from hapre_jax.state import to_float

_FILM, _GAP, _TOP = 200, 10, 70  # pixels


class Looks(NamedTuple):
    """Where a run looks in N films."""

    heat: np.ndarray  # f32[N, S, S] >= 0, of the whole film
    answers: np.ndarray  # i32[N]
    areas: np.ndarray | None  # f32[N, 4], where it has key areas


def look(workdir: pathlib.Path, config: Config, source: datasets.Dataset) -> Looks:
    """Maps of the best checkpoint of a run for the films of a split."""
    num_classes = len(source.classes)
    method = METHODS[config.method](config, num_classes)
    best = checkpoint.restore_best(workdir, config, method)
    explain = explain_lib.make(config, num_classes)

    @jax.jit
    def see(params, model_state, batch):
        return explain(params, model_state, to_float(batch))

    parts = []
    size = min(config.train.batch_size, len(source))
    for batch in feed.eval_batches(source, size):
        seen = see(*best.average, evaluation.without_answers(batch))
        kept = batch["mask"]
        parts.append(jax.tree.map(lambda x, kept=kept: np.asarray(x)[kept], seen))
    heat, found = jax.tree.map(lambda *of: np.concatenate(of), *parts)
    return Looks(heat, found.probabilities.argmax(1).astype(np.int32), found.action)


def score(looks: Looks, lung_boxes: np.ndarray | None) -> dict[str, float] | None:
    """Means over films of known lungs; None where there are none."""
    if lung_boxes is None or np.isnan(lung_boxes).all():
        return None
    known = np.isfinite(lung_boxes[:, 0])
    heat, lungs = jnp.asarray(looks.heat[known]), jnp.asarray(lung_boxes[known])
    points = jax.vmap(heatmap.points_inside)(heat, lungs)
    energy = jax.vmap(heatmap.energy_inside)(heat, lungs)
    share = jax.vmap(boxes.area)(lungs)
    return {
        "pointing": float(jnp.mean(points)),
        "energy": float(jnp.mean(energy)),
        "lungs": float(jnp.mean(share)),
        "films": int(known.sum()),
    }


def sheet(
    source: datasets.Dataset, found: dict[str, Looks], *, count: int
) -> Image.Image:
    """The picture: a film a row, a run a column."""
    rows = figures.first_of_each_class(source.labels, count)
    side = _FILM + _GAP
    size = (_GAP + (len(found) + 1) * side, _TOP + len(rows) * (side + 22))
    picture = Image.new("RGB", size, figures.SHEET)
    draw = ImageDraw.Draw(picture)
    title = "Where each network looks; below, the true class and the answers"
    draw.text((_GAP, 10), title, figures.DIM, figures.font(15))
    heads = ["film, lungs dashed", *found]
    for column, head in enumerate(heads):
        text = figures.shortened(head, figures.font(17), _FILM)
        draw.text((_GAP + column * side, 38), text, figures.TEXT, figures.font(17))
    for line, row in enumerate(rows):
        y = _TOP + line * (side + 22)
        pixels = np.asarray(source.images[row])
        lungs = None if source.lung_boxes is None else source.lung_boxes[row]
        if lungs is not None and np.isnan(lungs).any():
            lungs = None
        film = figures.film_with_boxes(pixels, None, lungs, size=_FILM)
        picture.paste(film, (_GAP, y))
        name = source.classes[source.labels[row]]
        draw.text((_GAP, y + _FILM + 3), name, figures.TEXT, figures.font(15))
        for column, looks in enumerate(found.values(), 1):
            x = _GAP + column * side
            mapped = heatmap.overlay(pixels / np.float32(255), looks.heat[row])
            area = None if looks.areas is None else looks.areas[row]
            pasted = figures.film_with_boxes(np.asarray(mapped), area, size=_FILM)
            picture.paste(pasted, (x, y))
            answer = looks.answers[row]
            is_right = answer == source.labels[row]
            color = figures.TEXT if is_right else figures.WRONG_COLOR
            text = source.classes[answer]
            draw.text((x, y + _FILM + 3), text, color, figures.font(15))
    return picture


def main(argv: list[str]) -> int:
    """The program."""
    parser = cli.Parser(
        prog="python launch/heatmaps.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="finished runs")
    parser.add_argument("--out", type=pathlib.Path, default="heatmaps.png")
    parser.add_argument("--films", type=int, default=6, help="rows of the picture")
    parser.add_argument("--data-root", metavar="DIR", help="where the films are now")
    arguments = parser.parse_args(argv)
    console = rich.console.Console()
    runs = [_named(text) for text in arguments.runs]
    configs = {name: _config(folder, arguments.data_root) for name, folder in runs}
    first, *others = configs.values()
    for name, other in configs.items():
        if (other.data, other.seed) != (first.data, first.seed):
            raise UserError(f"run {name} is of other films or another seed")
    with log.progress_bar(console, f"{first.data.name} images") as update:
        data = pipeline.load(
            first.data,
            seed=first.seed,
            splits_file=other_films.splits_file(runs[0][1]),
            progress=update,
        )
    found, table = (
        {},
        rich.table.Table("", "points into the lungs", "heat in the lungs"),
    )
    for name, folder in runs:
        found[name] = look(folder, configs[name], data.test)
        if scores := score(found[name], data.test.lung_boxes):
            cells = (f"{scores[key]:.3f}" for key in ("pointing", "energy"))
            table.add_row(name, *cells)
            table.title = (
                f"{scores['films']} test films; a map that is even over the film has "
                f"{scores['lungs']:.3f} of its heat in the lung box"
            )
    figures.save(sheet(data.test, found, count=arguments.films), arguments.out)
    if table.row_count:
        console.print(table)
    log.say(console, f"Written: {arguments.out}")
    return 0


def _named(text: str) -> tuple[str, pathlib.Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UserError(f"{text!r} is not NAME=RUN")
    run_folder.read_results(pathlib.Path(folder))
    return name, pathlib.Path(folder)


def _config(folder: pathlib.Path, root: str | None) -> Config:
    config = run_folder.read_config(folder)
    if config.method not in explain_lib.EXPLAINED:
        raise UserError(
            f"{folder} is of method {config.method}, whose network has a head of its "
            f"own; heatmaps are drawn of {', '.join(explain_lib.EXPLAINED)}"
        )
    if not explain_lib.is_of_film(config):
        raise UserError(
            f"{folder} is of policy.operation {config.policy.operation}, which changes "
            "what its network sees; heatmaps are drawn of key_area and none"
        )
    return config_lib.override(config, "data.root", root) if root else config


if __name__ == "__main__":
    cli.run(main)
