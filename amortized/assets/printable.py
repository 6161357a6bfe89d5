"""Make an object printable: a flat base, and a hollow inside with a drain, as operations on its field."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor

from amortized.assets.clean import keep_bodies
from amortized.assets.config import AssetConfig
from amortized.assets.extraction import extract
from amortized.assets.field import Carve, Field
from amortized.assets.mesh import AssetError, Mesh

MAX_LATTICE = 160  # cells along the longest side, at whose vertices the depth is computed
MIN_CELLS = 2  # of a wall; a thinner one would have holes
DRAIN_MM = 2.5  # least radius of the hole through which powder or resin leaves the hollow


def printable_field(field: Field, mesh: Mesh, config: AssetConfig) -> Field:
    """The field of an object with a flat base, and hollow if the config has a wall; `mesh` is its surface.

    The hollow is what lies deeper below the surface than the wall, with a vertical drain through the base
    below its lowest point. Depth is the distance to the extracted surface, not the SDF: deep inside an object
    a trained field is far from a distance. Raises AssetError if no part is that deep.
    """
    vertices, _, _ = keep_bodies(mesh.vertices, mesh.faces, "largest")
    low, high = vertices[:, 2].min(), vertices[:, 2].max()
    base = float(low + config.base * (high - low))
    cut = field.carved(lambda points: base - points[:, 2])
    if config.wall_mm is None:
        return cut
    unit = (high - base) / config.height_mm  # the scene's unit per millimeter
    cell = 2 * config.max_step(field.radius)
    if config.wall_mm * unit < MIN_CELLS * cell:
        needed = math.ceil(config.resolution * MIN_CELLS * cell / (config.wall_mm * unit))
        raise AssetError(
            f"a wall of {config.wall_mm:g} mm is too thin for resolution {config.resolution}: it needs "
            f"resolution {needed}"
        )
    hollow = _hollow(cut, config, config.wall_mm * unit, max(config.wall_mm, DRAIN_MM) * unit)
    return field.carved(lambda points: torch.maximum(base - points[:, 2], hollow(points)))


def _hollow(cut: Field, config: AssetConfig, wall: float, drain: float) -> Carve:
    """A function that is positive in the hollow and in its drain of radius `drain`."""
    from scipy.ndimage import label
    from scipy.spatial import KDTree

    # 1. The depth at the vertices of a lattice: the signed distance to the nearest vertex of the surface.
    vertices, faces = extract(cut, config.resolution, exact=config.exact)
    vertices, _, _ = keep_bodies(vertices, faces, "largest")
    low, high = vertices.min(0), vertices.max(0)
    cell = max(wall / 2, float((high - low).max()) / MAX_LATTICE)
    axes = [np.linspace(low[k], high[k], 2 + int((high[k] - low[k]) / cell)) for k in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    enough = wall + 2 * cell  # what is deeper is all the same, and slow to find
    distance = KDTree(vertices).query(points, distance_upper_bound=enough)[0].clip(max=enough)
    depth = np.where(cut.value(points) < 0, distance, -distance).astype(np.float32)
    depth = depth.reshape([len(axis) for axis in axes])
    # 2. The largest hollow, and its lowest point.
    parts, count = cast(tuple[np.ndarray, int], label(depth > wall))
    if not count:
        raise AssetError(
            f"no part of the object is thicker than two walls of {config.wall_mm:g} mm: print it solid, or "
            "with a thinner wall"
        )
    largest = parts == 1 + np.bincount(parts[parts > 0] - 1).argmax()
    depth[(parts > 0) & ~largest] = wall / 2  # smaller hollows have no drain: fill them
    x, y, z = (axis[index] for axis, index in zip(axes, _lowest(largest), strict=True))
    # 3. Both as functions of points.
    volume = torch.from_numpy(depth).to(cut.device).permute(2, 1, 0)[None, None]
    center, scale = (torch.tensor(v, dtype=torch.float32) for v in ((low + high) / 2, (high - low) / 2))
    center, scale = center.to(cut.device), scale.to(cut.device)

    def hollow(points: Tensor) -> Tensor:
        where = ((points - center) / scale)[None, None, None]
        deep = torch.nn.functional.grid_sample(volume, where, align_corners=True)[0, 0, 0, 0] - wall
        radial = drain - (points[:, :2] - points.new_tensor([x, y])).norm(dim=1)
        return torch.maximum(deep, torch.minimum(radial, z + wall - points[:, 2]))

    return hollow


def _lowest(mask: np.ndarray) -> np.ndarray:
    """The index of the lowest True of a mask [X, Y, Z], the one nearest to the middle of its level."""
    found = np.argwhere(mask)
    level = found[found[:, 2] == found[:, 2].min()]
    return level[np.linalg.norm(level - level.mean(0), axis=1).argmin()]
