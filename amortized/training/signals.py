"""Signals that end a training: finish the step, save, exit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))  # Windows has no SIGUSR1
# A second Ctrl-C interrupts at once, unless it follows so soon that a key or a launcher repeated the first.
REPEATED_S, REPEATED_BY_LAUNCHER_S = 0.5, 2.0


@contextmanager
def catch_signals(
    acknowledge: Callable[[str], None], launched: bool, leave: Callable[[], object] | None = None
) -> Iterator[Callable[[], bool]]:
    """Context: SIGINT, SIGTERM and SIGUSR1 only set a flag, so that the step finishes and is saved.

    A second SIGINT, unless it repeats the first, calls `leave`, which ends the process; without it, it raises
    KeyboardInterrupt. `acknowledge` is called with a sentence at the first signal. A thread calls both at
    once, even while the main thread waits for the device. `launched`: a launcher may repeat signals. Yields a
    function that returns the flag.
    """
    arrivals: list[float] = []  # as the thread saw them
    received: list[float] = []  # as the handler saw them
    previous = {}
    second_s = REPEATED_BY_LAUNCHER_S if launched else REPEATED_S

    def arrived(number: int) -> None:
        arrivals.append(time.monotonic())
        if len(arrivals) == 1:
            acknowledge(_sentence(signal.Signals(number)))
        elif leave is not None and number == signal.SIGINT and arrivals[-1] - arrivals[0] >= second_s:
            leave()

    def receive(number: int, frame: object) -> None:
        received.append(time.monotonic())
        if leave is None and number == signal.SIGINT and received[-1] - received[0] >= second_s:
            raise KeyboardInterrupt

    with _watch_arrivals(arrived):
        for number in SIGNALS:
            with suppress(ValueError):  # not the main thread: the application handles signals itself
                previous[number] = signal.signal(number, receive)
        try:
            yield lambda: bool(received)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _watch_arrivals(arrived: Callable[[int], None]) -> Iterator[None]:
    """Context: a thread calls `arrived` with the number of each signal as soon as it arrives.

    A Python handler runs only when the main thread returns from native code; Python's native handler writes
    the number to a pipe at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] in SIGNALS:
                arrived(number[0])

    try:
        previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    except ValueError:  # not the main thread
        previous = None
    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if previous is not None:
            signal.set_wakeup_fd(previous)
        os.close(writing)  # ends the thread
        thread.join()
        os.close(reading)


def _sentence(number: signal.Signals) -> str:
    again = "; press Ctrl-C again to exit at once" if number == signal.SIGINT else ""
    return f"{number.name}: training stops after this step and saves a checkpoint{again}"
