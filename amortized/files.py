"""Atomic file writes: a temporary file is written, flushed to disk and renamed into place."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]  # with checkpoints/ and configs/, in a checkout


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to `path` if the block succeeds.

    Readers see the old file or the new one, never a partial one; after an exception the old file remains. The
    temporary name begins with a dot and keeps the suffix, from which writers choose the format. Parent
    folders are created. The block must create a file (not a folder) and close it.
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
    """Write bytes atomically, replacing the file if it exists."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write text atomically in UTF-8, with newlines unchanged, replacing the file if it exists."""
    atomic_write_bytes(path, text.encode("utf-8"))


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_project(path: str | Path) -> str:
    """The path as given if it exists, else in the project's folder if it exists there.

    So that checkpoints/NAME and configs/NAME.yaml mean the same in every working directory.
    """
    name = str(path)
    return name if Path(name).exists() or not (PROJECT / name).exists() else str(PROJECT / name)
