"""Options of assets, for `amortized generate`: how objects are extracted, and what their files hold."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from amortized import arguments
from amortized.arguments import number, whole

if TYPE_CHECKING:
    from amortized.assets import AssetConfig

FORMATS = ("glb", "ply", "obj", "stl", "3mf", "usdz")
SUFFIXES = {"obj": ".obj.zip"}  # other files end with their format
PRINTED = ("stl", "3mf")
TEXTURED = ("glb", "obj", "usdz")
KEEP = ("main", "all", "largest")
GRID = ("resolution", "exact", "keep", "faces")  # settings that every format depends on


@dataclass(frozen=True, kw_only=True)
class AssetJob:
    """One object, and the files to make of it."""

    name: str  # of the files, without suffix
    prompt: str
    seed: int
    formats: tuple[str, ...]
    config: AssetConfig  # of what these formats need


def add_asset_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of assets."""
    made = parser.add_argument_group("assets (--format glb, ply, obj, stl, 3mf, usdz)")
    made.add_argument(
        "--resolution", type=whole(16, 2048), default=256, help="cells across the object's ball (%(default)s)"
    )
    made.add_argument("--exact", action="store_true", help="evaluate the field everywhere: slow")
    made.add_argument(
        "--keep", choices=KEEP, default="main", help="bodies: at least 1 %% of the largest; all; the largest"
    )
    made.add_argument("--faces", type=whole(0, 10**8), default=20_000, help="triangles; 0: all (%(default)s)")
    made.add_argument(
        "--texture",
        type=whole(0, 16_384),
        default=1024,
        help="texels of its longer side; 0: none (%(default)s)",
    )
    made.add_argument("--unlit", action="store_true", help="GLB: show colors without shading")
    made.add_argument("--size-m", type=number(1e-3, 1e4), help="glb, obj, usdz: longest side in meters")
    made.add_argument("--license", type=arguments.text, help="goes into the files")
    made.add_argument(
        "--height-mm", type=number(1, 10_000), default=60.0, help="stl, 3mf: height in mm (%(default)g)"
    )
    made.add_argument(
        "--base",
        type=number(0, 0.5),
        default=0.01,
        help="stl, 3mf: share of the height to cut off (%(default)g)",
    )
    made.add_argument("--wall-mm", type=number(0.1, 1000), help="stl, 3mf: hollow, with such walls")
    made.add_argument(
        "--workers",
        type=whole(1, 1024),
        help="processes for assets (default: one per core; on a GPU 1)",
    )


def asset_config(args: argparse.Namespace, formats: Sequence[str]) -> AssetConfig:
    """How the assets of these formats are made."""
    from amortized.assets import AssetConfig

    return AssetConfig(
        resolution=args.resolution,
        exact=args.exact,
        keep=args.keep,
        faces=args.faces,
        texture=args.texture if any(format in TEXTURED for format in formats) else 0,
        printable=any(format in PRINTED for format in formats),
        base=args.base,
        height_mm=args.height_mm,
        wall_mm=args.wall_mm,
    )


def asset_settings(args: argparse.Namespace, format: str) -> dict[str, Any]:
    """The settings that a file of a format depends on, as JSON values."""
    config = asdict(asset_config(args, [format]))
    settings = {key: config[key] for key in GRID} | {"license": args.license or ""}
    if format in PRINTED:
        settings |= {key: config[key] for key in ("base", "height_mm", "wall_mm")}
    if format in TEXTURED:
        settings |= {"texture": args.texture, "size_m": args.size_m}
    if format == "glb":
        settings["unlit"] = args.unlit
    return settings


def file_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `save_asset`."""
    return {"unlit": args.unlit, "size_m": args.size_m, "height_mm": args.height_mm}


def num_workers(args: argparse.Namespace, jobs: int, *, on_cpu: bool) -> int:
    """The processes that make `jobs` assets."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(args.workers or (cores if on_cpu else 1), jobs))
