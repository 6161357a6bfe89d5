"""The folder of an evaluation or a comparison: written beside its place, and put there whole.

A page and its pictures belong together, so no file of an evaluation is replaced alone: a new one is written
into the hidden folder `.NAME.partial` beside the old one, and two renames put it in place. Whatever stops an
evaluation, a full disk or a kill, the earlier one stays as it was.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.files import sync
from amortized.pages import SUFFIXES, VIEWER_FILES, script_of
from amortized.untrusted import MiB, read_json, reason_of, short

INDEX = "index.json"
INDEX_LIMIT = 512 * MiB  # some 500 bytes for each prompt
# What systems leave in folders that were looked at, and writes that a kill interrupted.
LITTER = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*|\..+\.[0-9a-f]{8}\.\w+")


@dataclass(frozen=True)
class Writer:
    """A command that writes folders with a page, an index, and the pictures that the index lists."""

    command: str
    noun: str  # of the content
    pages: tuple[str, ...]  # the files that it writes besides the pictures


EVALUATE = Writer(
    "evaluate", "evaluation", ("results.json", "results.csv", "config.yaml", "index.html", INDEX)
)
COMPARE = Writer("compare", "comparison", ("comparison.json", "comparison.csv", "index.html", INDEX))


@contextmanager
def replaced_folder(folder: Path, *, retain: bool = False, writer: Writer = EVALUATE) -> Iterator[Path]:
    """Context: an empty folder to write into, which replaces `folder` if the block succeeds.

    Files in `folder` that `writer` did not write are never lost: with `retain` they move into the new folder,
    else the folder is refused. If the block raises, `folder` stays as it was.

    Raises ValueError for a folder that cannot be replaced, or that another process writes to.
    """
    folder = folder.expanduser()
    with writing(folder):
        folder = folder.resolve()
    partial, old = partial_of(folder), folder.with_name(f".{folder.name}.old")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
    with _locked(partial, folder, writer):
        try:
            with writing(folder):
                _finish_interrupted(folder, old)
                _empty(partial)
            _check(folder, retain, writer)
            yield partial
            with writing(folder):
                for path in foreign_files(folder, writer):  # again: an evaluation takes long
                    _retain(folder, partial, path, writer)
                sync(partial)
                if folder.exists():
                    os.rename(folder, old)
                os.rename(partial, folder)
            with suppress(OSError):  # it is in place, if not yet after a power cut
                sync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):
                _finish_interrupted(folder, old)


def partial_of(folder: Path) -> Path:
    """The hidden folder into which the new content of `folder` is written."""
    folder = folder.expanduser().resolve()
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context: failures of the disk become one sentence with the path, a partial folder being its target."""
    if hidden := re.fullmatch(r"\.(.+)\.partial", path.name):
        path = path.with_name(hidden[1])
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write {short(path)}: {reason_of(error)}; what was there before is unchanged"
        ) from error


def foreign_files(folder: Path, writer: Writer = EVALUATE) -> list[Path]:
    """The files in a folder that `writer` did not write, relative to it, in order."""
    ours = _listed_files(folder, writer)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(p for p in files if p.as_posix() not in ours and not LITTER.fullmatch(p.name))


def _listed_files(folder: Path, writer: Writer) -> set[str]:
    """The files that `writer` wrote into a folder, by its index; none if there is no index."""
    try:
        entries = read_json(folder / INDEX, INDEX_LIMIT)
    except ValueError:
        return _files_of_earlier_versions(folder) if writer == EVALUATE else set()
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "id" in e for e in entries):
        return set()
    listed = {str(value) for entry in entries for value in media_of(entry)}
    objects = {path for path in listed if path.endswith(SUFFIXES)}
    scripts = {script_of(Path(path)).as_posix() for path in objects}
    viewers = {f"{path.rpartition('/')[0]}/{name}" for path in objects for name in VIEWER_FILES}
    return {*writer.pages, *listed, *scripts, *viewers}


def media_of(entry: dict[str, Any]) -> list[Any]:
    """The paths of the media that an entry of an index lists."""
    return [entry[key] for key in ("strip", "truth_strip", "turntable", "object") if entry.get(key)]


def _files_of_earlier_versions(folder: Path) -> set[str]:
    """Evaluations of earlier versions have no index; their media have folders to themselves."""
    if not all((folder / name).is_file() for name in ("results.json", "results.csv", "index.html")):
        return set()
    media = (*folder.glob("strips/*.png"), *folder.glob("turntables/*.mp4"))
    return {
        "results.json",
        "results.csv",
        "index.html",
        *(path.relative_to(folder).as_posix() for path in media),
    }


def _check(folder: Path, retain: bool, writer: Writer) -> None:
    """Raise ValueError for a folder that must not or cannot be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{short(folder)} is a file: choose a folder (--output)")
    if os.path.ismount(folder):
        raise ValueError(
            f"{short(folder)} is where a disk is mounted: choose a new folder inside it (--output)"
        )
    with writing(folder):
        foreign = foreign_files(folder, writer)
    if foreign and not retain:
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ValueError(
            f"{short(folder)} has files that {writer.command} did not write ({short(foreign[0])}{others}): "
            "choose a new folder (--output)"
        )
    if blocked := [path for path in foreign if path.as_posix() in writer.pages]:
        raise ValueError(
            f"{short(folder / blocked[0])} was not written by {writer.command} and would be replaced: "
            "rename it, or choose another folder (--output)"
        )


def _retain(folder: Path, partial: Path, path: Path, writer: Writer) -> None:
    """Link or copy a file into the new folder."""
    target = partial / path
    if os.path.lexists(target):
        raise ValueError(
            f"{short(folder / path)} was not written by {writer.command} and would be replaced: rename it"
        )
    link_or_copy(folder / path, target)


def link_or_copy(path: Path, target: Path) -> None:
    """A second name for a file, which takes no space, or a copy if the disk has no links. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(path, target, follow_symlinks=False)


def _finish_interrupted(folder: Path, old: Path) -> None:
    """Remove the earlier evaluation, or put it back if no new one took its place."""
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def _locked(partial: Path, folder: Path, writer: Writer) -> Iterator[None]:
    """Context: no other process replaces the folder. The system releases the lock of a killed one."""
    if sys.platform == "win32":  # a folder cannot be locked there
        yield
        return
    import fcntl

    with writing(folder):
        descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another {writer.noun} is writing {short(folder)}: wait for it, or choose another folder "
                "(--output)"
            ) from None
        except OSError:
            pass  # some network disks have no locks
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)
