"""An exact, antialiased renderer of ground truth: sphere tracing, many views of one scene at once.

Antialiasing is by closest approach: rays are traced to the surface eroded by half a pixel, and a
ray that misses it by d covers 1 - d / pixel of its pixel. A ray that grazes the true silhouette is
thus half covered, as it should be, at the cost of one ray a pixel. Only silhouettes against the
background are smoothed: before another surface the nearer one ends half a pixel early.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.cameras import camera_rays
from amortized.types import Cameras, GroundTruth

SCENE_RADIUS = 1.0
MAX_STEPS = 64


@dataclass(frozen=True, kw_only=True)
class Light:
    """Half-Lambert: albedo * (ambient + diffuse * (0.5 + 0.5 n.l)), n.l at every normal different.

    Its default is fixed in the world, from the front, above and slightly to the left: the six faces
    of a cube then have six shades, which is what tells directions apart.
    """

    direction: tuple[float, float, float] = (0.45, -0.15, 0.88)
    ambient: float = 0.2
    diffuse: float = 0.8

    def shade(self, normals: Tensor) -> Tensor:
        direction = torch.tensor(self.direction, dtype=normals.dtype)
        return self.ambient + self.diffuse * (0.5 + 0.5 * normals @ (direction / direction.norm()))


def render_truth(
    truth: GroundTruth,
    cameras: Cameras,
    size: int,
    *,
    light: Light | None = None,
    background: Tensor,
    supersample: int = 1,
    tolerance: float = 1e-5,
) -> Tensor:
    """Images [V, size, size, 3] of one scene from cameras [1, V] over backgrounds [V, 3].

    Rays stop within `tolerance` of the eroded surface, so that up to tolerance / pixel width of the
    background shines through. Reference images take a `supersample`, which renders that many times
    finer and averages.
    """
    fine = size * supersample
    rays = camera_rays(cameras, fine, fine)
    origins, directions = rays.origins[0], rays.directions[0]
    num_views = rays.shape[0]
    per_view = 2 * torch.tan(torch.deg2rad(cameras.fovy_deg[0]) / 2) / fine  # pixel width at distance 1
    pixel = per_view[:, None].expand(num_views, fine * fine).reshape(-1)

    distance, coverage, chosen = _trace(truth, origins, directions, pixel, tolerance)
    points = origins[chosen] + distance[:, None] * directions[chosen]
    color = truth.colour(points) * (light or Light()).shade(_normals(truth, points))[:, None]
    image = background[:, None, :].expand(num_views, fine * fine, 3).reshape(-1, 3).clone()
    image[chosen] = torch.lerp(image[chosen], color.clamp(0, 1), coverage[:, None])
    image = image.view(num_views, size, supersample, size, supersample, 3)
    return image.mean(dim=(2, 4))


def _trace(
    truth: GroundTruth, origins: Tensor, directions: Tensor, pixel: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance and coverage of the rays that cover anything, and their indices."""
    along = -(origins * directions).sum(-1)
    closest = (origins + along[:, None] * directions).norm(dim=-1)
    active = torch.nonzero(closest < SCENE_RADIUS).squeeze(-1)
    half_chord = (SCENE_RADIUS**2 - closest[active] ** 2).clamp_min(0).sqrt()
    t = (along[active] - half_chord).clamp_min(0)
    far = along[active] + half_chord

    best_t = torch.zeros_like(along)
    best_miss = torch.full_like(along, torch.inf)  # smallest miss in pixels of the eroded surface
    for _ in range(MAX_STEPS):
        width = pixel[active] * t  # pixel width at this depth
        eroded = truth.sdf(origins[active] + t[:, None] * directions[active]) + width / 2
        miss = eroded / width
        closer = miss < best_miss[active]
        best_miss[active] = torch.where(closer, miss, best_miss[active])
        best_t[active] = torch.where(closer, t, best_t[active])
        t = t + eroded.clamp_min(1e-4)
        going = (eroded > tolerance) & (t < far)
        active, t, far = active[going], t[going], far[going]
        if active.numel() == 0:
            break
    coverage = (1 - best_miss).clamp(0, 1)
    chosen = torch.nonzero(coverage > 0).squeeze(-1)
    return best_t[chosen], coverage[chosen], chosen


def _normals(truth: GroundTruth, points: Tensor, epsilon: float = 5e-3) -> Tensor:
    """Unit outward normals [N, 3] by the four-point tetrahedron stencil."""
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=points.dtype)
    values = torch.stack([truth.sdf(points + epsilon * sign) for sign in signs])  # [4, N]
    return torch.nn.functional.normalize(values.T @ signs, dim=-1)
