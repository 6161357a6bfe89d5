"""Folders as generate writes them, with small files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from amortized.media import save_strip, save_video, save_webp

LOOK = {"camera": "turntable", "size": 16, "background": 0.5, "show": ["rgb"]}
SOLID = {"faces": 500, "license": "CC0-1.0", "size_m": None}


def entry(
    name: str, prompt: str, *formats: str, seed: int = 0, model: str = "step_4 abc", **more: Any
) -> dict:
    """An entry of an index; "prompts" in `more` makes it one of a way."""
    look = {"png": LOOK | {"views": 4}, "mp4": LOOK | {"frames": 4}, "webp": LOOK | {"frames": 4}}
    files = {
        format: {"file": f"{name}.{format}", "model": model, "settings": look.get(format, SOLID)}
        for format in formats
    }
    return {"name": name, "prompt": prompt, "seed": seed, "files": files, **more}


def write_files(folder: Path, entries: list[dict], glb: bytes = b"glTF") -> None:
    """Write the files that entries list: pictures that browsers show, and `glb` for everything else."""
    frames = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    for made in entries:
        for format, record in made["files"].items():
            path = folder / record["file"]
            if format == "png":
                save_strip(path, frames)
            elif format == "mp4":
                save_video(path, frames, 12)
            elif format == "webp":
                save_webp(path, frames, 12)
            else:
                path.write_bytes(glb)
