"""The results of a service, in a folder that several replicas may share.

    FOLDER/objects/ab/abcd.../{status.json, preview.png, object.glb, ..., .lock}
    FOLDER/batches/ID.json
    FOLDER/unfinished/ID    empty: the objects to continue after a restart

A status names the files that are complete, with their digests: whatever else lies in the folder is never
shown. All writes are atomic. Who makes the files of an object holds its lock, which ends with the process.
Nothing waits for the disk: after a power cut, damaged files show in their digests, and are made again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from amortized.files import atomic_write_bytes
from amortized.locks import FileLock, LockedError
from amortized.serve.problems import dumps
from amortized.serve.requests import MEDIA_TYPES
from amortized.untrusted import MiB, read_bytes, read_json_object

ID = re.compile("[0-9a-f]{64}")
STATUS_LIMIT, BATCH_LIMIT, FILE_LIMIT = MiB, 4 * MiB, 512 * MiB
FULL = {errno.ENOSPC, errno.EDQUOT}
ROOM = 64 * MiB  # is made at once on a full disk
STALE_S = 600.0
TOUCH_S = 60.0  # a use is recorded at most this often
ENDED = ("done", "failed")
TEXTS = ("id", "status", "prompt", "model", "checkpoint")


class StoreFull(Exception):
    """There is no room, even after the oldest results were removed."""


class Store:
    """The objects and batches of a folder. Methods block: call them in a thread."""

    def __init__(self, folder: Path, *, max_bytes: int, keep_s: float) -> None:
        """Results that were not used for `keep_s`, and the oldest beyond `max_bytes`, are removed by `sweep`.

        Raises OSError if the folder cannot be written.
        """
        self.folder, self.max_bytes, self.keep_s = folder, max_bytes, keep_s
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts are personal data
        for name in ("objects", "batches", "unfinished"):
            (folder / name).mkdir(exist_ok=True)
        probe = folder / f".write.{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()

    def path(self, id: str) -> Path:
        """The folder of an object. Raises ValueError for text that is not an id."""
        if not ID.fullmatch(id):
            raise ValueError("not an id")
        return self.folder / "objects" / id[:2] / id

    # ---- status ----

    def read(self, id: str) -> dict[str, Any] | None:
        """The status of an object; None if there is none, or a damaged one."""
        try:
            status = read_json_object(self.path(id) / "status.json", STATUS_LIMIT)
        except ValueError:
            return None
        return status if status.get("id") == id and _is_status(status) else None

    def write(self, id: str, status: dict[str, Any]) -> None:
        """Write a status. Raises StoreFull, and OSError for other reasons."""
        path, mark = self.path(id) / "status.json", self.folder / "unfinished" / id

        def write() -> None:
            if status["status"] not in ENDED:
                mark.touch()
            _write(path, dumps(status))

        self._with_room(write)
        if status["status"] in ENDED:
            mark.unlink(missing_ok=True)

    def touch(self, id: str) -> None:
        """Record that an object was used now."""
        path = self.path(id) / "status.json"
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > TOUCH_S:
                os.utime(path)

    # ---- files ----

    def work_folder(self, id: str) -> Path:
        """The folder in which the holder of an object's lock makes its files, before `add` moves them."""
        return self.path(id) / ".work"

    def add(self, id: str, files: Path | dict[str, bytes]) -> dict[str, dict[str, Any]]:
        """Add files to an object, and return bytes and sha256 by name, for its status.

        `files` is a folder, whose files are moved and which is removed, or their contents. Raises StoreFull.
        """
        target, added = self.path(id), {}

        def write(contents: dict[str, bytes]) -> None:
            for name, data in contents.items():
                _write(target / name, data)
                added[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

        def move(folder: Path) -> None:
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir()):
                if file.name in MEDIA_TYPES:
                    with file.open("rb") as opened:
                        digest = hashlib.file_digest(opened, "sha256").hexdigest()
                    added[file.name] = {"bytes": file.stat().st_size, "sha256": digest}
                    os.replace(file, target / file.name)
            shutil.rmtree(folder, ignore_errors=True)

        self._with_room(lambda: write(files) if isinstance(files, dict) else move(files))
        return added

    def read_file(self, id: str, name: str, record: dict[str, Any]) -> bytes | None:
        """The contents of a file that the status records; None if it is missing or has another digest."""
        try:
            data = read_bytes(self.path(id) / name, FILE_LIMIT)
        except ValueError:
            return None
        return data if hashlib.sha256(data).hexdigest() == record["sha256"] else None

    def is_complete(self, status: dict[str, Any]) -> bool:
        """Whether all files of a status are there, in their sizes."""
        folder = self.path(status["id"])
        try:
            return all(
                (folder / name).stat().st_size == record["bytes"] for name, record in status["files"].items()
            )
        except OSError:
            return False

    # ---- locks, removal ----

    def lock(self, id: str) -> FileLock | None:
        """The lock of an object, for the one that makes its files; None if another process has it."""
        path = self.path(id) / ".lock"
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(path)
            except LockedError:
                return None
            except (OSError, ValueError) as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                if isinstance(cause, FileNotFoundError):  # the folder was removed meanwhile
                    continue
                if isinstance(cause, OSError) and cause.errno in FULL:
                    raise StoreFull from error
                raise
            if lock.is_current():
                return lock
            lock.close()  # its folder was removed meanwhile

    def remove(self, id: str) -> bool:
        """Remove an object; False if another process makes it right now."""
        path = self.path(id)
        if not path.is_dir():
            return True
        lock = self.lock(id)
        if lock is None:
            return False
        try:
            self.discard(id)
        finally:
            lock.close()
        return True

    def discard(self, id: str) -> None:
        """Remove an object at once, for the holder of its lock."""
        path, gone = self.path(id), self.folder / f".gone.{secrets.token_hex(8)}"
        (self.folder / "unfinished" / id).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            os.replace(path, gone)  # whole: nobody sees a part of it
        shutil.rmtree(gone, ignore_errors=True)

    def hide(self, id: str) -> None:
        """Remove the status of an object: it no longer exists for readers."""
        (self.path(id) / "status.json").unlink(missing_ok=True)

    # ---- batches ----

    def read_batch(self, id: str) -> dict[str, Any] | None:
        """A batch: created, model, objects; None if there is none, or a damaged one."""
        if not ID.fullmatch(id):
            return None
        try:
            batch = read_json_object(self.folder / "batches" / f"{id}.json", BATCH_LIMIT)
        except ValueError:
            return None
        ids = batch.get("objects")
        valid = isinstance(ids, list) and all(isinstance(one, str) and ID.fullmatch(one) for one in ids)
        return batch if valid else None

    def write_batch(self, id: str, batch: dict[str, Any]) -> None:
        """Write a batch. Raises StoreFull."""
        self._with_room(lambda: _write(self.folder / "batches" / f"{id}.json", dumps(batch)))

    # ---- room ----

    def unfinished(self, older_s: float = 0.0) -> Iterator[dict[str, Any]]:
        """The statuses that have not ended, of `older_s` seconds ago or before."""
        for mark in (self.folder / "unfinished").iterdir():
            with suppress(OSError, ValueError):
                if time.time() - mark.stat().st_mtime < older_s:
                    continue
                status = self.read(mark.name)
                if status is not None and status["status"] not in ENDED:
                    yield status
                elif time.time() - mark.stat().st_mtime > STALE_S:  # a kill between two steps left it
                    mark.unlink()

    def sweep(self, at_least: int = 0) -> int:
        """Remove what is too old, and the longest unused results beyond `max_bytes`; returns how many.

        At least `at_least` bytes of results that have ended are removed if there are so many.
        """
        found = sorted(self._objects(), key=lambda one: one[1])
        total, freed, removed = sum(size for *_, size in found), 0, 0
        for folder, used, size in found:
            old = time.time() - used > self.keep_s
            if not old and total - freed <= self.max_bytes and freed >= at_least:
                continue
            status = self.read(folder.name)
            if not old and status is not None and status["status"] not in ENDED:
                continue
            if self.remove(folder.name):
                freed, removed = freed + size, removed + 1
        for batch in (self.folder / "batches").glob("*.json"):
            with suppress(OSError):
                if time.time() - batch.stat().st_mtime > self.keep_s:
                    batch.unlink()
        for gone in self.folder.glob(".gone.*"):
            shutil.rmtree(gone, ignore_errors=True)
        return removed

    def free_share(self) -> tuple[float, int]:
        """The share and the bytes of the disk that are free."""
        usage = shutil.disk_usage(self.folder)
        return usage.free / usage.total, usage.free

    def _objects(self) -> Iterator[tuple[Path, float, int]]:
        """(folder, time of last use, bytes) of each object."""
        for group in (self.folder / "objects").iterdir():
            for folder in group.iterdir() if group.is_dir() else ():
                if not ID.fullmatch(folder.name):
                    continue
                with suppress(OSError):
                    entries = [entry.stat() for entry in os.scandir(folder) if entry.is_file()]
                    status = folder / "status.json"
                    used = (status if status.exists() else folder).stat().st_mtime
                    yield folder, used, sum(entry.st_size for entry in entries)

    def _with_room(self, action: Callable[[], None]) -> None:
        """Do what writes; if the disk is full, once more after the removal of some results."""
        for attempt in (1, 2):
            try:
                return action()
            except OSError as error:
                if error.errno not in FULL:
                    raise
                if attempt == 2 or not self._make_room():
                    raise StoreFull from error

    def _make_room(self) -> bool:
        try:
            return self.sweep(at_least=ROOM) > 0
        except (OSError, ValueError, StoreFull):
            return False


def _write(path: Path, data: bytes) -> None:
    atomic_write_bytes(path, data, durable=False)


def _is_status(status: dict[str, Any]) -> bool:
    """Whether the parts of a status that the code relies on have their types."""
    files, owners = status.get("files"), status.get("owners")
    return (
        all(isinstance(status.get(key), str) for key in TEXTS)
        and status["status"] in ("queued", "running", *ENDED)
        and isinstance(status.get("seed"), int)
        and isinstance(status.get("progress"), int)
        and isinstance(status.get("created"), int | float)
        and isinstance(status.get("settings"), dict)
        and isinstance(owners, list)
        and all(isinstance(owner, str) for owner in owners)
        and isinstance(files, dict)
        and all(name in MEDIA_TYPES and _is_record(record) for name, record in files.items())
        and isinstance(status.get("error"), dict | None)
        and (status["status"] != "failed" or isinstance((status["error"] or {}).get("code"), str))
    )


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("bytes"), int)
        and isinstance(record.get("sha256"), str)
        and ID.fullmatch(record["sha256"]) is not None
    )
