"""index.json of a folder of generated files: what each shows, and how it was made.

    [{"name": "a-red-cube-d9909b20_0", "prompt": "a red cube", "seed": 0, "slug": "a-red-cube-d9909b20",
      "files": {"png": {"file": "a-red-cube-d9909b20_0.png", "model": "step_000600 a381c41b4e500d50",
                        "settings": {...}}, ...}}, ...]

Beside it is a page of all objects, index.html (`amortized.gallery`), written together with it.

A file is complete if it exists, since files are written atomically, and the index records it with the same
model and settings. Else it is made again: after a call, all of its files are of one model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amortized.evaluation.folder import writing
from amortized.files import atomic_write_text
from amortized.gallery import write_page
from amortized.locks import FileLock, LockedError
from amortized.untrusted import MiB, read_json, short

INDEX, LOCK = "index.json", ".lock"
INDEX_LIMIT = 512 * MiB
INDEX_EVERY_S, PAGE_EVERY_S = 1.0, 10.0  # a kill loses the records of the last second
SHARE_OF_TIME = 0.05  # that writing takes at most, before the end
RECORD = ("file", "model", "settings")


class Pace:
    """When to write again: after `every_s`, and so rarely that writing takes at most `SHARE_OF_TIME`."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._next = every_s, time.monotonic() + every_s

    def is_due(self) -> bool:
        return time.monotonic() > self._next

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Context: the writing."""
        start = time.monotonic()
        yield
        end = time.monotonic()
        self._next = end + max(self._every_s, (end - start) / SHARE_OF_TIME)


class Index:
    """The entries of a folder, by name, in the order in which they were first made."""

    def __init__(self, folder: Path) -> None:
        """The index of a folder as it is. Raises ValueError; see `read_index`."""
        self.path = folder / INDEX
        self.entries = read_index(folder)
        self.without_page = ""  # why there is no page, or an old one
        self._index_pace, self._page_pace = Pace(INDEX_EVERY_S), Pace(PAGE_EVERY_S)

    def has(self, name: str, format: str, record: Mapping[str, Any]) -> bool:
        """Whether a file is complete and was made as `record` says: file, model, settings."""
        made = self._files(name).get(format)
        same = isinstance(made, dict) and all(made.get(key) == record[key] for key in RECORD)
        return same and (self.path.parent / record["file"]).is_file()

    def made_differently(self, name: str, format: str) -> bool:
        """Whether the index has a file of this name and format, of another model or other settings."""
        return format in self._files(name)

    def add(self, name: str, about: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> None:
        """Record files that were written together, by format; write index and page if due.

        `about`: prompt, seed, slug.
        """
        files = {**self._files(name), **{format: dict(record) for format, record in records.items()}}
        self.entries[name] = {"name": name, **about, "files": files}
        if self._index_pace.is_due():
            self.write()
        if self._page_pace.is_due():
            self.write_page()

    def write(self) -> None:
        """Write the index, atomically."""
        with self._index_pace.measured(), writing(self.path):
            lines = (json.dumps(entry, ensure_ascii=False) for entry in self.entries.values())
            atomic_write_text(self.path, "[\n" + ",\n".join(lines) + "\n]\n")

    def write_page(self) -> None:
        """Write the page; `without_page` then says why that failed, as it does for a page of others."""
        with self._page_pace.measured():
            self.without_page = write_page(self.path.parent, self.entries.values())

    def _files(self, name: str) -> dict[str, Any]:
        return self.entries.get(name, {}).get("files", {})


@contextmanager
def open_index(folder: Path) -> Iterator[Index]:
    """Context: the index of a folder, which is created, for this process alone.

    It and the page are written at the end if they change, also after an exception. Raises ValueError for a
    folder of others, one that cannot be written, or one that another process writes to.
    """
    read_index(folder)  # leave no lock in a folder of others
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK)
    except LockedError as error:
        raise ValueError(
            f"another process ({error.holder}) is generating into {short(folder)}: wait for it to end, or "
            "choose another folder (--output)"
        ) from None
    try:
        index = Index(folder)
        before = dict(index.entries)
        try:
            yield index
        finally:
            if index.entries != before:
                index.write()
            index.write_page()
    finally:
        lock.close()


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a folder, by name; none if it is new. Raises ValueError if generate did not write it."""
    path = folder / INDEX
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{short(folder)} is a file: choose a folder (--output)")
    if not path.exists():
        return {}
    try:
        entries = read_json(path, INDEX_LIMIT)
        if not isinstance(entries, list):
            raise TypeError("not a list")
        return {entry["name"]: entry for entry in map(_entry, entries)}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{short(path)} was not written by generate: choose another folder (--output)"
        ) from error


def _entry(data: dict[str, Any]) -> dict[str, Any]:
    """An entry; those of earlier versions name a strip and a turntable, without the model."""
    if "strip" in data:
        files = {"png": {"file": data["strip"]}}
        files |= {"mp4": {"file": data["turntable"]}} if "turntable" in data else {}
        data = {
            "name": data["strip"].removesuffix(".png"),
            **{key: data[key] for key in ("prompt", "seed", "slug")},
            "files": files,
        }
    if not isinstance(data["name"], str) or not isinstance(data["files"], dict) or "seed" not in data:
        raise TypeError("not an entry")
    return data
