"""Cameras around the origin: sampling, poses, rays, and view names.

Conventions as in `amortized.types`: z up, azimuth 0 deg in front (+x), OpenGL `c2w`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from amortized.config import check
from amortized.types import Cameras, Rays


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Ranges of training cameras, sampled independently per view or on a ring."""

    # Space the V views of a prompt evenly in azimuth, at the same elevation, distance and field of view, as
    # multi-view priors (MVDream) are trained.
    ring: bool = False
    distance: tuple[float, float] = (1.0, 1.5)
    # Measure distances in units of 1 / tan(fovy / 2), which keeps the object's size in the image constant.
    distance_by_fovy: bool = False
    fovy_deg: tuple[float, float] = (40.0, 70.0)
    elevation_deg: tuple[float, float] = (-10.0, 45.0)
    azimuth_deg: tuple[float, float] = (-180.0, 180.0)
    # Share of views uniform in elevation angle; the others are uniform on the sphere.
    uniform_angle_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("distance", "fovy_deg", "elevation_deg", "azimuth_deg"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be [low, high] with low <= high, got [{low}, {high}]")
        check(self, "distance", above=0, limit=1000)
        check(self, "fovy_deg", above=0, below=180)
        check(self, "elevation_deg", at_least=-90, at_most=90)
        check(self, "azimuth_deg", limit=3600)
        check(self, "uniform_angle_share", at_least=0, at_most=1)

    @property
    def middle(self) -> tuple[float, float]:
        """Distance from the origin and fovy_deg in the middle of their ranges."""
        distance, fovy_deg = sum(self.distance) / 2, sum(self.fovy_deg) / 2
        if self.distance_by_fovy:
            distance /= math.tan(math.radians(fovy_deg) / 2)
        return distance, fovy_deg


NUM_CAMERA_DRAWS = 5  # uniform numbers per view that `cameras_from_uniform` uses


def cameras_from_uniform(config: CameraConfig, u: Tensor) -> Cameras:
    """Return cameras [P, V] from uniform numbers u [P, V, 5] in [0, 1). A pure function."""

    def between(values: Tensor, limits: tuple[float, float]) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * values

    azimuth_deg = between(u[..., 0], config.azimuth_deg)
    if config.ring:
        num_views = u.shape[1]
        u = u[:, :1].expand_as(u)  # the first view's numbers for all views
        azimuth_deg = azimuth_deg[:, :1] + torch.arange(num_views) * (360.0 / num_views)
    fovy_deg = between(u[..., 3], config.fovy_deg)
    distance = between(u[..., 2], config.distance)
    if config.distance_by_fovy:
        distance = distance / torch.tan(torch.deg2rad(fovy_deg) / 2)
    low, high = (torch.deg2rad(torch.tensor(v, dtype=u.dtype)) for v in config.elevation_deg)
    on_sphere = torch.rad2deg(torch.asin(low.sin() + (high.sin() - low.sin()) * u[..., 1]))
    by_angle = between(u[..., 1], config.elevation_deg)
    elevation_deg = torch.where(u[..., 4] < config.uniform_angle_share, by_angle, on_sphere)
    return cameras_at(
        azimuth_deg=azimuth_deg, elevation_deg=elevation_deg, distance=distance, fovy_deg=fovy_deg
    )


def cameras_at(*, azimuth_deg: Tensor, elevation_deg: Tensor, distance: Tensor, fovy_deg: Tensor) -> Cameras:
    """Return cameras that look at the origin with z up; all arguments are [P, V], angles in degrees."""
    azimuth_deg = 180.0 - torch.remainder(180.0 - azimuth_deg, 360.0)  # into (-180, 180]
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    backward = torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )  # [P, V, 3] from the origin to the camera: the camera's +z
    # Compute `right` from the azimuth, not as a cross product with z, which vanishes at the poles.
    right = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], dim=-1)
    up = torch.linalg.cross(backward, right)
    c2w = torch.zeros(*azimuth.shape, 4, 4, dtype=azimuth.dtype, device=azimuth.device)
    c2w[..., :3, 0], c2w[..., :3, 1], c2w[..., :3, 2] = right, up, backward
    c2w[..., :3, 3] = backward * distance[..., None]
    c2w[..., 3, 3] = 1.0
    return Cameras(
        c2w=c2w, fovy_deg=fovy_deg, azimuth_deg=azimuth_deg, elevation_deg=elevation_deg, distance=distance
    )


CameraPath = Literal["turntable", "orbit", "fixed"]
SWING_DEG = 25.0  # of the elevation, up and down, along an "orbit"


