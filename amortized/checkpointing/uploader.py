"""Copies of checkpoints at any fsspec URL: uploaded in the background, downloaded onto a new machine.

    URL/{step_000500/..., run.json, latest}

`run.json` says whose copies they are. A URL serves one run: another one is refused at its start.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec

from amortized.checkpointing import identity as identities
from amortized.checkpointing.checkpoint import (
    MANIFEST,
    STATE,
    STATE_LIMIT,
    CheckpointError,
    is_checkpoint_name,
    load_manifest,
    load_meta,
    parse_meta,
    step_of,
    verify,
)
from amortized.checkpointing.files import PARTIAL, delete
from amortized.checkpointing.identity import RunIdentity, difference, identity_from, identity_text
from amortized.untrusted import CONFIG_LIMIT


class CheckpointUploader:
    """Uploads the newest checkpoints to a URL. A copy is complete once its manifest is there.

    Call `claim` before the other methods, except `has_copies`. One upload runs at a time; if several
    checkpoints are written meanwhile, only the newest follows. A failed upload is reported in a message and
    does not stop training: the run has its local copy.
    """

    def __init__(self, url: str, *, keep: int) -> None:
        self.keep, self.url = keep, _without_credentials(url)
        try:
            self.files, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            reason = _short(error).replace(url, self.url)
            raise ValueError(f"cannot open checkpointing.upload={self.url}: {reason}") from error
        self.root = path.rstrip("/")
        self.run = ""  # the id of the run
        self._messages: list[str] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._current: Path | None = None
        self._next: Path | None = None

    @property
    def in_use(self) -> set[Path]:
        """The checkpoints that must not be removed yet."""
        return {path for path in (self._current, self._next) if path is not None}

    def has_copies(self) -> bool:
        """Whether there is a copy at the URL, whoever's. Raises CheckpointError if it cannot be read."""
        try:
            return bool(self._copies())
        except Exception as error:  # of whichever library implements the storage
            raise CheckpointError(f"cannot use checkpointing.upload={self.url} ({_short(error)})") from error

    def upload(self, checkpoint: Path) -> None:
        """Upload a checkpoint in the background, after the running upload."""
        self._next = checkpoint
        self._thread.submit(self._upload_next)

    def pop_messages(self, *, wait: bool = False) -> list[str]:
        """Return and clear the messages of failed uploads; with `wait`, finish running uploads first."""
        if wait:
            self._thread.submit(lambda: None).result()
        return [self._messages.pop(0) for _ in range(len(self._messages))]

    def close(self) -> None:
        """Finish running uploads, and accept no more."""
        self._thread.shutdown()

    # ---- whose copies ---------------------------------------------------------------------

    def claim(self, run: RunIdentity, *, is_new: bool) -> RunIdentity:
        """Make the URL that of `run`, or check that it is; returns the identity to use from now on.

        A run that `is_new`, without checkpoints, takes over the id of the run at the URL if the two compute
        the same: it is that run, on another machine. Raises CheckpointError if the copies there are those of
        another run, or of an unknown one, or if the URL cannot be read or written.
        """
        remedy = "choose another checkpointing.upload"
        try:
            names, owner = self._copies(), None
            try:
                owner = self._owner()
            except ValueError as error:
                if names:
                    raise CheckpointError(
                        f"{self.url} holds checkpoints, but not whose they are ({error}): {remedy}, or "
                        "remove them"
                    ) from error
            if owner is not None and owner.id != run.id:
                changed = difference(owner, run)
                if not is_new or changed is not None:
                    why = changed or "this one has other checkpoints already"
                    raise CheckpointError(
                        f"{self.url} holds the checkpoints of another run ({why}): {remedy}"
                    )
                run = RunIdentity(id=owner.id, corpus=run.corpus or owner.corpus, settings=run.settings)
            if owner != run:
                self.files.makedirs(self.root, exist_ok=True)
                self._put_text(identities.FILE, identity_text(run))
        except CheckpointError:
            raise
        except Exception as error:  # of whichever library implements the storage
            raise CheckpointError(f"cannot use checkpointing.upload={self.url} ({_short(error)})") from error
        self.run = run.id
        return run

    def _owner(self) -> RunIdentity:
        """The run whose copies are at the URL. Raises ValueError if that is unknown."""
        return identity_from(self._read_json(identities.FILE, identities.LIMIT))

    def _is_foreign(self, name: str) -> bool:
        """Whether a copy is another run's. One without a valid state.json is an unfinished upload of ours."""
        try:
            return parse_meta(self._read_json(f"{name}/{STATE}", STATE_LIMIT)).run != self.run
        except ValueError:
            return False

    # ---- download -------------------------------------------------------------------------

    def download_newest(self, folder: Path, log: Callable[[str], None]) -> Path | None:
        """Download the newest intact copy into a folder without checkpoints; None if there is no copy.

        Logs and skips damaged copies. Raises CheckpointError if none is intact, if the URL cannot be read, or
        if the folder cannot be written.
        """
        names: list[str] = []
        try:
            names = self._copies()
            for name in reversed(names):
                partial = folder / f"{PARTIAL}{name}"
                try:
                    self._download(name, partial)
                except CheckpointError as error:
                    delete(partial)
                    log(f"{error} after the download from {self.url}; trying the one before")
                    continue
                return partial.rename(folder / name)
        except Exception as error:  # of whichever library implements the storage
            raise CheckpointError(f"cannot download from {self.url} ({_short(error)})") from error
        if names:
            raise CheckpointError(
                f"none of the {len(names)} checkpoints at {self.url} is intact: restore a good copy, or "
                "start over with another checkpointing.upload"
            )
        return None

    def _download(self, name: str, partial: Path) -> None:
        """Download the listed files of a copy. Raises CheckpointError if it is damaged, or another run's."""
        delete(partial)
        partial.mkdir(parents=True)
        try:
            (partial / MANIFEST).write_bytes(self._read(f"{name}/{MANIFEST}", CONFIG_LIMIT))
        except ValueError as error:
            raise CheckpointError(f"{name} is damaged ({error})") from error
        files = load_manifest(partial)
        free = shutil.disk_usage(partial).free
        if sum(entry.bytes for entry in files.values()) > free:
            raise OSError(f"{name} is larger than the {free:,} bytes that are free in {partial.parent}")
        for file, entry in files.items():
            source = f"{self.root}/{name}/{file}"
            if not self.files.exists(source) or self.files.info(source)["size"] != entry.bytes:
                raise CheckpointError(f"{name} is damaged ({file} is missing or has another size)")
            self.files.get_file(source, str(partial / file))
        verify(partial)
        meta = load_meta(partial)
        if meta.run != self.run or meta.step != step_of(Path(name)):
            raise CheckpointError(f"{name} is a checkpoint of another run, or of another step")

    def _copies(self) -> list[str]:
        """The copies at the URL, complete or not, oldest first."""
        if not self.files.exists(self.root):
            return []
        self.files.invalidate_cache()
        names = {path.rstrip("/").rpartition("/")[2] for path in self.files.ls(self.root, detail=False)}
        return sorted(filter(is_checkpoint_name, names), key=lambda name: step_of(Path(name)))

    def _read(self, name: str, limit: int) -> bytes:
        """A small file at the URL. Raises ValueError if it is missing or too large."""
        path = f"{self.root}/{name}"
        if not self.files.exists(path):
            raise ValueError(f"{name} is missing")
        if self.files.info(path)["size"] > limit:
            raise ValueError(f"{name} is too large")
        return self.files.cat_file(path)

    def _read_json(self, name: str, limit: int) -> dict[str, Any]:
        try:
            data = json.loads(self._read(name, limit))
        except (ValueError, RecursionError) as error:
            raise ValueError(_short(error)) from error
        if not isinstance(data, dict):
            raise ValueError(f"{name} is not an object")
        return data

    # ---- in the thread --------------------------------------------------------------------

    def _upload_next(self) -> None:
        self._current, self._next = self._next, None
        if self._current is not None:
            try:
                self._upload(self._current)
            except Exception as error:  # of whichever library implements the storage
                self._messages.append(
                    f"could not upload {self._current.name} to {self.url} ({_short(error)}): "
                    "training continues, and the next checkpoint will be uploaded"
                )
            self._current = None

    def _upload(self, checkpoint: Path) -> None:
        target = f"{self.root}/{checkpoint.name}"
        if self._owner().id != self.run:  # taken over since `claim`
            raise ValueError("another run uploads to this URL: choose another checkpointing.upload")
        copies = self._copies()
        if checkpoint.name in copies:  # the same step, repeated after a resume
            if self._is_foreign(checkpoint.name):
                raise ValueError("another run's checkpoint has this name there")
            self.files.rm(target, recursive=True)
        self.files.makedirs(target, exist_ok=True)
        # state.json first, which says whose copy it is; the manifest last: without it a copy is incomplete.
        files = sorted(load_manifest(checkpoint), key=lambda name: name != STATE)
        for name in files:
            self.files.put_file(str(checkpoint / name), f"{target}/{name}")
        self._put_text(f"{checkpoint.name}/{MANIFEST}", (checkpoint / MANIFEST).read_text(encoding="utf-8"))
        self._put_text("latest", f"{checkpoint.name}\n")
        own = [name for name in self._copies() if not self._is_foreign(name)]
        for old in own[: -self.keep]:
            self.files.rm(f"{self.root}/{old}", recursive=True)

    def _put_text(self, name: str, text: str) -> None:
        """Write a small file under a temporary name and rename it: a kill leaves no half of it."""
        self.files.pipe_file(f"{self.root}/{name}.tmp", text.encode())
        self.files.mv(f"{self.root}/{name}.tmp", f"{self.root}/{name}")


def _short(error: Exception) -> str:
    text = re.sub(r"//[^/@\s]*@", "//...@", " ".join(str(error).split()))
    return text[:200] or type(error).__name__


def _without_credentials(url: str) -> str:
    """A URL for messages: without a user's name, password, or query, which may hold a signature."""
    return re.sub(r"//[^/@]*@", "//...@", url).partition("?")[0]
