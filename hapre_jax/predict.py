"""Applies a trained model to films of anywhere: `python -m hapre_jax.predict`.

Films are read, answered and written one batch after the other, so any number fits.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import io
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
from PIL import Image

from hapre_jax import (
    appearance,
    boxes,
    cli,
    explain,
    figures,
    heatmap,
    inference,
    log,
    predictions,
    probabilities,
    run_folder,
)
from hapre_jax.config import Config
from hapre_jax.data import files, images, inputs
from hapre_jax.errors import UserError
from hapre_jax.inference import Model

_AHEAD = 2  # batches that are read while one is answered
_CROP = 256  # pixels of a side of crops
_PICTURE = 512  # pixels of a side of overlays and heatmaps
_SILENCE_SECONDS = 30  # between two lines of progress in a log file
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
    """What a model says of a film."""

    path: str
    answer: str
    probabilities: dict[str, float]
    calibrated: float | None  # the answer's probability; None if it is not known
    # yxyx in pixels of the film, and its share of the film; None of the whole film.
    key_area: list[float] | None
    kept: float | None
    flags: list[str]


def read(one: inputs.Input, config: Config, *, keep: bool) -> Film | Refused:
    """Reads a film as the model's training films were stored.

    Args:
      one: the film.
      config: of the model.
      keep: whether the film itself is needed after that.
    """
    try:
        image = one.open()
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

        start(_AHEAD * inference.BATCH)
        while waiting:
            found = waiting.popleft().result()
            start(1)
            yield found


def check_crops(config: Config) -> None:
    """Raises `UserError` where a classifier sees something else than a cut-out."""
    if not explain.is_of_film(config):
        raise UserError(
            f"method {_method(config)} does more to a film than to cut its key area "
            "out, so that a crop is not what its classifier sees: there are crops of "
            "policy.operation key_area and none alone"
        )


def _method(config):
    if explain.is_of_film(config):
        return config.method
    return f"{config.method} with policy.operation {config.policy.operation}"


class Answered(NamedTuple):
    """A film, what a model says of it, and what can be drawn of that."""

    film: Film
    answer: Answer
    area: np.ndarray | None  # f32[4], the key area in the film's square
    heat: np.ndarray | None  # f32[64, 64], where the model looks

    def crop(self, *, size: int, geometry: str) -> Image.Image:
        """The key area, or the whole square, cut from all of the film's pixels.

        That is what the classifier sees of a model that `check_crops` lets pass.
        """
        assert self.film.image is not None  # it was read to be kept
        area = boxes.WHOLE if self.area is None else self.area
        cut = np.asarray(area, np.float32)
        return images.cut(self.film.image, cut, size=size, geometry=geometry)

    def draw_area(self, *, size: int) -> Image.Image:
        """The film's square with its key area."""
        return figures.film_with_boxes(self.film.pixels, self.area, size=size)

    def draw_heat(self, *, size: int) -> Image.Image:
        """The film's square with where the model looks."""
        assert self.heat is not None
        square = Image.fromarray(self.film.pixels[:, :, 0])
        enlarged = square.resize((size, size), Image.Resampling.BICUBIC)
        return heatmap.overlay(np.asarray(enlarged) / np.float32(255), self.heat)


def answer(
    model: Model,
    films: Sequence[Film],
    *,
    pad_to: int = inference.BATCH,
    with_heat: bool = False,
) -> list[Answered]:
    """Answers to at least one film.

    Args:
      model: see `inference.load`.
      films: at most `pad_to`.
      pad_to: size of the batch, each of which is compiled once.
      with_heat: whether to say where it looks, where the model has `explain`.
    """
    squares = [film.pixels for film in films]
    padded = np.stack(squares + [squares[0]] * (pad_to - len(films)))
    heat: Any = None
    if with_heat and model.explain is not None:
        heat, found = model.explain(padded)
        heat = np.asarray(heat)
    else:
        found = model.predict(padded)
    shares = np.asarray(found.probabilities)[: len(films)]
    calibrated = [None] * len(films)
    if model.temperature is not None:
        scaled = probabilities.at_temperature(shares, model.temperature)
        calibrated = scaled.max(1).tolist()
    areas = None if found.area is None else np.asarray(found.area)[: len(films)]
    answered = []
    for row, film in enumerate(films):
        shape = film.height, film.width
        box, kept = None, None
        if areas is not None:
            box = images.film_box(areas[row], *shape, model.config.data.geometry)
            kept = float(np.prod(box[2:] - box[:2]) / np.prod(shape))
        flags = []
        if model.typical is not None:
            flags = appearance.flags(film.pixels, model.typical, shape=shape)
        told = Answer(
            film.input.path,
            model.classes[int(shares[row].argmax())],
            dict(zip(model.classes, map(float, shares[row]), strict=True)),
            calibrated[row],
            None if box is None else [round(float(edge), 1) for edge in box],
            kept,
            flags,
        )
        area, looks = (None if of is None else of[row] for of in (areas, heat))
        answered.append(Answered(film, told, area, looks))
    return answered


