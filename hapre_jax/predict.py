"""Applies a trained model to films of anywhere: `python -m hapre_jax.predict`.

Films are read, answered and written one batch after the other, so any number fits, and
what was interrupted goes on.
"""

import collections
import contextlib
import functools
import io
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import rich.console

from hapre_jax import cli, csv_file, log
from hapre_jax.data import inputs
from hapre_jax.errors import UserError
from hapre_jax.reporting import figures
from hapre_jax.serving import answering, inference, output_folder
from hapre_jax.serving.answering import Answer, Refused
from hapre_jax.serving.inference import Model

_CROP = 256  # pixels of a side of crops
_PICTURE = 512  # pixels of a side of overlays and heatmaps
_SILENCE_SECONDS = 30  # between two lines of progress in a log file
_TABLE, _LINES, _ERRORS = "predictions.csv", "predictions.jsonl", "errors.csv"
_EDGES = ("top", "left", "bottom", "right")


class Writer:
    """Writes answers as they come: `predictions.csv`, `predictions.jsonl`.

    It goes on with a folder where it was interrupted. What `predictions.jsonl` has was
    done; the table is made from it anew, as the two may have been cut at different
    films, and what could not be read is tried again.

    Attributes:
      answered: how often each path was answered before.
      pictures: names that pictures have, see `figures.picture_name`.
    """

    def __init__(self, out: pathlib.Path, classes: Sequence[str]):
        self._out, self._classes = out, tuple(classes)
        self.answered: collections.Counter[str] = collections.Counter()
        self.pictures: dict[str, int] = {}
        with self._saying_where(), contextlib.ExitStack() as files:
            self._table, self._errors, self._lines = (
                files.enter_context(_open(out / name, mode))
                for name, mode in ((_TABLE, "w"), (_ERRORS, "w"), (_LINES, "a"))
            )
            self._begin(out / _LINES)
            self._files = files.pop_all()

    def _begin(self, lines):
        """Writes the headers, and a table of what was done."""
        names = (f"p_{name}" for name in self._classes)
        header = ["path", "answer", *names, "calibrated"]
        header += [*_EDGES, "kept", "flags", "picture"]
        csv_file.write_row(self._table, header)
        csv_file.write_row(self._errors, ["path", "reason"])
        whole = 0
        for line in _whole_lines(lines):
            told = json.loads(line)
            picture = told.pop("picture") or ""
            self._add_to_table(Answer(**told), picture)
            self.answered[told["path"]] += 1
            self.pictures[picture.lower()] = 1
            whole += len(line)
        os.truncate(lines, whole)

    def write(self, one: Answer, picture: str = "") -> None:
        """A film's answer, and what the pictures made of it are called."""
        told = one._asdict() | {"picture": picture or None}
        with self._saying_where():
            print(json.dumps(told), file=self._lines)
            self._add_to_table(one, picture)

    def _add_to_table(self, one, picture):
        numbers = [f"{one.probabilities[name]:.6f}" for name in self._classes]
        numbers.append("" if one.calibrated is None else f"{one.calibrated:.6f}")
        area = one.key_area or ("", "", "", "")
        kept = "" if one.kept is None else f"{one.kept:.4f}"
        flags = "; ".join(one.flags)
        cells = [one.path, one.answer, *numbers, *area, kept, flags, picture]
        csv_file.write_row(self._table, cells)

    def refuse(self, one: Refused) -> None:
        """A film that could not be read."""
        with self._saying_where():
            csv_file.write_row(self._errors, [one.input.path, one.reason])

    def close(self) -> None:
        """Ends the files."""
        with self._saying_where():
            self._files.close()

    @contextlib.contextmanager
    def _saying_where(self):
        """What the system says of a full disk, it does not say of which file."""
        try:
            yield
        except OSError as error:
            reason = error.strerror
            raise UserError(f"{self._out} cannot be written: {reason}") from error


def _open(file: pathlib.Path, mode: str) -> IO[str]:
    # Names of files need not be UTF-8. Buffered a line at a time, so that no answer is
    # lost, whatever happens next.
    escape = "backslashreplace"
    return file.open(mode, buffering=1, newline="", encoding="utf-8", errors=escape)


def _whole_lines(file: pathlib.Path) -> Iterator[bytes]:
    """The lines of JSON that were written to their end."""
    with file.open("rb") as lines:
        yield from itertools.takewhile(lambda line: line.endswith(b"}\n"), lines)


