"""Checkpoints: a folder per step, whole or absent, written while training goes on, verified when read.

    checkpoints/step_000500/{shard-*.safetensors, state.json, manifest.json}; latest

Tensors are written by torch.distributed.checkpoint, each process what it holds, in safetensors files: any
strategy on any number of processes can read what any other wrote, and nothing is ever unpickled. A folder
is written under a temporary name and flushed to disk; its manifest, with the size and SHA-256 of every
file, comes last; then it is renamed. `latest` names it, for people and for object storage.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from amortized.files import atomic_write_text, sync
from amortized.training.distributed import StoppedTogether, World

_NAME = re.compile(r"step_(\d{6,})")
FORMAT = 2


class CheckpointError(ValueError):
    """A checkpoint that could not be written or read; the message says which, why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What is kept besides tensors, in `state.json`."""

    step: int  # optimizer steps seen
    prompts_seen: int  # where the order of prompts goes on, whatever the number of processes then
    prior: str  # a fingerprint of the weights that teach, which are not kept


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything that continuing needs besides the config: randomness is a function of the step."""

    generator: nn.Module
    ema: nn.Module | None  # a copy of the generator with averaged weights
    optimizer: torch.optim.Optimizer
    learned: nn.Module | None = None  # what guidance learns of the renders
    prior: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, not copied, under names that are the same in every strategy."""
        found: dict[str, Tensor] = {}
        for part, module in self._modules().items():
            found |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
        for name, parameter in self._trained().items():
            kept = self.optimizer.state.get(parameter, {})
            found |= {f"optimizer.{name}.{key}": value for key, value in kept.items()}
        return found

    def make_room(self, names: set[str]) -> None:
        """Let the optimizer hold what a checkpoint has under these names, and nothing else; all zeros."""
        self.optimizer.state.clear()
        trained = {f"optimizer.{name}": parameter for name, parameter in self._trained().items()}
        for name in sorted(names):
            owner, _, key = name.rpartition(".")
            if (parameter := trained.get(owner)) is not None:
                scalar = torch.zeros((), dtype=torch.float32, device=parameter.device)
                value = scalar if key == "step" else torch.zeros_like(parameter, requires_grad=False)
                self.optimizer.state[parameter][key] = value

    def _modules(self) -> dict[str, nn.Module]:
        parts = {"generator": self.generator, "ema": self.ema, "learned": self.learned}
        return {part: module for part, module in parts.items() if module is not None}

    def _trained(self) -> dict[str, nn.Parameter]:
        parts = {part: module for part, module in self._modules().items() if part != "ema"}
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
        }


class Checkpoints:
    """The checkpoints of a run. All processes make one and call it alike.

    `save` copies what it is given and goes on; a thread writes, with a process group of its own. One is
    written at a time: the next `save`, and `wait`, wait for it first.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, keep_every: int | None = None) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.world = world.beside()
        on_cuda = world.device.type == "cuda"
        self._stager = DefaultStager(StagingOptions(on_cuda, False, False, on_cuda))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainingState, about: About) -> None:
        """Begin to write `step_NNNNNN`. Raises as `wait`, of the one before."""
        self.wait()
        copied: Any = self._stager.stage(state.tensors())
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
        return _newest(self.folder)

    def close(self) -> None:
        """Wait for what is being written, and write no more."""
        self._thread.shutdown()
        self._stager.close()

    def restore(self, state: TrainingState, note: Callable[[str], None]) -> About | None:
        """Load the newest checkpoint that is whole into `state`; None where there is none at all.

        What is damaged is told to `note`, and the one before is taken. Raises CheckpointError on all
        processes where none is whole, or where one does not fit the state.
        """
        if self.world.is_main:
            for left in self.folder.glob(".partial_*"):
                shutil.rmtree(left, ignore_errors=True)
        found = self.world.gather_objects(list_checkpoints(self.folder))[0]
        for path in reversed(found):
            try:
                self.world.together(lambda path=path: check(path, self.world.rank, self.world.size))
            except StoppedTogether as error:
                note(f"{error}; going on from the one before")
                continue
            return self._load(path, state)
        if found:
            raise CheckpointError(
                f"none of the {len(found)} checkpoints in {self.folder} can be read: "
                "put a good copy back, or start anew with output=FOLDER"
            )
        return None

    def _load(self, path: Path, state: TrainingState) -> About:
        about = about_of(path)
        if about.prior != state.prior:
            raise CheckpointError(
                f"{path} was taught by other weights than those that prior.path now holds: "
                "put them back, or start anew with output=FOLDER"
            )
        state.make_room(names_in(path))
        load_tensors(path, state.tensors(), self.world)
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
                f"{final} could not be written ({error}); {_newest(self.folder)}: make room, and go on"
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
        for old in list_checkpoints(self.folder)[: -self.keep]:
            if self.keep_every is None or step_of(old) % self.keep_every:
                shutil.rmtree(old)


