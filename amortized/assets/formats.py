"""The table of file formats, and the function that writes an asset to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from amortized.assets.conventions import FileOptions
from amortized.assets.glb import write_glb
from amortized.assets.mesh import Asset, AssetError
from amortized.assets.obj import write_obj
from amortized.assets.ply import write_ply
from amortized.assets.printing import write_3mf, write_stl
from amortized.assets.usdz import write_usdz
from amortized.files import atomic_write_bytes
from amortized.untrusted import short

FORMATS: dict[str, Callable[..., bytes]] = {
    "glb": write_glb,
    "ply": write_ply,
    "obj": write_obj,
    "stl": write_stl,
    "3mf": write_3mf,
    "usdz": write_usdz,
}
TEXTURED = ("glb", "obj", "usdz")  # they hold the texture
SUFFIXES = {name: f".{name}" for name in FORMATS} | {"obj": ".obj.zip"}


def save_asset(
    asset: Asset,
    path: str | Path,
    format: str,
    *,
    unlit: bool = False,
    size_m: float | None = None,
    height_mm: float = 60.0,
) -> Path:
    """Write an asset to a file, atomically, and return its path: with the format's suffix, added if missing.

    unlit: GLB only. size_m, the longest side of the bounding box, is for GLB, OBJ and USDZ (None: one unit of
    the scene is a meter); height_mm for STL and 3MF. Raises AssetError if the asset or this machine does not
    allow the format, and ValueError for an unknown format or a wrong option.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown: use one of {', '.join(FORMATS)}")
    path = Path(path)
    if not path.name.endswith(SUFFIXES[format]):
        path = path.with_name(path.name + SUFFIXES[format])
    options = FileOptions(unlit=unlit, size_m=size_m, height_mm=height_mm)
    try:
        data = FORMATS[format](asset, options)
    except AssetError as error:
        raise AssetError(f"{short(path)}: {error}") from None
    atomic_write_bytes(path, data)
    return path
