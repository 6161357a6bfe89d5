"""Writes that a run can do without: logs, events, curves, previews, traces."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amortized.untrusted import reason_of, short


class BestEffort:
    """Reports the first failure to write each file and lets training continue.

    A later write is tried again: room may have been made. `close` reports how many writes failed.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.failed: Counter[str] = Counter()
        self.closed = False

    @contextmanager
    def __call__(
        self, name: str, errors: type[Exception] | tuple[type[Exception], ...] = OSError
    ) -> Iterator[None]:
        """Context: `errors` in the block mean that `name` could not be written."""
        try:
            yield
        except errors as error:
            self.failed[name] += 1  # first: the report may itself fail to be written
            if self.failed[name] == 1 and not self.closed:
                self.report(f"cannot write {name} ({reason_of(error)}); training continues without it")

    def close(self) -> None:
        """Report the files that miss more than the write reported before. Later failures are not reported."""
        for name, count in [(name, count) for name, count in self.failed.items() if count > 1]:
            self.report(f"{count:,} writes to {name} failed in this run")
        self.closed = True


def append_whole(path: Path, data: bytes) -> None:
    """Append to a file, creating it if needed: all of `data` or, if that fails, nothing. Raises OSError.

    Opening the file for every write notices that it was removed or that its folder was replaced. A pipe
    without a reader is an error rather than a wait.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        remaining = memoryview(data)
        try:
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def described(path: Path) -> str:
    """A path's last two parts, for messages of a run whose folder is known."""
    return short(Path(*path.parts[-2:]))
