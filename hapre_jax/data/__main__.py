"""Prepares and audits data sets: `python -m hapre_jax.data`."""

import argparse
import collections
import os
import pathlib
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence

import rich.console
import rich.markup
import rich.table

from hapre_jax import cli, config_file, json_file, log, options
from hapre_jax.config import DataConfig
from hapre_jax.data import (
    audit,
    audit_report,
    nih_chest_xray,
    ped_pneumonia,
    preparation,
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
        table.add_column(rich.markup.escape(class_name), justify="right")
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
    folder = preparation.prepare(
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
    # Said before what may take long.
    if arguments.json and not os.access(pathlib.Path(arguments.json).parent, os.W_OK):
        raise UserError(
            f"--json {arguments.json} is in no folder that can be written to"
        )
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
