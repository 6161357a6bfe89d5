"""Locks on files: held by one process, and released by the system when that process dies."""

from __future__ import annotations

import os
import socket
import stat
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from amortized.untrusted import reason_of, short

POLL_S = 0.2  # between two attempts


class LockedError(ValueError):
    """Another process holds the lock; `holder` says which, as far as it is known."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{short(path)} is locked by another process ({holder})")
        self.holder = holder


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _module("fcntl"), _module("msvcrt")  # of POSIX, of Windows


class FileLock:
    """An exclusive lock on a file, from the constructor to `close`. The file remains; it names the holder.

    `problem` is None, or says why the system could not lock (some network file systems cannot).
    """

    def __init__(self, path: Path, timeout_s: float = 0.0) -> None:
        """Waits `timeout_s` for another process.

        Raises LockedError if that was too short, and ValueError if the file cannot be written.
        """
        self.path, self.problem = path, None
        # Never through a link, and never waiting for the reader of a pipe: the folder may be a stranger's.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._descriptor = os.open(path, flags, 0o644)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot write the lock {short(path)}: {reason_of(error)}") from error
        try:
            self._acquire(time.monotonic() + timeout_s)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _acquire(self, deadline: float) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise ValueError(f"cannot write the lock {short(self.path)}: it is not a regular file")
        while True:
            try:
                _lock(self._descriptor)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    os.lseek(self._descriptor, 0, os.SEEK_SET)
                    holder = os.read(self._descriptor, 200).decode("utf-8", "replace").strip()
                    raise LockedError(self.path, holder or "just starting") from None
                time.sleep(POLL_S)
            except OSError as error:
                self.problem = reason_of(error)
                return
        try:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError:
            pass  # a full disk: the lock is held, but does not name its holder

    def is_current(self) -> bool:
        """Whether the locked file is still the one at `path`: a previous holder may have removed it."""
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._descriptor))
        except OSError:
            return False

    def fileno(self) -> int:
        """The locked descriptor: a process that inherits it holds the lock too, also after `close`."""
        return self._descriptor

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock on a file, without waiting or writing; None if that is not known.

    No, if there is no such file. A process that takes the lock at this moment may have to try again.
    """
    if fcntl is None:
        return None
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # this file system has no locks
        return None
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int) -> None:
    """Lock or raise: BlockingIOError or PermissionError if another process has it, OSError if none can."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # locked bytes cannot be read: lock one beyond the text
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        raise OSError(0, "this system has no file locks")
