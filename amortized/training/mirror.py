"""A second home for checkpoints, at any URL of fsspec: sent in the background, fetched by a bare machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec

from amortized.training.checkpoint import CheckpointError, check, is_name, step_of


class Mirror:
    """Copies of the newest checkpoints at a URL, each whole once its manifest is there.

    One is sent at a time; of those that are written meanwhile the newest is next. What fails is told, and
    stops nothing: the run has its own copy.
    """

    def __init__(self, url: str, *, keep: int) -> None:
        self.keep = keep
        try:
            self.files, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ValueError(f"trainer.upload={url} cannot be opened: {error}") from error
        self.url, self.root = url, path.rstrip("/")
        self.told: list[str] = []  # since somebody took them
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._current: Path | None = None
        self._next: Path | None = None

    @property
    def under_way(self) -> set[Path]:
        """What must not be removed yet."""
        return {path for path in (self._current, self._next) if path is not None}

    def offer(self, checkpoint: Path) -> None:
        """Begin to send a checkpoint, or do so when the one under way is done."""
        self._next = checkpoint
        self._thread.submit(self._send_next)

    def wait(self) -> None:
        """Until the newest one is there, or has failed."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Wait, and send no more."""
        self._thread.shutdown()

    def fetch(self, folder: Path, note: Callable[[str], None]) -> Path | None:
        """Bring the newest whole copy into a folder that has no checkpoint; None where there is no copy.

        Damaged ones are told to `note`. Raises CheckpointError where none is whole, or they cannot be had.
        """
        names: list[str] = []
        try:
            names = self._names()
            for name in reversed(names):
                partial = folder / f".partial_{name}"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                for source in self.files.ls(f"{self.root}/{name}", detail=False):
                    self.files.get_file(source, str(partial / Path(source).name))
                try:
                    check(partial)
                except CheckpointError as error:
                    note(f"{error}, as it came from {self.url}; taking the one before")
                    continue
                return partial.rename(folder / name)
        except OSError as error:
            raise CheckpointError(f"{self.url} cannot be read ({_short(error)})") from error
        if names:
            raise CheckpointError(
                f"none of the {len(names)} checkpoints at {self.url} can be read: put a good copy back, or "
                "start anew with another trainer.upload"
            )
        return None

    def _names(self) -> list[str]:
        """Copies at the URL, whole or not, oldest first."""
        if not self.files.exists(self.root):
            return []
        found = {path.rstrip("/").rpartition("/")[2] for path in self.files.ls(self.root, detail=False)}
        return sorted((name for name in found if is_name(name)), key=lambda name: step_of(Path(name)))

    # ---- in the thread --------------------------------------------------------------------

    def _send_next(self) -> None:
        self._current, self._next = self._next, None
        if self._current is not None:
            try:
                self._send(self._current)
            except Exception as error:  # of whatever library speaks to the storage
                self.told.append(
                    f"{self._current.name} could not be sent to {self.url} ({_short(error)}): "
                    "training goes on, and the next one will be sent"
                )
            self._current = None

    def _send(self, checkpoint: Path) -> None:
        there = f"{self.root}/{checkpoint.name}"
        if self.files.exists(there):  # the same step again, after a resume
            self.files.rm(there, recursive=True)
        self.files.makedirs(there, exist_ok=True)
        # The manifest last: without it a copy is none.
        for file in sorted(checkpoint.iterdir(), key=lambda path: path.name == "manifest.json"):
            self.files.put_file(str(file), f"{there}/{file.name}")
        self.files.pipe_file(f"{self.root}/latest", f"{checkpoint.name}\n".encode())
        for old in self._names()[: -self.keep]:
            self.files.rm(f"{self.root}/{old}", recursive=True)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
