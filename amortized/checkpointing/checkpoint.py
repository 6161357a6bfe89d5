"""One checkpoint: a folder that is either complete or absent, verified before it is loaded.

    checkpoints/step_000500/{shard-*.safetensors, state.json, manifest.json}; latest

torch.distributed.checkpoint writes the tensors, each rank what it holds, as safetensors: any strategy on any
number of processes can load what any other saved, and nothing is ever unpickled. A folder is written under
a temporary name and flushed to disk, its manifest (size and SHA-256 of every file) last; then it is renamed.
`latest` names the newest, for people and for object storage. Only files that the manifest lists are read.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.untrusted import open_regular, read_json_object, reason_of, short

_NAME = re.compile(r"step_([0-9]{6,12})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
FORMAT = 3
MANIFEST, STATE, SHARD_SUFFIX = "manifest.json", "state.json", ".safetensors"
STATE_LIMIT = 2**16  # bytes; ours have 200


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
    run: str = ""  # id of the run, see `RunIdentity`; empty: written before runs had one


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first. A link is not one."""
    return [path for path in named_checkpoints(folder) if path.is_dir() and not path.is_symlink()]


def named_checkpoints(folder: Path) -> list[Path]:
    """All entries of a folder that are named like a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    try:
        names = [path for path in folder.iterdir() if is_checkpoint_name(path.name)]
    except OSError as error:
        raise CheckpointError(f"cannot read {short(folder)}: {reason_of(error)}") from error
    return sorted(names, key=step_of)


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder is named like a checkpoint."""
    return _NAME.fullmatch(name) is not None


def newest_clause(folder: Path) -> str:
    """A clause for messages that names the newest checkpoint."""
    try:
        checkpoints = list_checkpoints(folder)
    except CheckpointError as error:
        return str(error)
    return f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was written"


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, f"{checkpoint} is not named like a checkpoint"
    return int(match[1])


# ---- state.json -------------------------------------------------------------------------------


def load_meta(checkpoint: Path) -> CheckpointMeta:
    """The metadata of a checkpoint. Raises CheckpointError if `state.json` is damaged."""
    try:
        meta = parse_meta(read_json_object(checkpoint / STATE, STATE_LIMIT))
        if is_checkpoint_name(checkpoint.name) and meta.step != step_of(checkpoint):
            raise ValueError(f"{STATE} is that of step {meta.step}")
    except ValueError as error:
        raise CheckpointError(f"{short(checkpoint)} is damaged ({error})") from error
    return meta


def parse_meta(data: Mapping[str, Any]) -> CheckpointMeta:
    """The metadata in the data of a `state.json`. Raises ValueError."""
    if data.get("format") != FORMAT:
        raise ValueError("another version of this program wrote it")
    numbers = {name: data.get(name) for name in ("step", "prompts_seen", "text_dim")}
    for name, value in numbers.items():
        if type(value) is not int or not 0 <= value < 2**53:
            raise ValueError(f"{STATE} has no valid {name}")
    texts = {"prior": data.get("prior"), "run": data.get("run", "")}
    for name, value in texts.items():
        if not isinstance(value, str) or len(value) > 1000:
            raise ValueError(f"{STATE} has no valid {name}")
    score = data.get("score")
    if score is not None and type(score) not in (int, float):
        raise ValueError(f"{STATE} has no valid score")
    # An integer may be too large for a float; a mean may have been infinite.
    score = float(score) if score is not None and abs(score) < 1e300 and math.isfinite(score) else None
    return CheckpointMeta(**numbers, **texts, score=score)  # pyright: ignore[reportArgumentType]


def best_of(checkpoints: list[Path]) -> Path | None:
    """The checkpoint with the lowest score, or None if none has a score. Damaged ones are skipped."""
    scored = [(score, path) for path in checkpoints if (score := _score(path)) is not None]
    return min(scored)[1] if scored else None


