"""Applies a trained model to films of anywhere: `python -m hapre_jax.predict`."""

import io
import itertools
import pathlib
import sys
import time
from collections.abc import Iterable

import rich.console

from hapre_jax import cli, log
from hapre_jax.data import inputs
from hapre_jax.errors import UserError
from hapre_jax.serving import answer_folder, inference, output_folder

_CROP = 256  # pixels of a side of crops
_SILENCE_SECONDS = 30  # between two lines of progress in a log file


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
        "films": arguments.films,
        "crop_size": crop_size if arguments.crops else 0,
        "overlays": arguments.overlays,
        "heatmaps": arguments.heatmaps,
    }
    is_begun = answer_folder.is_begun(arguments.out)
    output_folder.check(
        arguments.out, asked, taken="holds predictions already" if is_begun else None
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
    films = answer_folder.without_pictures(arguments.out, inputs.find(paths))
    first = next(films, None)
    if first is None:
        raise UserError("no film was named")
    console = rich.console.Console()
    model = inference.load(arguments.run)
    # Before the folder is begun, which would refuse other options then.
    answer_folder.check_pictures(
        model, crops=arguments.crops, heatmaps=arguments.heatmaps
    )
    where = f"{arguments.out}/{answer_folder.TABLE}"
    started = said = time.monotonic()
    answered, before = 0, None
    with (
        output_folder.unfinished(arguments.out, asked),
        console.status("Reading") as status,
    ):

        def progress(done, failed):
            nonlocal answered, before, said
            before = done if before is None else before
            answered, now = done, time.monotonic()
            newly = done - before + failed
            text = f"{done} films, {newly / (now - started):.1f} a second"
            text += f", {failed} not readable" if failed else ""
            status.update(text)
            if not console.is_terminal and now - said > _SILENCE_SECONDS:
                said = now
                log.say(console, text)

        try:
            done, failed = answer_folder.predict_films(
                model,
                itertools.chain([first], films),
                arguments.out,
                crop_size=asked["crop_size"],
                overlays=arguments.overlays,
                heatmaps=arguments.heatmaps,
                progress=progress,
            )
            if not failed:  # the same command tries others again
                output_folder.finish(arguments.out)
        except BaseException:
            log.say(
                console,
                f"Stopped: {where} has {answered} films, not all of them; the same "
                "command goes on from there",
            )
            raise
    count = "1 film" if done == 1 else f"{done} films"
    log.say(console, f"{count} answered: {where}")
    if failed:
        listed = f"{arguments.out}/{answer_folder.ERRORS}"
        again = "the same command tries them again"
        log.say(console, f"{failed} could not be read: {listed}; {again}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
