"""Writes a data set in homogeneous form: `python -m hapre_jax.homogenize RUN`.

Each film's key area, cut from all of its pixels, goes to the folder of its class: a
data set for programs of any kind, in which every hospital's films look alike.
"""

import hashlib
import json
import pathlib
import shlex
from collections.abc import Callable

import rich.console

from hapre_jax import cli, csv_file, log, other_films, run_folder
from hapre_jax.data import dataset, inputs, sources
from hapre_jax.errors import UserError
from hapre_jax.reporting import figures
from hapre_jax.serving import answering, inference, output_folder
from hapre_jax.serving.inference import Model

TABLE, ERRORS = "films.csv", "errors.csv"


def homogenize(
    model: Model,
    source: dataset.Source,
    out: pathlib.Path,
    *,
    size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Writes `out/CLASS/FILM.png`, and at the end `films.csv` and `errors.csv`.

    `films.csv` has the columns path, label, group, view and split, as the source
    `folder` reads them: patients stay together, published splits stay what they are.
    Pictures that are there already are kept.

    Args:
      model: see `inference.load`.
      source: the films.
      out: the folder.
      size: pixels of a side of a picture.
      progress: called with the number of films done and of all.

    Returns:
      How many were written, and how many could not be read.

    Raises:
      UserError: the folder cannot be written to, or the model does more to films than
        to cut their key areas out.
    """
    answering.check_crops(model.config)
    names = _picture_names(source)
    left = [row for row, name in enumerate(names) if not (out / name).exists()]
    films = [inputs.Input(str(row), "", _opener(source, row)) for row in left]
    geometry, refused = model.config.data.geometry, {}
    found = answering.answer_all(model, films, keep=True)
    for done, one in enumerate(found, 1 + len(names) - len(left)):
        if isinstance(one, answering.Refused):
            refused[int(one.input.path)] = one.reason
        else:
            path = out / names[int(one.film.input.path)]
            path.parent.mkdir(parents=True, exist_ok=True)
            figures.save(one.crop(size=size, geometry=geometry), path)
        progress(done, len(names))
    rows, errors = [("path", "label", "group", "view", "split")], [("path", "reason")]
    for row, record in enumerate(source.records):
        if row in refused:
            errors.append((record.name, refused[row]))
            continue
        label = source.classes[record.label]
        rows.append((names[row], label, record.group, record.view, record.official))
    csv_file.write(out / ERRORS, errors)
    csv_file.write(out / TABLE, rows)
    return len(rows) - 1, len(refused)


def _picture_names(source: dataset.Source) -> list[str]:
    """CLASS/FILM.png of each film, the same whenever it is asked."""
    names: list[str] = []
    taken: dict[str, int] = {}
    for record in source.records:
        label = source.classes[record.label].replace("/", "-")
        film = pathlib.PurePosixPath(record.name).name
        names.append(figures.picture_name(f"{label}/{film}", taken))
    return names


def _digest(source: dataset.Source) -> str:
    """What tells the films of a source, and their classes, from all others."""
    said = [(record.name, record.label) for record in source.records]
    return hashlib.sha256(json.dumps([source.classes, said]).encode()).hexdigest()


def _opener(source, row):
    return lambda: source.read(row).image


def main(argv: list[str]) -> int:
    """The program; 1 if a film could not be read."""

    def add_arguments(parser):
        parser.add_argument(
            "--out",
            metavar="DIR",
            default="homogenized",
            help="an empty folder to write to (default %(default)s)",
        )
        parser.add_argument(
            "--size",
            type=int,
            default=256,
            help="pixels of a side of a picture (default %(default)s)",
        )

    config, arguments = cli.parse(
        argv,
        program="python -m hapre_jax.homogenize",
        description="Cut the key area out of each film of a data set with a finished "
        "run, or a bundle of hapre_jax.export, and write a folder a class: the data "
        "set in homogeneous form, for any program. Films are taken as they are, and "
        "made square for the model as in its training: data.degrade, data.geometry "
        "and, except for phantoms, data.image_size do not count, nor do data.view and "
        "data.draw of the run for another data set or folder. Give the same command "
        "again to go on with what was interrupted.",
        add_arguments=add_arguments,
        examples=(
            "runs/phantom --out homogenized",
            "bundle --data.name folder --data.root my_hospital --size 512",
        ),
    )
    if not 1 <= arguments.size <= 8192:
        raise UserError(f"--size is {arguments.size}, but must be from 1 to 8192")
    folder, out = pathlib.Path(arguments.run), pathlib.Path(arguments.out)
    run_folder.check_not_among(out, config.data.root, "--out")
    trained = run_folder.read_config(folder)
    config = other_films.config_of(
        config, trained, given=arguments.given, program="homogenize"
    )
    source = sources.open_source(config.data, seed=config.seed)
    asked = {
        "model": inference.identity(folder),
        "films": _digest(source),
        "size": arguments.size,
    }
    is_taken = out.is_dir() and any(out.iterdir())
    output_folder.check(out, asked, taken="is not empty" if is_taken else None)
    model = inference.load(folder)
    answering.check_crops(model.config)  # before the folder is begun
    console = rich.console.Console()
    with (
        output_folder.unfinished(out, asked),
        log.progress_bar(console, f"{config.data.name} films") as update,
    ):
        written, failed = homogenize(
            model, source, out, size=arguments.size, progress=update
        )
        if not failed:  # the same command tries others again
            output_folder.finish(out)
    log.say(console, f"{written} films written, listed in {out / TABLE}")
    if failed:
        log.say(console, f"{failed} could not be read: {out / ERRORS}")
    log.say(
        console,
        "Next: python -m hapre_jax.train --config configs/films.py --method plain "
        f"--data.root {shlex.quote(str(out / TABLE))}",
    )
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
