r"""Where trained classifiers look, side by side (the paper's Fig. 5).

python launch/heatmaps.py --out runs/heatmaps.png plain=runs/phantom/plain \
    HAPre-KRS=runs/phantom

Each NAME=RUN is a finished run; all must have been trained on the same films with the
same seed. A row is a test film, the first ones of each class; a column is a run, with
the Grad-CAM of the class that it answers, at the network's last features. Of a run with
key areas the map is that of the area, put back in its place. Where the lungs are known,
all test films give two scores: how often the hottest place lies in the lung box, and
the share of the heat in it.
"""

import pathlib

import rich.console
import rich.markup
import rich.table

from hapre_jax import checkpoint, cli, explain, log, methods, other_films, run_folder
from hapre_jax import config as config_lib
from hapre_jax.config import Config, DataConfig
from hapre_jax.data import pipeline
from hapre_jax.errors import UserError
from hapre_jax.reporting import figures, heatmap_sheet


def main(argv: list[str]) -> int:
    """The program."""
    parser = cli.Parser(
        prog="python launch/heatmaps.py",
        description=__doc__,
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="finished runs")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default="heatmaps.png",
        metavar="FILE",
        help="picture to write, a PNG (default heatmaps.png)",
    )
    parser.add_argument("--films", type=int, default=6, help="rows of the picture")
    parser.add_argument("--data-root", metavar="DIR", help="where the films are now")
    arguments = parser.parse_args(argv)
    console = rich.console.Console()
    if arguments.films < 1:
        raise UserError(f"--films is {arguments.films}, but must be at least 1")
    if arguments.out.suffix != ".png" or not arguments.out.parent.is_dir():
        raise UserError(f"--out {arguments.out} is no .png in a folder that exists")
    runs = [_named(text) for text in arguments.runs]
    names = [name for name, _ in runs]
    if len(set(names)) < len(names):
        raise UserError(f"two runs are named alike: {', '.join(names)}")
    configs = {name: _config(folder, arguments.data_root) for name, folder in runs}
    first, *others = configs.values()
    for name, other in configs.items():
        if other.seed != first.seed or not _look_alike(other.data, first.data):
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
        found[name] = _look(folder, configs[name], data.test)
        if scores := explain.score(found[name], data.test.lung_boxes):
            cells = (f"{scores[key]:.3f}" for key in ("pointing", "energy"))
            table.add_row(rich.markup.escape(name), *cells)
            table.title = (
                f"{scores['films']} test films; a map that is even over the film has "
                f"{scores['lungs']:.3f} of its heat in the lung box"
            )
    sheet = heatmap_sheet.draw(data.test, found, count=arguments.films)
    figures.save(sheet, arguments.out)
    if table.row_count:
        console.print(table)
    log.say(console, f"Written: {arguments.out}")
    return 0


def _look_alike(first: DataConfig, second: DataConfig) -> bool:
    """Whether two runs were tested on the same films, of the same pixels."""
    fields = config_lib.options(first).items()
    pixels = [name for name, field in fields if field.role == "appearance"]
    return other_films.same_films(first, second) and all(
        getattr(first, name) == getattr(second, name) for name in pixels
    )


def _look(folder, config, source) -> explain.Looks:
    """Maps of the best checkpoint of a run."""
    method = methods.make(config, len(source.classes))
    best = checkpoint.restore_best(folder, config, method)
    return explain.look(config, best, source)


def _named(text: str) -> tuple[str, pathlib.Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UserError(f"{text!r} is not NAME=RUN")
    run_folder.read_results(pathlib.Path(folder))
    return name, pathlib.Path(folder)


def _config(folder: pathlib.Path, root: str | None) -> Config:
    config = run_folder.read_config(folder)
    classes = run_folder.read_results(folder)["classes"]
    if not methods.make(config, len(classes)).has_one_network:
        raise UserError(
            f"{folder} is of method {config.method}: heatmaps are drawn where one "
            "ordinary network gives the answer alone"
        )
    if not explain.is_of_film(config):
        raise UserError(
            f"{folder} is of policy.operation {config.policy.operation}, which changes "
            "what its network sees; heatmaps are drawn of key_area and none"
        )
    if root and config.data.name == "phantom":
        raise UserError(
            f"--data-root is {root}, but {folder} is of phantoms, which are read from "
            "no files"
        )
    return config_lib.override(config, "data.root", root) if root else config


if __name__ == "__main__":
    cli.run(main)
