"""Options and files of Gaussian splats, for `amortized generate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortized.arguments import whole

if TYPE_CHECKING:
    from amortized.generation import TextTo3D
    from amortized.types import SplatScene

FORMATS = ("splat", "splat-ply")
SUFFIXES = {"splat-ply": ".splats.ply"}  # a mesh is the .ply
DEFAULT = ("splat",)  # of a run of splats, besides pictures
NUMBER = 20_000  # splats that an object without splats is turned into


def add_splat_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of splats."""
    made = parser.add_argument_group("Gaussian splats (--format splat, splat-ply)")
    made.add_argument(
        "--splats",
        type=whole(1, 10**6),
        help=f"splats to lay on the surface of an object that has none ({NUMBER:,})",
    )


def check_splats(args: argparse.Namespace, model: TextTo3D) -> None:
    """Raise ValueError for a number of splats where training has chosen it."""
    if args.splats is not None and model.makes_splats:
        raise ValueError(
            "--splats is for generators of surfaces: omit it for "
            "this one, whose training has chosen their number"
        )


def splat_settings(args: argparse.Namespace, model: TextTo3D) -> dict[str, Any]:
    """The settings that a file of splats depends on besides the model, as JSON values."""
    if model.makes_splats:
        return {"antialias": model.splats("").antialias}
    return {"splats": args.splats or NUMBER, "antialias": True}


def splats_of(args: argparse.Namespace, model: TextTo3D, prompt: str, seed: int) -> SplatScene:
    """An object as splats. Raises ValueError if it has no surface to lay them on."""
    return model.splats(prompt, seed, count=args.splats or NUMBER)


def save_splats(scene: SplatScene, paths: Mapping[str, Path]) -> int:
    """Write splats to a path for each format; returns their number. Raises OSError."""
    from amortized.splats import parameters_of, write_splat_file, write_splat_ply

    for format, path in paths.items():
        {"splat": write_splat_file, "splat-ply": write_splat_ply}[format](path, scene)
    return len(parameters_of(scene)["means"])
