"""Splats on the surface of a signed distance field: the start that a trained generator gives."""

from __future__ import annotations

import math

import torch
from scipy.spatial import KDTree
from torch import Tensor

from amortized.splats.parameters import MAX_SPLATS, Parameters, coefficients_of, quaternions_from_z
from amortized.transfer import constant
from amortized.types import DensityScene, FieldScene, Scene

OPACITY = 0.9  # shows the look of the surface; 0.5 lets its shape move more freely
WIDTH, THICKNESS = 0.6, 0.1  # standard deviations in units of the mean spacing: along the surface, across
OVERSAMPLING = 5  # candidates per splat, of which those with enough space are chosen
BAND = 0.02  # half width of the shell around the surface that candidates come from, of the bounding radius
MAX_ROUNDS = 400  # of candidates; an object that they do not fill is too small for its bounding ball
POINTS_PER_ROUND = 2**17
# Corners of a regular tetrahedron on the unit sphere, for gradients from 4 evaluations.
SIGNS = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
TETRAHEDRON = tuple(tuple(sign / math.sqrt(3) for sign in row) for row in SIGNS)


@torch.no_grad()
def from_surface(
    scene: FieldScene,
    count: int,
    rng: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    opacity: float = OPACITY,
) -> Parameters:
    """Return `count` flat splats evenly spaced on the surface of a scene of one prompt, in its colors.

    A pure function of the scene and of `rng`, a CPU generator. Raises ValueError for a scene of densities or
    of several prompts, a field that is not finite, one without a surface in its bounding ball, or a count
    that is not 1 to a million.
    """
    if isinstance(scene, DensityScene):
        raise ValueError(
            "splats start from a surface, and this scene has densities: train it with generator.geometry=sdf"
        )
    if scene.num_prompts != 1:
        raise ValueError(f"splats start from the surface of one prompt, got {scene.num_prompts}: select one")
    if not 1 <= count <= MAX_SPLATS:
        raise ValueError(f"count must lie in [1, {MAX_SPLATS:,}], got {count:,}")
    points, area = surface_points(scene, OVERSAMPLING * count, rng, device)
    spacing = math.sqrt(area / count)
    points = points[_spaced(points, count, spacing)]
    normals = torch.nn.functional.normalize(_gradient(scene, points), dim=-1)
    _, rgb = scene.sdf_and_albedo(points[None])
    log_scales = torch.tensor([WIDTH, WIDTH, THICKNESS * WIDTH]).mul(spacing).log()
    return {
        "means": points,
        "quaternions": quaternions_from_z(normals),
        "log_scales": log_scales.to(points).repeat(count, 1),
        "logits": points.new_full((count,), math.log(opacity / (1 - opacity))),
        "colors": coefficients_of(rgb[0].to(points)),
    }


@torch.no_grad()
def surface_points(
    scene: Scene, number: int, rng: torch.Generator, device: torch.device | str = "cpu"
) -> tuple[Tensor, float]:
    """Return `number` points [N, 3] of a scene's surface, uniform by area, and the surface's area.

    Raises ValueError for a field that is not finite, or without a surface in its bounding ball.

    Points in a thin shell around the surface are uniform by area once projected. The shell is |sdf| < band *
    |gradient|, so that a field which is not an exact distance has the same shell.
    """
    radius = scene.bounding_radius
    band = BAND * radius
    found: list[Tensor] = []
    drawn = hits = total = 0
    for _ in range(MAX_ROUNDS):
        directions = torch.nn.functional.normalize(torch.randn(POINTS_PER_ROUND, 3, generator=rng), dim=-1)
        distances = radius * torch.rand(POINTS_PER_ROUND, 1, generator=rng) ** (1 / 3)
        points = (directions * distances).to(device)
        drawn += len(points)
        sdf = _sdf(scene, points)
        near = sdf.abs() < 3 * band  # the gradient of a usable field is below 3
        if not near.any():
            continue
        points, sdf = points[near], sdf[near]
        gradient = _gradient(scene, points)
        slope = gradient.norm(dim=-1).clamp(min=1e-3)
        inside = sdf.abs() < band * slope
        hits += int(inside.sum())
        found.append(_project(scene, points[inside], band))
        total += len(found[-1])
        if total >= number:
            break
    if total < number:
        raise ValueError(
            f"the scene has almost no surface in its bounding ball of radius {radius:g} to start "
            "from: train it further or take another prompt"
        )
    volume = 4 / 3 * math.pi * radius**3
    return torch.cat(found)[:number], volume * hits / drawn / (2 * band)


def _project(scene: Scene, points: Tensor, band: float) -> Tensor:
    """Return the points [M, 3] moved onto the surface by Newton steps, without those that do not arrive."""
    for _ in range(3):
        gradient = _gradient(scene, points)
        step = (_sdf(scene, points) / gradient.square().sum(-1).clamp(min=1e-2))[:, None] * gradient
        length = step.norm(dim=-1, keepdim=True)
        points = points - step * (band / length.clamp(min=band))
    return points[_sdf(scene, points).abs() < 0.1 * band]


def _spaced(points: Tensor, count: int, spacing: float) -> Tensor:
    """Return `count` rows of points [N, 3] that leave space between each other.

    Points are taken in order if none taken is near; the distance shrinks until there are enough.
    """
    tree = KDTree(points.cpu().double().numpy())
    distance = 0.7 * spacing  # near the densest packing of random points
    while True:
        neighbors = tree.query_ball_point(tree.data, distance, workers=1)
        free, taken = [True] * len(points), []
        for row, near in enumerate(neighbors):
            if free[row]:
                taken.append(row)
                for other in near:
                    free[other] = False
        if len(taken) >= count:
            return torch.tensor(taken[:count], device=points.device)
        distance *= 0.95


def _sdf(scene: Scene, points: Tensor) -> Tensor:
    """Return distances [N] at points [N, 3], moved into the bounding ball; ValueError if not finite."""
    norm = points.norm(dim=-1, keepdim=True)
    points = points * (scene.bounding_radius / norm.clamp(min=scene.bounding_radius))
    sdf = scene.sdf(points[None])[0].float()
    if not sdf.isfinite().all():
        raise ValueError("the scene to start from is not finite: its generator's weights are damaged")
    return sdf


def _gradient(scene: Scene, points: Tensor) -> Tensor:
    """Return the gradient [N, 3] of the field at points [N, 3], by differences."""
    step = 0.005 * scene.bounding_radius
    corners = constant(TETRAHEDRON, points)  # [4, 3]
    values = _sdf(scene, (points[:, None] + step * corners).flatten(0, 1)).view(-1, 4)
    return values @ corners * (0.75 / step)
