"""A checkpoint: a folder that is whole or absent, verified when it is read.

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
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from amortized.training.distributed import World

_NAME = re.compile(r"step_(\d{6,})")
FORMAT = 3


class CheckpointError(ValueError):
    """A checkpoint that could not be written or read; the message says which, why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What is kept besides tensors, in `state.json`."""

    step: int  # optimizer steps seen
    prompts_seen: int  # where the order of prompts goes on, whatever the number of processes then
    prior: str  # a fingerprint of the weights that teach, which are not kept
    text_dim: int  # width of the text that the generator reads
    score: float | None = None  # mean of trainer.best_by since the checkpoint before; lower is better


# ---- a checkpoint's folder ------------------------------------------------------------------


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and is_name(path.name)]
    return sorted(found, key=step_of)


def is_name(name: str) -> bool:
    """Whether a folder is named like a checkpoint."""
    return _NAME.fullmatch(name) is not None


def newest_clause(folder: Path) -> str:
    """For messages: what there is to go on from."""
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


def best_of(checkpoints: list[Path]) -> Path | None:
    """The one with the least score; None where none has one."""
    scored = [(score, path) for path in checkpoints if (score := _score(path)) is not None]
    return min(scored)[1] if scored else None


def _score(checkpoint: Path) -> float | None:
    try:
        return about_of(checkpoint).score
    except (OSError, ValueError, KeyError):  # damaged, which is for `check` to say
        return None


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


def load_generator(run: Path, generator: nn.Module, which: str = "newest") -> Path:
    """Load the weights of a run in place, averaged ones where there are some; returns the checkpoint.

    `which` is newest, best (of those kept, by the run's trainer.best_by) or the name of one. Raises
    CheckpointError where there is none, it is damaged, or it does not fit.
    """
    checkpoint = find_checkpoint(run, which)
    part = averaged_part(checkpoint)
    weights = {f"{part}.{name}": value for name, value in generator.state_dict().items()}
    load_tensors(checkpoint, weights, World())
    return checkpoint


def find_checkpoint(run: Path, which: str) -> Path:
    """A checked checkpoint of a run; see `load_generator`."""
    found = list_checkpoints(run / "checkpoints")
    if not found:
        raise CheckpointError(
            f"{run} holds no checkpoint: train it first (python train.py CONFIG output={run})"
        )
    if which == "best" and best_of(found) is None:
        raise CheckpointError(f"{run} was trained without trainer.best_by: ask for its newest checkpoint")
    named = {path.name: path for path in found}
    checkpoint = {"newest": found[-1], "best": best_of(found)}.get(which) or named.get(which)
    if checkpoint is None:
        raise CheckpointError(f"{run} has no checkpoint {which}: it has {', '.join(named)}")
    try:
        check(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: remove it, to take the one before") from error
    return checkpoint


def averaged_part(checkpoint: Path) -> str:
    """The part to be used: ema where there is one, else generator."""
    return "ema" if any(name.startswith("ema.") for name in names_in(checkpoint)) else "generator"
