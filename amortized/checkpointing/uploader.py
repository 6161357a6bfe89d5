"""Copies of checkpoints at any fsspec URL: uploaded in the background, downloaded onto a new machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec

from amortized.checkpointing.checkpoint import CheckpointError, is_checkpoint_name, step_of, verify


class CheckpointUploader:
    """Uploads the newest checkpoints to a URL. A copy is complete once its manifest is there.

    One upload runs at a time; if several checkpoints are written meanwhile, only the newest follows. A
    failed upload is reported in a message and does not stop training: the run has its local copy.
    """

    def __init__(self, url: str, *, keep: int) -> None:
        self.keep = keep
        try:
            self.files, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ValueError(f"cannot open checkpointing.upload={url}: {error}") from error
        self.url, self.root = url, path.rstrip("/")
        self._messages: list[str] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._current: Path | None = None
        self._next: Path | None = None

    @property
    def in_use(self) -> set[Path]:
        """The checkpoints that must not be removed yet."""
        return {path for path in (self._current, self._next) if path is not None}

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

    def download_newest(self, folder: Path, log: Callable[[str], None]) -> Path | None:
        """Download the newest intact copy into a folder without checkpoints; None if there is no copy.

        Logs and skips damaged copies. Raises CheckpointError if none is intact or the URL cannot be read.
        """
        names: list[str] = []
        try:
            names = self._remote_names()
            for name in reversed(names):
                partial = folder / f".partial_{name}"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                for source in self.files.ls(f"{self.root}/{name}", detail=False):
                    self.files.get_file(source, str(partial / Path(source).name))
                try:
                    verify(partial)
                except CheckpointError as error:
                    log(f"{error} after the download from {self.url}; trying the one before")
                    continue
                return partial.rename(folder / name)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.url} ({_short(error)})") from error
        if names:
            raise CheckpointError(
                f"none of the {len(names)} checkpoints at {self.url} is intact: restore a good copy, or "
                "start over with another checkpointing.upload"
            )
        return None

    def _remote_names(self) -> list[str]:
        """The copies at the URL, complete or not, oldest first."""
        if not self.files.exists(self.root):
            return []
        names = {path.rstrip("/").rpartition("/")[2] for path in self.files.ls(self.root, detail=False)}
        return sorted(filter(is_checkpoint_name, names), key=lambda name: step_of(Path(name)))

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
        if self.files.exists(target):  # the same step, repeated after a resume
            self.files.rm(target, recursive=True)
        self.files.makedirs(target, exist_ok=True)
        # The manifest goes last: a copy without it is incomplete.
        for file in sorted(checkpoint.iterdir(), key=lambda path: path.name == "manifest.json"):
            self.files.put_file(str(file), f"{target}/{file.name}")
        self.files.pipe_file(f"{self.root}/latest", f"{checkpoint.name}\n".encode())
        for old in self._remote_names()[: -self.keep]:
            self.files.rm(f"{self.root}/{old}", recursive=True)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
