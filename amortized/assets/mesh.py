"""Meshes and assets: what the extraction makes, and what the file formats write.

Arrays are NumPy's. Axes and unit are the scene's: z up, front +x, the object inside the bounding ball.
Writers convert to the axes and unit of their format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Mesh:
    """Triangles that share their vertices; closed if it bounds a solid."""

    vertices: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [F, 3] int64, counter-clockwise as viewed from outside
    normals: np.ndarray  # [V, 3] float64, unit length, of the field
    colors: np.ndarray | None = None  # [V, 3] float32 in [0, 1], sRGB; None: not evaluated


@dataclass(frozen=True, kw_only=True, eq=False)
class TexturedMesh:
    """A mesh cut along the seams of its texture. Seam vertices occur once per side: it is not closed."""

    mesh: Mesh
    uv: np.ndarray  # [V, 2] float64 in [0, 1]; u to the right, v up
    texture: np.ndarray  # [H, W, 3] uint8, sRGB; row 0 is at the top, v = 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an asset was made from; goes into the metadata of its files."""

    prompt: str
    seed: int = 0
    checkpoint: str = ""  # name and digest
    license: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asset:
    """One object, ready to be written in any format."""

    mesh: Mesh  # closed, with colors at its vertices
    textured: TexturedMesh | None  # the same surface with a texture; None if it was not requested
    printable: Mesh | None = None  # a single body with a flat base; None if it was not requested
    source: Source
    report: dict[str, Any] = field(default_factory=dict)  # JSON: seconds by stage, evaluations, checks


class AssetError(ValueError):
    """An asset that cannot be made or written: one sentence with the reason and a remedy."""
