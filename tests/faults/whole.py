"""Whether every file under a final name is whole. Names with a leading dot are temporary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import trimesh
import yaml
from PIL import Image
from safetensors import safe_open

LOGS = ("log.jsonl", "events.jsonl")  # appended to: the last line may be torn, and a reader skips it


def broken_files(folder: Path) -> list[str]:
    """The files that cannot be read to their end, with the reason."""
    found = []
    for path in final_files(folder):
        try:
            read_whole(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


def final_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def read_whole(path: Path) -> None:
    """Read a file by its kind. Raises if it is not whole."""
    if path.name in LOGS:
        lines = path.read_text(encoding="utf-8").split("\n")
        for line in lines[:-1]:
            json.loads(line)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".yaml":
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".safetensors":
        with safe_open(str(path), "pt") as file:
            for name in file.keys():
                file.get_tensor(name)
    elif path.suffix == ".parquet":
        pq.read_table(path)
    elif path.suffix in (".glb", ".stl"):
        assert len(trimesh.load_mesh(path).faces) > 0
    elif path.suffix == ".mp4":
        data = path.read_bytes()
        assert b"moov" in data and b"mdat" in data
    elif path.suffix == ".html":
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