# ---- a checkpoint's folder ------------------------------------------------------------------


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def _newest(folder: Path) -> str:
    kept = list_checkpoints(folder)
    return f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint had been written"


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that the checkpoint has seen, by its name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, f"{checkpoint} is not named like a checkpoint"
    return int(match[1])


def about_of(checkpoint: Path) -> About:
    """What is kept besides tensors, of a checked checkpoint."""
    told = json.loads((checkpoint / "state.json").read_text())
    return About(**{name: told[name] for name in About.__dataclass_fields__})


def check(checkpoint: Path, rank: int = 0, size: int = 1) -> None:
    """Raise CheckpointError where a file is missing or not as it was written.

    Of `size` processes each reads its share of the files.
    """
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        for name in sorted(files)[rank::size]:
            if Path(name).name != name:
                raise ValueError("manifest.json names a file elsewhere")
            if digests([checkpoint / name])[name] != files[name]:
                raise ValueError(f"{name} is not as it was written")
        if rank == 0 and json.loads((checkpoint / "state.json").read_text())["format"] != FORMAT:
            raise ValueError("another version of this program wrote it")
    except OSError as error:
        raise CheckpointError(f"{checkpoint} is damaged ({error.strerror}: {error.filename})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint} is damaged ({error})") from error


def digests(files: Iterable[Path]) -> dict[str, dict]:
    """Size and SHA-256 of files, by their names."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return found


def _make(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


# ---- its tensors ----------------------------------------------------------------------------


def save_tensors(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Write what the processes hold: of a DTensor each its part, of any other one of them all of it.

    Raises CheckpointError on all processes where one fails.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    with _told("{}"):
        dcp.save(
            tensors,
            storage_writer=writer,
            planner=planner,
            process_group=world.group,
            no_dist=world.size == 1,
        )


def load_tensors(checkpoint: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Read into tensors in place, each process what it holds of them.

    Raises CheckpointError on all processes where one is missing, or has another shape.
    """
    reader = HuggingFaceStorageReader(str(checkpoint))
    unfit = f"{checkpoint} does not fit the model of this config ({{}}): "
    with _told(unfit + "use the config.yaml of its run, or another checkpoint"):
        dcp.load(tensors, storage_reader=reader, process_group=world.group, no_dist=world.size == 1)


def names_in(checkpoint: Path) -> set[str]:
    """Names of all tensors in a checked checkpoint."""
    return set(HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata)


@contextmanager
def _told(sentence: str) -> Iterator[None]:
    """What torch.distributed.checkpoint raises, which is no Exception and has pages, in one sentence."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise CheckpointError(sentence.format(" ".join(str(cause).split()).rstrip("."))) from error


def tensors_in(checkpoint: Path, part: str) -> dict[str, Tensor]:
    """All tensors of a part (generator, ema, learned, optimizer) of a checked checkpoint, whole."""
    told = HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in told.items()
        if isinstance(entry, TensorStorageMetadata) and name.startswith(f"{part}.")
    }
    load_tensors(checkpoint, found, World())
    return {name.removeprefix(f"{part}."): value for name, value in found.items()}


def load_generator(run: Path, generator: nn.Module) -> Path:
    """Load the newest weights of a run in place, averaged ones where there are some; returns the checkpoint.

    Raises CheckpointError where the run has none, the newest is damaged, or it does not fit.
    """
    found = list_checkpoints(run / "checkpoints")
    if not found:
        raise CheckpointError(
            f"{run} holds no checkpoint: train it first (python train.py CONFIG output={run})"
        )
    checkpoint = found[-1]
    try:
        check(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: remove it, to take the one before") from error
    part = "ema" if any(name.startswith("ema.") for name in names_in(checkpoint)) else "generator"
    weights = {f"{part}.{name}": value for name, value in generator.state_dict().items()}
    load_tensors(checkpoint, weights, World())
    return checkpoint
