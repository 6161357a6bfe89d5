"""The tensors of a checkpoint: saved and loaded by all ranks, or read on their own after training."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem

from amortized.checkpointing.checkpoint import (
    CheckpointError,
    best_of,
    list_checkpoints,
    load_manifest,
    named_checkpoints,
    shard_names,
    unlisted_note,
    verify,
)
from amortized.checkpointing.shards import stored_tensors
from amortized.density_control import fit_rows
from amortized.parallel import World
from amortized.untrusted import short
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
    mismatch = f"{checkpoint} does not fit the model of this config ({{}}): "
    with _short_errors(mismatch + "use the config.yaml of its run, or another checkpoint"):
        dcp.load(
            tensors,
            storage_reader=_reader_of(checkpoint),
            process_group=world.group,
            no_dist=world.size == 1,
        )


class _ListedFiles(FileSystem):
    """The files that a manifest lists, for a reader that would otherwise read all that are in the folder."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    def ls(self, path: str | os.PathLike) -> list[str]:
        return [str(Path(path) / name) for name in self._names]


def _reader_of(checkpoint: Path) -> HuggingFaceStorageReader:
    """A reader of the listed files of a verified checkpoint."""
    reader = HuggingFaceStorageReader(str(checkpoint))
    reader.fs = _ListedFiles(shard_names(checkpoint))
    return reader


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


def tensor_sizes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """The sizes of all tensors in a verified checkpoint, by name."""
    return {name: entry.shape for name, entry in stored_tensors(checkpoint).items()}


def read_part(checkpoint: Path, part: str) -> dict[str, Tensor]:
    """All tensors of a part (generator, ema, learned, optimizer) of a verified checkpoint, unsharded.

    Raises CheckpointError if their files are damaged.
    """
    tensors = {
        name: torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
        for name, entry in stored_tensors(checkpoint).items()
        if name.startswith(f"{part}.")
    }
    load_tensors(checkpoint, tensors, World())
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items()}


# ---- after training ---------------------------------------------------------------------------


def find_checkpoint(run: Path, which: str = "newest") -> Path:
    """Find and verify a checkpoint of a run.

    `which` is newest, best (by the run's checkpointing.best_by) or a name such as step_000500. Raises
    CheckpointError if there is none or it is damaged.
    """
    folder = run / "checkpoints"
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        links = "; links to checkpoints are not followed" if named_checkpoints(folder) else ""
        train = command("train", "CONFIG", f"output={run}")
        raise CheckpointError(f"{run} has no checkpoint: train first ({train}){links}")
    best = best_of(checkpoints) if which == "best" else None
    if which == "best" and best is None:
        raise CheckpointError(
            f"{run} was trained without checkpointing.best_by: use its newest checkpoint instead"
        )
    by_name = {path.name: path for path in checkpoints}
    checkpoint = {"newest": checkpoints[-1], "best": best}.get(which) or by_name.get(which)
    if checkpoint is None:
        raise CheckpointError(f"{run} has no checkpoint {short(which)}: it has {', '.join(by_name)}")
    try:
        verify(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: remove it to use the one before") from error
    if note := unlisted_note(checkpoint, load_manifest(checkpoint)):
        logging.getLogger("amortized").warning("%s", note)
    return checkpoint


def inference_part(checkpoint: Path) -> str:
    """The part to use after training: "ema" if the checkpoint has it, else "generator"."""
    return "ema" if any(name.startswith("ema.") for name in tensor_sizes(checkpoint)) else "generator"


def load_generator(run: Path, generator: nn.Module, which: str = "newest") -> Path:
    """Load a run's weights into `generator`, EMA weights if there are any; returns the checkpoint.

    Raises CheckpointError as `find_checkpoint`, and if the weights do not fit.
    """
    checkpoint = find_checkpoint(run, which)
    load_weights(checkpoint, generator)
    return checkpoint


def load_weights(checkpoint: Path, generator: nn.Module) -> None:
    """Load a verified checkpoint's weights into `generator`, EMA weights if there are any.

    Raises CheckpointError if a tensor is missing, unexpected, of another shape, or not finite.
    """
    part = inference_part(checkpoint)
    stored = tensor_sizes(checkpoint)
    fit_rows(generator, {name.removeprefix(f"{part}."): shape for name, shape in stored.items()})
    weights = {f"{part}.{name}": value for name, value in generator.state_dict().items()}
    check_expected(checkpoint, part, weights)
    load_tensors(checkpoint, weights, World())
    if name := first_not_finite(weights):
        raise CheckpointError(f"{checkpoint} cannot be used ({name} has values that are not finite)")


def check_expected(checkpoint: Path, part: str, expected: Iterable[str]) -> None:
    """Raise CheckpointError if a part of a checkpoint has a tensor that is not `expected`."""
    stored = {name for name in tensor_sizes(checkpoint) if name.startswith(f"{part}.")}
    if unexpected := sorted(stored - set(expected)):
        raise CheckpointError(
            f"{checkpoint} does not fit the model of this config (which has no {short(unexpected[0])}): use "
            "the config.yaml of its run, or another checkpoint"
        )


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite; None without one."""
    return next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None)
