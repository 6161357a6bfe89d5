"""Surface normals by finite differences, and Lambertian shading."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amortized.config import check
from amortized.transfer import constant


@dataclass(frozen=True, kw_only=True)
class ShadingConfig:
    """A directional light, fixed in world space.

    Brightness = ambient + diffuse * max(0, n . l), or with `wrap` (half-Lambert) ambient + diffuse *
    (1 + n . l) / 2, which has a gradient on the dark side as well.
    """

    kind: Literal["none", "lambert"] = "none"  # "none" shows the albedo
    light: tuple[float, float, float] = (1.0, 0.5, 1.5)  # direction to the light, any length
    ambient: float = 0.3
    diffuse: float = 0.7
    wrap: bool = False

    def __post_init__(self) -> None:
        if not any(self.light):
            raise ValueError("light must be a direction, got [0, 0, 0]")
        check(self, "ambient", "diffuse", at_least=0)
        if self.ambient + self.diffuse > 1 + 1e-6:
            raise ValueError(
                f"ambient and diffuse must sum to at most 1, which keeps images in [0, 1]; "
                f"got {self.ambient} and {self.diffuse}"
            )


# Corners of a regular tetrahedron on the unit sphere; the sum of k k^T over them is 4/3 I.
TETRAHEDRON = tuple(
    tuple(sign / math.sqrt(3) for sign in corner)
    for corner in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
)


def field_gradient(
    values: Callable[[Tensor], Tensor], points: Tensor, epsilon: float, bounding_radius: float
) -> Tensor:
    """Return the spatial gradient [P, N, 3] of `values` at points [P, N, 3], from 4 evaluations each.

    g = 3 / (4 epsilon) * sum_i k_i values(x + epsilon k_i), with k_i the corners of a tetrahedron: exact for
    linear fields, otherwise with an error of order epsilon. Points within epsilon of the bounding sphere
    are moved inward until the stencil fits. Differentiable in the field, not in the points.
    """
    points = points.detach()
    max_norm = bounding_radius - epsilon
    norm = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
    points = points * (max_norm / norm.clamp(min=max_norm))
    k = constant(TETRAHEDRON, points)  # [4, 3]
    around = values((points[:, :, None] + epsilon * k).flatten(1, 2)).unflatten(1, (-1, 4))  # [P, N, 4]
    return (around @ k) * (0.75 / epsilon)


def normals(gradient: Tensor) -> Tensor:
    """Return unit outward normals [..., 3] from outward gradients [..., 3]; a zero gradient gives zero."""
    return torch.nn.functional.normalize(gradient, dim=-1, eps=1e-6)


def brightness(normal: Tensor, config: ShadingConfig) -> Tensor:
    """Return the factor [..., 1] in [0, 1] on the albedo for unit normals [..., 3]."""
    light = torch.nn.functional.normalize(constant(config.light, normal), dim=0)
    cosine = (normal @ light)[..., None]
    lit = 0.5 + 0.5 * cosine if config.wrap else cosine.relu()
    return config.ambient + config.diffuse * lit
