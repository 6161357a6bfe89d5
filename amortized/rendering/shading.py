"""Surface normals by finite differences, and simple light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.transfer import constant
from amortized.types import Scene

KINDS = ("none", "lambert")


@dataclass(frozen=True, kw_only=True)
class ShadingConfig:
    """Light from a direction that is fixed in the world.

    Brightness = ambient + diffuse * max(0, n . l); with `wrap`, ambient + diffuse * (1 + n . l) / 2
    (half-Lambert), which keeps a gradient on the dark side.
    """

    kind: str = "none"  # one of KINDS; "none" shows the albedo
    light: tuple[float, float, float] = (1.0, 0.5, 1.5)  # towards the light, any length
    ambient: float = 0.3
    diffuse: float = 0.7
    wrap: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"shading kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not any(self.light):
            raise ValueError("shading light must be a direction, got [0, 0, 0]")
        if min(self.ambient, self.diffuse) < 0 or self.ambient + self.diffuse > 1 + 1e-6:
            raise ValueError(
                f"shading ambient and diffuse must be at least 0 and sum to at most 1, so that images stay "
                f"in [0, 1]; got {self.ambient} and {self.diffuse}"
            )


# Corners of a regular tetrahedron on the unit sphere; the sum of k k^T over them is 4/3 times unity.
TETRAHEDRON = tuple(
    tuple(sign / math.sqrt(3) for sign in corner)
    for corner in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
)


def sdf_gradient(scene: Scene, points: Tensor, epsilon: float) -> Tensor:
    """Spatial gradient of the SDF [P, N, 3] at points [P, N, 3], not normalized, from 4 evaluations.

    g = 3 / (4 epsilon) * sum_i k_i sdf(x + epsilon k_i), k_i the corners of a tetrahedron: exact for
    linear fields, with an error of order epsilon. Points nearer than epsilon to the bounding
    sphere are moved in until the stencil fits. Differentiable in the field, not in the points.
    """
    points = points.detach()
    room = scene.bounding_radius - epsilon
    norm = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
    points = points * (room / norm.clamp(min=room))
    k = constant(TETRAHEDRON, points)  # [4, 3]
    sdf = scene.sdf((points[:, :, None] + epsilon * k).flatten(1, 2)).unflatten(1, (-1, 4))  # [P, N, 4]
    return (sdf @ k) * (0.75 / epsilon)


def normals(gradient: Tensor) -> Tensor:
    """Unit outward normals [..., 3] from SDF gradients [..., 3]; a zero gradient gives zero."""
    return torch.nn.functional.normalize(gradient, dim=-1, eps=1e-6)


def brightness(normal: Tensor, config: ShadingConfig) -> Tensor:
    """Factor on the albedo [..., 1] in [0, 1] for unit normals [..., 3]."""
    light = torch.nn.functional.normalize(constant(config.light, normal), dim=0)
    cosine = (normal @ light)[..., None]
    lit = 0.5 + 0.5 * cosine if config.wrap else cosine.relu()
    return config.ambient + config.diffuse * lit
