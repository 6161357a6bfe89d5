"""The header of a safetensors file, checked completely before a library opens the file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from amortized.untrusted import MiB, open_regular, short

HEADER_LIMIT = 16 * MiB  # about 100,000 tensors
SIZE_LIMIT = 2**50  # of a file, bytes
MAX_DIMENSIONS = 16
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "C64": 8, "BOOL": 1}
ITEM_BYTES |= {f"{kind}{8 * size}": size for kind in "IU" for size in (1, 2, 4, 8)}
ITEM_BYTES |= {f"F8_{kind}": 1 for kind in ("E4M3", "E5M2", "E4M3FNUZ", "E5M2FNUZ")}


@dataclass(frozen=True)
class TensorEntry:
    """The type (as safetensors spells it, e.g. F32) and the shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: str | Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors in a safetensors file, by name, and the file's text metadata.

    The tensors fill the rest of the file exactly, so they need no more memory than the file has bytes. Raises
    ValueError that names the file if anything about the header is wrong; see also `open_regular`.
    """
    with open_regular(path, SIZE_LIMIT) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{short(path)} is not a safetensors file, or it was cut off")
        if length > HEADER_LIMIT:
            raise ValueError(f"{short(path)} has a header of more than {HEADER_LIMIT:,} bytes")
        text = file.read(length)
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
        if not isinstance(data, dict):
            raise ValueError("it is not an object")
        metadata = data.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ is not a mapping of text")
        return _checked(data, size - 8 - length), metadata
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the safetensors header of {short(path)} is damaged ({reason})") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("a name appears twice")
    return data


def _checked(data: Mapping[str, Any], num_bytes: int) -> dict[str, TensorEntry]:
    """The entries of a header whose tensors fill `num_bytes` without gap or overlap."""
    entries, ranges = {}, []
    for name, entry in data.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name[:80]!r} is not a tensor")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise ValueError(f"{name[:80]!r} has an unknown type")
        if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"{name[:80]!r} has no valid shape")
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise ValueError(f"{name[:80]!r} has no valid offsets")
        if offsets[1] - offsets[0] != prod(shape) * ITEM_BYTES[dtype]:
            raise ValueError(f"{name[:80]!r} has another size than its shape says")
        entries[name] = TensorEntry(dtype, tuple(shape))
        ranges.append(offsets)
    end = 0
    for start, stop in sorted(ranges):
        if start != end:
            raise ValueError("the tensors overlap, or leave a gap")
        end = stop
    if end != num_bytes:
        raise ValueError("the tensors end before the file, or after it")
    return entries


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
