"""The command line of all programs: a config, and a flag for each of its fields."""

import argparse
import errno
import io
import logging
import os
import pathlib
import re
import signal
import sys
import textwrap
import threading
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hapre_jax import config as config_lib
from hapre_jax import config_file
from hapre_jax.config import Config
from hapre_jax.errors import UserError

_EXAMPLES: Sequence[str] = (
    "",
    "--train.steps 300 --task.net resnet18 --workdir runs/resnet18",
    "--config configs/films.py --data.root my_hospital",
    "--config configs/films.py --help",
)
# Of disks and permissions, wherever a program meets them: no fault of ours.
_MACHINE_ERRORS = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
_SOURCE_WIDTH = 88  # no line of a text that was broken by hand is longer
_TERMINATED = 128 + signal.SIGTERM
# Where Python prints an exception and goes on: in finalizers, and in JAX's callback of
# the garbage collector.
_LOSE_EXCEPTIONS = ("__del__", "_xla_gc_callback")
_RUN_EXAMPLES: Sequence[str] = ("runs/phantom", "runs/phantom --data.quality high")


def parse(
    argv: Sequence[str],
    *,
    program: str,
    description: str,
    default_config: str | None = None,
    task: str = "",
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    examples: Sequence[str] = (),
) -> tuple[Config, argparse.Namespace]:
    """Reads a command line; prints the help and exits where it asks for that.

    Args:
      argv: the command line without the program's name.
      program: as in `python -m hapre_jax.train`.
      description: what the program does.
      default_config: `FILE[:ARG]` for want of `--config`. None is for a program that
        works on a finished run: it has the argument RUN instead of `--config` and
        `--workdir`, and starts from that run's `config.json`.
      task: where it is not classification; the default folder is named for it.
      add_arguments: adds the program's own arguments to the parser.
      examples: command lines without the program that end the help.

    Returns:
      The config with all flags applied, and the other arguments: `config` and
      `workdir`, or `run`, the program's own, and `given`, the set of the fields that
      have a flag.

    Raises:
      UserError: an unknown flag, named with the nearest ones, a wrong value, or one of
        films that are not those of `data.name`.
    """
    base, default_examples = None, _RUN_EXAMPLES
    if default_config is not None:
        first = Parser(add_help=False)
        first.add_argument("--config", default=default_config)
        spec = first.parse_known_args(argv)[0].config
        base, default_examples = config_file.load(spec), _EXAMPLES

    parser = Parser(
        prog=program,
        usage=f"{program} {'RUN ' if base is None else ''}[options]",
        description=description,
        epilog=_epilog(program, examples or default_examples),
    )
    if base is None:
        parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    else:
        files = ", ".join(config_file.available())
        parser.add_argument(
            "--config",
            metavar="FILE[:ARG]",
            default=default_config,
            help=f"experiment to start from: {files}, or a run's config.json "
            f"(default {default_config})",
        )
        parser.add_argument(
            "--workdir",
            metavar="DIR",
            default=_workdir(spec, task),
            help="folder of the run, which is continued if it is there "
            "(default %(default)s)",
        )
    if add_arguments is not None:
        add_arguments(parser)
    _add_fields(parser, base)

    namespace, rest = parser.parse_known_args(argv)
    if rest:
        raise _unknown(rest, parser)
    fields = config_lib.options(Config())
    given = vars(namespace)
    texts = {path: given.pop(path) for path in fields if path in given}
    if base is None:
        base = _config_of_run(namespace.run)
    elif not namespace.workdir:
        raise UserError("--workdir is empty: name a folder")
    namespace.given = set(texts)
    if texts.get("data.name") == "phantom":  # beside what the config says of films
        texts = {"data.root": "", "data.degrade": "none"} | texts
    config = config_lib.override_all(base, texts)
    if config.data.name == "phantom" and config.data.root:
        raise UserError(
            f"data.root is {config.data.root}, but data.name is phantom, which reads "
            "no files: give --data.name too, folder for films of your own"
        )
    for path in texts:
        source = fields[path].source
        if source not in ("", config.data.name):
            raise UserError(
                f"{path} is of {source} alone, but data.name is {config.data.name}"
            )
    return config, namespace


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a program's `main(argv)` and exits, with a sentence for what users mend.

    The exit status is what `main` returns, 2 for a `UserError` or a disk that is full
    or fails, 130 for an interrupt, 143 where a cluster takes the machine back.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    # Warnings as Python shows them at first. TFDS logs through absl, which would give
    # them a form of its own, and a stream that breaks into the progress bar.
    handlers = filter(None, [logging.lastResort])
    for handler in list(logging.root.handlers):
        if type(handler) is logging.StreamHandler:  # of absl, as Orbax is imported
            logging.root.removeHandler(handler)
    logging.basicConfig(format="%(message)s", handlers=handlers)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every terminal has the letters of all names of classes and files.
        sys.stdout.reconfigure(errors="backslashreplace")
    if "jax" in sys.modules:  # a program that compiles
        from hapre_jax import compilation_cache, freed_memory, xla_flags

        freed_memory.keep()
        xla_flags.add()
        compilation_cache.use()
    try:
        try:
            sys.exit(main(sys.argv[1:]))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as behind `| head`
        # Python flushes again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if end.code == _TERMINATED:
            # XLA's threads may be at work still, and then Python's own end crashes.
            os._exit(_TERMINATED)
        raise
    except Exception as error:
        # XLA's has no class of its own.
        is_device = "RESOURCE_EXHAUSTED" in str(error)
        if not is_device and not isinstance(error, MemoryError):
            raise
        whose = "the device's memory" if is_device else "memory"
        reason = str(error).partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
        said = f"{whose} does not suffice ({reason or 'no more is known'})"
        print(
            f"error: {said}; docs/reliability.md says what takes less", file=sys.stderr
        )
        sys.exit(2)


