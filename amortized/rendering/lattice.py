"""A scene's distances on a grid: what the first look along a ray reads in place of the field.

A distance hardly bends between neighbouring vertices, so interpolating it places samples as well as
asking the field does, and one grid serves all views and rays of a prompt. It is made anew from the
scene at every call: a scene that moves never leaves a stale estimate behind.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from amortized.transfer import to_device
from amortized.types import Scene


@torch.no_grad()
def distance_lattice(
    scene: Scene, num_prompts: int, resolution: int, *, like: Tensor, chunk: int
) -> tuple[Tensor, int]:
    """Distances [P, G, G, G] (axes z, y, x) over the box around the bounding ball, G = resolution.

    Vertices beyond the ball take the distance at its surface; those that no point of the ball reads are
    not asked and hold the bounding radius. `like` gives type and device; `chunk` bounds the points that
    are asked at once. Also returns the number of field evaluations, all prompts together.
    """
    radius = scene.bounding_radius
    read, unit = _vertices_on(resolution, like.dtype, like.device)
    points = (unit * radius).expand(num_prompts, -1, -1)
    step = max(1, chunk // num_prompts)
    sdf = torch.cat([scene.sdf(part) for part in points.split(step, dim=1)], dim=1)
    lattice = sdf.new_full((num_prompts, resolution**3), radius)
    lattice.index_copy_(1, read, sdf)
    return lattice.view(num_prompts, *[resolution] * 3), sdf.numel()


def read_lattice(lattice: Tensor, points: Tensor) -> Tensor:
    """Distances [P, N] at points [P, N, 3] in [-1, 1], trilinear between the vertices."""
    found = torch.nn.functional.grid_sample(
        lattice[:, None], points[:, :, None, None], padding_mode="border", align_corners=True
    )
    return found[:, 0, :, 0, 0]


@lru_cache(maxsize=8)
def _vertices_on(resolution: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same on a device, sent there once."""
    read, unit = _vertices(resolution)
    return to_device(read, device), to_device(unit.to(dtype), device)


@lru_cache(maxsize=8)
def _vertices(resolution: int) -> tuple[Tensor, Tensor]:
    """Which vertices [M] cells that meet the unit ball have, and where [M, 3], moved into the ball."""
    axis = torch.linspace(-1, 1, resolution, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).view(-1, 3)
    norm = torch.linalg.vector_norm(points, dim=-1)
    read = (norm < 1 + 3**0.5 * 2 / (resolution - 1)).nonzero().squeeze(1)
    return read, points[read] / norm[read].clamp(min=1)[:, None]
