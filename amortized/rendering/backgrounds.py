"""What is seen where the object is not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.cameras import camera_rays
from amortized.types import Cameras

KINDS = ("fixed", "random-grey", "random-rgb")


@dataclass(frozen=True, kw_only=True)
class BackgroundConfig:
    """One colour per image, plain or tinted by direction.

    Random ones keep an object from hiding in its background. A compass shows a prior from where an
    object is seen, at every noise level and closer than words like "side view" can.
    """

    kind: str = "fixed"  # one of KINDS
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of kind "fixed", RGB in [0, 1]
    low: float = 0.0  # random kinds draw uniformly from [low, high]
    high: float = 1.0
    compass: float = 0.0  # strength of a tint by which the direction of sight can be told

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"background kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not all(0 <= value <= 1 for value in self.colour):
            raise ValueError(f"background colour must lie in [0, 1], got {list(self.colour)}")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"background must satisfy 0 <= low <= high <= 1, got {self.low} and {self.high}")
        if not 0 <= self.compass <= 1:
            raise ValueError(f"background compass must lie in [0, 1], got {self.compass}")


def background_from_uniform(config: BackgroundConfig, u: Tensor) -> Tensor:
    """Colours [P, V, 3] in [0, 1] from uniform numbers u [P, V, 3]: a pure function."""
    if config.kind == "fixed":
        return u.new_tensor(config.colour).expand_as(u)
    values = config.low + (config.high - config.low) * u
    return values if config.kind == "random-rgb" else values[..., :1].expand_as(u)


def compass_tint(directions: Tensor) -> Tensor:
    """Offsets of RGB [..., 3] in [-1, 1] for unit directions of sight [..., 3].

    Once around the horizon is once around the hue circle: red ahead (+x), green at 120 degrees of
    azimuth, blue at 240. Linear in the direction, so it fades towards the poles; the three sum to 0.
    """
    azimuths = torch.arange(3, dtype=directions.dtype, device=directions.device) * (2 * torch.pi / 3)
    return directions[..., :2] @ torch.stack([azimuths.cos(), azimuths.sin()])


def with_compass(colours: Tensor, cameras: Cameras, height: int, width: int, strength: float) -> Tensor:
    """Backgrounds [P, V, H, W, 3] in [0, 1]: `colours` [P, V, 3], tinted by each pixel's direction."""
    rays = camera_rays(cameras, height, width)
    directions = rays.directions.unflatten(1, rays.shape)
    return (colours[:, :, None, None] + strength * compass_tint(directions)).clamp(0, 1)
