"""Signals that end a training: finish the step, save, exit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A second Ctrl-C interrupts at once, unless it follows so soon that a launcher repeated the first one.
SECOND_INTERRUPT_S = 2.0


@contextmanager
def catch_signals() -> Iterator[Callable[[], bool]]:
    """Context: SIGINT, SIGTERM and SIGUSR1 only set a flag, so that the step finishes and is saved.

    Another SIGINT at least SECOND_INTERRUPT_S after the first signal interrupts at once.
    """
    received: list[float] = []
    previous = {}

    def receive(number: int, frame: object) -> None:
        received.append(time.monotonic())
        if number == signal.SIGINT and received[-1] - received[0] >= SECOND_INTERRUPT_S:
            raise KeyboardInterrupt

    for number in {
        signal.SIGINT,
        signal.SIGTERM,
        getattr(signal, "SIGUSR1", signal.SIGTERM),
    }:  # not on Windows
        try:
            previous[number] = signal.signal(number, receive)
        except ValueError:  # not the main thread: the application handles signals itself
            pass
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
