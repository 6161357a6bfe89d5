"""Encoding a corpus into shards: any number of processes, killed at any moment, the same bytes."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import torch as safetensors

from amortized.conditioning.shards import (
    DTYPES,
    KEYS,
    MANIFEST,
    PLACE,
    PLACES,
    Encoding,
    Manifest,
    parse_facts,
    probe_of,
    same_encoder,
    shard_name,
    write_facts,
)
from amortized.files import atomic_path, atomic_write_text, short_name
from amortized.types import Corpus

PLAN, OVERLONG = "plan.json", "overlong.txt"


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
) -> Encoding:
    """What encoding the corpus will make; `suffixes` are the views' words, stored besides each prompt."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
    if prompts_per_shard < 1:
        raise ValueError(f"a shard must hold at least 1 prompt, got {prompts_per_shard}")
    if batch_size < 1:
        raise ValueError(f"a batch must hold at least 1 sentence, got {batch_size}")
    digest = hashlib.sha256()
    for index in range(len(corpus)):
        digest.update(corpus[index].text.encode() + b"\0")
    return Encoding(
        corpus=corpus.name,
        corpus_digest=digest.hexdigest(),
        num_prompts=len(corpus),
        encoder=name,
        revision=revision,
        fingerprint=encoder.fingerprint(),
        probe=probe_of(encoder),
        suffixes=tuple(dict.fromkeys(("", *suffixes))),
        pooled_only=pooled_only,
        dtype=dtype,
        length=encoder.max_length,
        width=encoder.width,
        prompts_per_shard=prompts_per_shard,
        batch_size=batch_size,
    )


def start_encoding(folder: Path, encoding: Encoding) -> None:
    """Claim the folder for this encoding, or go on with it.

    Raises ValueError where it holds another one, or the disk is too small for what is still to come.
    """
    plan = folder / PLAN
    if plan.exists():
        _check_plan(folder, encoding)
    elif (folder / MANIFEST).exists() or any((folder / "shards").glob("*")):
        raise ValueError(f"{folder} holds shards, but not how they were made ({PLAN}); choose another folder")
    for path in (folder / "shards").glob(".*"):
        path.unlink()  # half a shard, of a process that was killed
    done = sum(path.stat().st_size for path in (folder / "shards").glob("*.tar"))
    folder.mkdir(parents=True, exist_ok=True)
    missing = encoding.bytes_per_prompt * encoding.num_prompts - done
    if missing > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"{folder}: {missing / 2**30:.1f} GiB are still to be written and {free / 2**30:.1f} GiB free; "
            "make room, choose another --output, or encode less (--pooled, or without --views)"
        )
    if not plan.exists():
        write_facts(plan, asdict(encoding))


def _check_plan(folder: Path, encoding: Encoding) -> None:
    try:
        found = parse_facts((folder / PLAN).read_bytes())
        found |= {name: tuple(found[name]) for name in ("probe", "suffixes")}
        begun = Encoding(**found)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / PLAN} is damaged: choose another --output") from error
    if not same_encoder(begun, encoding.fingerprint, encoding.probe):
        raise ValueError(
            f"{folder} is of the encoder {begun.encoder_name}, not of {encoding.encoder_name}: "
            "choose another --output"
        )
    for name, value in asdict(encoding).items():
        # One encoder, and one list of prompts, may lie in several places.
        own = ("corpus", "encoder", "revision", "fingerprint", "probe")
        if name not in own and getattr(begun, name) != value:
            raise ValueError(
                f"{folder} was begun with {name} {getattr(begun, name)}, not {value}: choose another --output"
            )