def answer_all(
    model: Model, films: Iterable[inputs.Input], *, keep: bool, with_heat: bool = False
) -> Iterator[Answered | Refused]:
    """Answers films batch by batch, and says which could not be read.

    Args:
      model: see `inference.load`.
      films: see `inputs.find`.
      keep: see `read`.
      with_heat: see `answer`.
    """
    batch: list[Film] = []
    threads = model.config.data.threads
    for found in read_all(films, model.config, threads=threads, keep=keep):
        if isinstance(found, Refused):
            yield found
            continue
        batch.append(found)
        if len(batch) == inference.BATCH:
            yield from answer(model, batch, with_heat=with_heat)
            batch = []
    if batch:
        yield from answer(model, batch, with_heat=with_heat)


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
        header = ["path", "answer", *(f"p_{name}" for name in classes), "calibrated"]
        header += [*_EDGES, "kept", "flags", "picture"]
        predictions.write_row(self._table, header)
        predictions.write_row(self._errors, ["path", "reason"])

    def write(self, one: Answer, picture: str = "") -> None:
        """A film's answer, and what the pictures made of it are called."""
        numbers = [f"{one.probabilities[name]:.6f}" for name in self._classes]
        numbers.append("" if one.calibrated is None else f"{one.calibrated:.6f}")
        area = one.key_area or ("", "", "", "")
        kept = "" if one.kept is None else f"{one.kept:.4f}"
        flags = "; ".join(one.flags)
        cells = [one.path, one.answer, *numbers, *area, kept, flags, picture]
        predictions.write_row(self._table, cells)
        told = one._asdict() | {"picture": picture or None}
        print(json.dumps(told), file=self._lines)

    def refuse(self, one: Refused) -> None:
        """A film that could not be read."""
        predictions.write_row(self._errors, [one.input.path, one.reason])

    def close(self) -> None:
        """Ends the files."""
        for file in self._files:
            file.close()


