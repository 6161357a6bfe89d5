"""Fit the field of one object to a scene: regression of distances, or densities, and colors at points.

    distances   |sdf - sdf*| / radius                               + |albedo - albedo*| near the surface
    densities   |log((density + e) / (density* + e))| / log(k / e)  + the same, density* = VolSDF's of sdf*

Densities range from e, below which they absorb nothing, to k: hence the logarithm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amortized.encodings import HashGrid
from amortized.rendering.quadrature import laplace_density
from amortized.scenes import albedo_of, level_of
from amortized.splats import surface_points
from amortized.types import DensityScene, FieldScene, Scene

STEPS = 300
BATCH = 2**13  # points per step: half of them near the surface
SURFACE, COPIES = 2**14, 8  # points on the surface, and disturbed copies of each
SPREADS = (0.01, 0.06)  # standard deviations of the disturbance, of the radius; each has half of the copies
IN_BALL = 2**16  # points in the ball, uniform in its volume, and again in the distance from its center
GRID_RATE, HEAD_RATE = 3e-2, 1e-2  # Adam's, decayed to a tenth along a cosine
SHARPNESS = 50.0  # k of the densities, in 1 / radius: what a grid of 40 cells can represent
NEGLIGIBLE = 1e-3  # e, in 1 / radius
POINTS_PER_QUERY = 2**16
MAX_OUTSIDE = 0.01  # share of an object that may be cut off by the bounding ball


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well a scene agrees with another one."""

    iou: float  # of the insides, in the ball
    color_error: float  # mean absolute difference of albedo on the other's surface


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The outcome of `fit_field`."""

    before: Agreement
    after: Agreement
    seconds: float


def fit_field(
    module: nn.Module,
    scene_of: Callable[[], FieldScene],
    source: Scene,
    *,
    rng: torch.Generator,
    device: torch.device | str = "cpu",
    prepare: Callable[[], None] = lambda: None,
) -> Fit:
    """Train `module`, whose scene of one prompt is `scene_of()`, to resemble `source`.

    `prepare` changes the module after the first comparison. A pure function of both and of `rng`, a CPU
    generator, up to rounding on a GPU. Raises ValueError for a source without a surface, with numbers that
    are not finite, or that leaves the bounding ball.
    """
    begin = time.perf_counter()
    radius = scene_of().bounding_radius
    on_surface, _ = surface_points(source, SURFACE, rng, device)
    on_surface = on_surface[check_inside(on_surface, radius, "surface")]
    near = _into_ball(_disturbed(on_surface, radius, rng), radius)
    anywhere = in_ball(IN_BALL, radius, rng).to(device)
    # Also more densely around the center, at which a density begins as a blob: a hole there is small.
    points = torch.cat([near, anywhere, in_ball(IN_BALL, radius, rng, power=1).to(device)])
    distances, colors = _queried(source, points)
    before = agreement(scene_of(), source, on_surface, anywhere)
    prepare()
    groups = [{"params": [], "lr": HEAD_RATE}, {"params": [], "lr": GRID_RATE}]
    tables = {id(part.table) for part in module.modules() if isinstance(part, HashGrid)}
    for parameter in module.parameters():
        groups[id(parameter) in tables]["params"].append(parameter)
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.99), eps=1e-15)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.55 + 0.45 * math.cos(math.pi * step / STEPS)
    )
    num_near = BATCH // 2
    for _ in range(STEPS):
        rows = torch.cat(
            [
                torch.randint(len(near), (num_near,), generator=rng),
                torch.randint(len(near), len(points), (BATCH - num_near,), generator=rng),
            ]
        ).to(device)
        error, albedo = _errors(scene_of(), points[rows], distances[rows])
        loss = error.mean() + (albedo - colors[rows])[:num_near].abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
    optimizer.zero_grad(set_to_none=True)
    after = agreement(scene_of(), source, on_surface, anywhere)
    return Fit(before=before, after=after, seconds=time.perf_counter() - begin)


@torch.no_grad()
def agreement(scene: FieldScene, source: Scene, on_surface: Tensor, anywhere: Tensor) -> Agreement:
    """Compare two scenes of one prompt at points [N, 3]: those on the surface of `source`, and any others."""
    inside = level_of(scene, anywhere.device)(anywhere[None])[0] < 0
    truly = _queried(source, anywhere)[0] < 0
    union = int((inside | truly).sum())
    error = albedo_of(scene, on_surface[None]) - albedo_of(source, on_surface[None])
    return Agreement(
        iou=int((inside & truly).sum()) / union if union else 1.0, color_error=float(error.abs().mean())
    )


def check_inside(points: Tensor, radius: float, what: str) -> Tensor:
    """Return which of an object's points [N, 3] are in the bounding ball, bool [N].

    Raises ValueError if more than a few are not; `what` they are a share of.
    """
    distances = points.norm(dim=-1)
    inside = distances <= radius
    share, reach = 1 - float(inside.float().mean()), math.ceil(100 * float(distances.max())) / 100
    if share > MAX_OUTSIDE:
        raise ValueError(
            f"{share:.0%} of its {what} is outside the ball of generator.bounding_radius={radius:g}, at up "
            f"to {reach:.2f} from the center: scale the object, or set generator.bounding_radius={reach:.2f}"
        )
    return inside


def in_ball(number: int, radius: float, rng: torch.Generator, power: float = 1 / 3) -> Tensor:
    """Return random points [number, 3] of the ball, uniform in its volume; of power 1, in the distance."""
    directions = nn.functional.normalize(torch.randn(number, 3, generator=rng), dim=-1)
    return radius * directions * torch.rand(number, 1, generator=rng) ** power


def _errors(scene: FieldScene, points: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Return errors [N] of a scene's distances or densities, and its albedo [N, 3], at points [N, 3]."""
    radius = scene.bounding_radius
    if not isinstance(scene, DensityScene):
        sdf, albedo = scene.sdf_and_albedo(points[None])
        return (sdf[0] - distances).abs() / radius, albedo[0]
    density, albedo = scene.density_and_albedo(points[None])
    wanted = laplace_density(distances, SHARPNESS / radius)
    least = NEGLIGIBLE / radius
    decades = math.log(SHARPNESS / NEGLIGIBLE)
    return ((density[0] + least) / (wanted + least)).log().abs() / decades, albedo[0]


@torch.no_grad()
def _queried(source: Scene, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances [N] and albedo [N, 3] of a scene at points [N, 3], continued beyond its ball."""
    parts = []
    for part in points.split(POINTS_PER_QUERY):
        nearest = _into_ball(part, source.bounding_radius)
        sdf, albedo = source.sdf_and_albedo(nearest[None])
        parts.append((sdf[0].float() + (part - nearest).norm(dim=-1), albedo[0].float()))
    distances, colors = (torch.cat(columns) for columns in zip(*parts, strict=True))
    if not (distances.isfinite().all() and colors.isfinite().all()):
        raise ValueError("its scene is not finite: the weights are damaged")
    return distances, colors


def _disturbed(points: Tensor, radius: float, rng: torch.Generator) -> Tensor:
    """Return copies of points [N, 3] with random offsets, [COPIES * N, 3]."""
    spreads = torch.tensor(SPREADS).repeat_interleave(COPIES // len(SPREADS)) * radius
    offsets = torch.randn(COPIES, len(points), 3, generator=rng) * spreads[:, None, None]
    return (points + offsets.to(points)).flatten(0, 1)


def _into_ball(points: Tensor, radius: float) -> Tensor:
    """Return points [..., 3], those outside the ball moved onto it."""
    return points * (radius / points.norm(dim=-1, keepdim=True).clamp(min=radius))
