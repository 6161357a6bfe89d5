"""Cameras around the origin: their training ranges, poses, rays, and view names.

Conventions as in `amortized.types`: z up, azimuth 0 deg in front (+x), OpenGL `c2w`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from amortized.config import Schedule, check, check_schedule, times_of, value_at
from amortized.types import Cameras, Rays

Range = tuple[Schedule, Schedule]  # [low, high], each of which may change over the run


@dataclass(frozen=True, kw_only=True)
class CameraRanges:
    """The ranges [low, high] of cameras at one time of the run."""

    distance: tuple[float, float]
    fovy_deg: tuple[float, float]
    elevation_deg: tuple[float, float]
    azimuth_deg: tuple[float, float]

    def __post_init__(self) -> None:
        for name, (low, high) in vars(self).items():
            if low > high:
                raise ValueError(f"{name} must be [low, high] with low <= high, got [{low}, {high}]")
        check(self, "distance", above=0, limit=1000)
        check(self, "fovy_deg", above=0, below=180)
        check(self, "elevation_deg", at_least=-90, at_most=90)
        check(self, "azimuth_deg", limit=3600)


@dataclass(frozen=True, kw_only=True)
class CameraJitter:
    """Noise on each coordinate of a training camera. Azimuth, elevation and distance do not include it."""

    position: float = 0.0  # uniform within this much of the camera's place
    center: float = 0.0  # standard deviation of the point that the camera looks at
    up: float = 0.0  # standard deviation of the noise on the direction up, [0, 0, 1]

    def __post_init__(self) -> None:
        check(self, "position", "center", "up", at_least=0, limit=100)


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Ranges of training cameras, sampled independently per view or on a ring.

    An end of a range may be a schedule: `distance: [[5.2, 3.5], [5.5, 5.0]]` is [5.2, 5.5] at the start of
    the run and [3.5, 5.0] at its end.
    """

    # Space the V views of a prompt evenly in azimuth, at the same elevation, distance and field of view, as
    # multi-view priors (MVDream) are trained.
    ring: bool = False
    distance: Range = (1.0, 1.5)
    # Measure distances in units of 1 / tan(fovy / 2), which keeps the object's size in the image constant.
    distance_by_fovy: bool = False
    fovy_deg: Range = (40.0, 70.0)
    elevation_deg: Range = (-10.0, 45.0)
    azimuth_deg: Range = (-180.0, 180.0)
    # Share of views uniform in elevation angle; the others are uniform on the sphere.
    uniform_angle_share: float = 0.5
    jitter: CameraJitter | None = None  # null: all cameras look at the origin, with z up

    def __post_init__(self) -> None:
        times = {0.0, 1.0}
        for name in _RANGES:
            for end in getattr(self, name):
                check_schedule(name, end, low=-math.inf)
                times.update(times_of(end))
        # The ends are linear between these times: what holds at all of them always holds.
        for time in sorted(times):
            self.ranges_at(time)
        check(self, "uniform_angle_share", at_least=0, at_most=1)
        if self.ring and self.jitter is not None:
            raise ValueError("jitter would take the views off their ring: set jitter=null, or ring=false")

    def ranges_at(self, progress: float) -> CameraRanges:
        """The ranges at `progress` in [0, 1] of the run. Raises ValueError if they are none."""

        def at(ends: Range) -> tuple[float, float]:
            return value_at(ends[0], progress), value_at(ends[1], progress)

        return CameraRanges(**{name: at(getattr(self, name)) for name in _RANGES})

    @property
    def middle(self) -> tuple[float, float]:
        """Distance from the origin and fovy_deg in the middle of their ranges at the end of the run."""
        ranges = self.ranges_at(1.0)
        distance, fovy_deg = sum(ranges.distance) / 2, sum(ranges.fovy_deg) / 2
        if self.distance_by_fovy:
            distance /= math.tan(math.radians(fovy_deg) / 2)
        return distance, fovy_deg


_RANGES = tuple(field.name for field in fields(CameraRanges))
NUM_CAMERA_DRAWS = 5  # uniform numbers per view that `cameras_from_uniform` uses


def cameras_from_uniform(config: CameraConfig, u: Tensor, progress: float = 0.0) -> Cameras:
    """Return cameras [P, V], without jitter, from uniform numbers u [P, V, 5] in [0, 1). A pure function.

    progress: of the run, in [0, 1], which determines the ranges.
    """
    ranges = config.ranges_at(progress)

    def between(values: Tensor, limits: tuple[float, float]) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * values

    azimuth_deg = between(u[..., 0], ranges.azimuth_deg)
    if config.ring:
        num_views = u.shape[1]
        u = u[:, :1].expand_as(u)  # the first view's numbers for all views
        azimuth_deg = azimuth_deg[:, :1] + torch.arange(num_views) * (360.0 / num_views)
    fovy_deg = between(u[..., 3], ranges.fovy_deg)
    distance = between(u[..., 2], ranges.distance)
    if config.distance_by_fovy:
        distance = distance / torch.tan(torch.deg2rad(fovy_deg) / 2)
    low, high = (torch.deg2rad(torch.tensor(v, dtype=u.dtype)) for v in ranges.elevation_deg)
    on_sphere = torch.rad2deg(torch.asin(low.sin() + (high.sin() - low.sin()) * u[..., 1]))
    by_angle = between(u[..., 1], ranges.elevation_deg)
    elevation_deg = torch.where(u[..., 4] < config.uniform_angle_share, by_angle, on_sphere)
    return cameras_at(
        azimuth_deg=azimuth_deg, elevation_deg=elevation_deg, distance=distance, fovy_deg=fovy_deg
    )


def jitter_cameras(cameras: Cameras, config: CameraJitter, u: Tensor, noise: Tensor) -> Cameras:
    """Return the cameras with another position, point to look at and direction up, as in threestudio.

    u: uniform numbers [P, V, 3] in [0, 1). noise: standard normal numbers [P, V, 6]. A pure function.
    """
    position = cameras.c2w[..., :3, 3] + config.position * (2 * u - 1)
    center = config.center * noise[..., :3]
    z = torch.tensor([0.0, 0.0, 1.0], dtype=noise.dtype)
    up = z + config.up * noise[..., 3:]
    backward = torch.nn.functional.normalize(position - center, dim=-1)
    right = torch.linalg.cross(up, backward)
    # Straight above the point there is no such direction: keep that of the camera without jitter.
    vanishes = torch.linalg.vector_norm(right, dim=-1, keepdim=True) < 1e-6
    right = torch.where(vanishes, cameras.c2w[..., :3, 0], right)
    right = torch.nn.functional.normalize(right, dim=-1)
    axes = [right, torch.linalg.cross(backward, right), backward, position]
    c2w = cameras.c2w.clone()
    c2w[..., :3, :] = torch.stack(axes, dim=-1)
    return replace(cameras, c2w=c2w)


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
