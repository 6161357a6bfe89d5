"""Damage to files: what disks, copies, other programs and attackers do to a folder. A function of a seed."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Damage = Callable[[Path, Random], None]

# Values that a key may suddenly have.
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    10**30,
    2**31,
    float("nan"),
    float("-inf"),
    "",
    "x" * 10_000,
    "../../../etc/passwd",
    "hf-hub:someone/something",
    "\ud800",
    "\0",
    [],
    [[[[]]]],
    ["a", 1, None],
    {},
    {"trust_remote_code": True},
)
KEYS = (
    "auto_map",
    "_class_name",
    "trust_remote_code",
    "hf_model_name",
    "custom_pipelines",
    "__class__",
    "x" * 3000,
)


def empty(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, random: Random) -> None:
    path.unlink()


def truncate(path: Path, random: Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(len(data) + 1)])


def flip_bytes(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 10, 200])):
        if data:
            data[random.randrange(len(data))] = random.randrange(256)
    path.write_bytes(data)


def insert_bytes(path: Path, random: Random) -> None:
    data = path.read_bytes()
    at = random.randrange(len(data) + 1)
    path.write_bytes(data[:at] + random.randbytes(random.choice([1, 100, 100_000])) + data[at:])


def noise(path: Path, random: Random) -> None:
    path.write_bytes(random.randbytes(random.choice([1, 100, 10_000])))


def lfs_pointer(path: Path, random: Random) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n")


def sparse(path: Path, random: Random) -> None:
    with path.open("r+b") as file:
        file.truncate(2 ** random.choice([33, 36, 40]))


def pipe(path: Path, random: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to(random.choice(["/dev/zero", "/dev/urandom", "/dev/null", "/dev/full"]))


def loop(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def folder(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def unreadable_name(path: Path, random: Random) -> None:
    path.rename(path.with_name(random.choice([f"._{path.name}", path.name.upper(), f"{path.name} (1)"])))


def extra_file(path: Path, random: Random) -> None:
    names = [
        "extra.safetensors",
        "modeling.py",
        "adapter_config.json",
        f"._{path.name}",
        ".DS_Store",
        "pickle.bin",
    ]
    path.with_name(random.choice(names)).write_bytes(random.choice([b"", b"{}", random.randbytes(50)]))


ANY_FILE: tuple[Damage, ...] = (
    empty,
    remove,
    truncate,
    flip_bytes,
    insert_bytes,
    noise,
    lfs_pointer,
    sparse,
    pipe,
    device,
    loop,
    folder,
    unreadable_name,
    extra_file,
)


def json_value(path: Path, random: Random) -> None:
    """One value somewhere in the JSON has another type or size."""
    data = json.loads(path.read_text(encoding="utf-8"))
    container, key = random.choice(_places(data))
    container[key] = random.choice(VALUES)
    path.write_text(json.dumps(data), encoding="utf-8")


def json_key(path: Path, random: Random) -> None:
    """One key somewhere is missing, renamed or new."""
    data = json.loads(path.read_text(encoding="utf-8"))
    objects = [data, *(c[k] for c, k in _places(data))]
    mappings = [item for item in objects if isinstance(item, dict)]
    if not mappings:
        return json_value(path, random)
    target = random.choice(mappings)
    if target and random.random() < 0.6:
        value = target.pop(random.choice(list(target)))
        if random.random() < 0.3:
            target["renamed"] = value
    else:
        target[random.choice(KEYS)] = random.choice(VALUES)
    path.write_text(json.dumps(data), encoding="utf-8")
    return None


def json_shape(path: Path, random: Random) -> None:
    """Another JSON altogether."""
    texts = ["[]", "{}", "3", '"text"', "null", "[" * 50_000, '{"a":' * 50_000, "{" + '"a":1,' * 9 + '"a":2}']
    path.write_text(random.choice(texts), encoding="utf-8")


def tensors_header(path: Path, random: Random) -> None:
    """A safetensors header that lies: about its length, or a tensor's name, shape, type or place."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    kind = random.randrange(6)
    if kind == 0:
        path.write_bytes(struct.pack("<Q", random.choice([0, 2**20, 2**40, 2**63])) + data[8:])
        return
    name = random.choice([key for key in header if key != "__metadata__"])
    if kind == 1:
        header[f"renamed.{name}"] = header.pop(name)
    elif kind == 2:
        header[name]["shape"] = random.choice([[], [0], [2**40], [-1], [1, *header[name]["shape"]], "shape"])
    elif kind == 3:
        header[name]["dtype"] = random.choice(["F64", "I8", "BOOL", "COMPLEX", 3])
    elif kind == 4:
        header[name]["data_offsets"] = random.choice([[0, 0], [0, 2**50], [5, 1], [-4, 0], []])
    else:
        del header[name]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def not_finite(path: Path, random: Random) -> None:
    """Tensors that hold NaN."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    size = min(len(data) - 8 - length, 4096) // 4 * 4
    data[8 + length : 8 + length + size] = struct.pack("<f", float("nan")) * (size // 4)
    path.write_bytes(data)


JSON: tuple[Damage, ...] = (json_value, json_value, json_value, json_key, json_key, json_shape)
TENSORS: tuple[Damage, ...] = (tensors_header, tensors_header, tensors_header, not_finite)


def damaged_copy(original: Path, target: Path, random: Random) -> str:
    """Copy a folder or file and damage one file of it; returns what was done, for messages."""
    if original.is_file():
        shutil.copy(original, target)
        files = [target]
    else:
        shutil.copytree(original, target, symlinks=True)
        files = sorted(path for path in target.rglob("*") if path.is_file())
    path = random.choice(files)
    kinds = list(ANY_FILE)
    if path.suffix == ".json":
        kinds += 3 * JSON
    if path.suffix == ".safetensors":
        kinds += 3 * TENSORS
    damage = random.choice(kinds)
    damage(path, random)
    return f"{damage.__name__} {path.relative_to(target.parent)}"


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    stack = [data]
    while stack:
        item = stack.pop()
        pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, value in list(pairs):
            found.append((item, key))
            stack.append(value)
    return found or [([data], 0)]