def picture_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Where a picture made of a film goes: never outside of the folder, nor twice.

    Args:
      folder: of the pictures.
      name: posix path of the film.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    # A folder must not be called as the picture of a film beside it may be.
    parts[:-1] = [f"{p}_" if p.endswith(".png") else p for p in parts[:-1]]
    lengths = [len(os.fsencode(part)) for part in parts]
    # What all file systems take, and an ending; a zip may have longer names.
    if sum(lengths) > 1000 or max(lengths, default=0) > 200:
        parts = [hashlib.sha256(os.fsencode(name)).hexdigest()]
    *parts, base = parts or ["film"]
    # Numbers are no extension: files are called by UIDs, such as 1.2.840.10008.
    known = base.lower().endswith(files.EXTENSIONS)
    stem = pathlib.PurePath(base).stem if known else base
    path = folder.joinpath(*parts, f"{stem}.png")
    for number in itertools.count(2):
        if not path.exists():
            break
        path = path.with_name(f"{stem}-{number}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def predict_films(
    model: Model,
    films: Iterable[inputs.Input],
    out: pathlib.Path,
    *,
    crop_size: int = 0,
    overlays: bool = False,
    heatmaps: bool = False,
    progress=lambda done, failed: None,
) -> tuple[int, int]:
    """Answers all films and writes what was asked for.

    Args:
      model: see `inference.load`.
      films: see `inputs.find`.
      out: folder to write to.
      crop_size: pixels of a side of the key areas written to `crops/`; 0 writes none.
      overlays: whether films with their key area are written to `overlays/`.
      heatmaps: whether pictures of where the model looks are written to `heatmaps/`.
      progress: called with the films answered and those that could not be read.

    Returns:
      How many were answered, and how many could not be read.

    Raises:
      UserError: of crops or heatmaps, if the method has none; or the folder cannot be
        made.
    """
    if crop_size:
        check_crops(model.config)
    if heatmaps and model.explain is None:
        name = _method(model.config)
        raise UserError(f"where method {name} looks is not one map: leave --heatmaps")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error.strerror}") from error
    writer, data = Writer(out, model.classes), model.config.data
    done = failed = 0

    def pictures(one):
        """Kind and picture of each that was asked for."""
        if crop_size:
            yield "crops", one.crop(size=crop_size, geometry=data.geometry)
        if overlays:
            yield "overlays", one.draw_area(size=_PICTURE)
        if heatmaps:
            yield "heatmaps", one.draw_heat(size=_PICTURE)

    def save(one):
        """Saves them under one name in the folders of all kinds, which it returns."""
        name = ""
        for kind, picture in pictures(one):
            path = picture_path(out / kind, one.film.input.name)
            name = path.relative_to(out / kind).as_posix()
            figures.save(picture, path)
        return name

    try:
        for one in answer_all(model, films, keep=bool(crop_size), with_heat=heatmaps):
            if isinstance(one, Refused):
                writer.refuse(one)
                failed += 1
            else:
                writer.write(one.answer, save(one))
                done += 1
            progress(done, failed)
    finally:
        writer.close()
    return done, failed


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m hapre_jax.predict",
        description="Answer films with the best checkpoint of a finished run, or with "
        "a bundle of hapre_jax.export. Writes predictions.csv and predictions.jsonl "
        "(class, probabilities, the key area in pixels of the film, and what is odd "
        "about it) and errors.csv.",
        epilog="Examples:\n"
        "  python -m hapre_jax.predict runs/phantom films/ --out predicted\n"
        "  python -m hapre_jax.predict runs/phantom 'scans/*.dcm' more.zip --crops\n"
        "  find / -name '*.dcm' | python -m hapre_jax.predict runs/phantom -",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=pathlib.Path, help="a finished run, or a bundle")
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
        "--crop-size", type=int, help="pixels of a side of a crop (default 256)"
    )
    parser.add_argument(
        "--overlays",
        action="store_true",
        help="write each film with its key area to OUT/overlays",
    )
    parser.add_argument(
        "--heatmaps",
        action="store_true",
        help="write where the classifier looks in each film to OUT/heatmaps",
    )
    return parser


def main(argv: list[str]) -> int:
    """The program; 1 if a film could not be read."""
    arguments = _parser().parse_args(argv)
    if arguments.crop_size is not None and not arguments.crops:
        raise UserError("--crop-size is given, but there are no crops: add --crops")
    crop_size = _CROP if arguments.crop_size is None else arguments.crop_size
    if not 1 <= crop_size <= 8192:
        raise UserError(f"--crop-size is {crop_size}, but must be from 1 to 8192")
    if (arguments.out / "predictions.csv").exists():
        raise UserError(
            f"{arguments.out} holds predictions already; choose another --out, or "
            "delete that folder"
        )
    run_folder.check_place(arguments.out, "--out")
    paths: Iterable[str] = arguments.films
    if paths == ["-"]:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # Names of files need not be UTF-8 and may hold a carriage return; a list of
            # Windows may begin with a mark.
            sys.stdin.reconfigure(
                encoding="utf-8-sig", errors="surrogateescape", newline="\n"
            )
        paths = inputs.lines(sys.stdin)
    films = inputs.find(paths)
    first = next(films, None)
    if first is None:
        raise UserError("no film was named")
    console = rich.console.Console()
    model = inference.load(arguments.run)
    where = f"{arguments.out}/predictions.csv"
    started = said = time.monotonic()
    answered = 0
    with console.status("Reading") as status:

        def progress(done, failed):
            nonlocal answered, said
            answered, now = done, time.monotonic()
            text = f"{done} films, {done / (now - started):.1f} a second"
            text += f", {failed} not readable" if failed else ""
            status.update(text)
            if not console.is_terminal and now - said > _SILENCE_SECONDS:
                said = now
                log.say(console, text)

        try:
            done, failed = predict_films(
                model,
                itertools.chain([first], films),
                arguments.out,
                crop_size=crop_size if arguments.crops else 0,
                overlays=arguments.overlays,
                heatmaps=arguments.heatmaps,
                progress=progress,
            )
        except (KeyboardInterrupt, SystemExit):
            log.say(console, f"Stopped: {where} has {answered} films, not all of them")
            raise
    log.say(console, f"{done} films answered: {where}")
    if failed:
        log.say(console, f"{failed} could not be read: {arguments.out}/errors.csv")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
