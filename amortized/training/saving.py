"""A run's checkpoints: written while training goes on, kept and let go, found again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from amortized.files import atomic_write_text, sync
from amortized.training.checkpoint import (
    FORMAT,
    About,
    CheckpointError,
    about_of,
    best_of,
    check,
    digests,
    list_checkpoints,
    load_tensors,
    names_in,
    newest_clause,
    save_tensors,
    step_of,
)
from amortized.training.distributed import StoppedTogether, World
from amortized.training.mirror import Mirror


class State(Protocol):
    """What can be saved and gone on from; see TrainingState."""

    def tensors(self) -> dict[str, Tensor]: ...
    def room(self, names: set[str]) -> dict[str, Tensor]: ...
    def settle(self, tensors: dict[str, Tensor], step: int) -> None: ...


class Checkpoints:
    """The checkpoints of a run. All processes make one and call it alike.

    `save` copies what it is given and goes on; a thread writes, with a process group of its own. One is
    written at a time: the next `save`, and `wait`, wait for it first. The newest `keep` stay, those of every
    `keep_every` steps, and the best.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        keep: int,
        keep_every: int | None = None,
        upload: str | None = None,
    ) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.mirror = Mirror(upload, keep=keep) if upload is not None and world.is_main else None
        self.world = world.beside()
        self._on_cuda = world.device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: State, about: About) -> None:
        """Begin to write `step_NNNNNN`. Raises as `wait`, of the one before."""
        self.wait()
        # A new one each time: in torch 2.11 one that has staged, or is closed, has lost what it works with.
        stager = DefaultStager(StagingOptions(self._on_cuda, False, False, self._on_cuda))
        copied: Any = stager.stage(state.tensors())
        stager.close()
        self._writing = self._thread.submit(self._write, copied, about)

    def wait(self) -> None:
        """Until nothing is being written.

        Raises CheckpointError on all processes where what was could not be, on any of them.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def last_good(self) -> str:
        """A clause for messages: what there is to go on from."""
        if self._writing is not None:
            self._writing.exception()  # waits; what it raises is for `wait` to raise
        return newest_clause(self.folder)

    def told(self, *, last: bool = False) -> list[str]:
        """What is to be said of copies that were sent elsewhere since the last time; all, if `last`."""
        if self.mirror is None:
            return []
        if last:
            self.mirror.wait()
        told = self.mirror.told
        return [told.pop(0) for _ in range(len(told))]

    def close(self) -> None:
        """Wait for what is being written and sent, and write no more."""
        self._thread.shutdown()
        if self.mirror is not None:
            self.mirror.close()

    def restore(self, state: State, prior: str, note: Callable[[str], None]) -> About | None:
        """Load the newest checkpoint that is whole into `state`; None where there is none at all.

        What is damaged is told to `note`, and the one before is taken. Where the folder has none, a copy
        that was sent elsewhere is. Raises CheckpointError on all processes where none is whole, where one
        does not fit the state, or where it was taught by other weights than `prior` is the fingerprint of.
        """
        if self.world.is_main:
            for left in self.folder.glob(".partial_*"):
                shutil.rmtree(left, ignore_errors=True)
        fetched = self.world.together(lambda: self._fetch(note))[0]
        if fetched is not None:
            note(f"{fetched} was brought back from trainer.upload")
        found = self.world.gather_objects(list_checkpoints(self.folder))[0]
        for path in reversed(found):
            try:
                self.world.together(lambda path=path: check(path, self.world.rank, self.world.size))
            except StoppedTogether as error:
                note(f"{error}; going on from the one before")
                continue
            return self._load(path, state, prior)
        if found:
            raise CheckpointError(
                f"none of the {len(found)} checkpoints in {self.folder} can be read: "
                "put a good copy back, or start anew with output=FOLDER"
            )
        return None

    def _fetch(self, note: Callable[[str], None]) -> Path | None:
        if self.mirror is None or list_checkpoints(self.folder):
            return None
        return self.mirror.fetch(self.folder, note)

    def _load(self, path: Path, state: State, prior: str) -> About:
        about = about_of(path)
        if about.prior != prior:
            raise CheckpointError(
                f"{path} was taught by other weights than those that prior.path now holds: "
                "put them back, or start anew with output=FOLDER"
            )
        tensors = state.room(names_in(path))
        load_tensors(path, tensors, self.world)
        state.settle(tensors, about.step)
        return about

    # ---- in the thread --------------------------------------------------------------------

    def _write(self, tensors: dict[str, Tensor], about: About) -> None:
        final = self.folder / f"step_{about.step:06d}"
        partial = self.folder / f".partial_{final.name}"
        main, together = self.world.is_main, self.world.together
        try:
            together(lambda: _make(partial) if main else None)
            together(lambda: save_tensors(partial, tensors, self.world))
            told = together(lambda: digests(partial.glob(f"shard-{self.world.rank + 1:05d}-*")))
            files = {name: entry for part in told for name, entry in part.items()}
            together(lambda: self._finish(partial, final, about, files) if main else None)
        except StoppedTogether as error:
            if main:
                shutil.rmtree(partial, ignore_errors=True)  # room for what comes
            raise CheckpointError(
                f"{final} could not be written ({error}); {newest_clause(self.folder)}: make room, and go on"
            ) from error

    def _finish(self, partial: Path, final: Path, about: About, files: dict[str, dict]) -> None:
        (partial / "state.json").write_text(json.dumps({"format": FORMAT, **asdict(about)}) + "\n")
        files |= digests([partial / "state.json"])
        (partial / "manifest.json").write_text(json.dumps({"files": files}, indent=1) + "\n")
        for file in [*partial.iterdir(), partial]:
            sync(file)
        if final.exists():  # the same step again, after a resume
            shutil.rmtree(final)
        partial.rename(final)
        sync(self.folder)
        atomic_write_text(self.folder / "latest", f"{final.name}\n")
        self._let_go()
        if self.mirror is not None:
            self.mirror.offer(final)

    def _let_go(self) -> None:
        """Remove what need not stay."""
        found = list_checkpoints(self.folder)
        kept = {*found[-self.keep :], best_of(found)}
        if self.keep_every is not None:
            kept |= {path for path in found if step_of(path) % self.keep_every == 0}
        if self.mirror is not None:
            kept |= self.mirror.under_way
        for path in found:
            if path not in kept:
                shutil.rmtree(path)


def _make(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
