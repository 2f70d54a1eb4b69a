"""Writes a data set in homogeneous form: `python -m hapre_jax.homogenize RUN`.

Each film's key area, cut from all of its pixels, goes to the folder of its class: a
data set for programs of any kind, in which every hospital's films look alike.
"""

import csv
import pathlib
import shlex
from collections.abc import Callable
from typing import IO

import rich.console

from hapre_jax import (
    cli,
    figures,
    inference,
    log,
    other_films,
    predict,
    run_folder,
)
from hapre_jax.data import dataset, files, inputs, sources
from hapre_jax.errors import UserError
from hapre_jax.inference import Model

TABLE, ERRORS = "films.csv", "errors.csv"


def homogenize(
    model: Model,
    source: dataset.Source,
    out: pathlib.Path,
    *,
    size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Writes `out/CLASS/FILM.png`, `films.csv` and `errors.csv`.

    `films.csv` has the columns path, label, group, view and split, as the source
    `folder` reads them: patients stay together, published splits stay what they are.

    Args:
      model: see `inference.load`.
      source: the films.
      out: the folder.
      size: pixels of a side of a picture.
      progress: called with the number of films done and of all.

    Returns:
      How many were written, and how many could not be read.

    Raises:
      UserError: the folder holds something, or cannot be written to, or the model does
        more to films than to cut their key areas out.
    """
    predict.check_crops(model.config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error.strerror}") from error
    if any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out, or delete it")
    records = {record.name: record for record in source.records}

    def name(record):
        label = source.classes[record.label].replace("/", "-")
        return f"{label}/{pathlib.PurePosixPath(record.name).name}"

    def opener(index):
        return lambda: source.read(index).image

    films = (
        inputs.Input(record.name, name(record), opener(index))
        for index, record in enumerate(source.records)
    )
    geometry, written, failed = model.config.data.geometry, 0, 0
    with (
        _open(out / TABLE) as table,
        _open(out / ERRORS) as errors,
    ):
        rows, refused = csv.writer(table), csv.writer(errors)
        rows.writerow(["path", "label", "group", "view", "split"])
        refused.writerow(["path", "reason"])
        for one in predict.answer_all(model, films, keep=True):
            if isinstance(one, predict.Refused):
                refused.writerow([one.input.path, one.reason])
                failed += 1
            else:
                record = records[one.film.input.path]
                path = predict.picture_path(out, one.film.input.name)
                figures.save(one.crop(size=size, geometry=geometry), path)
                rows.writerow(
                    [
                        path.relative_to(out).as_posix(),
                        source.classes[record.label],
                        record.group,
                        record.view,
                        record.official,
                    ]
                )
                written += 1
            progress(written + failed, len(records))
    return written, failed


def _open(file: pathlib.Path) -> IO[str]:
    # Names of files need not be UTF-8.
    return file.open("w", newline="", encoding="utf-8", errors="surrogateescape")


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
        "set in homogeneous form, for any program. Films are taken as they are: "
        "data.degrade does not count.",
        add_arguments=add_arguments,
        examples=(
            "runs/phantom --out homogenized",
            "bundle --data.name folder --data.root my_hospital --size 512",
        ),
    )
    if not 1 <= arguments.size <= 8192:
        raise UserError(f"--size is {arguments.size}, but must be from 1 to 8192")
    folder, out = pathlib.Path(arguments.run), pathlib.Path(arguments.out)
    run_folder.check_place(out, "--out")
    root = files.expand(config.data.root)
    is_among = out.resolve().is_relative_to(root.resolve())
    if config.data.root and root.is_dir() and is_among:
        raise UserError(f"--out {out} lies among the films of {root}: choose another")
    trained = run_folder.read_config(folder)
    config = other_films.config_of(config, trained, program="homogenize")
    model = inference.load(folder)
    source = sources.open_source(config.data, seed=config.seed)
    console = rich.console.Console()
    with log.progress_bar(console, f"{config.data.name} films") as update:
        written, failed = homogenize(
            model, source, out, size=arguments.size, progress=update
        )
    log.say(console, f"{written} films written, listed in {out / TABLE}")
    if failed:
        log.say(console, f"{failed} could not be read: {out / ERRORS}")
    log.say(
        console,
        "Next: python -m hapre_jax.train --config configs/ped_pneumonia.py --method "
        f"plain --data.name folder --data.root {shlex.quote(str(out / TABLE))}",
    )
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