def _terminate(number, frame):
    if not _is_put_off(number, frame):
        print("terminated", file=sys.stderr, flush=True)
        sys.exit(_TERMINATED)


def _interrupt(number, frame):
    if not _is_put_off(number, frame):
        raise KeyboardInterrupt


def _is_put_off(number, frame):
    """Sends a signal again a moment later where what it raises would be lost."""
    while frame is not None:
        if frame.f_code.co_name in _LOSE_EXCEPTIONS:
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            return True
        frame = frame.f_back
    return False


class Parser(argparse.ArgumentParser):
    """Raises one sentence, which `run` prints, where argparse prints its usage.

    Flags are written out, not abbreviated.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, allow_abbrev=False, formatter_class=_Help)
        # Before Python 3.14, argparse takes -1e-3 for an option.
        self._negative_number_matcher = re.compile(
            r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.I
        )

    def error(self, message):
        raise UserError(message)


class _Help(argparse.HelpFormatter):
    """Wraps a text that is one long line; lines that were broken stay as they are.

    So do commands, which are indented: a terminal breaks them, and copies them whole.
    """

    def __init__(self, prog):
        super().__init__(prog, max_help_position=32)

    def _fill_text(self, text, width, indent):
        wrapped = (
            textwrap.fill(line, width)
            if len(line) > _SOURCE_WIDTH and not line.startswith("  ")
            else line
            for line in text.splitlines()
        )
        return "\n".join(indent + line for line in wrapped)


def _epilog(program, examples):
    lines = [f"  {program} {example}".rstrip() for example in examples]
    return "\n".join(["examples:", *lines])


def _add_fields(parser, base):
    """A flag for each field, read later by `override_all`: it knows the types."""
    groups = {}
    for path, field in config_lib.options(base or Config()).items():
        section = path.rpartition(".")[0]
        if base is None and section != "data":
            # What of a finished run stays as it is, and is told so in a sentence.
            hidden = argparse.SUPPRESS
            parser.add_argument(f"--{path}", default=hidden, help=hidden)
            continue
        if section not in groups:
            about = getattr(Config(), section).__doc__ if section else "The experiment."
            groups[section] = parser.add_argument_group(section or "config", about)
        notes = [field.limits] if field.limits else []
        # A finished run has its own values, which only its folder tells.
        if base is not None:
            notes.append(f"default {config_lib.to_text(field.value) or 'empty'}")
        note = f" ({'; '.join(notes)})" if notes else ""
        groups[section].add_argument(
            f"--{path}",
            metavar="|".join(field.choices) or _metavar(field.kind),
            default=argparse.SUPPRESS,
            help=f"{field.help.rstrip('.')}{note}".replace("%", "%%"),
        )


def _metavar(kind):
    if isinstance(kind, types.UnionType):
        return "|".join(_metavar(part) for part in reversed(typing.get_args(kind)))
    names = {
        bool: "true|false",
        int: "N",
        float: "X",
        str: "TEXT",
        type(None): "none",
    }
    return names.get(kind, "X,X,..." if typing.get_origin(kind) is tuple else "VALUE")


def _workdir(spec, task):
    """runs/phantom for configs/phantom.py, runs/phantom-ARG with an argument.

    Of another task it is runs/TASK-phantom, so that programs do not meet there.
    """
    name, _, argument = spec.partition(".py:")
    path = pathlib.Path(name)
    stem = path.stem
    if path.name == "config.json":  # as every run's; its folder is named for it alone
        stem = path.resolve().parent.name
    parts = [task if task != stem else "", stem, argument]
    return os.path.join("runs", "-".join(filter(None, parts)))


def _config_of_run(folder):
    if os.path.isfile(folder):
        raise UserError(f"{folder!r} is a file: name the folder of a run")
    if not os.path.isdir(folder):
        raise UserError(f"run folder {folder!r} does not exist")
    known = config_file.of_run(pathlib.Path(folder))
    if known is None:
        raise UserError(f"{folder!r} is not the folder of a run: it has no config.json")
    return known


def _unknown(rest, parser):
    flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
    if not flags:
        return UserError(
            f"unexpected argument {rest[0]!r}; every option starts with --"
        )
    # argparse has no public list of a parser's options.
    known = [flag.removeprefix("--") for flag in parser._option_string_actions]
    guesses = config_lib.nearest(flags[0].lstrip("-"), known)
    if not guesses:
        return UserError(f"unknown option {flags[0]}; --help lists all")
    hint = " or ".join(f"--{guess}" for guess in guesses)
    return UserError(f"unknown option {flags[0]}; did you mean {hint}?")
