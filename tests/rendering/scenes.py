"""Analytic scenes, cameras, and renderer settings for tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.cameras import cameras_at
from amortized.rendering import RendererConfig, ShadingConfig, render
from amortized.types import Cameras, Render, Scene

LIT = ShadingConfig(kind="lambert", light=(1.0, 2.0, 3.0), ambient=0.4, diffuse=0.6, wrap=True)
SCHEMES = {
    "one pass": RendererConfig(num_coarse=24, num_fine=0, shading=LIT),
    "fine": RendererConfig(num_coarse=12, num_fine=12, lattice=0, shading=LIT),
    "lattice": RendererConfig(num_coarse=12, num_fine=12, lattice=12, shading=LIT),
}
DENSE = RendererConfig(num_coarse=96, num_fine=192, min_optical_depth=0.0)


@dataclass
class Balls:
    """P balls around the origin; color varies over space and between prompts."""

    radius: Tensor  # [P]
    bounding_radius: float = 1.0
    num_calls: int = 0
    farthest: float = 0.0  # distance from the origin of any evaluated point

    @property
    def num_prompts(self) -> int:
        return len(self.radius)

    def sdf(self, points: Tensor) -> Tensor:
        self.num_calls += points.shape[0] * points.shape[1]
        norm = points.norm(dim=-1)
        self.farthest = max(self.farthest, norm.detach().max().item())
        return norm - self.radius[:, None]

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.sdf(points), torch.sigmoid(3 * points + self.radius[:, None, None])

    def __getitem__(self, rows: slice) -> Balls:
        return type(self)(radius=self.radius[rows], bounding_radius=self.bounding_radius)

    def select(self, index: int) -> Balls:
        return self[index : index + 1]


@dataclass
class Cubes(Balls):
    """P axis-aligned cubes of half side `radius`, with exact distances."""

    def sdf(self, points: Tensor) -> Tensor:
        self.num_calls += points.shape[0] * points.shape[1]
        q = points.abs() - self.radius[:, None, None]
        return q.clamp(min=0).norm(dim=-1) + q.amax(dim=-1).clamp(max=0)


def varied_cameras(num_prompts: int, num_views: int, *, seed: int = 0, distance: float = 2.6) -> Cameras:
    """Return different cameras [P, V] for all images."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(3, num_prompts, num_views, generator=generator)
    return cameras_at(
        azimuth_deg=360 * u[0],
        elevation_deg=-20 + 80 * u[1],
        distance=distance + 0.3 * u[2],
        fovy_deg=torch.full_like(u[0], 50.0),
    )


def select_prompt(cameras: Cameras, p: int, v: slice = slice(None)) -> Cameras:
    """Return the cameras of prompt p [1, V]."""
    fields = ("c2w", "fovy_deg", "azimuth_deg", "elevation_deg", "distance")
    return Cameras(**{name: getattr(cameras, name)[p : p + 1, v] for name in fields})


def in_double(cameras: Cameras) -> Cameras:
    """Return the same cameras in float64."""
    fields = ("c2w", "fovy_deg", "azimuth_deg", "elevation_deg", "distance")
    return Cameras(**{name: getattr(cameras, name).double() for name in fields})


def front_camera(distance: float = 3.0) -> Cameras:
    """Return one camera on the +x axis, in float64."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    return cameras_at(azimuth_deg=zero, elevation_deg=zero, distance=zero + distance, fovy_deg=zero + 40.0)


def render_on_black(scene: Scene, cameras: Cameras, size: int, config: RendererConfig, **settings) -> Render:
    """Render size x size pixels; by default over black, with sharpness 40, not in training."""
    background = torch.zeros(*cameras.fovy_deg.shape, 3, dtype=cameras.c2w.dtype)
    settings = {"background": background, "sharpness": 40.0, "training": False, **settings}
    return render(scene, cameras, size, size, config=config, **settings)
