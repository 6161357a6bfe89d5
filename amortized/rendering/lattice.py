"""Signed distances, or densities, on a regular grid, which the coarse pass reads instead of the field.

Distances are nearly linear between neighboring vertices, so interpolating them places samples as well as
evaluating the field does, and one grid serves all views and rays of a prompt. The grid is recomputed from the
scene in every call, so it is never out of date.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from amortized.rendering.chunks import DEFAULT_CHUNK
from amortized.rendering.volumes import Volume
from amortized.scenes import level_of
from amortized.transfer import to_device
from amortized.types import AnyScene, SplatScene


@torch.no_grad()
def value_lattice(
    volume: Volume, num_prompts: int, resolution: int, *, like: Tensor, chunk: int
) -> tuple[Tensor, int]:
    """Evaluate a volume's values [P, G, G, G] (axes z, y, x) over the bounding ball's box, G = resolution.

    Vertices outside the ball take the value at the nearest point of its surface. Vertices that no point
    in the ball interpolates from are not evaluated and hold `volume.outside`. `like` sets dtype and
    device; `chunk` bounds the evaluations at once. Also returns the number of evaluations over all prompts.
    """
    index, unit_points = _vertices_on(resolution, like.dtype, like.device)
    points = (unit_points * volume.scene.bounding_radius).expand(num_prompts, -1, -1)
    step = max(1, chunk // num_prompts)
    values = torch.cat([volume.values(part) for part in points.split(step, dim=1)], dim=1)
    lattice = values.new_full((num_prompts, resolution**3), volume.outside)
    lattice.index_copy_(1, index, values)
    return lattice.view(num_prompts, *[resolution] * 3), values.numel()


@torch.no_grad()
def radius_of(scene: AnyScene, device: torch.device, resolution: int = 48) -> float:
    """Return the radius of a ball around the origin that holds all P objects, at most a cell too large.

    It is that of the bounding ball if nothing is solid. Parts thinner than a cell may be missed. Splats reach
    two of their largest standard deviations from their centers.
    """
    if isinstance(scene, SplatScene):
        reach = scene.means.norm(dim=-1) + 2 * scene.log_scales.exp().amax(-1)
        visible = reach[scene.logits > 0]  # an opacity of 0.5
        return min(float(visible.max()), scene.bounding_radius) if len(visible) else scene.bounding_radius
    _, unit_points = _vertices_on(resolution, torch.float32, device)
    level, step = level_of(scene, device), max(1, DEFAULT_CHUNK // scene.num_prompts)
    is_solid = [
        (level((part * scene.bounding_radius).expand(scene.num_prompts, -1, -1)) < 0).any(dim=0)
        for part in unit_points.split(step)
    ]
    solid = unit_points[torch.cat(is_solid)]
    if len(solid) == 0:
        return scene.bounding_radius
    cell = 3**0.5 * 2 / (resolution - 1)  # its diagonal
    return scene.bounding_radius * min(1.0, solid.norm(dim=-1).max().item() + cell)


def read_lattice(lattice: Tensor, points: Tensor) -> Tensor:
    """Interpolate values [P, N] at points [P, N, 3] in [-1, 1] trilinearly from a lattice [P, G, G, G]."""
    values = torch.nn.functional.grid_sample(
        lattice[:, None], points[:, :, None, None], padding_mode="border", align_corners=True
    )
    return values[:, 0, :, 0, 0]


@lru_cache(maxsize=8)
def _vertices_on(resolution: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `_vertices` on a device; cached, so that they are copied there once."""
    index, points = _vertices(resolution)
    return to_device(index, device), to_device(points.to(dtype), device)


@lru_cache(maxsize=8)
def _vertices(resolution: int) -> tuple[Tensor, Tensor]:
    """Return the vertices of cells that meet the unit ball: flat index [M], points [M, 3] clamped to it."""
    axis = torch.linspace(-1, 1, resolution, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).view(-1, 3)
    norm = torch.linalg.vector_norm(points, dim=-1)
    # A cell that meets the ball has no vertex farther from it than the cell's diagonal.
    index = (norm < 1 + 3**0.5 * 2 / (resolution - 1)).nonzero().squeeze(1)
    return index, points[index] / norm[index].clamp(min=1)[:, None]
