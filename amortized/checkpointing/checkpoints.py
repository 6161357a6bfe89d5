"""The checkpoints of a run: saved in the background, pruned, restored on resume."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from amortized.checkpointing.checkpoint import (
    FORMAT,
    MANIFEST,
    STATE,
    CheckpointError,
    CheckpointMeta,
    best_of,
    file_digests,
    list_checkpoints,
    load_manifest,
    load_meta,
    named_checkpoints,
    newest_clause,
    step_of,
    unlisted_note,
    verify,
)
from amortized.checkpointing.config import CheckpointConfig
from amortized.checkpointing.files import PARTIAL, clean, delete, publish, retire
from amortized.checkpointing.identity import load_identity, new_identity, save_identity
from amortized.checkpointing.tensors import check_expected, load_tensors, save_tensors, tensor_sizes
from amortized.checkpointing.uploader import CheckpointUploader
from amortized.files import atomic_write_text, sync
from amortized.parallel import StoppedTogether, World
from amortized.untrusted import reason_of


class State(Protocol):
    """A state that can be saved and restored; see TrainingState."""

    def tensors(self) -> dict[str, Tensor]: ...
    def load_targets(self, sizes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]: ...
    def finish_loading(self, tensors: dict[str, Tensor], step: int) -> None: ...


class Checkpoints:
    """The checkpoints in a run's folder. Constructor, `save`, `wait` and `restore` are collective.

    `save` copies the tensors and returns; a thread with its own process group writes them. One checkpoint is
    written at a time: the next `save`, and `wait`, wait for it. The newest `keep` are retained, those of
    every `keep_every` steps, and the best. `folder` is RUN/checkpoints; RUN/run.json says which run it is.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, world: World) -> None:
        self.folder, self.config = folder, config
        has_uploader = config.upload is not None and world.is_main
        self.uploader = CheckpointUploader(str(config.upload), keep=config.keep) if has_uploader else None
        self.world = world.with_cpu_group()
        self._on_cuda = world.device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._messages: list[str] = []
        self._run = ""  # the run's id, on the main rank

    def save(self, state: State, meta: CheckpointMeta) -> None:
        """Start writing `step_NNNNNN`. Raises, like `wait`, if the previous one failed."""
        self.wait()
        # One stager per save: in torch 2.11 a stager that has staged or closed cannot be used again.
        stager = DefaultStager(StagingOptions(self._on_cuda, False, False, self._on_cuda))
        copied: Any = stager.stage(state.tensors())
        stager.close()
        self._pending = self._thread.submit(self._write, copied, meta)

    def wait(self) -> None:
        """Wait for a running save. Raises CheckpointError on all ranks if it failed on any."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def last_good(self) -> str:
        """A clause for messages that names the newest checkpoint; waits for a running save."""
        if self._pending is not None:
            self._pending.exception()  # waits without raising: `wait` raises it
        return newest_clause(self.folder)

    def pop_messages(self, *, last: bool = False) -> list[str]:
        """Return and clear messages about files; with `last`, wait for running uploads first."""
        messages = [] if self.uploader is None else self.uploader.pop_messages(wait=last)
        return [self._messages.pop(0) for _ in range(len(self._messages))] + messages

    def close(self) -> None:
        """Wait for running saves and uploads, and accept no more."""
        self._thread.shutdown()
        if self.uploader is not None:
            self.uploader.close()

    # ---- restore --------------------------------------------------------------------------

    def restore(self, state: State, prior: str, log: Callable[[str], None]) -> CheckpointMeta | None:
        """Load the newest intact checkpoint into `state`; None if there is no checkpoint at all.

        Logs and skips damaged checkpoints. If the folder has none, downloads an uploaded copy. Raises
        CheckpointError on all ranks if none is intact, if it does not fit `state`, if it was trained with
        a prior other than the one with fingerprint `prior`, or if the uploaded copies are another run's.
        """
        try:
            notes = self.world.run_on_all(lambda: self._prepare() if self.world.is_main else [])[0]
        except StoppedTogether as error:
            raise CheckpointError(str(error)) from error
        for note in notes:
            log(note)
        checkpoints = self.world.gather_objects(list_checkpoints(self.folder))[0]
        for path in reversed(checkpoints):
            try:
                self.world.run_on_all(lambda path=path: verify(path, self.world.rank, self.world.size))
            except StoppedTogether as error:
                log(f"{error}; trying the one before")
                continue
            if note := unlisted_note(path, load_manifest(path)):
                log(note)
            return self._load(path, state, prior, log)
        if checkpoints:
            raise CheckpointError(
                f"none of the {len(checkpoints)} checkpoints in {self.folder} is intact: "
                "restore a good copy, or start over with another output=FOLDER"
            )
        return None

    def _prepare(self) -> list[str]:
        """Clean the folder, identify the run, download a copy if there is no checkpoint; returns notes."""
        notes = clean(self.folder)
        local = list_checkpoints(self.folder)
        for path in named_checkpoints(self.folder):
            if path not in local:
                notes.append(f"{path} is a link or a file, not a checkpoint: it is skipped")
        stored = identity = load_identity(self.folder.parent)
        if self.uploader is not None:
            identity = self.uploader.claim(identity or new_identity(), is_new=not local)
            if identity != stored:
                save_identity(self.folder.parent, identity)
            if not local and (downloaded := self.uploader.download_newest(self.folder, notes.append)):
                notes.append(f"downloaded {downloaded} from {self.uploader.url}")
        self._run = "" if identity is None else identity.id
        return notes

    def _load(self, path: Path, state: State, prior: str, log: Callable[[str], None]) -> CheckpointMeta:
        meta = load_meta(path)
        if re.fullmatch("[0-9a-f]{16}", meta.prior) and prior:  # of a version that hashed less of the prior
            log(f"{path} is of an older version: whether prior.path still holds its prior is not checked")
        elif meta.prior != prior:
            raise CheckpointError(
                f"{path} was trained with another prior than prior.path now holds: "
                "restore the original weights, or start over with another output=FOLDER"
            )
        tensors = state.load_targets(tensor_sizes(path))
        check_expected(path, "generator", tensors)
        load_tensors(path, tensors, self.world)
        state.finish_loading(tensors, meta.step)
        return meta

    # ---- in the thread --------------------------------------------------------------------

    def _write(self, tensors: dict[str, Tensor], meta: CheckpointMeta) -> None:
        final = self.folder / f"step_{meta.step:06d}"
        partial = self.folder / f"{PARTIAL}{final.name}"
        is_main, run_on_all = self.world.is_main, self.world.run_on_all
        try:
            run_on_all(lambda: _make_empty(partial) if is_main else None)
            run_on_all(lambda: save_tensors(partial, tensors, self.world))
            shares = run_on_all(lambda: file_digests(partial.glob(f"shard-{self.world.rank + 1:05d}-*")))
            files = {name: entry for share in shares for name, entry in share.items()}
            run_on_all(lambda: self._finish(partial, final, meta, files) if is_main else None)
        except StoppedTogether as error:
            if is_main:
                delete(partial)  # free the disk space
            raise CheckpointError(
                f"cannot write {final} ({error}); {newest_clause(self.folder)}: free disk space, then resume"
            ) from error
        if is_main:
            self._tidy(final)

    def _finish(self, partial: Path, final: Path, meta: CheckpointMeta, files: dict[str, Any]) -> None:
        data = {"format": FORMAT, **asdict(replace(meta, run=self._run))}
        (partial / STATE).write_text(json.dumps(data) + "\n", encoding="utf-8")
        files |= file_digests([partial / STATE])
        (partial / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
        for file in [*partial.iterdir(), partial]:
            sync(file)
        self._note(publish(partial, final))

    def _tidy(self, newest: Path) -> None:
        """Name the newest checkpoint, remove those that need not be retained, upload. Failures are notes."""
        try:
            atomic_write_text(self.folder / "latest", f"{newest.name}\n")
            for path in self._superfluous():
                self._note(retire(path))
        except (OSError, CheckpointError) as error:
            self._note(f"could not name the newest checkpoint or remove old ones ({reason_of(error)})")
        if self.uploader is not None:
            self.uploader.upload(newest)

    def _superfluous(self) -> list[Path]:
        """The checkpoints that need not be retained."""
        checkpoints = list_checkpoints(self.folder)
        retained = {*checkpoints[-self.config.keep :], best_of(checkpoints)}
        if self.config.keep_every is not None:
            retained |= {path for path in checkpoints if step_of(path) % self.config.keep_every == 0}
        if self.uploader is not None:
            retained |= self.uploader.in_use
        return [path for path in checkpoints if path not in retained]

    def _note(self, message: str | None) -> None:
        if message is not None:
            self._messages.append(message)


def can_resume(folder: Path, config: CheckpointConfig) -> bool:
    """Whether a run in `folder` would resume, from a checkpoint there or from an uploaded copy.

    Raises ValueError if the URL of the copies cannot be read.
    """
    if list_checkpoints(folder / "checkpoints"):
        return True
    return config.upload is not None and CheckpointUploader(str(config.upload), keep=config.keep).has_copies()


def _make_empty(folder: Path) -> None:
    delete(folder)
    folder.mkdir(parents=True)
