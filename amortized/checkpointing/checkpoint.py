"""One checkpoint: a folder that is either complete or absent, verified before it is loaded.

    checkpoints/step_000500/{shard-*.safetensors, state.json, manifest.json}; latest

torch.distributed.checkpoint writes the tensors, each rank what it holds, as safetensors: any strategy on any
number of processes can load what any other saved, and nothing is ever unpickled. A folder is written under
a temporary name and flushed to disk, its manifest (size and SHA-256 of every file) last; then it is renamed.
`latest` names the newest, for people and for object storage.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"step_(\d{6,})")
FORMAT = 3


class CheckpointError(ValueError):
    """A checkpoint that could not be written or loaded; the message says which, why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class CheckpointMeta:
    """The metadata in `state.json`."""

    step: int  # optimizer steps taken
    prompts_seen: int  # position in the prompt order, independent of the number of processes
    prior: str  # fingerprint of the prior's weights, which are not saved
    text_dim: int  # width of the text embeddings that the generator takes
    score: float | None = None  # mean of checkpointing.best_by since the previous checkpoint; lower is better


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    checkpoints = [path for path in folder.iterdir() if path.is_dir() and is_checkpoint_name(path.name)]
    return sorted(checkpoints, key=step_of)


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder is named like a checkpoint."""
    return _NAME.fullmatch(name) is not None


def newest_clause(folder: Path) -> str:
    """A clause for messages that names the newest checkpoint."""
    checkpoints = list_checkpoints(folder)
    return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was written"


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, f"{checkpoint} is not named like a checkpoint"
    return int(match[1])


def load_meta(checkpoint: Path) -> CheckpointMeta:
    """The metadata of a verified checkpoint."""
    data = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return CheckpointMeta(**{name: data[name] for name in CheckpointMeta.__dataclass_fields__})


def best_of(checkpoints: list[Path]) -> Path | None:
    """The checkpoint with the lowest score, or None if none has a score."""
    scored = [(score, path) for path in checkpoints if (score := _score(path)) is not None]
    return min(scored)[1] if scored else None


def _score(checkpoint: Path) -> float | None:
    try:
        return load_meta(checkpoint).score
    except (OSError, ValueError, KeyError):  # damaged: `verify` reports it
        return None


def verify(checkpoint: Path, rank: int = 0, size: int = 1) -> None:
    """Raise CheckpointError if a file is missing or does not match the manifest.

    Each of `size` ranks reads its share of the files.
    """
    try:
        files = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["files"]
        for name in sorted(files)[rank::size]:
            if Path(name).name != name:
                raise ValueError("manifest.json names a file outside the folder")
            if file_digests([checkpoint / name])[name] != files[name]:
                raise ValueError(f"{name} has changed since it was written")
        if (
            rank == 0
            and json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["format"] != FORMAT
        ):
            raise ValueError("another version of this program wrote it")
    except OSError as error:
        raise CheckpointError(f"{checkpoint} is damaged ({error.strerror}: {error.filename})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint} is damaged ({error})") from error


def file_digests(files: Iterable[Path]) -> dict[str, dict]:
    """Size and SHA-256 of each file, by file name."""
    digests = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return digests
