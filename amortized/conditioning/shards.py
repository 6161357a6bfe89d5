"""Random access to encoded prompts in shards; see `amortized.conditioning.shard_format`."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors import torch as safetensors

from amortized.conditioning.shard_format import (
    DTYPES,
    ENTRIES_FILE,
    ENTRY_DTYPE,
    FORMAT,
    KEYS_FILE,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    EncodingPlan,
    Manifest,
    parse_plan,
    shard_name,
)
from amortized.names import text_hash
from amortized.types import TextCondition
from amortized.untrusted import open_regular
from amortized.urls import describe, open_url, redact
from amortized.wording import command

ARRAY_HEADER, RECORD_HEADER = 2**12, 2**12  # bytes in front of an array of the index, of a prompt's rows
ROWS_AT_ONCE = 2**20  # of the index
MAX_ATTEMPTS, RETRY_PAUSE_S = 4, 2.0  # of remote reads; the pause grows with each attempt


class ShardStore:
    """The embeddings of a finished encoding, read on demand: memory does not grow with the corpus.

    The folder may be any URL that fsspec reads; `simplecache::s3://...` keeps a copy on the local disk.
    """

    def __init__(self, url: str) -> None:
        """Open a folder. Raises ValueError if it is unfinished, damaged or unreadable."""
        self.files, self.root = open_url(url)
        self.url = redact(url.rstrip("/"))
        try:
            self.manifest = self._load_manifest()
            self.keys = self._load_array(KEYS_FILE, np.dtype("<u8"))
            self.entries = self._load_array(ENTRIES_FILE, ENTRY_DTYPE)
            self._check_index()
            self._check_sizes()
        except FileNotFoundError as error:
            again = command("encode", "CORPUS", "--encoder", "FOLDER", "--output", self.url)
            raise ValueError(
                f"{self.url} holds no finished encoding (no {Path(str(error.filename or error)).name}): "
                f"start or resume it: {again}"
            ) from error
        except ValueError:
            raise
        except Exception as error:  # an fsspec driver raises whatever its library does
            raise ValueError(f"{self.url}: cannot be read ({describe(error)})") from error
        self._suffixes = {suffix: row for row, suffix in enumerate(self.manifest.suffixes)}

    @property
    def is_local(self) -> bool:
        return isinstance(self.files, LocalFileSystem)

    @property
    def _repair_folder(self) -> str:
        """The folder in repair commands. A remote store was encoded elsewhere and uploaded."""
        return self.url if self.is_local else "FOLDER"

    def has_suffix(self, suffix: str) -> bool:
        """Return whether prompts were encoded with this suffix."""
        return suffix in self._suffixes

    def has_prompt(self, prompt: str) -> bool:
        """Return whether this prompt was encoded."""
        return self._entry_index(prompt) is not None

    def row_of(self, suffix: str) -> int:
        """Return the suffix's row in the conditions that `read` returns."""
        return self._suffixes[suffix]

    def read(self, prompts: Sequence[str]) -> list[TextCondition | None]:
        """Return each prompt's condition in float32, one row per suffix; None if it is not stored.

        Raises ValueError naming the shard and the prompt if the record is damaged or unreadable.
        """
        indices = [self._entry_index(prompt) for prompt in prompts]
        data = iter(self._read_entries([self.entries[index] for index in indices if index is not None]))
        return [
            None if index is None else self._parse_record(prompt, next(data), self.entries[index])
            for prompt, index in zip(prompts, indices, strict=True)
        ]

    def _entry_index(self, prompt: str) -> int | None:
        key = np.uint64(int(text_hash(prompt), 16))
        index = int(np.searchsorted(self.keys, key))
        return index if index < len(self.keys) and self.keys[index] == key else None

    def _read_entries(self, entries: Sequence[Any]) -> Sequence[bytes | Exception]:
        """Return the bytes of each entry, or the exception. Remote reads run concurrently and are retried."""
        names = [f"{self.root}/{shard_name(int(entry['shard']))}" for entry in entries]
        starts = [int(entry["offset"]) for entry in entries]
        ends = [start + int(entry["size"]) for start, entry in zip(starts, entries, strict=True)]
        results: list[bytes | Exception] = []
        for attempt in range(1 if self.is_local else MAX_ATTEMPTS):
            time.sleep(attempt * RETRY_PAUSE_S)
            try:
                results = list(self.files.cat_ranges(names, starts, ends, on_error="return")) if names else []
            except Exception as error:  # an fsspec driver raises whatever its library does
                results = [error] * len(names)
            if all(isinstance(data, bytes) for data in results):
                break
        return results

    def _parse_record(self, prompt: str, data: bytes | Exception, entry: Any) -> TextCondition:
        shard, shown = f"{self.url}/{shard_name(int(entry['shard']))}", f"the prompt '{prompt[:80]}'"
        remedy = f"rebuild this shard alone with {self.manifest.command(self._repair_folder)} --verify"
        if isinstance(data, Exception):
            raise ValueError(f"{shard} cannot be read for {shown} ({describe(data)}): {remedy}")
        if len(data) != int(entry["size"]) or zlib.crc32(data) != int(entry["crc"]):
            raise ValueError(f"{shard} is damaged at {shown} (its checksum is wrong): {remedy}")
        try:
            return _to_condition(safetensors.load(data), self.manifest)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{shard} is damaged at {shown} ({describe(error)}): {remedy}") from error

    def _check_index(self) -> None:
        """Raise ValueError unless the keys ascend and every entry lies inside its shard."""
        ends = np.asarray(self.manifest.shard_bytes, np.int64)
        largest = self.manifest.bytes_per_prompt + RECORD_HEADER
        for start in range(0, len(self.keys), ROWS_AT_ONCE):
            keys = self.keys[max(0, start - 1) : start + ROWS_AT_ONCE]
            entries = self.entries[start : start + ROWS_AT_ONCE]
            sound = np.all(keys[1:] > keys[:-1]) and np.all(entries["shard"] < len(ends))
            sound = sound and np.all(entries["size"] <= largest) and np.all(entries["offset"] < 2**62)
            if not sound or np.any(
                entries["offset"].astype(np.int64) + entries["size"] > ends[entries["shard"]]
            ):
                raise ValueError(
                    f"{self.url}: its index does not fit its shards: rebuild it with "
                    f"{self.manifest.command(self._repair_folder)} --verify"
                )

    def _check_sizes(self) -> None:
        """Raise ValueError if shards are missing or truncated, for example by an interrupted copy.

        Skipped on file systems that cannot list files or sizes: there, damage is detected by `read`.
        """
        try:
            listed = self.files.ls(f"{self.root}/shards", detail=True)
            sizes = {Path(entry["name"]).name: entry["size"] for entry in listed}
        except FileNotFoundError:
            sizes = {}
        except Exception:  # an fsspec driver raises whatever its library does
            return
        names = [shard_name(number) for number in range(self.manifest.num_shards)]
        wrong = [
            name
            for name, size in zip(names, self.manifest.shard_bytes, strict=True)
            if sizes.get(Path(name).name, -1) not in (size, None)
        ]
        if wrong:
            raise ValueError(
                f"{self.url}: {len(wrong)} of {len(names)} shards are missing or have the wrong size, first "
                f"{wrong[0]}: copy them again, or rebuild these alone with "
                f"{self.manifest.command(self._repair_folder)} --verify"
            )

    def _load_manifest(self) -> Manifest:
        path = f"{self.root}/{MANIFEST_FILE}"
        with self._open(path) as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        try:
            if len(data) > MAX_MANIFEST_BYTES:
                raise ValueError(f"it has more than {MAX_MANIFEST_BYTES:,} bytes")
            manifest = parse_plan(Manifest, data)
            if manifest.format not in (1, FORMAT):
                raise ValueError(f"format {manifest.format}, expected {FORMAT}")
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"{self.url}/{MANIFEST_FILE} is damaged ({error}): delete it and encode the corpus again; "
                "intact shards are reused"
            ) from error
        if manifest.format == 1 and manifest.overlong and len(manifest.suffixes) > 1:
            raise ValueError(
                f"{self.url}: an earlier version encoded it and cut the words for a view off up to "
                f"{manifest.overlong:,} texts: encode the corpus again into another folder"
            )
        return manifest

    def _open(self, path: str) -> Any:
        """Open a file for reading. Raises ValueError for a local one that is not a regular file."""
        if self.is_local and Path(path).exists():
            return open_regular(path, 2**62)
        return self.files.open(path, "rb")

    def _load_array(self, name: str, dtype: np.dtype) -> np.ndarray:
        """Load an index array: memory-mapped from a local file, read into memory otherwise."""
        path, count = f"{self.root}/{name}", self.manifest.num_prompts
        size = self.files.info(path).get("size")
        problem = ""
        if size is not None and not 0 <= size - count * dtype.itemsize <= ARRAY_HEADER:
            problem = f"it has {size:,} bytes"
        else:
            with self._open(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            problem = "its checksum is wrong" if digest != self.manifest.sha256.get(name) else ""
        if not problem:
            if self.is_local:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            else:
                with self.files.open(path, "rb") as file:
                    array = np.load(file, allow_pickle=False)
            if array.dtype == dtype and array.shape == (count,):
                return array
            problem = f"it holds {array.shape} of {array.dtype}"
        raise ValueError(
            f"{self.url}/{name} is damaged ({problem}): rebuild it with "
            f"{self.manifest.command(self._repair_folder)} --verify"
        )


def _to_condition(tensors: dict[str, torch.Tensor], plan: EncodingPlan) -> TextCondition:
    """Convert a record (pooled [N, D], lengths [N], tokens [N, L, D]) to a float32 condition of N rows.

    Raises KeyError or ValueError for another record.
    """
    rows = len(plan.suffixes)
    expected = {"pooled": (rows, plan.width), "lengths": (rows,), "tokens": (rows, plan.length, plan.width)}
    if plan.pooled_only:
        del expected["tokens"]
    for name, shape in expected.items():
        dtype = torch.int32 if name == "lengths" else DTYPES[plan.dtype]
        if tuple(tensors[name].shape) != shape or tensors[name].dtype != dtype:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)} of {tensors[name].dtype}")
    pooled, lengths = tensors["pooled"].float(), tensors["lengths"]
    if not pooled.isfinite().all():
        raise ValueError("pooled has values that are not finite")
    if plan.pooled_only:
        empty = pooled.new_zeros(len(pooled), 0, plan.width)
        return TextCondition(pooled=pooled, tokens=empty, mask=empty[..., 0].bool())
    positions = torch.arange(plan.length)
    return TextCondition(
        pooled=pooled, tokens=tensors["tokens"].float(), mask=positions[None] < lengths[:, None]
    )
