"""The checkpoints of a run: saved in the background, pruned, restored on resume."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from amortized.checkpointing.checkpoint import (
    FORMAT,
    CheckpointError,
    CheckpointMeta,
    best_of,
    file_digests,
    list_checkpoints,
    load_meta,
    newest_clause,
    step_of,
    verify,
)
from amortized.checkpointing.config import CheckpointConfig
from amortized.checkpointing.tensors import load_tensors, save_tensors, tensor_names
from amortized.checkpointing.uploader import CheckpointUploader
from amortized.files import atomic_write_text, sync
from amortized.parallel import StoppedTogether, World


class State(Protocol):
    """A state that can be saved and restored; see TrainingState."""

    def tensors(self) -> dict[str, Tensor]: ...
    def load_targets(self, names: set[str]) -> dict[str, Tensor]: ...
    def finish_loading(self, tensors: dict[str, Tensor], step: int) -> None: ...


class Checkpoints:
    """The checkpoints in a run's folder. Constructor, `save`, `wait` and `restore` are collective.

    `save` copies the tensors and returns; a thread with its own process group writes them. One checkpoint is
    written at a time: the next `save`, and `wait`, wait for it. The newest `keep` are retained, those of
    every `keep_every` steps, and the best.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, world: World) -> None:
        self.folder, self.config = folder, config
        has_uploader = config.upload is not None and world.is_main
        self.uploader = CheckpointUploader(str(config.upload), keep=config.keep) if has_uploader else None
        self.world = world.with_cpu_group()
        self._on_cuda = world.device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

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
        """Return and clear pending upload messages; with `last`, wait for running uploads first."""
        return [] if self.uploader is None else self.uploader.pop_messages(wait=last)

    def close(self) -> None:
        """Wait for running saves and uploads, and accept no more."""
        self._thread.shutdown()
        if self.uploader is not None:
            self.uploader.close()

    # ---- restore --------------------------------------------------------------------------

    def restore(self, state: State, prior: str, log: Callable[[str], None]) -> CheckpointMeta | None:
        """Load the newest intact checkpoint into `state`; None if there is no checkpoint at all.

        Logs and skips damaged checkpoints. If the folder has none, downloads an uploaded copy. Raises
        CheckpointError on all ranks if none is intact, if it does not fit `state`, or if it was trained with
        a prior other than the one with fingerprint `prior`.
        """
        if self.world.is_main:
            for partial in self.folder.glob(".partial_*"):
                shutil.rmtree(partial, ignore_errors=True)
        downloaded = self.world.run_on_all(lambda: self._download(log))[0]
        if downloaded is not None:
            log(f"downloaded {downloaded} from {self.config.upload}")
        checkpoints = self.world.gather_objects(list_checkpoints(self.folder))[0]
        for path in reversed(checkpoints):
            try:
                self.world.run_on_all(lambda path=path: verify(path, self.world.rank, self.world.size))
            except StoppedTogether as error:
                log(f"{error}; trying the one before")
                continue
            return self._load(path, state, prior, log)
        if checkpoints:
            raise CheckpointError(
                f"none of the {len(checkpoints)} checkpoints in {self.folder} is intact: "
                "restore a good copy, or start over with another output=FOLDER"
            )
        return None

    def _download(self, log: Callable[[str], None]) -> Path | None:
        if self.uploader is None or list_checkpoints(self.folder):
            return None
        return self.uploader.download_newest(self.folder, log)

    def _load(self, path: Path, state: State, prior: str, log: Callable[[str], None]) -> CheckpointMeta:
        meta = load_meta(path)
        if re.fullmatch("[0-9a-f]{16}", meta.prior) and prior:  # of a version that hashed less of the prior
            log(f"{path} is of an older version: whether prior.path still holds its prior is not checked")
        elif meta.prior != prior:
            raise CheckpointError(
                f"{path} was trained with another prior than prior.path now holds: "
                "restore the original weights, or start over with another output=FOLDER"
            )
        tensors = state.load_targets(tensor_names(path))
        load_tensors(path, tensors, self.world)
        state.finish_loading(tensors, meta.step)
        return meta

    # ---- in the thread --------------------------------------------------------------------

    def _write(self, tensors: dict[str, Tensor], meta: CheckpointMeta) -> None:
        final = self.folder / f"step_{meta.step:06d}"
        partial = self.folder / f".partial_{final.name}"
        is_main, run_on_all = self.world.is_main, self.world.run_on_all
        try:
            run_on_all(lambda: _make_empty(partial) if is_main else None)
            run_on_all(lambda: save_tensors(partial, tensors, self.world))
            shares = run_on_all(lambda: file_digests(partial.glob(f"shard-{self.world.rank + 1:05d}-*")))
            files = {name: entry for share in shares for name, entry in share.items()}
            run_on_all(lambda: self._finish(partial, final, meta, files) if is_main else None)
        except StoppedTogether as error:
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)  # free the disk space
            raise CheckpointError(
                f"cannot write {final} ({error}); {newest_clause(self.folder)}: free disk space, then resume"
            ) from error

    def _finish(self, partial: Path, final: Path, meta: CheckpointMeta, files: dict[str, dict]) -> None:
        (partial / "state.json").write_text(json.dumps({"format": FORMAT, **asdict(meta)}) + "\n")
        files |= file_digests([partial / "state.json"])
        (partial / "manifest.json").write_text(json.dumps({"files": files}, indent=1) + "\n")
        for file in [*partial.iterdir(), partial]:
            sync(file)
        if final.exists():  # the same step, repeated after a resume
            shutil.rmtree(final)
        partial.rename(final)
        sync(self.folder)
        atomic_write_text(self.folder / "latest", f"{final.name}\n")
        self._prune()
        if self.uploader is not None:
            self.uploader.upload(final)

    def _prune(self) -> None:
        """Remove the checkpoints that need not be retained."""
        checkpoints = list_checkpoints(self.folder)
        retained = {*checkpoints[-self.config.keep :], best_of(checkpoints)}
        if self.config.keep_every is not None:
            retained |= {path for path in checkpoints if step_of(path) % self.config.keep_every == 0}
        if self.uploader is not None:
            retained |= self.uploader.in_use
        for path in checkpoints:
            if path not in retained:
                shutil.rmtree(path)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
