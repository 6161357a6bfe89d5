"""Checkpoints, the lock on a run's folder, and uploads."""

from amortized.checkpointing.checkpoint import (
    CheckpointError,
    CheckpointMeta,
    FileDigest,
    check_digest,
    file_digests,
    list_checkpoints,
    load_manifest,
    load_meta,
    parse_digests,
    unlisted_note,
)
from amortized.checkpointing.checkpoints import Checkpoints, can_resume
from amortized.checkpointing.config import CheckpointConfig
from amortized.checkpointing.files import PARTIAL, delete
from amortized.checkpointing.identity import check_corpus
from amortized.checkpointing.run_folder import STOP_FILE, Resume, open_run
from amortized.checkpointing.shards import stored_tensors
from amortized.checkpointing.tensors import (
    find_checkpoint,
    first_not_finite,
    inference_part,
    load_generator,
    load_weights,
    read_part,
)

__all__ = [
    "PARTIAL",
    "STOP_FILE",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointMeta",
    "Checkpoints",
    "FileDigest",
    "Resume",
    "can_resume",
    "check_corpus",
    "check_digest",
    "delete",
    "file_digests",
    "find_checkpoint",
    "first_not_finite",
    "inference_part",
    "list_checkpoints",
    "load_generator",
    "load_manifest",
    "load_meta",
    "load_weights",
    "open_run",
    "parse_digests",
    "read_part",
    "stored_tensors",
    "unlisted_note",
]
