"""Encoded prompts on disk: tar shards that webdataset reads too, and an index to any prompt at random.

    FOLDER/manifest.json         what was encoded, by which encoder; written last: without it, unfinished
    FOLDER/keys.npy, places.npy  for each prompt, sorted: its key; its shard, offset, size and CRC-32
    FOLDER/shards/000000.tar     KEY.txt (the prompt) and KEY.safetensors (its rows) for some hundred prompts
    FOLDER/shards/000000.json    what the tar holds, and its SHA-256

A prompt's rows are itself and, if wanted, itself with each view's words. FOLDER may be any URL that fsspec
reads; `simplecache::s3://...` keeps a copy on the local disk.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import torch as safetensors

from amortized.files import atomic_write_text, short_name
from amortized.types import TextCondition

FORMAT = 1
MANIFEST, KEYS, PLACES = "manifest.json", "keys.npy", "places.npy"
PLACE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PROBE = "a photograph of a red cube on a wooden table"
ATTEMPTS, PAUSE_S = 4, 2.0  # of reading from far
SAME = 0.03  # relative distance of two probes: half precision moves them by less, another model by far more


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a corpus is encoded: what a folder of shards is the result of."""

    corpus: str
    corpus_digest: str
    num_prompts: int
    encoder: str  # a folder or Hub id
    revision: str | None
    fingerprint: str  # of the encoder: its precision, and a digest of its weights and words
    probe: tuple[float, ...]  # its vector for PROBE, which tells it from others at another precision
    suffixes: tuple[str, ...]  # a row for the prompt with each of these; "" is the prompt itself
    pooled_only: bool
    dtype: str  # one of DTYPES
    length: int  # L, tokens of a row
    width: int  # D
    prompts_per_shard: int
    batch_size: int  # sentences at once: last digits depend on it
    format: int = FORMAT

    @property
    def encoder_name(self) -> str:
        """As sentences call it."""
        return self.encoder if self.revision is None else f"{self.encoder} at {self.revision}"

    @property
    def num_shards(self) -> int:
        return -(-self.num_prompts // self.prompts_per_shard)

    @property
    def bytes_per_prompt(self) -> int:
        """Of its two members in a tar, about."""
        vectors = len(self.suffixes) * (1 + (0 if self.pooled_only else self.length))
        return vectors * self.width * DTYPES[self.dtype].itemsize + 4 * 512

    def command(self, folder: str) -> str:
        """What made it, and what mends it."""
        parts = ["python", "-m", "corpora", "encode", self.corpus, "--encoder", self.encoder]
        parts += ["--revision", self.revision] if self.revision else []
        parts += ["--suffixes", *self.suffixes[1:]] if len(self.suffixes) > 1 else []
        parts += ["--pooled"] if self.pooled_only else []
        parts += ["--dtype", self.dtype, "--prompts-per-shard", str(self.prompts_per_shard)]
        parts += ["--batch-size", str(self.batch_size)]
        return shlex.join([*parts, "--output", folder])


@dataclass(frozen=True, kw_only=True)
class Manifest(Encoding):
    """A finished encoding."""

    overlong: int  # sentences that were cut
    sha256: dict[str, str]  # of the index' files
    shard_bytes: tuple[int, ...]  # the size of each

    @property
    def num_bytes(self) -> int:
        """Of all shards."""
        return sum(self.shard_bytes)


def probe_of(encoder: Any) -> tuple[float, ...]:
    """The encoder's vector for a fixed sentence, to six digits."""
    return tuple(round(value, 6) for value in encoder.encode([PROBE]).pooled[0].float().tolist())


def same_encoder(encoding: Encoding, fingerprint: str, probe: Sequence[float]) -> bool:
    """Whether what was encoded is of this encoder.

    At one precision, whether their weights and words are the same; at two, whether their probes nearly are.
    """
    if encoding.fingerprint.partition(" ")[0] == fingerprint.partition(" ")[0]:
        return encoding.fingerprint == fingerprint
    if len(encoding.probe) != len(probe):
        return False
    a, b = np.asarray(encoding.probe), np.asarray(probe)
    return float(np.linalg.norm(a - b)) <= SAME * float(np.linalg.norm(b))


def shard_name(number: int) -> str:
    """Path of a shard in its folder."""
    return f"shards/{number:06d}.tar"


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Replace a JSON file, atomically; it carries its own checksum."""
    atomic_write_text(path, json.dumps({**facts, "digest": _digest(facts)}) + "\n")


def parse_facts(data: bytes | str) -> dict[str, Any]:
    """What `write_facts` wrote. Raises ValueError where anything of it has changed."""
    found = json.loads(data)
    if not isinstance(found, dict) or found.pop("digest", None) != _digest(found):
        raise ValueError("its checksum is wrong")
    return found


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class ShardStore:
    """The rows of a finished folder, read where they lie: memory does not grow with the corpus."""

    def __init__(self, url: str) -> None:
        """Raises ValueError where the folder is unfinished or damaged."""
        self.url = url.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
            self.manifest = self._manifest()
            self.keys = self._array(KEYS, np.dtype("<u8"))
            self.places = self._array(PLACES, PLACE)
            self._check_sizes()
        except FileNotFoundError as error:
            raise ValueError(
                f"{self.url} holds no finished encoding (no {Path(str(error.filename or error)).name}): "
                f"make it, or go on: python -m corpora encode CORPUS --encoder FOLDER --output {self.url}"
            ) from error
        except ValueError:
            raise
        except Exception as error:  # a driver of fsspec raises whatever its library does
            raise ValueError(f"{self.url}: cannot be read ({error!r})") from error
        self._suffixes = {suffix: row for row, suffix in enumerate(self.manifest.suffixes)}

    @property
    def is_local(self) -> bool:
        return isinstance(self.files, LocalFileSystem)

    @property
    def _folder(self) -> str:
        """Of the command that mends: what is far was made elsewhere, and copied."""
        return self.url if self.is_local else "FOLDER"

    def has(self, suffix: str) -> bool:
        """Whether prompts with this suffix were encoded."""
        return suffix in self._suffixes

    def find(self, texts: Sequence[str]) -> list[TextCondition | None]:
        """For each prompt its condition, a row for each suffix, float32; None where it was not encoded.

        Raises ValueError, naming the shard and the prompt, where it is damaged.
        """
        rows = [self._row(text) for text in texts]
        places = [self.places[row] for row in rows if row is not None]
        data = iter(self._read(places))
        return [None if row is None else self._parsed(text, next(data), self.places[row])
                for text, row in zip(texts, rows, strict=True)]  # fmt: skip

    def holds(self, text: str) -> bool:
        """Whether this prompt was encoded."""
        return self._row(text) is not None

    def row_of(self, suffix: str) -> int:
        """The row of a suffix in what `find` returns."""
        return self._suffixes[suffix]

    def _row(self, text: str) -> int | None:
        key = np.uint64(int(short_name(text), 16))
        row = int(np.searchsorted(self.keys, key))
        return row if row < len(self.keys) and self.keys[row] == key else None

    def _read(self, places: Sequence[Any]) -> Sequence[bytes | Exception]:
        """The bytes at the places; where the files are far, all at once, and again if that failed."""
        names = [f"{self.root}/{shard_name(int(place['shard']))}" for place in places]
        starts = [int(place["offset"]) for place in places]
        ends = [start + int(place["size"]) for start, place in zip(starts, places, strict=True)]
        found: list[bytes | Exception] = []
        for attempt in range(1 if self.is_local else ATTEMPTS):
            time.sleep(attempt * PAUSE_S)
            try:
                found = list(self.files.cat_ranges(names, starts, ends, on_error="return")) if names else []
            except Exception as error:  # a driver of fsspec raises whatever its library does
                found = [error] * len(names)
            if all(isinstance(data, bytes) for data in found):
                break
        return found

    def _parsed(self, text: str, data: bytes | Exception, place: Any) -> TextCondition:
        where, prompt = f"{self.url}/{shard_name(int(place['shard']))}", f"the prompt '{text[:80]}'"
        mend = f"rebuild this shard alone with {self.manifest.command(self._folder)} --verify"
        if isinstance(data, Exception):
            raise ValueError(f"{where} cannot be read for {prompt} ({data!r}): {mend}")
        if len(data) != int(place["size"]) or zlib.crc32(data) != int(place["crc"]):
            raise ValueError(f"{where} is damaged at {prompt} (its checksum is wrong): {mend}")
        return _condition(safetensors.load(data), self.manifest)

    def _check_sizes(self) -> None:
        """Raise ValueError where shards are missing or cut short, as after a copy that was broken off.

        A store that cannot list its files, or their sizes, tells when one of them is read.
        """
        try:
            listed = self.files.ls(f"{self.root}/shards", detail=True)
            sizes = {Path(entry["name"]).name: entry["size"] for entry in listed}
        except FileNotFoundError:
            sizes = {}
        except Exception:  # a driver of fsspec raises whatever its library does
            return
        names = [shard_name(number) for number in range(self.manifest.num_shards)]
        wrong = [
            name
            for name, size in zip(names, self.manifest.shard_bytes, strict=True)
            if sizes.get(Path(name).name, -1) not in (size, None)
        ]
        if wrong:
            raise ValueError(
                f"{self.url}: {len(wrong)} of {len(names)} shards are missing or of another size, first "
                f"{wrong[0]}: copy them again, or rebuild these alone with "
                f"{self.manifest.command(self._folder)} --verify"
            )

    def _manifest(self) -> Manifest:
        data = self.files.cat_file(f"{self.root}/{MANIFEST}")
        try:
            found = parse_facts(data)
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}, expected {FORMAT}")
            found |= {name: tuple(found[name]) for name in ("probe", "suffixes", "shard_bytes")}
            manifest = Manifest(**{field.name: found[field.name] for field in fields(Manifest)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.url}/{MANIFEST} is damaged ({error}): remove it, and encode the corpus once more; "
                "shards that are whole are kept"
            ) from error
        return manifest

    def _array(self, name: str, dtype: np.dtype) -> np.ndarray:
        """An array of the index: mapped into memory from a local file, else read."""
        path = f"{self.root}/{name}"
        with self.files.open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        problem = "its checksum is wrong" if digest != self.manifest.sha256.get(name) else ""
        if not problem:
            if self.is_local:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            else:
                with self.files.open(path, "rb") as file:
                    array = np.load(file, allow_pickle=False)
            if array.dtype == dtype:
                return array
            problem = f"it holds {array.dtype}"
        raise ValueError(
            f"{self.url}/{name} is damaged ({problem}): build it anew with "
            f"{self.manifest.command(self._folder)} --verify"
        )


def _condition(tensors: dict[str, torch.Tensor], encoding: Encoding) -> TextCondition:
    pooled, lengths = tensors["pooled"].float(), tensors["lengths"]
    if encoding.pooled_only:
        empty = pooled.new_zeros(len(pooled), 0, encoding.width)
        return TextCondition(pooled=pooled, tokens=empty, mask=empty[..., 0].bool())
    positions = torch.arange(encoding.length)
    return TextCondition(
        pooled=pooled, tokens=tensors["tokens"].float(), mask=positions[None] < lengths[:, None]
    )
