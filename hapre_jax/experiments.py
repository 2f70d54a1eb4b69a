"""Many trainings, one after the other, each an ordinary `python -m hapre_jax.train`.

A finished one is skipped, an interrupted one goes on, a failed one is not fatal.
"""

import argparse
import contextlib
import json
import pathlib
import random
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO, NamedTuple

import rich.console

from hapre_jax import config as config_lib
from hapre_jax import config_file, log, run_folder
from hapre_jax.errors import UserError

_PROMPT = "$ "  # before a command, in the file of what it said


class Experiment(NamedTuple):
    """One training."""

    config: str  # as `--config` takes it
    values: dict[str, str]  # config fields that it changes, the seed among them
    folder: pathlib.Path

    @property
    def is_finished(self) -> bool:
        """Whether its results are there."""
        return (self.folder / "results.json").exists()

    @property
    def arguments(self) -> list[str]:
        """Of the train program."""
        flags = ["--config", self.config, "--workdir", str(self.folder)]
        for path, value in self.values.items():
            flags += [f"--{path}", value]
        return flags

    def check(self) -> None:
        """Raises `UserError` for what the program would refuse.

        That is an unknown field, a wrong value, or a folder that holds another run.
        """
        config = config_lib.override_all(config_file.load(self.config), self.values)
        run_folder.check_workdir(self.folder, config)


def check_setting(path: str, others: Collection[str], *, hint: str = "") -> None:
    """Raises `UserError` for a field of --set that came before, or is the seed.

    Args:
      path: of the field.
      others: fields that were set before it.
      hint: what to do instead of giving it twice.
    """
    if path in others:
        raise UserError(f"--set {path} is given twice{hint}")
    if path == "seed":
        raise UserError("--set seed: seeds are 0 to N - 1 of --seeds N")


class Failure(NamedTuple):
    """A program that failed."""

    what: str  # it was to make
    output: pathlib.Path  # all that it said

    @property
    def reason(self) -> str:
        """The last error that it named, or else the last line that it said."""
        said = f"\n{self.output.read_text(errors='replace').strip()}"
        lines = said.rpartition(f"\n{_PROMPT}")[2].splitlines()[1:]
        # What went before may still be at work, and say how far it is.
        named = [line for line in lines if line.startswith("error: ")]
        return (named or lines or ["it said nothing"])[-1]


def shard(experiments: Sequence, text: str) -> list:
    """Those of shard `i/n`, i from 1 to n: every n-th one, in an order of their own.

    Rows come in turns, and one of them may cost as much as all others: counted as they
    come, an even n would give all of it to one machine.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()) or not (
        1 <= int(index) <= int(count)
    ):
        raise UserError(f"--shard {text!r} is not i/n with i from 1 to n")
    order = list(range(len(experiments)))
    random.Random(0).shuffle(order)  # the same on every machine
    return [experiments[of] for of in sorted(order[int(index) - 1 :: int(count)])]


def choose(experiments: Sequence[Experiment], text: str) -> list[Experiment]:
    """Those of a shard, see `shard`; all are checked, see `Experiment.check`.

    A mistake must not show after hours.
    """
    for experiment in experiments:
        experiment.check()
    return shard(experiments, text)


def print_commands(experiments: Sequence[Experiment]) -> None:
    """A line of the shell for each."""
    for experiment in experiments:
        print(shlex.join(["python", "-m", "hapre_jax.train", *experiment.arguments]))


def run_all(
    experiments: Sequence[Experiment], console: rich.console.Console
) -> list[Failure]:
    """Trains all that are not finished; progress and time left on the console."""
    failures: list[Failure] = []
    waiting = [experiment for experiment in experiments if not experiment.is_finished]
    if len(waiting) < len(experiments):
        done = len(experiments) - len(waiting)
        log.say(console, f"{done} of {len(experiments)} runs are finished already")
    if not waiting:
        return failures
    with log.progress_bar(console, "runs") as update:
        for done, experiment in enumerate(waiting, 1):
            command = ["hapre_jax.train", *experiment.arguments]
            folder = experiment.folder
            output = folder.parent / f"{folder.name}.log"
            if not run_program(command, output):
                failures.append(Failure(str(folder), output))
            update(done, len(waiting), str(folder))
    return failures


def run_program(command: Sequence[str], output: pathlib.Path) -> bool:
    """Runs `python -m ...`, adds what it says to a file; whether it succeeded."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as file:
        print(_PROMPT + shlex.join(["python", "-m", *command]), file=file, flush=True)
        with started(command, file) as process:
            return process.wait() == 0


@contextlib.contextmanager
def started(
    command: Sequence[str], output: IO[str], *, keep: Sequence[int] = ()
) -> Iterator[subprocess.Popen]:
    """Starts `python -m ...`; whoever leaves the block early has it stop first.

    It is waited for then, not killed: a training saves what it has learned.

    Args:
      command: the module and its arguments.
      output: gets all that it says.
      keep: descriptors of open files, whose locks it holds too.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=keep,
    )
    try:
        yield process
    except KeyboardInterrupt:
        # Ctrl-C has reached the program too, which a second signal would end at once.
        process.wait()
        raise
    except BaseException:
        process.terminate()
        process.wait()
        raise


def add_slurm_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `submit` needs to know."""
    parser.add_argument(
        "--slurm",
        type=int,
        default=0,
        metavar="N",
        help="submit N jobs to Slurm and wait for them (default: all runs here)",
    )
    parser.add_argument(
        "--slurm-args",
        type=_json,
        default={},
        metavar="JSON",
        help="""what each job asks for, in submitit's names: '{"timeout_min": 240}'""",
    )
    parser.add_argument(
        "--cluster",
        default="slurm",
        metavar="NAME",
        help="where submitit sends the jobs: slurm (default), or local, processes here",
    )


def _json(text):
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def submit(
    function: Callable,
    inputs: Sequence,
    flags: argparse.Namespace,
    folder: pathlib.Path,
    console: rich.console.Console,
) -> list:
    """Has Slurm call a function for each input, and waits; gives what came back.

    Args:
      function: of one argument.
      inputs: the arguments, a job each.
      flags: of `add_slurm_flags`.
      folder: for what jobs say.
      console: says their numbers.

    Raises:
      UserError: submitit is not installed, there is no Slurm, or a job failed.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise UserError("--slurm needs submitit: pip install -e '.[sweep]'") from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=flags.cluster)
        executor.update_parameters(name="hapre_jax", **flags.slurm_args)
        jobs = [executor.submit(function, one) for one in inputs]
    except Exception as error:  # submitit has no class of its own
        reason = str(error).partition("\n")[0]
        raise UserError(f"jobs cannot be submitted: {reason}") from error
    log.say(console, f"Submitted {', '.join(job.job_id for job in jobs)}")
    came, failed = [], []
    for job in jobs:  # of all, before anything is said of one
        try:
            came.append(job.result())
        except Exception as error:
            log.say(console, f"job {job.job_id}: {_last_line(error)}")
            failed.append(job)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs failed, see {failed[0].paths.stderr}; "
            "the same command goes on"
        )
    return came


def _last_line(error) -> str:
    """Of submitit's report, which holds the traceback of a job."""
    lines = [of for of in str(error).splitlines() if of and not of.startswith("-")]
    ends = [row for row, of in enumerate(lines) if of.startswith("You can check")]
    return lines[ends[0] - 1 if ends else -1] if lines else type(error).__name__


def say_failures(failures: Sequence[Failure], console: rich.console.Console) -> None:
    """A line a failure."""
    for failure in failures:
        log.say(
            console, f"failed: {failure.what}: {failure.reason} (see {failure.output})"
        )
