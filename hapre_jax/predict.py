"""Applies a trained run to films of anywhere: `python -m hapre_jax.predict RUN FILMS`.

Films are read, answered and written one batch after the other, so any number fits.
"""

import argparse
import collections
import concurrent.futures
import csv
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np
import rich.console
from PIL import Image

from hapre_jax import appearance, checkpoint, cli, evaluate, figures, log
from hapre_jax import config as config_lib
from hapre_jax.config import Config
from hapre_jax.data import images, inputs
from hapre_jax.errors import UserError
from hapre_jax.methods import METHODS

_BATCH = 32  # films in a forward pass
_AHEAD = 2  # batches that are read while one is answered
_ESCAPE = "backslashreplace"
_EDGES = ("top", "left", "bottom", "right")


class Film(NamedTuple):
    """A film that was read."""

    input: inputs.Input
    pixels: np.ndarray  # u8[S, S, 1], the stored square
    height: int  # of the film itself
    width: int
    image: Image.Image | None  # the film itself, if it is still needed


class Refused(NamedTuple):
    """A film that could not be read."""

    input: inputs.Input
    reason: str


class Answer(NamedTuple):
    """What a run says of a film."""

    path: str
    answer: str
    probabilities: dict[str, float]
    # yxyx in pixels of the film, and its share of the film; None of the whole film.
    key_area: list[float] | None
    kept: float | None
    flags: list[str]


class Run(NamedTuple):
    """A finished run, ready to answer."""

    config: Config
    classes: tuple[str, ...]
    predict: Callable  # `u8[32, S, S, 1] -> framework.Prediction`
    typical: dict | None  # see `appearance.describe`


def load(workdir: pathlib.Path) -> Run:
    """The best checkpoint of a finished run.

    Raises:
      UserError: it is not finished, or it needs to be told where the lungs are.
    """
    classes = tuple(checkpoint.read_results(workdir)["classes"])
    config = config_lib.load(str((workdir / "config.json").absolute()))
    method = METHODS[config.method](config, len(classes))
    if method.needs_lungs:
        raise UserError(
            f"method {config.method} must be told where the lungs are, which of new "
            "films nobody knows"
        )
    best = checkpoint.restore_best(workdir, config, method)
    predict = evaluate.make_predict(method)
    typical = None
    for folder in (workdir, workdir.parent):  # a plain run lies in another one's
        if typical is None and (folder / appearance.FILE).exists():
            typical = checkpoint.read_json(folder / appearance.FILE)

    def answer_pixels(pixels):
        return predict(*best.average, {"image": pixels})

    return Run(config, classes, answer_pixels, typical)


def read(one: inputs.Input, config: Config, *, keep: bool) -> Film | Refused:
    """Reads a film as the run's training films were stored.

    Args:
      one: the film.
      config: of the run.
      keep: whether the film itself is needed after that.
    """
    try:
        image = images.open_gray(one.read(), name=one.name)
        data = config.data
        pixels = images.fit(image, size=data.image_size, geometry=data.geometry)
    except UserError as error:
        return Refused(one, str(error))
    height, width = image.height, image.width
    return Film(one, pixels, height, width, image if keep else None)


def read_all(
    films: Iterable[inputs.Input], config: Config, *, threads: int, keep: bool
) -> Iterator[Film | Refused]:
    """Reads films in order, some ahead of the one that is asked for."""
    films = iter(films)
    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        waiting: collections.deque = collections.deque()

        def start(count):
            for one in itertools.islice(films, count):
                waiting.append(pool.submit(read, one, config, keep=keep))

        start(_AHEAD * _BATCH)
        while waiting:
            found = waiting.popleft().result()
            start(1)
            yield found


def answer(run: Run, films: Sequence[Film]) -> tuple[list[Answer], np.ndarray | None]:
    """Answers for at most 32 films, and key areas `f32[n, 4]` in their squares."""
    squares = [film.pixels for film in films]
    padded = np.stack(squares + [squares[0]] * (_BATCH - len(films)))
    found = run.predict(padded)
    probabilities = np.asarray(found.probabilities)
    areas = None if found.action is None else np.asarray(found.action)[: len(films)]
    answers = []
    for row, film in enumerate(films):
        box, kept = None, None
        if areas is not None:
            shape = (film.height, film.width)
            box = images.film_box(areas[row], *shape, run.config.data.geometry)
            kept = float(np.prod(box[2:] - box[:2]) / np.prod(shape))
        flags = []
        if run.typical is not None:
            shape = (film.height, film.width)
            flags = appearance.flags(film.pixels, run.typical, shape=shape)
        answers.append(
            Answer(
                film.input.path,
                run.classes[int(probabilities[row].argmax())],
                dict(zip(run.classes, map(float, probabilities[row]), strict=True)),
                None if box is None else [round(float(edge), 1) for edge in box],
                kept,
                flags,
            )
        )
    return answers, areas


