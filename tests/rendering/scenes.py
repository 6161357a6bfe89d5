"""Scenes whose distance, colour and render are known without the renderer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.cameras import cameras_at
from amortized.types import Cameras


@dataclass
class Balls:
    """P balls around the origin; the colour varies over space and by prompt."""

    radius: Tensor  # [P]
    bounding_radius: float = 1.0
    num_calls: int = 0
    farthest: float = 0.0  # from the origin that was ever asked

    def sdf(self, points: Tensor) -> Tensor:
        self.num_calls += points.shape[0] * points.shape[1]
        norm = points.norm(dim=-1)
        self.farthest = max(self.farthest, norm.detach().max().item())
        return norm - self.radius[:, None]

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.sdf(points), torch.sigmoid(3 * points + self.radius[:, None, None])

    def __getitem__(self, rows: slice) -> Balls:
        return Balls(radius=self.radius[rows], bounding_radius=self.bounding_radius)


@dataclass
class Cubes(Balls):
    """P axis-aligned cubes of half side `radius`, by exact distance."""

    def sdf(self, points: Tensor) -> Tensor:
        self.num_calls += points.shape[0] * points.shape[1]
        q = points.abs() - self.radius[:, None, None]
        return q.clamp(min=0).norm(dim=-1) + q.amax(dim=-1).clamp(max=0)


def views(num_prompts: int, num_views: int, *, seed: int = 0, distance: float = 2.6) -> Cameras:
    """Different cameras for every image."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(3, num_prompts, num_views, generator=generator)
    return cameras_at(
        azimuth_deg=360 * u[0],
        elevation_deg=-20 + 80 * u[1],
        distance=distance + 0.3 * u[2],
        fovy_deg=torch.full_like(u[0], 50.0),
    )


def pick(cameras: Cameras, p: int, v: slice = slice(None)) -> Cameras:
    """The cameras of one prompt."""
    fields = ("c2w", "fovy_deg", "azimuth_deg", "elevation_deg", "distance")
    return Cameras(**{name: getattr(cameras, name)[p : p + 1, v] for name in fields})


def in_double(cameras: Cameras) -> Cameras:
    """The same cameras in float64."""
    fields = ("c2w", "fovy_deg", "azimuth_deg", "elevation_deg", "distance")
    return Cameras(**{name: getattr(cameras, name).double() for name in fields})
