"""Encode a corpus into shards: any number of processes, interrupted at any point, writes the same bytes."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import torch as safetensors

from amortized.conditioning.encoder_identity import is_same_encoder, probe_vector
from amortized.conditioning.fitting import fit
from amortized.conditioning.shard_format import (
    DTYPES,
    ENTRIES_FILE,
    ENTRY_DTYPE,
    KEYS_FILE,
    LOCK_FILE,
    MANIFEST_FILE,
    OVERLONG_FILE,
    PLAN_FILE,
    EncodingPlan,
    Manifest,
    parse_checked_json,
    parse_plan,
    shard_name,
    write_checked_json,
)
from amortized.conditioning.three_encoders import ThreeTextEncoders
from amortized.files import atomic_path, atomic_write_text
from amortized.locks import FileLock, LockedError
from amortized.names import text_hash
from amortized.types import Corpus
from amortized.untrusted import read_bytes
from amortized.urls import check_local

TEMPORARY = re.compile(r"\.(?:\d{6}|plan|manifest|keys|places|overlong)\.[0-9a-f]{8}\.\w+")  # of atomic_path
SIDECAR_LISTS = {"keys": str, "offsets": int, "sizes": int, "crcs": int}  # one item per prompt


def plan_encoding(
    corpus: Corpus,
    encoder: Any,
    *,
    name: str,
    revision: str | None = None,
    suffixes: Sequence[str] = (),
    pooled_only: bool = False,
    dtype: str = "bfloat16",
    prompts_per_shard: int = 512,
    batch_size: int = 64,
) -> EncodingPlan:
    """Return the plan that encodes a corpus.

    encoder            a CLIPTextEncoder, a T5TextEncoder or the like
    name               the encoder's folder or Hub id
    suffixes           view suffixes to encode in addition to the plain prompt
    pooled_only        store the pooled vectors without the tokens
    prompts_per_shard  at least 1
    batch_size         texts per forward pass, at least 1

    Raises ValueError for an unknown dtype or a count below 1.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
    if prompts_per_shard < 1:
        raise ValueError(f"a shard must hold at least 1 prompt, got {prompts_per_shard}")
    if batch_size < 1:
        raise ValueError(f"a batch must hold at least 1 text, got {batch_size}")
    if not pooled_only and isinstance(encoder, ThreeTextEncoders):
        raise ValueError(
            f"'{name}' is a Stable Diffusion 3, whose tokens take megabytes per text and are not stored: "
            "encode with --pooled"
        )
    digest = hashlib.sha256()
    for index in range(len(corpus)):
        digest.update(corpus[index].text.encode() + b"\0")
    return EncodingPlan(
        corpus=corpus.name,
        corpus_digest=digest.hexdigest(),
        num_prompts=len(corpus),
        encoder=name,
        revision=revision,
        fingerprint=encoder.fingerprint(),
        probe=probe_vector(encoder),
        suffixes=tuple(dict.fromkeys(("", *suffixes))),
        pooled_only=pooled_only,
        dtype=dtype,
        length=encoder.max_length,
        width=encoder.width,
        prompts_per_shard=prompts_per_shard,
        batch_size=batch_size,
    )


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Context: the folder, created if it is missing, in which no other process encodes.

    Raises ValueError if one does, or if the folder cannot be written.
    """
    check_local(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK_FILE)
    except LockedError as error:
        raise ValueError(
            f"{folder} is being encoded by another process ({error.holder}): wait for it, or choose another "
            "--output"
        ) from None
    try:
        yield
    finally:
        lock.close()


def start_encoding(folder: Path, plan: EncodingPlan) -> None:
    """Prepare the folder for this plan, new or to resume; hold `locked_folder` meanwhile.

    Raises ValueError if it holds another encoding, files of others with the same names, or if the disk is too
    small for the remaining shards.
    """
    plan_path = folder / PLAN_FILE
    if plan_path.exists():
        _check_plan(folder, plan)
    else:
        names = (MANIFEST_FILE, KEYS_FILE, ENTRIES_FILE, OVERLONG_FILE, "shards")
        if present := [name for name in names if (folder / name).exists()]:
            raise ValueError(f"{folder} holds {present[0]} but no {PLAN_FILE}: choose another --output")
    for path in (*(folder / "shards").glob(".*"), *folder.glob(".*")):
        if TEMPORARY.fullmatch(path.name):
            path.unlink()  # of a killed process
    written = sum(path.stat().st_size for path in (folder / "shards").glob("*.tar"))
    folder.mkdir(parents=True, exist_ok=True)
    remaining = plan.bytes_per_prompt * plan.num_prompts - written
    if remaining > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"{folder} needs {remaining / 2**30:.1f} GiB more and has {free / 2**30:.1f} GiB free; "
            "free some space, choose another --output, or encode less (--pooled, or without --views)"
        )
    if not plan_path.exists():
        write_checked_json(plan_path, asdict(plan))


def _check_plan(folder: Path, plan: EncodingPlan) -> None:
    """Raise ValueError unless the folder's plan equals `plan`, up to the paths of corpus and encoder."""
    try:
        started = parse_plan(EncodingPlan, read_bytes(folder / PLAN_FILE))
    except ValueError as error:
        raise ValueError(f"{folder / PLAN_FILE} is damaged ({error}): choose another --output") from error
    if not is_same_encoder(started, plan.fingerprint, plan.probe):
        raise ValueError(
            f"{folder} was started with the encoder {started.encoder_name}, not {plan.encoder_name}: "
            "choose another --output"
        )
    for name, value in asdict(plan).items():
        # The same encoder or prompts may be stored in several places. The digests are compared instead.
        location = ("corpus", "encoder", "revision", "fingerprint", "probe")
        if name not in location and getattr(started, name) != value:
            raise ValueError(
                f"{folder} was started with {name} {getattr(started, name)}, not {value}: "
                "choose another --output"
            )


