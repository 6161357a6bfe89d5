"""The inside of a scene, whether it is given by distances or by densities."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from amortized.types import DensityScene, FieldScene

CELLS = 48  # per side of the bounding ball's box, at whose centers densities are surveyed
POINTS_PER_QUERY = 2**17  # over all prompts: bounds memory


def level_of(scene: FieldScene, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """Return a function from points [P, N, 3] to values [P, N] that are negative inside the objects.

    They are signed distances or, for a `DensityScene` on `device`, `surface_densities` minus the density,
    which is not a distance.
    """
    if not isinstance(scene, DensityScene):
        return scene.sdf
    surface = surface_densities(scene, device)[:, None]
    return lambda points: surface - scene.density(points)


def level_and_albedo_of(
    scene: FieldScene, device: torch.device | str
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function from points [P, N, 3] to the values of `level_of` and albedo [P, N, 3] in [0, 1]."""
    if not isinstance(scene, DensityScene):
        return scene.sdf_and_albedo
    surface = surface_densities(scene, device)[:, None]

    def both(points: Tensor) -> tuple[Tensor, Tensor]:
        density, albedo = scene.density_and_albedo(points)
        return surface - density, albedo

    return both


def albedo_of(scene: FieldScene, points: Tensor) -> Tensor:
    """Return albedo [P, N, 3] in [0, 1] at points [P, N, 3]."""
    if isinstance(scene, DensityScene):
        return scene.density_and_albedo(points)[1]
    return scene.sdf_and_albedo(points)[1]


@torch.no_grad()
def surface_densities(scene: DensityScene, device: torch.device | str) -> Tensor:
    """Return the density [P] at which the inside of each object begins, in 1/length.

    Half of the object's mean density, weighted by the density itself, which for a solid object is the density
    deep inside: half of that is also VolSDF's density at distance 0. It is at least so large that the
    diameter of the bounding ball absorbs half of the light, so that fog is not solid.
    """
    radius = scene.bounding_radius
    centers = ((torch.arange(CELLS, device=device) + 0.5) / CELLS * 2 - 1) * radius
    points = torch.cartesian_prod(centers, centers, centers)
    points = points[points.norm(dim=-1) <= radius]
    step = max(1, POINTS_PER_QUERY // scene.num_prompts)
    parts = [scene.density(part.expand(scene.num_prompts, -1, -1)) for part in points.split(step)]
    densities = torch.cat(parts, dim=1).double()  # [P, N]
    mean = densities.square().sum(dim=1) / densities.sum(dim=1).clamp(min=1e-30)
    return (0.5 * mean).clamp(min=math.log(2) / (2 * radius)).to(parts[0].dtype)
