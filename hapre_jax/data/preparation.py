"""Stores a data set as array_record files, which TFDS reads, whole or not at all."""

import contextlib
import fcntl
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import rich.console

from hapre_jax import log
from hapre_jax.data import files, prepared
from hapre_jax.errors import UserError


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
        if (folder / files.UNREADABLE).exists():
            log.say(console, f"Films that are left out: {folder / files.UNREADABLE}")
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
    _say_what_is_left_out(console, [reason for _, reason in builder.unreadable])
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
    console: rich.console.Console, reasons: Sequence[str]
) -> None:
    if reasons:
        films = "1 film" if len(reasons) == 1 else f"{len(reasons)} films"
        log.say(console, f"Left out {films} that cannot be read:")
    for reason in reasons:
        log.say(console, f"  {reason}")
