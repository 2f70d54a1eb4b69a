"""Prepares and audits data sets: `python -m hapre_jax.data`."""

import argparse
import collections
import contextlib
import fcntl
import io
import os
import pathlib
import shlex
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import rich.console
import rich.table

from hapre_jax import cli, config_file, json_file, log, options
from hapre_jax.config import DataConfig
from hapre_jax.data import (
    audit,
    audit_report,
    nih_chest_xray,
    ped_pneumonia,
    pipeline,
    prepared,
    rsna_pneumonia,
    sources,
    splits,
)
from hapre_jax.errors import UserError

_PROGRAM = "python -m hapre_jax.data"
# Published films of each split and class, by data set and variant.
_OFFICIAL_COUNTS: dict[str, Mapping[str, Mapping[str, Sequence[int]]]] = {
    "ped_pneumonia": {"": ped_pneumonia.OFFICIAL_COUNTS},
    "rsna_pneumonia": rsna_pneumonia.OFFICIAL_COUNTS,
    "nih_chest_xray": {"": nih_chest_xray.OFFICIAL_COUNTS},
}
_EPILOG = f"""examples:
  {_PROGRAM} prepare ped_pneumonia --root DIR --out prepared
  {_PROGRAM} prepare rsna_pneumonia --root DIR --out prepared --variant target
  {_PROGRAM} audit folder --root my_hospital
  {_PROGRAM} prepare --help
"""


def prepare(
    name: str,
    *,
    root: str,
    out: str,
    variant: str,
    on_error: str,
    console: rich.console.Console,
) -> pathlib.Path:
    """Stores a data set as array_record files through TFDS.

    Args:
      name: of the data set.
      root: folder or zip of the original films.
      out: folder to write NAME/VARIANT/VERSION in.
      variant: one of the builder's configs; empty takes its default.
      on_error: "skip" or "stop".
      console: for the progress and the table.

    Returns:
      The folder that was written, or was there already.

    Raises:
      UserError: nothing to read, an unknown variant, an unreadable film and `stop`,
        or nowhere to write.
    """
    import tensorflow_datasets as tfds  # slow to import

    from hapre_jax.data import builders

    kind = builders.BUILDERS[name]
    instructions = kind.MANUAL_DOWNLOAD_INSTRUCTIONS
    if instructions and not root:
        raise UserError(f"--root is missing. {' '.join(instructions.split())}")
    if not out:
        raise UserError("--out is missing: give the folder to store the films in")
    variants = list(kind.builder_configs)
    if variant and variant not in variants:
        accepted = ", ".join(variants) or "none"
        raise UserError(f"--variant {variant} is not of {name}, which has: {accepted}")
    options = {"config": variant} if variant else {}
    builder = kind(data_dir=out, root=root, on_error=on_error, **options)
    folder = pathlib.Path(builder.data_path)
    originals = pathlib.Path(root).absolute()
    if (folder / prepared.INDEX).exists():
        other = prepared.read_header(folder / prepared.INDEX).root
        if other not in ("", str(originals)):
            raise UserError(
                f"{folder} holds the films of {other}: choose another --out"
            )
        log.say(console, f"{folder} is there already; delete it to prepare it anew.")
        return folder
    # TFDS makes its folder first, and then it would be a class.
    if name == "folder" and folder.resolve().is_relative_to(originals.resolve()):
        raise UserError(f"--out {out} lies among the films: choose another")
    if folder.exists():
        raise UserError(f"{folder} has lost its {prepared.INDEX}: delete the folder")
    tfds.disable_progress_bar()
    with (
        _naming(folder),
        _alone(folder),
        log.progress_bar(console, f"{name} films") as update,
        tempfile.TemporaryDirectory() as downloads,  # nothing is downloaded
        contextlib.redirect_stdout(io.StringIO()),  # TFDS has its own words
    ):
        builder.progress = update
        builder.download_and_prepare(download_dir=downloads)
    if builder.unreadable:
        failed = [pipeline.Unreadable(*film) for film in builder.unreadable]
        pipeline.write_unreadable(folder / "unreadable.csv", failed)
        _say_what_is_left_out(console, failed)
    return folder


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out, and removes what one that was killed has left.

    Raises:
      UserError: another process prepares the same data set in the same place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in folder.parent.glob(f"{prepared.INCOMPLETE}*_{folder.name}"):
            shutil.rmtree(left)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(
            f"another process prepares {folder}; wait until it has ended"
        ) from error
    except OSError:
        pass  # a disk without locks: what is left there may be of a process at work
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    # array_record raises RuntimeError where a disk is full.
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be prepared: {error}") from error


def _say_what_is_left_out(
    console: rich.console.Console, failed: Sequence[pipeline.Unreadable]
) -> None:
    films = "1 film" if len(failed) == 1 else f"{len(failed)} films"
    log.say(console, f"Left out {films} that cannot be read:")
    for film in failed:
        log.say(console, f"  {film.reason}")


