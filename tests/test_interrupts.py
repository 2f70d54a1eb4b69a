import os
import signal
import threading

import pytest

from hapre_jax import interrupts


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """In the background of a shell SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_until_the_work_is_saved():
    saved = False
    with pytest.raises(KeyboardInterrupt):
        with interrupts.held_back() as interrupt:
            assert not interrupt and interrupt.name == ""
            signal.raise_signal(signal.SIGINT)
            assert interrupt and interrupt.name == "SIGINT"
            saved = True
    assert saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt):
        with interrupts.held_back():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it waited")


def test_an_interrupt_of_another_process_is_not_the_first_of_two():
    with pytest.raises(KeyboardInterrupt):
        with interrupts.held_back() as interrupt:
            interrupt.number = signal.SIGTERM
            signal.raise_signal(signal.SIGINT)
            assert interrupt.name == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


def test_an_error_is_not_hidden_by_an_interrupt():
    with pytest.raises(ZeroDivisionError):
        with interrupts.held_back():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_signal_handlers_are_as_before():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with interrupts.held_back():
        pass
    assert before == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.held_back() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert not interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hold_nothing_back():
    held = []

    def work():
        with interrupts.held_back() as interrupt:
            held.append(bool(interrupt))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert held == [False]


def test_a_signal_that_nobody_hears_of_is_held_back_all_the_same():
    """As where `| tee` got it too, and has ended."""
    read, write = os.pipe()
    os.close(read)
    before = os.dup(2)
    saved = False
    with pytest.raises(KeyboardInterrupt):
        os.dup2(write, 2)
        try:
            with interrupts.held_back():
                signal.raise_signal(signal.SIGINT)
                saved = True
        finally:
            os.dup2(before, 2)
            for descriptor in (before, write):
                os.close(descriptor)
    assert saved


def test_what_is_ignored_here_ends_this_process_too_if_another_was_told():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(SystemExit) as ended:
        with interrupts.held_back() as interrupt:
            interrupt.number = signal.SIGINT
    assert ended.value.code == 130