def check_pictures(model: Model, *, crops: bool, heatmaps: bool) -> None:
    """Raises `UserError` where a model has no such pictures."""
    if crops:
        answering.check_crops(model.config)
    if heatmaps and model.explain is None:
        name = answering.method_name(model.config)
        raise UserError(
            f"where method {name} looks is not one map, or this is a bundle without "
            f"its {inference.HEAT_GRAPH}: leave --heatmaps"
        )


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
      films: see `inputs.find`; those that `out` has answers to are not answered again.
      out: folder to write to, see `Writer`.
      crop_size: pixels of a side of the key areas written to `crops/`; 0 writes none.
      overlays: whether films with their key area are written to `overlays/`.
      heatmaps: whether pictures of where the model looks are written to `heatmaps/`.
      progress: called with the films answered and those that could not be read.

    Returns:
      How many are answered, and how many could not be read.

    Raises:
      UserError: of crops or heatmaps, if the method has none; or the folder cannot be
        made.
    """
    check_pictures(model, crops=bool(crop_size), heatmaps=heatmaps)
    output_folder.make(out)
    geometry = model.config.data.geometry

    def pictures(one):
        """Kind and picture of each that was asked for."""
        if crop_size:
            yield "crops", one.crop(size=crop_size, geometry=geometry)
        if overlays:
            yield "overlays", one.draw_area(size=_PICTURE)
        if heatmaps:
            yield "heatmaps", one.draw_heat(size=_PICTURE)

    def save(one):
        """Saves them under one name in the folders of all kinds, which it returns."""
        name = ""
        for kind, picture in pictures(one):
            name = name or figures.picture_name(one.film.input.name, writer.pictures)
            path = out / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            figures.save(picture, path)
        return name

    with contextlib.closing(Writer(out, model.classes)) as writer:
        done, failed = writer.answered.total(), 0
        left = _without(films, writer.answered)
        keep = bool(crop_size)
        for one in answering.answer_all(model, left, keep=keep, with_heat=heatmaps):
            if isinstance(one, Refused):
                writer.refuse(one)
                failed += 1
            else:
                writer.write(one.answer, save(one))
                done += 1
            progress(done, failed)
    return done, failed


def _without(films, answered) -> Iterator[inputs.Input]:
    """Films less those that were answered, as often as they were."""
    before = answered.copy()
    for film in films:
        if before[film.path]:
            before[film.path] -= 1
        else:
            yield film


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m hapre_jax.predict",
        description="Answer films with the best checkpoint of a finished run, or with "
        "a bundle of hapre_jax.export. Writes predictions.csv and predictions.jsonl "
        "(class, probabilities, the key area in pixels of the film, and what is odd "
        "about it) and errors.csv. Give the same command again to go on with what was "
        "interrupted.",
        epilog="Examples:\n"
        "  python -m hapre_jax.predict runs/phantom films/ --out predicted\n"
        "  python -m hapre_jax.predict runs/phantom 'scans/*.dcm' more.zip --crops\n"
        "  find / -name '*.dcm' | python -m hapre_jax.predict runs/phantom -",
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


def _outside(out, films) -> Iterator[inputs.Input]:
    """Films less the pictures that were made of others."""
    made = {(out / name).resolve() for name in ("crops", "overlays", "heatmaps")}
    folder = functools.lru_cache(pathlib.Path.resolve)
    for film in films:
        within = folder(pathlib.Path(film.path).parent)
        if made.isdisjoint((within, *within.parents)):
            yield film


def main(argv: list[str]) -> int:
    """The program; 1 if a film could not be read."""
    arguments = _parser().parse_args(argv)
    if arguments.crop_size is not None and not arguments.crops:
        raise UserError("--crop-size is given, but there are no crops: add --crops")
    crop_size = _CROP if arguments.crop_size is None else arguments.crop_size
    if not 1 <= crop_size <= 8192:
        raise UserError(f"--crop-size is {crop_size}, but must be from 1 to 8192")
    asked = {
        "model": inference.identity(arguments.run),
        "crop_size": crop_size if arguments.crops else 0,
        "overlays": arguments.overlays,
        "heatmaps": arguments.heatmaps,
    }
    lines = arguments.out / _LINES
    is_empty = lines.exists() and not lines.stat().st_size  # no film was answered
    is_taken = (arguments.out / _TABLE).exists() and not is_empty
    output_folder.check(
        arguments.out, asked, taken="holds predictions already" if is_taken else None
    )
    paths: Iterable[str] = arguments.films
    if paths == ["-"]:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # Names of files need not be UTF-8 and may hold a carriage return; a list of
            # Windows may begin with a mark.
            sys.stdin.reconfigure(
                encoding="utf-8-sig", errors="surrogateescape", newline="\n"
            )
        paths = inputs.lines(sys.stdin)
    films = _outside(arguments.out, inputs.find(paths))
    first = next(films, None)
    if first is None:
        raise UserError("no film was named")
    console = rich.console.Console()
    model = inference.load(arguments.run)
    # Before the folder is begun, which would refuse other options then.
    check_pictures(model, crops=arguments.crops, heatmaps=arguments.heatmaps)
    where = f"{arguments.out}/{_TABLE}"
    started = said = time.monotonic()
    answered = newly = 0
    with (
        output_folder.unfinished(arguments.out, asked),
        console.status("Reading") as status,
    ):

        def progress(done, failed):
            nonlocal answered, newly, said
            answered, newly, now = done, newly + 1, time.monotonic()
            text = f"{done} films, {newly / (now - started):.1f} a second"
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
                crop_size=asked["crop_size"],
                overlays=arguments.overlays,
                heatmaps=arguments.heatmaps,
                progress=progress,
            )
        except BaseException:
            log.say(
                console,
                f"Stopped: {where} has {answered} films, not all of them; the same "
                "command goes on from there",
            )
            raise
    log.say(console, f"{done} films answered: {where}")
    if failed:
        log.say(console, f"{failed} could not be read: {arguments.out}/{_ERRORS}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
