"""What a run says while it works: JSON lines, a progress bar, TensorBoard if wanted."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import rich.console
import rich.progress

from hapre_jax import atomic
from hapre_jax.errors import UserError


class MetricsLog:
    """Appends one JSON line a record to `metrics.jsonl` of a run's folder.

    A run that goes on from a checkpoint passes the checkpoint's step: later records,
    written before it was interrupted, are dropped, as they will be written again.
    """

    def __init__(self, workdir: pathlib.Path, *, step: int, tensorboard: bool = False):
        self._path = workdir / "metrics.jsonl"
        self._writer = _tensorboard(workdir, step) if tensorboard else None
        kept = [r for r in read(self._path) if r["step"] <= step] if step else []
        self.steps = {record["step"] for record in kept}  # that earlier ones recorded
        lines = [json.dumps(record) + "\n" for record in kept]
        atomic.write_text(self._path, "".join(lines))
        self._file = self._path.open("a")

    def write(self, kind: str, step: int, metrics: dict[str, Any]) -> None:
        """Adds a record of a kind ("train", "validation") and flushes it to disk.

        Values are what JSON knows; TensorBoard gets the floats among them.

        Raises:
          UserError: the disk is full or fails.
        """
        line = json.dumps({"kind": kind, "step": step, **metrics}) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}"
            ) from error
        if self._writer:
            for name, value in metrics.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Closes the files."""
        # Each record was flushed, or its writing failed already.
        with contextlib.suppress(OSError):
            self._file.close()
        if self._writer:
            self._writer.close()


def read(path: pathlib.Path) -> list[dict]:
    """The records of a `metrics.jsonl`; a last line cut short by a crash is left out.

    Raises:
      UserError: another line is no record.
    """
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise ValueError(line)
            records.append(record)
        except (ValueError, TypeError, LookupError) as error:
            if number < len(lines):
                raise UserError(
                    f"line {number} of {path} is no record; delete that line"
                ) from error
    return records


@contextlib.contextmanager
def progress_bar(
    console: rich.console.Console, title: str, *, start: int = 0
) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left; yields `update(done, total, text="")`.

    On a pipe or in a log file there is no bar but a line each tenth of the way.

    Args:
      console: to draw on.
      title: what progresses.
      start: what an earlier process has done; it does not count for the rate.
    """
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]}", markup=False),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[text]}", markup=False),
    )
    bar = rich.progress.Progress(
        *columns, console=console, disable=not console.is_terminal
    )
    task = bar.add_task(title, total=None, completed=start, rate="", text="")
    said = 0  # tenths

    def update(done, total, text=""):
        nonlocal said
        speed = bar.tasks[0].speed
        rate = f"{speed:.1f}/s" if speed else ""
        bar.update(task, completed=done, total=total, rate=rate, text=text)
        tenths = done * 10 // max(total, 1)
        if not console.is_terminal and tenths > said:
            said = tenths
            say(console, f"{title} {done}/{total}  {text}".rstrip())

    with bar:
        yield update


def say(console: rich.console.Console, text: str) -> None:
    """Prints a text as it is: brackets are no markup, and long lines stay whole."""
    # Names of files need not be UTF-8.
    text = text.encode(errors="backslashreplace").decode()
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def import_tensorboard() -> Any:
    """The module tensorboardX, an optional dependency.

    Raises:
      UserError: it is not installed.
    """
    try:
        import tensorboardX
    except ImportError as error:
        raise UserError(
            "train.tensorboard needs tensorboardX: pip install 'hapre_jax[tensorboard]'"
        ) from error
    return tensorboardX


def _tensorboard(workdir, step):
    # Points that an interrupted run wrote after `step` are hidden.
    return import_tensorboard().SummaryWriter(
        str(workdir / "tensorboard"), purge_step=step + 1
    )
