"""The tensors in a checkpoint's files, from their headers alone.

torch.distributed.checkpoint writes the shards of a tensor into one file per process, with the offsets of each
shard in the file's metadata. It trusts them when it reads: a tensor whose shards leave a gap would have
arbitrary numbers there. So they are checked here, before it reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import prod
from pathlib import Path

from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY

from amortized.checkpointing.checkpoint import CheckpointError, shard_names
from amortized.safetensors_header import TensorEntry, read_header
from amortized.untrusted import short

# The types that a generator, an optimizer or a reference model can have.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DTYPES |= {"I64": "int64", "I32": "int32", "U8": "uint8", "BOOL": "bool"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, all shards together."""

    dtype: str  # as an attribute of torch
    shape: tuple[int, ...]


Shard = tuple[tuple[int, ...], tuple[int, ...]]  # offsets, sizes


def stored_tensors(checkpoint: Path) -> dict[str, StoredTensor]:
    """The tensors in the listed files of a checkpoint, by name.

    Raises CheckpointError if a header is damaged, or if the shards of a tensor do not fill it exactly.
    """
    shards: dict[str, list[Shard]] = {}
    dtypes: dict[str, str] = {}
    try:
        for file in shard_names(checkpoint):
            entries, metadata = read_header(checkpoint / file)
            for name, offsets in _offsets(entries, metadata).items():
                entry = entries[name]
                if entry.dtype not in DTYPES or dtypes.setdefault(name, entry.dtype) != entry.dtype:
                    raise ValueError(f"{short(name)} has the type {entry.dtype} in {file}")
                shards.setdefault(name, []).append((offsets, entry.shape))
        return {
            name: StoredTensor(DTYPES[dtypes[name]], _shape_of(name, parts)) for name, parts in shards.items()
        }
    except ValueError as error:
        raise CheckpointError(f"{short(checkpoint)} is damaged ({error})") from error


def _offsets(entries: dict[str, TensorEntry], metadata: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """The offsets of each tensor's shard in a file; zeros in a file without them. Raises ValueError."""
    if not metadata.get(CUSTOM_METADATA_KEY):
        return {name: (0,) * len(entry.shape) for name, entry in entries.items()}
    try:
        info = json.loads(metadata[CUSTOM_METADATA_KEY])
        found = {name: info[name][SAVED_OFFSETS_KEY] for name in entries}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("the offsets of its shards are missing") from None
    for name, offsets in found.items():
        are_numbers = isinstance(offsets, list) and all(type(o) is int and 0 <= o < 2**53 for o in offsets)
        if not are_numbers or len(offsets) != len(entries[name].shape):
            raise ValueError(f"the offsets of {short(name)} are not valid")
    return {name: tuple(offsets) for name, offsets in found.items()}


def _shape_of(name: str, shards: Sequence[Shard]) -> tuple[int, ...]:
    """The shape that shards fill without gap or overlap. Raises ValueError if they do not."""
    dimensions = {len(sizes) for _, sizes in shards}
    if len(dimensions) > 1:
        raise ValueError(f"the shards of {short(name)} differ in their dimensions")
    axes = range(dimensions.pop())
    shape = tuple(max(offsets[axis] + sizes[axis] for offsets, sizes in shards) for axis in axes)
    if sum(prod(sizes) for _, sizes in shards) != prod(shape) or _overlap(shards):
        raise ValueError(f"the shards of {short(name)} leave a gap or overlap")
    return shape


def _overlap(shards: Sequence[Shard]) -> bool:
    full = sorted(shard for shard in shards if prod(shard[1]))
    # Nearly always shards are consecutive rows: compare neighbors only, not all pairs.
    neighbors = list(pairwise(full))
    if all(one[0][1:] == other[0][1:] and one[1][1:] == other[1][1:] for one, other in neighbors):
        return any(one[0] and one[0][0] + one[1][0] > other[0][0] for one, other in neighbors)
    return any(
        all(a < d + e and d < a + b for a, b, d, e in zip(one[0], one[1], other[0], other[1], strict=True))
        for one, other in combinations(full, 2)
    )
