"""The on-disk format of encoded prompts: tar shards, readable by webdataset, with an index for random access.

    FOLDER/plan.json             the EncodingPlan; written first, so that a run with other settings is refused
    FOLDER/manifest.json         the Manifest; written last: without it, the encoding is unfinished
    FOLDER/keys.npy, places.npy  for each prompt, sorted by key: its key; its shard, offset, size and CRC-32
    FOLDER/shards/000000.tar     KEY.txt (the prompt) and KEY.safetensors (its rows), for some hundred prompts
    FOLDER/shards/000000.json    the tar's keys, offsets and SHA-256

A prompt has one row for each suffix of the plan; the suffix "" is the prompt itself. A prompt that is too
long loses its last words, never those of the suffix.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch

from amortized.files import atomic_write_text
from amortized.untrusted import MiB

FORMAT = 2  # 1 cut the words for a view off a prompt that is too long
PLAN_FILE, MANIFEST_FILE, OVERLONG_FILE = "plan.json", "manifest.json", "overlong.txt"
KEYS_FILE, ENTRIES_FILE = "keys.npy", "places.npy"
ENTRY_DTYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])
LOCK_FILE = ".lock"
MAX_MANIFEST_BYTES = 256 * MiB  # it has some ten bytes per shard
MAX_RECORD_BYTES = 2**28  # of a prompt's rows
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class EncodingPlan:
    """How a corpus is encoded: everything that determines the bytes of its shards."""

    corpus: str
    corpus_digest: str
    num_prompts: int
    encoder: str  # a folder or Hub id
    revision: str | None
    fingerprint: str  # the encoder's precision and a digest of its weights and vocabulary
    probe: tuple[float, ...]  # the encoder's vector of a fixed text; identifies it at another precision
    suffixes: tuple[str, ...]  # one row for the prompt with each of these; "" is the prompt itself
    pooled_only: bool
    dtype: str  # one of DTYPES
    length: int  # L, tokens per row
    width: int  # D
    prompts_per_shard: int
    batch_size: int  # texts per forward pass: the last digits depend on it
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raises ValueError for a value that no encoding can have."""
        counts = (self.num_prompts, self.length, self.width, self.prompts_per_shard, self.batch_size)
        if min(counts) < 1 or self.num_prompts >= 2**32 or self.bytes_per_prompt > MAX_RECORD_BYTES:
            raise ValueError(f"counts or sizes out of range: {', '.join(map(str, counts))}")
        if not self.suffixes or self.suffixes[0] or len(set(self.suffixes)) < len(self.suffixes):
            raise ValueError("suffixes must be distinct and begin with the empty one")

    @property
    def encoder_name(self) -> str:
        """The encoder's name in messages: its folder or Hub id, and the revision."""
        return self.encoder if self.revision is None else f"{self.encoder} at {self.revision}"

    @property
    def num_shards(self) -> int:
        return -(-self.num_prompts // self.prompts_per_shard)

    @property
    def bytes_per_prompt(self) -> int:
        """Approximate size of a prompt's two tar members."""
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype[:40]!r}")
        vectors = len(self.suffixes) * (1 + (0 if self.pooled_only else self.length))
        return vectors * self.width * DTYPES[self.dtype].itemsize + 4 * 512

    def command(self, folder: str) -> str:
        """Return the shell command that encodes this plan into `folder`; add --verify to repair shards."""
        parts = ["python", "-m", "corpora", "encode", self.corpus, "--encoder", self.encoder]
        parts += ["--revision", self.revision] if self.revision else []
        parts += ["--suffixes", *self.suffixes[1:]] if len(self.suffixes) > 1 else []
        parts += ["--pooled"] if self.pooled_only else []
        parts += ["--dtype", self.dtype, "--prompts-per-shard", str(self.prompts_per_shard)]
        parts += ["--batch-size", str(self.batch_size)]
        return shlex.join([*parts, "--output", folder])


@dataclass(frozen=True, kw_only=True)
class Manifest(EncodingPlan):
    """A finished encoding."""

    overlong: int  # number of truncated texts
    sha256: dict[str, str]  # of the index files, by name
    shard_bytes: tuple[int, ...]  # size of each shard

    def __post_init__(self) -> None:
        """Raises ValueError for a value that no encoding can have."""
        super().__post_init__()
        if len(self.shard_bytes) != self.num_shards:
            raise ValueError(f"{len(self.shard_bytes)} sizes for {self.num_shards} shards")

    @property
    def num_bytes(self) -> int:
        """Total size of the shards."""
        return sum(self.shard_bytes)


def shard_name(number: int) -> str:
    """Return a shard's path relative to the folder."""
    return f"shards/{number:06d}.tar"


def write_checked_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file atomically, with its own checksum under "digest"."""
    atomic_write_text(path, json.dumps({**data, "digest": _digest(data)}) + "\n")


def parse_checked_json(data: bytes | str) -> dict[str, Any]:
    """Parse the contents of a file from `write_checked_json`; raises ValueError if its checksum is wrong."""
    try:
        parsed = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(parsed, dict) or parsed.pop("digest", None) != _digest(parsed):
        raise ValueError("its checksum is wrong")
    return parsed


PlanT = TypeVar("PlanT", bound=EncodingPlan)


def parse_plan(kind: type[PlanT], data: bytes) -> PlanT:
    """Parse an EncodingPlan or a Manifest. Raises ValueError unless each value has the type of its field."""
    values = parse_checked_json(data)
    hints = get_type_hints(kind)
    if unknown := set(values) - set(hints):
        raise ValueError(f"it has the unknown key {sorted(unknown)[0][:80]!r}")
    parsed: dict[str, Any] = {}
    for name, hint in hints.items():
        if name not in values:
            raise ValueError(f"it has no {name}")
        value = tuple(values[name]) if isinstance(values[name], list) else values[name]
        if not _fits(value, hint):
            raise ValueError(f"its {name} has another type")
        parsed[name] = value
    return kind(**parsed)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON has a field's type, its elements included."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