def counts_table(folder: pathlib.Path) -> rich.table.Table:
    """Films of each class and split of a prepared data set, beside the published."""
    header = prepared.read_header(folder / prepared.INDEX)
    rows = prepared.read_index(folder / prepared.INDEX)
    official = dict(_OFFICIAL_COUNTS.get(header.name, {}).get(header.variant, {}))
    official["all"] = [sum(counts) for counts in zip(*official.values(), strict=True)]
    counted = collections.Counter(("all", row.record.label) for row in rows)
    if any(row.record.official for row in rows):
        counted.update((row.split, row.record.label) for row in rows)
    table = rich.table.Table(title=f"{header.name} {header.variant}".rstrip())
    table.add_column("split")
    for class_name in header.classes:
        table.add_column(class_name, justify="right")
    table.add_column("films", justify="right")
    order = [*splits.SPLITS, "all"]
    for split in sorted({s for s, _ in counted} | official.keys(), key=order.index):
        counts = [counted[split, label] for label in range(len(header.classes))]
        published = official.get(split)
        cells = [str(n) for n in counts]
        if published:
            cells = [f"{n}/{m}" for n, m in zip(counts, published, strict=True)]
        table.add_row(split, *cells, str(sum(counts)))
    groups = len({row.record.group for row in rows})
    shared = f"{groups} patients" if groups < len(rows) else "each film on its own"
    note = "\nN/M: N are stored of M published" if official["all"] else ""
    table.caption = f"{shared}{note}"
    return table


def main(argv: Sequence[str]) -> int:
    """The program."""
    arguments = _parser().parse_args(argv)
    # Bound to this stdout, since what TFDS prints is kept away from it.
    console = rich.console.Console(file=sys.stdout)
    if arguments.command == "prepare":
        return _prepare(arguments, console)
    return _audit(arguments, console)


def _prepare(arguments, console) -> int:
    folder = prepare(
        arguments.name,
        root=arguments.root,
        out=arguments.out,
        variant=arguments.variant,
        on_error=arguments.on_error,
        console=console,
    )
    console.print(counts_table(folder))
    log.say(console, f"Everything is in {folder}.")
    if arguments.name != "phantom":
        log.say(console, f"Next: {_training_command(arguments)}")
    return 0


def _training_command(arguments) -> str:
    """What trains on the films that were prepared."""
    name, file = arguments.name, f"configs/{arguments.name}.py"
    if file not in config_file.available():
        file = "configs/films.py"
    words = ["--config", file, "--data.name", name, "--data.root", arguments.out]
    if name == "rsna_pneumonia" and arguments.variant:
        words += ["--data.rsna_labels", arguments.variant]
    words += ["--workdir", f"runs/{name}"]
    return f"python -m hapre_jax.train {shlex.join(words)}"


def _audit(arguments, console) -> int:
    data = DataConfig(name=arguments.name, root=arguments.root)
    source = sources.open_originals(data, seed=0)
    with log.progress_bar(console, f"{arguments.name} files") as update:
        audited = audit.examine(source, progress=update, threads=data.threads)
    for table in audit_report.tables(audited):
        console.print(table)
    wrapper = textwrap.TextWrapper(
        console.width,
        initial_indent="* ",
        subsequent_indent="  ",
        break_long_words=False,  # names of files and flags are copied
        break_on_hyphens=False,
    )
    for sentence in audit_report.verdict(audited):
        log.say(console, wrapper.fill(sentence))
    if arguments.json:
        found = audit_report.to_dict(audited)
        json_file.write(pathlib.Path(arguments.json), found)
        log.say(console, f"Written to {arguments.json}.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog=_PROGRAM,
        description="Prepare a data set once for fast training, or audit what it gives "
        "away.",
        epilog=_EPILOG,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    names = options.options(DataConfig())["name"].choices
    originals = [name for name in names if name != "phantom"]
    one = commands.add_parser(
        "prepare",
        help="store the films as array_record files, which TFDS reads",
        description="Store the films at their own resolution as array_record files, "
        "which hapre_jax and TensorFlow Datasets read without TensorFlow. Without "
        "--root, say what to download and where to put it.",
    )
    one.add_argument("name", metavar="NAME", choices=names, help=", ".join(names))
    one.add_argument(
        "--root",
        metavar="DIR",
        default="",
        help="folder or zip of the original films; for folder, a CSV file as well",
    )
    one.add_argument(
        "--out",
        metavar="DIR",
        default="",
        help="folder to store them in, as DIR/NAME/VARIANT/VERSION",
    )
    one.add_argument(
        "--variant",
        metavar="NAME",
        default="",
        help="rsna_pneumonia: class (default) or target; phantom: low (default), "
        "medium or high",
    )
    one.add_argument(
        "--on_error",
        choices=("skip", "stop"),
        default="skip",
        help="what a film that cannot be read does: it is left out and named, or "
        "stops the program (default skip)",
    )
    other = commands.add_parser(
        "audit",
        help="say what file properties, duplicates and patients give away",
        description="Guess the class from the shape and the file properties of the "
        "films alone, count duplicates and patients, and say what follows.",
    )
    other.add_argument(
        "name", metavar="NAME", choices=originals, help=", ".join(originals)
    )
    other.add_argument(
        "--root",
        required=True,
        help="folder or zip of the original films; for folder, a CSV file as well",
    )
    other.add_argument("--json", metavar="FILE", help="write all figures there too")
    return parser


if __name__ == "__main__":
    cli.run(main)
