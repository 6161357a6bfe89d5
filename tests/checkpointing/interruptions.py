"""Kills and full disks at every operation on files, by Python's audit events."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


class Killed(BaseException):
    """The process does nothing more."""


@dataclass
class _Armed:
    folder: str
    at: int  # number of the operation that fails, and all after it
    full_disk: bool  # only operations that need space fail
    count: int = 0


_armed: list[_Armed] = []


def _hook(event: str, args: tuple) -> None:
    if not _armed:
        return
    armed = _armed[0]
    if event == "open":
        path, _, flags = args
        creates = bool(flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))
        if not creates or not str(path).startswith(armed.folder):
            return
    elif event not in CHANGES or (armed.full_disk and event != "os.mkdir"):
        return
    armed.count += 1
    if armed.count >= armed.at:
        raise OSError(errno.ENOSPC, "No space left on device") if armed.full_disk else Killed


sys.addaudithook(_hook)


@contextmanager
def failing(folder: Path, at: int, *, full_disk: bool) -> Iterator[_Armed]:
    """Context: operation `at` below a folder, counted from 1, and all later ones fail."""
    _armed.append(_Armed(str(folder), at, full_disk))
    try:
        yield _armed[0]
    finally:
        _armed.clear()


def operations(folder: Path, action: Callable[[], object], *, full_disk: bool) -> int:
    """The number of operations of an action that `failing` counts."""
    with failing(folder, 10**9, full_disk=full_disk) as armed:
        action()
    return armed.count