def _score(checkpoint: Path) -> float | None:
    try:
        return load_meta(checkpoint).score
    except CheckpointError:  # `verify` reports it
        return None


# ---- the manifest -----------------------------------------------------------------------------


@dataclass(frozen=True)
class FileDigest:
    """Size in bytes and SHA-256, in hexadecimal digits, of a file."""

    bytes: int
    sha256: str


def load_manifest(checkpoint: Path) -> dict[str, FileDigest]:
    """The files that a checkpoint consists of, by name. Raises CheckpointError if there is no valid manifest.

    They are files of the folder itself: state.json, and one shard of tensors or more.
    """
    try:
        if checkpoint.is_symlink():
            raise ValueError("it is a link to another folder")
        files = parse_digests(read_json_object(checkpoint / MANIFEST).get("files"), MANIFEST)
        if STATE not in files or not any(name.endswith(SHARD_SUFFIX) for name in files):
            raise ValueError(f"{MANIFEST} lists no {STATE}, or no {SHARD_SUFFIX} file")
    except ValueError as error:
        raise CheckpointError(f"{short(checkpoint)} is damaged ({error})") from error
    return files


def parse_digests(files: Any, where: str) -> dict[str, FileDigest]:
    """Digests by file name, as in a manifest; `where` names it in messages. Raises ValueError."""
    if not isinstance(files, dict):
        raise ValueError(f"{where} lists no files")
    digests = {}
    for name, entry in files.items():
        if not is_plain_name(name):
            raise ValueError(f"{where} names a file outside the folder")
        if not isinstance(entry, dict) or entry.keys() != {"bytes", "sha256"}:
            raise ValueError(f"{where} has no size and digest of {name}")
        size, digest = entry["bytes"], entry["sha256"]
        if type(size) is not int or not 0 <= size < 2**53:
            raise ValueError(f"{where} has no valid size of {name}")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"{where} has no valid digest of {name}")
        digests[name] = FileDigest(size, digest)
    return digests


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a visible file in the folder itself, on every system."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", name) is not None


def shard_names(checkpoint: Path) -> list[str]:
    """The names of the files with tensors, as the manifest lists them."""
    return sorted(name for name in load_manifest(checkpoint) if name.endswith(SHARD_SUFFIX))


def verify(checkpoint: Path, rank: int = 0, size: int = 1) -> None:
    """Raise CheckpointError if a listed file is missing or does not match the manifest.

    Each of `size` ranks reads its share of the files.
    """
    files = load_manifest(checkpoint)
    try:
        for name in sorted(files)[rank::size]:
            check_digest(checkpoint / name, files[name])
    except ValueError as error:
        raise CheckpointError(f"{short(checkpoint)} is damaged ({error})") from error
    load_meta(checkpoint)


def check_digest(path: Path, expected: FileDigest) -> None:
    """Raise ValueError if a file is missing or has another size or digest."""
    try:
        with open_regular(path, expected.bytes) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise ValueError(f"cannot read {path.name}: {reason_of(error)}") from error
    if FileDigest(size, found) != expected:
        raise ValueError(f"{path.name} has changed since it was written")


def file_digests(files: Iterable[Path]) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of each file, by file name: the entries of a manifest."""
    digests: dict[str, dict[str, int | str]] = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.name] = {"bytes": file.tell(), "sha256": digest}
    return digests


def unlisted_note(folder: Path, listed: Iterable[str]) -> str | None:
    """A note that names the files of a folder that are not `listed`, and are not read; None without any."""
    known = {*listed, MANIFEST}
    try:
        others = sorted(path.name for path in folder.iterdir() if path.name not in known)
    except OSError:
        return None
    if not others:
        return None
    if all(name.startswith("._") for name in others):
        return f"{short(folder)} holds files of macOS ({others[0]}), which are ignored"
    shown = ", ".join(short(name) for name in others[:3]) + (", ..." if len(others) > 3 else "")
    return f"{short(folder)} holds files that its list does not name, and which are not read: {shown}"
