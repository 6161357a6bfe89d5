"""The on-disk format of encoded prompts: tar shards, readable by webdataset, with an index for random access.

    FOLDER/plan.json             the EncodingPlan; written first, so that a run with other settings is refused
    FOLDER/manifest.json         the Manifest; written last: without it, the encoding is unfinished
    FOLDER/keys.npy, places.npy  for each prompt, sorted by key: its key; its shard, offset, size and CRC-32
    FOLDER/shards/000000.tar     KEY.txt (the prompt) and KEY.safetensors (its rows), for some hundred prompts
    FOLDER/shards/000000.json    the tar's keys, offsets and SHA-256

A prompt has one row for each suffix of the plan; the suffix "" is the prompt itself.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amortized.files import atomic_write_text

FORMAT = 1
PLAN_FILE, MANIFEST_FILE, OVERLONG_FILE = "plan.json", "manifest.json", "overlong.txt"
KEYS_FILE, ENTRIES_FILE = "keys.npy", "places.npy"
ENTRY_DTYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])
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
    parsed = json.loads(data)
    if not isinstance(parsed, dict) or parsed.pop("digest", None) != _digest(parsed):
        raise ValueError("its checksum is wrong")
    return parsed


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
