"""Checkpoints, the lock on a run's folder, and uploads."""

from amortized.checkpointing.checkpoint import CheckpointError, CheckpointMeta, list_checkpoints, load_meta
from amortized.checkpointing.checkpoints import Checkpoints
from amortized.checkpointing.config import CheckpointConfig
from amortized.checkpointing.run_folder import STOP_FILE, Resume, open_run
from amortized.checkpointing.tensors import (
    find_checkpoint,
    inference_part,
    load_generator,
    load_weights,
    read_part,
)

__all__ = [
    "STOP_FILE",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointMeta",
    "Checkpoints",
    "Resume",
    "find_checkpoint",
    "inference_part",
    "list_checkpoints",
    "load_generator",
    "load_meta",
    "load_weights",
    "open_run",
    "read_part",
]
