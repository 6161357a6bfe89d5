"""The objects of a report in 3D: small GLBs, and the frame that shows them."""

from __future__ import annotations

from pathlib import Path

import torch

from amortized.assets import AssetConfig, AssetError, Source, check_libraries, make_asset, save_asset
from amortized.evaluation.folder import writing
from amortized.pages import write_script, write_viewer
from amortized.types import AnyScene

FOLDER = "objects/"
SMALL = AssetConfig(resolution=128, faces=5000, texture=256)  # some 200 kB


def can_make_objects() -> str:
    """Why objects cannot be made here; empty if they can."""
    try:
        check_libraries(SMALL)
    except AssetError as error:
        return str(error)
    return ""


def write_object(
    scene: AnyScene, folder: Path, name: str, prompt: str, device: torch.device | str
) -> dict[str, str]:
    """Write the GLB of a scene of one prompt; returns its path, or nothing if the object has no surface."""
    try:
        asset = make_asset(scene, SMALL, Source(prompt=prompt), torch.device(device))
    except AssetError:
        return {}
    with writing(folder):
        if not (folder / FOLDER / "viewer").exists():
            write_viewer(folder / FOLDER)
        write_script(save_asset(asset, folder / FOLDER / name, "glb"))
    return {"object": f"{FOLDER}{name}.glb"}
