"""Locks: one holder at a time, on every system, and never through what a stranger placed there."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from amortized import locks
from amortized.locks import FileLock, LockedError


def windows() -> SimpleNamespace:
    """msvcrt as on Windows: a second lock of a byte is a PermissionError."""
    held: set[tuple[int, int]] = set()

    def locking(descriptor: int, mode: int, count: int) -> None:
        status = os.fstat(descriptor)
        if os.lseek(descriptor, 0, os.SEEK_CUR) < 1000 or mode != 2 or count != 1:
            raise AssertionError("the text must remain readable")
        if (status.st_dev, status.st_ino) in held:
            raise PermissionError(13, "Permission denied")
        held.add((status.st_dev, status.st_ino))

    return SimpleNamespace(LK_NBLCK=2, locking=locking)


@pytest.mark.parametrize("system", ["posix", "windows"])
def test_a_second_holder_is_refused_and_named(tmp_path: Path, monkeypatch, system: str) -> None:
    if system == "windows":
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setattr(locks, "msvcrt", windows())
    lock = FileLock(tmp_path / "lock")
    assert lock.problem is None and lock.is_current()
    with pytest.raises(LockedError, match=f"locked by another process .process {os.getpid()} on") as error:
        FileLock(tmp_path / "lock")
    assert error.value.holder.startswith(f"process {os.getpid()}")
    if system == "posix":
        lock.close()
        FileLock(tmp_path / "lock").close()


def test_a_lock_on_a_removed_file_is_not_current(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    assert not lock.is_current()
    other = FileLock(tmp_path / "lock")
    assert other.is_current() and not lock.is_current()


def test_a_system_without_locks_is_a_problem_not_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", None)
    assert FileLock(tmp_path / "lock").problem == "this system has no file locks"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "missing folder", "long name", "NUL"])
def test_only_a_regular_file_is_locked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    (tmp_path / "mine").write_text("precious")
    match kind:
        case "link":
            path.symlink_to("mine")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "missing folder":
            path = tmp_path / "a/lock"
        case "long name":
            path = tmp_path / ("x" * 5000)
        case "NUL":
            path = tmp_path / "a\0b"
    with pytest.raises(ValueError, match="cannot write the lock") as error:
        FileLock(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert (tmp_path / "mine").read_text() == "precious"