def encode_shards(
    folder: Path,
    encoding: Encoding,
    corpus: Corpus,
    encoder: Any,
    *,
    rank: int = 0,
    world_size: int = 1,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write this process' share of the shards, but those that are there already.

    verify    also read those, and write the damaged ones anew
    progress  called with (prompts done, prompts in all) of this process
    """
    mine = range(rank, encoding.num_shards, world_size)
    sizes = [len(_members(encoding, number)) for number in mine]
    done = 0
    for number, size in zip(mine, sizes, strict=True):
        if not _is_whole(folder, number, thorough=verify):
            _write_shard(folder, number, encoding, corpus, encoder)
        done += size
        if progress is not None:
            progress(done, sum(sizes))


def finish_encoding(folder: Path, encoding: Encoding) -> Manifest:
    """The index and the manifest of a folder whose shards are all there.

    Raises ValueError where one is missing, or two different prompts have the same key.
    """
    keys = np.empty(encoding.num_prompts, "<u8")
    places = np.empty(encoding.num_prompts, PLACE)
    overlong: list[str] = []
    sizes: list[int] = []
    for number in range(encoding.num_shards):
        if (facts := _facts(folder, number)) is None:
            raise ValueError(
                f"{folder / shard_name(number)} is missing or damaged; run the same command again"
            )
        rows = slice(_members(encoding, number).start, _members(encoding, number).stop)
        keys[rows] = [int(key, 16) for key in facts["keys"]]
        places["shard"][rows] = number
        for column, name in (("offset", "offsets"), ("size", "sizes"), ("crc", "crcs")):
            places[column][rows] = facts[name]
        overlong += facts["overlong"]
        sizes.append(facts["bytes"])
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    if len(twice := np.flatnonzero(keys[1:] == keys[:-1])):
        raise ValueError(f"{folder}: two prompts have the same key {int(keys[twice[0]]):016x}; reword one")
    sha256 = {}
    for name, array in ((KEYS, keys), (PLACES, places)):
        with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        with (folder / name).open("rb") as file:
            sha256[name] = hashlib.file_digest(file, "sha256").hexdigest()
    atomic_write_text(folder / OVERLONG, "".join(f"{text}\n" for text in overlong))
    manifest = Manifest(**asdict(encoding), overlong=len(overlong), sha256=sha256, shard_bytes=tuple(sizes))
    write_facts(folder / MANIFEST, asdict(manifest))
    return manifest


def _members(encoding: Encoding, number: int) -> range:
    """Indices of a shard's prompts."""
    start = number * encoding.prompts_per_shard
    return range(start, min(start + encoding.prompts_per_shard, encoding.num_prompts))


def _facts(folder: Path, number: int) -> dict[str, Any] | None:
    """What a shard's side file says, if it is there, whole, and of a tar of this size."""
    path = folder / shard_name(number)
    try:
        facts = parse_facts(path.with_suffix(".json").read_bytes())
        return facts if path.stat().st_size == facts["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


def _is_whole(folder: Path, number: int, *, thorough: bool) -> bool:
    facts = _facts(folder, number)
    if facts is None or not thorough:
        return facts is not None
    with (folder / shard_name(number)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]


def _write_shard(folder: Path, number: int, encoding: Encoding, corpus: Corpus, encoder: Any) -> None:
    path = folder / shard_name(number)
    facts: dict[str, Any] = {"keys": [], "offsets": [], "sizes": [], "crcs": [], "overlong": []}
    prompts = [corpus[index].text for index in _members(encoding, number)]
    path.with_suffix(".json").unlink(missing_ok=True)  # it speaks of the tar that is replaced
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for text, record in zip(prompts, _records(prompts, encoding, encoder), strict=True):
                key = short_name(text)
                _add(tar, f"{key}.txt", text.encode())
                facts["keys"].append(key)
                facts["offsets"].append(_add(tar, f"{key}.safetensors", record))
                facts["sizes"].append(len(record))
                facts["crcs"].append(zlib.crc32(record))
                facts["overlong"] += [
                    text + end for end in encoding.suffixes if encoder.is_overlong(text + end)
                ]
        facts["bytes"] = temporary.stat().st_size
        with temporary.open("rb") as file:
            facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    write_facts(path.with_suffix(".json"), facts)


def _records(prompts: Sequence[str], encoding: Encoding, encoder: Any) -> Iterator[bytes]:
    """Each prompt's rows as the bytes of a safetensors file.

    Batches are cut within a shard, so that a shard's bytes depend on nothing else.
    """
    rows, dtype = len(encoding.suffixes), DTYPES[encoding.dtype]
    at_once = max(1, encoding.batch_size // rows)
    for start in range(0, len(prompts), at_once):
        chunk = prompts[start : start + at_once]
        text = encoder.encode([prompt + suffix for prompt in chunk for suffix in encoding.suffixes])
        parts = {"pooled": text.pooled.to("cpu", dtype), "lengths": text.mask.sum(-1).to("cpu", torch.int32)}
        if not encoding.pooled_only:
            parts["tokens"] = text.tokens.to("cpu", dtype)
        for place in range(len(chunk)):
            own = slice(place * rows, (place + 1) * rows)
            yield safetensors.save({part: value[own].contiguous() for part, value in parts.items()})


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member that says nothing of when and by whom; returns where its data begins."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return offset
