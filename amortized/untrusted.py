"""Read files that others wrote: regular files of bounded size, and nothing in them that runs.

Every reader of a model folder, run, corpus or preset starts here. A pipe, a device or a file that is far too
large for its kind is refused before it is read; all failures are one ValueError that names the file.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

MiB = 2**20
MAX_DEPTH = 50  # of YAML; a run's config has 5
CONFIG_LIMIT = 16 * MiB  # of a config or another small JSON file; the largest known has 2 MiB
LFS_POINTER = b"version https://git-lfs.github.com/"  # how Git LFS's stand-in for a large file starts


@contextmanager
def open_regular(path: str | Path, limit: int) -> Iterator[BufferedReader]:
    """Context: a regular file of at most `limit` bytes, open for reading; links to one are followed.

    Raises ValueError for a missing or unreadable file, a folder, a pipe, a device, a loop of links, or a
    larger file.
    """
    try:
        # O_NONBLOCK: opening a pipe without a writer would wait for one.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {short(path)}: {reason_of(error)}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"cannot read {short(path)}: it is not a regular file")
        if status.st_size > limit:
            size = f"{status.st_size:,} bytes, and at most {limit:,} are allowed"
            raise ValueError(f"cannot read {short(path)}: it has {size}")
        file = os.fdopen(descriptor, "rb")
    except ValueError:
        os.close(descriptor)
        raise
    with file:
        yield file


def read_bytes(path: str | Path, limit: int = CONFIG_LIMIT) -> bytes:
    """The contents of a regular file of at most `limit` bytes. Raises ValueError; see `open_regular`."""
    with open_regular(path, limit) as file:
        try:
            data = file.read(limit + 1)  # it may have grown since
        except OSError as error:
            raise ValueError(f"cannot read {short(path)}: {reason_of(error)}") from error
    if len(data) > limit:
        raise ValueError(f"cannot read {short(path)}: it has more than {limit:,} bytes")
    check_not_pointer(path, data)
    return data


def check_not_pointer(path: str | Path, start: bytes) -> None:
    """Raise ValueError if a file starts as a Git LFS pointer, which a clone without Git LFS leaves behind."""
    if start.startswith(LFS_POINTER):
        raise ValueError(
            f"{short(path)} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, "
            "or download the file"
        )


def read_text(path: str | Path, limit: int = CONFIG_LIMIT) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises ValueError; see `open_regular`."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{short(path)} is not UTF-8 text (byte {error.start})") from None


def read_json(path: str | Path, limit: int = CONFIG_LIMIT) -> Any:
    """The value in a JSON file. Raises ValueError for other content too; see `open_regular`."""
    return parse_json(read_text(path, limit), short(path))


def parse_json(text: str, where: str) -> Any:
    """The value of JSON text; `where` names it in messages. Raises ValueError for other text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except ValueError:  # Python refuses to convert integers of thousands of digits
        raise ValueError(f"{where}: not valid JSON (a number with too many digits)") from None
    except RecursionError:
        raise ValueError(f"{where}: not valid JSON (nested too deeply)") from None


def read_json_object(path: str | Path, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError for other content too; see `open_regular`."""
    data = read_json(path, limit)
    if not isinstance(data, dict):
        raise ValueError(f"{short(path)} holds a JSON {type(data).__name__}, not an object")
    return data


def read_yaml_object(path: str | Path, limit: int = MiB) -> dict[str, Any]:
    """The mapping in a YAML file, with plain values only. Raises ValueError for other content.

    Files that a program wrote have no aliases, of which a few lines can stand for gigabytes: one is an error.
    """
    return parse_yaml_object(read_text(path, limit), short(path))


def parse_yaml_object(text: str, where: str) -> dict[str, Any]:
    """The mapping in YAML text; `where` names it in messages. See `read_yaml_object`."""
    import yaml  # not at the top: some scripts that write files have the standard library only

    try:
        _check_events(text)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{where}{line}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not valid YAML ({reason_of(error)})") from None
    if not isinstance(data, dict) or not _has_text_keys(data):
        raise ValueError(f"{where} is not a mapping of names to values")
    return data


def _check_events(text: str) -> None:
    """Raise ValueError for aliases and deep nesting, at the first: parsing takes the square of the depth."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it uses an alias")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")


def _has_text_keys(data: Any) -> bool:
    if isinstance(data, dict):
        return all(isinstance(key, str) and _has_text_keys(value) for key, value in data.items())
    return all(map(_has_text_keys, data)) if isinstance(data, list) else True


def inside(folder: str | Path, path: str) -> Path:
    """A file's path in a folder, for a relative `path` that others wrote.

    Raises ValueError if the path, or a link on it, leads out of the folder.
    """
    folder = Path(folder)
    try:
        leads_out = not (folder / path).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL character, a name too long
        raise ValueError(f"cannot read {short(path)} in {short(folder)}: {reason_of(error)}") from error
    if leads_out:
        raise ValueError(f"cannot read {short(path)}: it leads out of {short(folder)}")
    return folder / path


def reason_of(error: Exception) -> str:
    """Why a file operation failed, in a few words."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__


def short(path: str | Path) -> str:
    """A path for a message, of at most 200 characters, as it would be pasted into a shell if it is plain."""
    text = str(path)
    text = text if len(text) <= 200 else f"{text[:120]}...{text[-60:]}"
    return text if text.isprintable() and text.isascii() else repr(text)
