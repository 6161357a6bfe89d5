"""Atomic file writes: a temporary file is written, flushed to disk and renamed into place. And paths."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amortized.untrusted import short

MAX_PATH_BYTES, MAX_NAME_BYTES = 4096, 255  # PATH_MAX with its final NUL, and NAME_MAX, of Linux
PROJECT = Path(__file__).resolve().parents[1]  # with checkpoints/ and configs/, in a checkout


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to `path` if the block succeeds.

    Readers see the old file or the new one, never a partial one; after an exception the old file remains. The
    temporary name begins with a dot and keeps the suffix, from which writers choose the format. Parent
    folders are created. The block must create a file (not a folder) and close it. Without `durable`, the file
    may be empty after a power cut: for results that carry a digest and can be made again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if durable:
        sync(path.parent)  # the rename itself must survive a power cut


def atomic_write_bytes(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write bytes atomically, replacing the file if it exists; `durable` as for `atomic_path`."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write text atomically in UTF-8, with newlines unchanged, replacing the file if it exists."""
    atomic_write_bytes(path, text.encode("utf-8"))


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk (fsync)."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_project(path: str | Path, *folders: Path) -> str:
    """The path as given if it exists, else in the first of `folders` or the project's folder that has it.

    So that checkpoints/NAME and configs/NAME.yaml mean the same in every working directory.
    """
    return in_folders(path, *folders, PROJECT)


def in_folders(path: str | Path, *folders: Path) -> str:
    """The path as given if it exists, or if none of `folders` has it; else in the first one that has it."""
    name = str(path)
    for folder in (Path(), *folders):
        with suppress(OSError, ValueError):  # a name that no file can have
            if (folder / name).exists():
                return name if folder == Path() else str(folder / name)
    return name


def restore_hint(path: str | Path) -> str:
    """How to restore a folder of the project's checkpoints/, whose models are files of the repository.

    Empty for any other path.
    """
    name = str(path).removeprefix(f"{PROJECT}/")
    if not name.startswith("checkpoints/"):
        return ""
    if not (PROJECT / ".git").exists():
        return f"copy {short(name)} from the project's repository"
    there = sorted(folder.name for folder in (PROJECT / "checkpoints").iterdir() if folder.is_dir())
    command = shlex.join(["git", "-C", str(PROJECT), "checkout", "--", name])
    return f"restore it ({command}) or name another one of checkpoints/ ({', '.join(there)})"


def started_in(run: str | Path, output: str) -> list[Path]:
    """The folder in which a run was started, if `run` still ends with its setting `output`; else nothing.

    A run with output=outputs/mine that lies in /data/project/outputs/mine was started in /data/project.
    """
    parts, folder = Path(output).parts, Path(os.path.abspath(run))
    if Path(output).is_absolute() or ".." in parts or folder.parts[-len(parts) :] != parts:
        return []
    return [folder.parents[len(parts) - 1]]


def checked_path(text: str) -> str:
    """A path or URL as the user wrote it, with a leading `~` or `~NAME` expanded to the home folder.

    Raises ValueError if it is empty or no file can have this name; the message follows the setting's name.
    """
    if not text.strip():
        raise ValueError("is empty: give a path")
    check_text(text)
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"{short(text)} names the home folder of a user that does not exist here")
    data = expanded.encode()
    if len(data) >= MAX_PATH_BYTES or max(map(len, data.split(b"/"))) > MAX_NAME_BYTES:
        raise ValueError(
            f"is too long for a path ({len(data):,} bytes): at most {MAX_PATH_BYTES - 1:,} are allowed, and "
            f"{MAX_NAME_BYTES} between slashes"
        )
    return expanded


def check_text(text: str) -> None:
    """Raise ValueError for text that UTF-8 cannot encode, or with NUL; the message follows a name."""
    if "\0" in text:
        raise ValueError("contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not UTF-8 text (character {error.start + 1}): {short(text)}") from None