def encode_shards(
    folder: Path,
    plan: EncodingPlan,
    corpus: Corpus,
    encoder: Any,
    *,
    rank: int = 0,
    world_size: int = 1,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write this process's shards (number = rank mod world_size), skipping finished ones.

    verify    read the finished shards and rewrite damaged ones
    progress  called after each shard with (prompts done, total prompts) of this process
    """
    numbers = range(rank, plan.num_shards, world_size)
    sizes = [len(_prompt_range(plan, number)) for number in numbers]
    done = 0
    for number, size in zip(numbers, sizes, strict=True):
        if not _is_complete(folder, number, size, verify=verify):
            _write_shard(folder, number, plan, corpus, encoder)
        done += size
        if progress is not None:
            progress(done, sum(sizes))


def finish_encoding(folder: Path, plan: EncodingPlan) -> Manifest:
    """Write the index and the manifest of a folder with all shards, and return the manifest.

    Raises ValueError if a shard is missing or two prompts have the same key.
    """
    keys = np.empty(plan.num_prompts, "<u8")
    entries = np.empty(plan.num_prompts, ENTRY_DTYPE)
    overlong: list[str] = []
    sizes: list[int] = []
    for number in range(plan.num_shards):
        if (sidecar := _read_sidecar(folder, number, len(_prompt_range(plan, number)))) is None:
            raise ValueError(
                f"{folder / shard_name(number)} is missing or damaged; run the same command again"
            )
        rows = slice(_prompt_range(plan, number).start, _prompt_range(plan, number).stop)
        keys[rows] = [int(key, 16) for key in sidecar["keys"]]
        entries["shard"][rows] = number
        for column, name in (("offset", "offsets"), ("size", "sizes"), ("crc", "crcs")):
            entries[column][rows] = sidecar[name]
        overlong += sidecar["overlong"]
        sizes.append(sidecar["bytes"])
    order = np.argsort(keys, kind="stable")
    keys, entries = keys[order], entries[order]
    if len(repeated := np.flatnonzero(keys[1:] == keys[:-1])):
        raise ValueError(
            f"{folder}: two prompts have the same key {int(keys[repeated[0]]):016x}; reword one of them"
        )
    sha256 = {}
    for name, array in ((KEYS_FILE, keys), (ENTRIES_FILE, entries)):
        with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        with (folder / name).open("rb") as file:
            sha256[name] = hashlib.file_digest(file, "sha256").hexdigest()
    atomic_write_text(folder / OVERLONG_FILE, "".join(f"{text}\n" for text in overlong))
    manifest = Manifest(**asdict(plan), overlong=len(overlong), sha256=sha256, shard_bytes=tuple(sizes))
    write_checked_json(folder / MANIFEST_FILE, asdict(manifest))
    return manifest


def _prompt_range(plan: EncodingPlan, number: int) -> range:
    """Return the corpus indices of a shard's prompts."""
    start = number * plan.prompts_per_shard
    return range(start, min(start + plan.prompts_per_shard, plan.num_prompts))


def _read_sidecar(folder: Path, number: int, num_prompts: int) -> dict[str, Any] | None:
    """Return a shard's JSON file; None if it is missing or damaged, or if the tar has another size."""
    path = folder / shard_name(number)
    try:
        sidecar = parse_checked_json(read_bytes(path.with_suffix(".json")))
        is_sound = (
            all(
                len(sidecar[name]) == num_prompts and all(type(item) is kind for item in sidecar[name])
                for name, kind in SIDECAR_LISTS.items()
            )
            and all(re.fullmatch("[0-9a-f]{16}", key) for key in sidecar["keys"])
            and all(0 <= item < 2**32 for name in ("sizes", "crcs") for item in sidecar[name])
            and all(0 <= item < 2**63 for item in sidecar["offsets"])
            and all(type(text) is str for text in sidecar["overlong"])
            and path.is_file()
            and path.stat().st_size == sidecar["bytes"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return sidecar if is_sound else None


def _is_complete(folder: Path, number: int, num_prompts: int, *, verify: bool) -> bool:
    """Return whether a shard is finished; with `verify`, also compare its SHA-256."""
    sidecar = _read_sidecar(folder, number, num_prompts)
    if sidecar is None or not verify:
        return sidecar is not None
    with (folder / shard_name(number)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sidecar.get("sha256")


def _write_shard(folder: Path, number: int, plan: EncodingPlan, corpus: Corpus, encoder: Any) -> None:
    path = folder / shard_name(number)
    sidecar: dict[str, Any] = {"keys": [], "offsets": [], "sizes": [], "crcs": [], "overlong": []}
    prompts = [corpus[index].text for index in _prompt_range(plan, number)]
    path.with_suffix(".json").unlink(missing_ok=True)  # it describes the tar that is about to be replaced
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for prompt, record in zip(prompts, _encode_records(prompts, plan, encoder), strict=True):
                key = text_hash(prompt)
                _add_member(tar, f"{key}.txt", prompt.encode())
                sidecar["keys"].append(key)
                sidecar["offsets"].append(_add_member(tar, f"{key}.safetensors", record))
                sidecar["sizes"].append(len(record))
                sidecar["crcs"].append(zlib.crc32(record))
                texts = [prompt + suffix for suffix in plan.suffixes]
                sidecar["overlong"] += [text for text in texts if encoder.is_overlong(text)]
        sidecar["bytes"] = temporary.stat().st_size
        with temporary.open("rb") as file:
            sidecar["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    write_checked_json(path.with_suffix(".json"), sidecar)


def _encode_records(prompts: Sequence[str], plan: EncodingPlan, encoder: Any) -> Iterator[bytes]:
    """Yield each prompt's rows as a safetensors file.

    Batches never cross shards, so that a shard's bytes depend on its own prompts only.
    """
    num_rows, dtype = len(plan.suffixes), DTYPES[plan.dtype]
    prompts_per_batch = max(1, plan.batch_size // num_rows)
    for start in range(0, len(prompts), prompts_per_batch):
        batch = prompts[start : start + prompts_per_batch]
        text = encoder.encode([fit(encoder, prompt, suffix) for prompt in batch for suffix in plan.suffixes])
        tensors = {
            "pooled": text.pooled.to("cpu", dtype),
            "lengths": text.mask.sum(-1).to("cpu", torch.int32),
        }
        if not plan.pooled_only:
            tensors["tokens"] = text.tokens.to("cpu", dtype)
        for i in range(len(batch)):
            rows = slice(i * num_rows, (i + 1) * num_rows)
            yield safetensors.save({name: value[rows].contiguous() for name, value in tensors.items()})


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member without timestamp or owner; return the offset of its data."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return offset