def camera_path(
    kind: CameraPath,
    num_views: int,
    *,
    azimuth_deg: float,
    elevation_deg: float,
    distance: float,
    fovy_deg: float,
) -> Cameras:
    """Return V cameras [1, V] along a path that starts at the given angles and closes after the last view.

    turntable: once around the object. orbit: once around it, while the elevation swings once up and down, by
    SWING_DEG or as far as the poles are. fixed: all views are the same.
    """
    turn = torch.arange(num_views, dtype=torch.float64)[None] / num_views
    azimuth, elevation = torch.full_like(turn, azimuth_deg), torch.full_like(turn, elevation_deg)
    if kind != "fixed":
        azimuth += 360 * turn
    if kind == "orbit":
        elevation += min(SWING_DEG, 90 - abs(elevation_deg)) * torch.sin(2 * math.pi * turn)
    return cameras_at(
        azimuth_deg=azimuth.float(),
        elevation_deg=elevation.float(),
        distance=torch.full_like(turn, distance).float(),
        fovy_deg=torch.full_like(turn, fovy_deg).float(),
    )


def orbit(
    num_prompts: int,
    num_views: int,
    *,
    elevation_deg: float,
    distance: float,
    fovy_deg: float,
    start_azimuth_deg: float = 0.0,
) -> Cameras:
    """Return the same ring of V evenly spaced cameras for each of P prompts, without repeating the first."""
    azimuth = start_azimuth_deg + torch.arange(num_views) * (360.0 / num_views)
    azimuth = azimuth.expand(num_prompts, num_views)
    return cameras_at(
        azimuth_deg=azimuth,
        elevation_deg=torch.full_like(azimuth, elevation_deg),
        distance=torch.full_like(azimuth, distance),
        fovy_deg=torch.full_like(azimuth, fovy_deg),
    )


def take_cameras(cameras: Cameras, rows: Tensor, group: int) -> Cameras:
    """Select images `rows` [N] of cameras [P, V] and reshape them to [N / group, group]."""
    return _map_fields(cameras, lambda values: values.flatten(0, 1)[rows].unflatten(0, (-1, group)))


def slice_views(cameras: Cameras, views: slice) -> Cameras:
    """Select the same views of each prompt: [P, V] => [P, len(views)]."""
    return _map_fields(cameras, lambda values: values[:, views])


def repeat_cameras(cameras: Cameras, times: int) -> Cameras:
    """Concatenate `times` copies of cameras [P, V]: [times * P, V]."""
    return _map_fields(cameras, lambda values: torch.cat([values] * times))


def _map_fields(cameras: Cameras, function: Callable[[Tensor], Tensor]) -> Cameras:
    """Return cameras with `function` applied to each tensor."""
    return Cameras(**{field.name: function(getattr(cameras, field.name)) for field in fields(cameras)})


def camera_rays(cameras: Cameras, height: int, width: int) -> Rays:
    """Return rays through pixel centers; row 0 is the top of the image, column 0 its left edge."""
    c2w = cameras.c2w
    num_prompts, num_views = c2w.shape[:2]
    like = {"dtype": c2w.dtype, "device": c2w.device}
    rows = (torch.arange(height, **like) + 0.5) / height
    columns = (torch.arange(width, **like) + 0.5) / width
    half = torch.tan(torch.deg2rad(cameras.fovy_deg) / 2)[..., None, None]  # [P, V, 1, 1]
    y = half * (1 - 2 * rows)[:, None].expand(height, width)
    x = half * (width / height) * (2 * columns - 1)[None, :].expand(height, width)
    local = torch.stack([x, y, -torch.ones_like(x)], dim=-1)  # [P, V, H, W, 3]
    directions = torch.einsum("pvij,pvhwj->pvhwi", c2w[..., :3, :3], local)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    origins = c2w[..., None, None, :3, 3].expand_as(directions)
    return Rays(
        origins=origins.reshape(num_prompts, -1, 3),
        directions=directions.reshape(num_prompts, -1, 3),
        shape=(num_views, height, width),
    )


VIEW_NAMES = ("front", "side", "back", "overhead")


def view_index(cameras: Cameras, *, overhead_deg: float = 60.0, front_deg: float = 45.0) -> Tensor:
    """Return the index into VIEW_NAMES [P, V]: overhead above `overhead_deg`, else by azimuth.

    Front is within `front_deg` of azimuth 0, back within `front_deg` of 180, side in between.
    """
    azimuth = cameras.azimuth_deg.abs()
    index = torch.ones_like(azimuth, dtype=torch.long)
    index = torch.where(azimuth <= front_deg, 0, index)
    index = torch.where(azimuth >= 180.0 - front_deg, 2, index)
    return torch.where(cameras.elevation_deg > overhead_deg, 3, index)
