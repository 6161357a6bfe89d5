"""A point light near the camera, which shades some of the images in training (DreamFusion, arXiv 2209.14988).

Albedo can hide flat or hollow geometry; shading shows it, most of all on a white object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.config import check
from amortized.types import Cameras

NUM_LIGHT_DRAWS = 3  # uniform numbers per view that `point_lights` uses, and as many normal ones


@dataclass(frozen=True, kw_only=True)
class PointLightConfig:
    """Which training images are shaded, and by which light. Defaults are those of the SDI and DSD code.

    The brightness of a shaded image is ambient + (1 - ambient) * max(0, n . l), with l the direction to the
    light; all other images show the albedo.
    """

    start: float = 0.1  # share of the run before which no image is shaded
    share: float = 0.3  # of the images, then
    white_share: float = 0.75  # of the shaded images: those in which the object is white
    ambient: float = 0.1
    distance: tuple[float, float] = (0.8, 1.5)  # of the light from the origin
    # The light is in the direction of the camera's position plus normal noise of this standard deviation.
    spread: float = 1.0

    def __post_init__(self) -> None:
        check(self, "start", "share", "white_share", "ambient", at_least=0, at_most=1)
        check(self, "distance", above=0, limit=1000)
        check(self, "spread", at_least=0, limit=1000)
        if self.distance[0] > self.distance[1]:
            raise ValueError(f"distance must be [low, high] with low <= high, got {list(self.distance)}")


@dataclass(frozen=True, kw_only=True)
class PointLights:
    """The light of each image."""

    position: Tensor  # [P, V, 3]
    ambient: Tensor  # [P, V] in [0, 1]; 1: the image is not shaded
    white: Tensor  # [P, V] bool: whether the object is white


def point_lights(
    config: PointLightConfig, cameras: Cameras, u: Tensor, noise: Tensor, progress: float
) -> PointLights | None:
    """Return the lights of P * V images at `progress` in [0, 1]; None if no image is shaded.

    u: uniform numbers [P, V, 3] in [0, 1). noise: standard normal numbers [P, V, 3]. On the CPU; a pure
    function.
    """
    shaded = u[..., 0] < config.share
    if progress < config.start or not shaded.any():
        return None
    near, far = config.distance
    direction = torch.nn.functional.normalize(cameras.c2w[..., :3, 3] + config.spread * noise, dim=-1)
    return PointLights(
        position=direction * (near + (far - near) * u[..., 2:]),
        ambient=torch.where(shaded, config.ambient, 1.0),
        white=shaded & (u[..., 1] < config.white_share),
    )


def shade(
    lights: PointLights, view: Tensor, color: Tensor, opacity: Tensor, *, points: Tensor, normal: Tensor
) -> Tensor:
    """Return the colors [P, K, 3] of rays under the lights.

    view     [P, K] long: the image of each ray among its prompt's V
    color    [P, K, 3] albedo times opacity
    opacity  [P, K, 1]
    points   [P, K, 3]: where the rays meet the surface
    normal   [P, K, 3] unit length
    """
    row = torch.arange(len(view), device=view.device)[:, None]
    to_light = torch.nn.functional.normalize(lights.position[row, view] - points, dim=-1)
    cosine = (normal * to_light).sum(dim=-1, keepdim=True)
    ambient = lights.ambient[row, view][..., None]
    albedo = torch.where(lights.white[row, view][..., None], opacity, color)
    return albedo * (ambient + (1 - ambient) * cosine.relu())
