"""Valid tiny model folders of every kind, and systematic ways to damage them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from amortized.conditioning import load_text_encoder
from amortized.evaluation.clip import load_clip
from amortized.priors import load_stable_diffusion
from tests.tiny_sd import make_tiny_sd
from tests.tiny_t5 import make_tiny_t5

ROOT = Path(__file__).resolve().parents[2]
LOADERS = {
    "prior": load_stable_diffusion,
    "clip": load_clip,
    "t5": lambda folder: load_text_encoder(str(folder)),
    "clip text": lambda folder: load_text_encoder(str(folder)),
}


@cache
def valid(kind: str) -> Path:
    """A valid folder, made once; do not change it."""
    folder = Path(mkdtemp(prefix="valid-"))
    if kind == "prior":
        return make_tiny_sd(folder)
    if kind == "clip":
        return shutil.copytree(ROOT / "checkpoints/shapes-clip", folder, dirs_exist_ok=True)
    if kind == "t5":
        return make_tiny_t5(folder)
    sd = valid("prior")
    shutil.copytree(sd / "text_encoder", folder, dirs_exist_ok=True)
    return shutil.copytree(sd / "tokenizer", folder, dirs_exist_ok=True)


def copy_of(kind: str, folder: Path) -> Path:
    """A copy of a valid folder that a test may change; unchanged files are links."""
    target = folder / "copy"
    shutil.copytree(valid(kind), target, copy_function=os.link)
    return target


def write(file: Path, content: bytes | str | Any) -> None:
    """Replace a file of a copy (never write through the link); values become JSON."""
    file.unlink(missing_ok=True)
    if not isinstance(content, (bytes, str)):
        content = json.dumps(content)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def json_files(kind: str) -> list[str]:
    """The names of the JSON files of a folder that are read as configs."""
    folder = valid(kind)
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.json")))
    skipped = ("figures.json", "tokenizer.json", "model_index.json", "generation_config.json")
    return [name for name in names if not name.endswith(skipped)]


def weight_files(kind: str) -> list[str]:
    folder = valid(kind)
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.safetensors"))]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a JSON value, containers included."""
    if isinstance(value, dict):
        for key in value:
            yield (*path, key)
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield (*path, 0)


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with one value replaced."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return copy
