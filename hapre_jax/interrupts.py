"""Ctrl-C, and the signal with which a cluster takes a machine back."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class Interrupt:
    """Whether a signal was held back: true or false, and its name.

    Where another process got one, that one's `number` may be given to this process too,
    whose own first signal is held back all the same.
    """

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    @property
    def name(self) -> str:
        """As "SIGTERM"; empty where there was none."""
        return signal.Signals(self.number).name if self.number else ""


@contextlib.contextmanager
def held_back() -> Iterator[Interrupt]:
    """Holds SIGINT and SIGTERM back while there is work to save; they act at the end.

    A second one acts at once. Signals that the program ignores, as under `nohup`, stay
    ignored, and outside of the main thread nothing is held back.
    """
    interrupt = Interrupt()
    handlers: dict[int, Any] = {}
    is_second = False

    def restore():
        while handlers:
            signal.signal(*handlers.popitem())

    def hold(number, frame):
        nonlocal is_second
        if is_second:
            restore()
            signal.raise_signal(number)
        is_second = True
        interrupt.number = number
        # Not print, which a signal may come in the midst of.
        said = f"{interrupt.name}: ends when it has saved; again: at once\n"
        with contextlib.suppress(OSError):  # nobody may read on, as `| tee` that died
            os.write(2, said.encode())

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                handlers[number] = handler
                signal.signal(number, hold)
    try:
        yield interrupt
    finally:
        restore()
    if interrupt.number is not None:
        if signal.getsignal(interrupt.number) is signal.SIG_IGN:
            # Another process was told, and this one must end with it.
            sys.exit(128 + interrupt.number)
        signal.raise_signal(interrupt.number)
