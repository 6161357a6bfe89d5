"""Atomic file writes: a temporary file is written, flushed to disk and renamed into place."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an exception.

    The temporary name keeps the suffix, since writers choose a format by it, and begins with a dot.
    A reader sees the old file or the new one, never a part; after an exception the old one stays.
    Parent folders are made. The block must create the file (not a folder) and close it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync(path.parent)  # the rename itself must survive a power cut


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8 with the newlines as given, atomically."""
    atomic_write_bytes(path, text.encode("utf-8"))


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
