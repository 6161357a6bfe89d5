"""The solid that splats show: what no camera around them can look into.

Splats may be a shell, e.g. if they start on a surface, so their own density says little about the inside.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amortized.cameras import cameras_at
from amortized.rendering.splats.depths import median_depths
from amortized.rendering.splats.projection import focal_px, world_to_cv
from amortized.types import Cameras, SplatScene

NUM_CAMERAS = 48
SIZE = 128  # px
DISTANCE = 4.0  # of the cameras, in bounding radii


@torch.no_grad()
def carved(scene: SplatScene, points: Tensor) -> Tensor:
    """Return which points [N, 3], the same for all prompts, are inside the objects: bool [P, N].

    A point is inside if in each of 48 images from all around it lies behind the splat that halves the light
    of its pixel. A pocket that no camera looks into counts as inside.
    """
    inside = torch.zeros(scene.num_prompts, len(points), dtype=torch.bool, device=points.device)
    in_ball = (points.norm(dim=-1) <= scene.bounding_radius).nonzero().squeeze(1)
    for p in range(scene.num_prompts):
        inside[p, in_ball] = _carved(scene.select(p), points[in_ball])
    return inside


def _carved(scene: SplatScene, points: Tensor) -> Tensor:
    cameras = _around(scene)
    depth = median_depths(scene, cameras, SIZE, SIZE)[0].flatten(1)  # [V, H * W]
    rotation, translation = world_to_cv(cameras)
    focal = focal_px(cameras, SIZE)[0]
    inside = torch.ones(len(points), dtype=torch.bool, device=points.device)
    for view in range(NUM_CAMERAS):
        position = points @ rotation[0, view].T + translation[0, view]  # in front of the camera: z > 0
        pixel = (focal[view] * position[:, :2] / position[:, 2:] + 0.5 * SIZE).long().clamp(0, SIZE - 1)
        inside &= position.norm(dim=-1) >= depth[view, pixel[:, 1] * SIZE + pixel[:, 0]]
    return inside


def _around(scene: SplatScene) -> Cameras:
    """Cameras [1, V], evenly spaced over the sphere, whose images the bounding ball fills."""
    index = torch.arange(NUM_CAMERAS, dtype=torch.float64) + 0.5
    elevation = torch.rad2deg(torch.asin(1 - 2 * index / NUM_CAMERAS))
    azimuth = 180 * (3 - math.sqrt(5)) * index  # the golden angle
    like = scene.means
    distance = torch.full_like(index, DISTANCE * scene.bounding_radius)
    fovy = torch.full_like(index, 2 * math.degrees(math.asin(1 / DISTANCE)))
    parts = {"azimuth_deg": azimuth, "elevation_deg": elevation, "distance": distance, "fovy_deg": fovy}
    return cameras_at(**{name: value[None].to(like) for name, value in parts.items()})