class Writer:
    """Writes answers as they come: `predictions.csv`, `predictions.jsonl`."""

    def __init__(self, out: pathlib.Path, classes: Sequence[str]):
        # Names of files need not be UTF-8.
        self._files = [
            open(out / name, "w", newline="", encoding="utf-8", errors=_ESCAPE)
            for name in ("predictions.csv", "predictions.jsonl", "errors.csv")
        ]
        self._table, self._lines, self._errors = self._files
        self._classes = tuple(classes)
        header = ["path", "answer", *(f"p_{name}" for name in classes)]
        self._row(self._table, [*header, *_EDGES, "kept", "flags"])
        self._row(self._errors, ["path", "reason"])

    def write(self, one: Answer) -> None:
        """A film's answer."""
        numbers = [f"{one.probabilities[name]:.6f}" for name in self._classes]
        area = one.key_area or ("", "", "", "")
        kept = "" if one.kept is None else f"{one.kept:.4f}"
        flags = "; ".join(one.flags)
        self._row(self._table, [one.path, one.answer, *numbers, *area, kept, flags])
        print(json.dumps(one._asdict()), file=self._lines)

    def refuse(self, one: Refused) -> None:
        """A film that could not be read."""
        self._row(self._errors, [one.input.path, one.reason])

    def close(self) -> None:
        """Ends the files."""
        for file in self._files:
            file.close()

    def _row(self, file: IO[str], cells: Sequence) -> None:
        csv.writer(file, lineterminator="\n").writerow(cells)


def picture_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where a picture made of a film goes: never outside of the folder, nor twice.

    Args:
      folder: of the pictures.
      name: posix path of the film.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    film = folder.joinpath(*parts or ["film"])
    path = film.with_suffix(".png")
    for number in itertools.count(2):
        if not path.exists():
            break
        path = film.with_name(f"{film.stem}-{number}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def predict_films(
    run: Run,
    films: Iterable[inputs.Input],
    out: pathlib.Path,
    *,
    crop_size: int = 0,
    overlays: bool = False,
    progress=lambda done, failed: None,
) -> tuple[int, int]:
    """Answers all films and writes what was asked for.

    Args:
      run: see `load`.
      films: see `inputs.find`.
      out: folder to write to.
      crop_size: pixels of a side of the key areas written to `crops/`; 0 writes none.
      overlays: whether films with their key area are written to `overlays/`.
      progress: called with the films answered and those that could not be read.

    Returns:
      How many were answered, and how many could not be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    writer, data = Writer(out, run.classes), run.config.data
    done = failed = 0

    def finish(batch):
        answers, areas = answer(run, batch)
        for row, (film, one) in enumerate(zip(batch, answers, strict=True)):
            writer.write(one)
            area = np.array((0, 0, 1, 1), np.float32) if areas is None else areas[row]
            if film.image is not None:
                crop = images.cut(
                    film.image, area, size=crop_size, geometry=data.geometry
                )
                figures.save(crop, picture_path(out / "crops", film.input.name))
            if overlays:
                drawn = figures.film_with_boxes(
                    film.pixels, None if areas is None else area, size=512
                )
                figures.save(drawn, picture_path(out / "overlays", film.input.name))

    try:
        batch: list[Film] = []
        read_ahead = read_all(
            films, run.config, threads=data.threads, keep=bool(crop_size)
        )
        for found in read_ahead:
            if isinstance(found, Refused):
                writer.refuse(found)
                failed += 1
            else:
                batch.append(found)
            if len(batch) == _BATCH:
                finish(batch)
                done += len(batch)
                batch = []
            progress(done, failed)
        if batch:
            finish(batch)
            done += len(batch)
        progress(done, failed)
    finally:
        writer.close()
    return done, failed


def main(argv: list[str]) -> int:
    """The program; 1 if a film could not be read."""
    parser = cli.Parser(
        prog="python -m hapre_jax.predict",
        description="Answer films with the best checkpoint of a finished run. Writes "
        "predictions.csv and predictions.jsonl (class, probabilities, the key area in "
        "pixels of the film, and what is odd about it) and errors.csv.",
        epilog="Examples:\n"
        "  python -m hapre_jax.predict runs/phantom films/ --out predicted\n"
        "  python -m hapre_jax.predict runs/phantom 'scans/*.dcm' more.zip --crops\n"
        "  find / -name '*.dcm' | python -m hapre_jax.predict runs/phantom -",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=pathlib.Path, help="folder of a finished run")
    parser.add_argument(
        "films",
        nargs="+",
        help="images, DICOM files, folders, zips or patterns; - reads a list of paths",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("predicted"),
        help="folder to write to (default %(default)s)",
    )
    parser.add_argument(
        "--crops",
        action="store_true",
        help="write each key area, cut from the whole film, to OUT/crops: the films in "
        "homogeneous form, for any other program, in the folders that they came in",
    )
    parser.add_argument(
        "--crop-size", type=int, default=256, help="pixels of a side of a crop"
    )
    parser.add_argument(
        "--overlays",
        action="store_true",
        help="write each film with its key area to OUT/overlays",
    )
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.crop_size <= 8192:
        raise UserError(
            f"--crop-size is {arguments.crop_size}, but must be from 1 to 8192"
        )
    if (arguments.out / "predictions.csv").exists():
        raise UserError(
            f"{arguments.out} holds predictions already; choose another --out, or "
            "delete that folder"
        )
    console = rich.console.Console()
    run = load(arguments.run)
    named = arguments.films
    paths: Iterable[str] = inputs.lines(sys.stdin) if named == ["-"] else named
    started = time.monotonic()
    with console.status("Reading") as status:

        def progress(done, failed):
            rate = done / (time.monotonic() - started)
            text = f"{done} films, {rate:.1f} a second"
            status.update(text + (f", {failed} not readable" if failed else ""))

        done, failed = predict_films(
            run,
            inputs.find(paths),
            arguments.out,
            crop_size=arguments.crop_size if arguments.crops else 0,
            overlays=arguments.overlays,
            progress=progress,
        )
    where = f"{arguments.out}/predictions.csv"
    log.say(console, f"{done} films answered: {where}")
    if failed:
        log.say(console, f"{failed} could not be read: {arguments.out}/errors.csv")
    if not done and not failed:
        raise UserError("no film was named")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
