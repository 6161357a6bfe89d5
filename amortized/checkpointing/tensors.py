"""The tensors of a checkpoint: saved and loaded by all ranks, or read on their own after training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from amortized.checkpointing.checkpoint import CheckpointError, best_of, list_checkpoints, verify
from amortized.parallel import World
from amortized.wording import command


def save_tensors(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Save tensors: each rank its shard of a DTensor, one rank all of any other tensor. Collective.

    Raises CheckpointError on all ranks if one fails.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    with _short_errors("{}"):
        dcp.save(
            tensors,
            storage_writer=writer,
            planner=planner,
            process_group=world.group,
            no_dist=world.size == 1,
        )


def load_tensors(checkpoint: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Load into `tensors` in place, each rank its shards. Collective.

    Raises CheckpointError on all ranks if a tensor is missing or has another shape.
    """
    reader = HuggingFaceStorageReader(str(checkpoint))
    mismatch = f"{checkpoint} does not fit the model of this config ({{}}): "
    with _short_errors(mismatch + "use the config.yaml of its run, or another checkpoint"):
        dcp.load(tensors, storage_reader=reader, process_group=world.group, no_dist=world.size == 1)


@contextmanager
def _short_errors(message: str) -> Iterator[None]:
    """Context: turn CheckpointException, which is not an Exception and prints pages, into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise CheckpointError(message.format(" ".join(str(cause).split()).rstrip("."))) from error


def tensor_names(checkpoint: Path) -> set[str]:
    """The names of all tensors in a verified checkpoint."""
    return set(HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata)


def read_part(checkpoint: Path, part: str) -> dict[str, Tensor]:
    """All tensors of a part (generator, ema, learned, optimizer) of a verified checkpoint, unsharded."""
    metadata = HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata) and name.startswith(f"{part}.")
    }
    load_tensors(checkpoint, tensors, World())
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items()}


# ---- after training ---------------------------------------------------------------------------


def find_checkpoint(run: Path, which: str = "newest") -> Path:
    """Find and verify a checkpoint of a run.

    `which` is newest, best (by the run's checkpointing.best_by) or a name such as step_000500. Raises
    CheckpointError if there is none or it is damaged.
    """
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        raise CheckpointError(
            f"{run} has no checkpoint: train first ({command('train', 'CONFIG', f'output={run}')})"
        )
    best = best_of(checkpoints)
    if which == "best" and best is None:
        raise CheckpointError(
            f"{run} was trained without checkpointing.best_by: use its newest checkpoint instead"
        )
    by_name = {path.name: path for path in checkpoints}
    checkpoint = {"newest": checkpoints[-1], "best": best}.get(which) or by_name.get(which)
    if checkpoint is None:
        raise CheckpointError(f"{run} has no checkpoint {which}: it has {', '.join(by_name)}")
    try:
        verify(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: remove it to use the one before") from error
    return checkpoint


def inference_part(checkpoint: Path) -> str:
    """The part to use after training: "ema" if the checkpoint has it, else "generator"."""
    return "ema" if any(name.startswith("ema.") for name in tensor_names(checkpoint)) else "generator"


def load_generator(run: Path, generator: nn.Module, which: str = "newest") -> Path:
    """Load a run's weights into `generator`, EMA weights if there are any; returns the checkpoint.

    Raises CheckpointError as `find_checkpoint`, and if the weights do not fit.
    """
    checkpoint = find_checkpoint(run, which)
    load_weights(checkpoint, generator)
    return checkpoint


def load_weights(checkpoint: Path, generator: nn.Module) -> None:
    """Load a verified checkpoint's weights into `generator`, EMA weights if there are any.

    Raises CheckpointError if they do not fit.
    """
    part = inference_part(checkpoint)
    weights = {f"{part}.{name}": value for name, value in generator.state_dict().items()}
    load_tensors(checkpoint, weights, World())
