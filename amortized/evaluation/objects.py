"""The objects of a report in 3D: small GLBs, or splats as they are, and the frame that shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from amortized.assets import AssetConfig, AssetError, Source, check_libraries, make_asset, save_asset
from amortized.evaluation.folder import writing
from amortized.pages import write_script, write_viewer
from amortized.splats import write_splat_file
from amortized.types import AnyScene, SplatScene

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
) -> dict[str, Any]:
    """Write the splats or the GLB of a scene of one prompt; returns the columns of its row that name it.

    Returns nothing if the object has no surface.
    """
    place = folder / FOLDER / name
    if isinstance(scene, SplatScene):
        path = place.with_name(f"{name}.splat")
        with _shown(folder, path):
            write_splat_file(path, scene)
        return {"object": f"{FOLDER}{path.name}", "antialias": scene.antialias}
    try:
        asset = make_asset(scene, SMALL, Source(prompt=prompt), torch.device(device))
    except AssetError:
        return {}
    with _shown(folder, place.with_name(f"{name}.glb")):
        save_asset(asset, place, "glb")
    return {"object": f"{FOLDER}{name}.glb"}


@contextmanager
def _shown(folder: Path, path: Path) -> Iterator[None]:
    """Context: the object at `path` is written, among the objects of the evaluation in `folder`."""
    with writing(folder):
        if not (path.parent / "viewer").exists():
            write_viewer(path.parent)
        yield
        write_script(path)
