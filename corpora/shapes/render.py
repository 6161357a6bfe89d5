"""Render ground truth exactly, antialiased, by sphere tracing, for many views of one scene at once.

Antialiasing uses the closest approach: rays are traced to the surface eroded by half a pixel, and a ray that
misses it by d covers 1 - d / pixel of its pixel. So a ray that grazes the true silhouette covers half of its
pixel, at the cost of one ray per pixel. Only silhouettes against the background are smoothed: in front of
another surface the nearer one ends half a pixel early.

Deliberately independent of `amortized.rendering`, normals included: this renderer makes the training images
of the embedded models, and as a second implementation it reveals errors that shared code would hide.
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
    """Half-Lambert shading: albedo * (ambient + diffuse * (0.5 + 0.5 n.l)).

    The default is fixed in the world, from the front, above and slightly from the left (-y): the six faces
    of a cube get six different shades, so that shading reveals the viewing direction.
    """

    direction: tuple[float, float, float] = (0.45, -0.15, 0.88)
    ambient: float = 0.2
    diffuse: float = 0.8

    def shade(self, normals: Tensor) -> Tensor:
        """Shades [N] of unit normals [N, 3]."""
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
    """Render one scene as images [V, size, size, 3] in [0, 1]; not differentiable.

    Args:
        cameras: [1, V].
        light: None is the default `Light`.
        background: [V, 3] in [0, 1].
        supersample: renders this many times finer along each axis and averages.
        tolerance: rays stop this close to the eroded surface, so up to tolerance / pixel width of the
            background shows through.
    """
    fine = size * supersample
    rays = camera_rays(cameras, fine, fine)
    origins, directions = rays.origins[0], rays.directions[0]
    num_views = rays.shape[0]
    per_view = 2 * torch.tan(torch.deg2rad(cameras.fovy_deg[0]) / 2) / fine  # pixel width at distance 1
    pixel = per_view[:, None].expand(num_views, fine * fine).reshape(-1)

    distance, coverage, hit = _trace(truth, origins, directions, pixel, tolerance)
    points = origins[hit] + distance[:, None] * directions[hit]
    color = truth.color(points) * (light or Light()).shade(_normals(truth, points))[:, None]
    image = background[:, None, :].expand(num_views, fine * fine, 3).reshape(-1, 3).clone()
    image[hit] = torch.lerp(image[hit], color.clamp(0, 1), coverage[:, None])
    image = image.view(num_views, size, supersample, size, supersample, 3)
    return image.mean(dim=(2, 4))


def _trace(
    truth: GroundTruth, origins: Tensor, directions: Tensor, pixel: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance [M], coverage [M] in (0, 1] and index [M] of the rays that cover any surface.

    origins and directions are [R, 3]; pixel [R] is the width of a pixel at distance 1.
    """
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
        unfinished = (eroded > tolerance) & (t < far)
        active, t, far = active[unfinished], t[unfinished], far[unfinished]
        if active.numel() == 0:
            break
    coverage = (1 - best_miss).clamp(0, 1)
    hit = torch.nonzero(coverage > 0).squeeze(-1)
    return best_t[hit], coverage[hit], hit


def _normals(truth: GroundTruth, points: Tensor, epsilon: float = 5e-3) -> Tensor:
    """Unit outward normals [N, 3] from four samples at the corners of a tetrahedron."""
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=points.dtype)
    values = torch.stack([truth.sdf(points + epsilon * sign) for sign in signs])  # [4, N]
    return torch.nn.functional.normalize(values.T @ signs, dim=-1)
