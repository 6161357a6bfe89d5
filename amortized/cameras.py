"""Cameras around the origin: sampling, poses, rays and the words for a view.

Conventions are those of `amortized.types`: z up, azimuth 0 deg in front (+x), OpenGL `c2w`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from amortized.types import Cameras, Rays


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Ranges of training cameras, sampled independently for each view, or on a ring."""

    # The V views of a prompt evenly around it, at one elevation, distance and field of view, as
    # multi-view priors have them.
    ring: bool = False
    distance: tuple[float, float] = (1.0, 1.5)
    distance_by_fovy: bool = False  # distances count in units of 1 / tan(fovy / 2): the object fills as much
    fovy_deg: tuple[float, float] = (40.0, 70.0)
    elevation_deg: tuple[float, float] = (-10.0, 45.0)
    azimuth_deg: tuple[float, float] = (-180.0, 180.0)
    # Share of views drawn uniformly in elevation angle; the rest are uniform on the sphere.
    uniform_angle_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("distance", "fovy_deg", "elevation_deg", "azimuth_deg"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"cameras.{name}: the range must be [low, high], got [{low}, {high}]")
        if self.distance[0] <= 0:
            raise ValueError(f"cameras.distance must be positive, got {list(self.distance)}")
        if self.fovy_deg[0] <= 0 or self.fovy_deg[1] >= 180:
            raise ValueError(f"cameras.fovy_deg must lie in (0, 180), got {list(self.fovy_deg)}")
        if self.elevation_deg[0] < -90 or self.elevation_deg[1] > 90:
            raise ValueError(f"cameras.elevation_deg must lie in [-90, 90], got {list(self.elevation_deg)}")
        if not 0 <= self.uniform_angle_share <= 1:
            raise ValueError(
                f"cameras.uniform_angle_share must lie in [0, 1], got {self.uniform_angle_share}"
            )


NUM_CAMERA_DRAWS = 5  # uniform numbers that `cameras_from_uniform` reads per view


def cameras_from_uniform(config: CameraConfig, u: Tensor) -> Cameras:
    """Cameras [P, V] from uniform numbers u [P, V, 5] in [0, 1): a pure function, no hidden draws."""

    def between(values: Tensor, limits: tuple[float, float]) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * values

    azimuth_deg = between(u[..., 0], config.azimuth_deg)
    if config.ring:
        num_views = u.shape[1]
        u = u[:, :1].expand_as(u)
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
    """Cameras on a sphere, looking at the origin with z up; all arguments are [P, V]."""
    azimuth_deg = 180.0 - torch.remainder(180.0 - azimuth_deg, 360.0)  # into (-180, 180]
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    backward = torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )  # [P, V, 3] from the origin to the camera: the camera's +z
    # The azimuth gives `right` even straight above the pole, where a cross product with z is 0.
    right = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], dim=-1)
    up = torch.linalg.cross(backward, right)
    c2w = torch.zeros(*azimuth.shape, 4, 4, dtype=azimuth.dtype, device=azimuth.device)
    c2w[..., :3, 0], c2w[..., :3, 1], c2w[..., :3, 2] = right, up, backward
    c2w[..., :3, 3] = backward * distance[..., None]
    c2w[..., 3, 3] = 1.0
    return Cameras(
        c2w=c2w, fovy_deg=fovy_deg, azimuth_deg=azimuth_deg, elevation_deg=elevation_deg, distance=distance
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
    """The same ring of V evenly spaced cameras for each of P prompts; the last is not the first."""
    azimuth = start_azimuth_deg + torch.arange(num_views) * (360.0 / num_views)
    azimuth = azimuth.expand(num_prompts, num_views)
    return cameras_at(
        azimuth_deg=azimuth,
        elevation_deg=torch.full_like(azimuth, elevation_deg),
        distance=torch.full_like(azimuth, distance),
        fovy_deg=torch.full_like(azimuth, fovy_deg),
    )


def take_cameras(cameras: Cameras, rows: Tensor, group: int) -> Cameras:
    """The cameras [P, V] of images `rows` [N], which fill groups of neighbours: [N / group, group]."""
    parts = {part.name: getattr(cameras, part.name) for part in fields(cameras)}
    taken = {name: values.flatten(0, 1)[rows] for name, values in parts.items()}
    return Cameras(**{name: values.unflatten(0, (-1, group)) for name, values in taken.items()})


def repeat_cameras(cameras: Cameras, times: int) -> Cameras:
    """The cameras of P prompts as those of times * P, whole batch after whole batch."""
    parts = {part.name: getattr(cameras, part.name) for part in fields(cameras)}
    return Cameras(**{name: torch.cat([values] * times) for name, values in parts.items()})


def camera_rays(cameras: Cameras, height: int, width: int) -> Rays:
    """Rays through pixel centres; row 0 is the top of the image, column 0 its left edge."""
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
    """Index into VIEW_NAMES [P, V]: overhead above `overhead_deg`, else by azimuth.

    Front within `front_deg` of azimuth 0, back within `front_deg` of 180, side between.
    """
    azimuth = cameras.azimuth_deg.abs()
    index = torch.ones_like(azimuth, dtype=torch.long)
    index = torch.where(azimuth <= front_deg, 0, index)
    index = torch.where(azimuth >= 180.0 - front_deg, 2, index)
    return torch.where(cameras.elevation_deg > overhead_deg, 3, index)
