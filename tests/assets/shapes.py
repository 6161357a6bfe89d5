"""Fields with exact surfaces, and independent measures of a mesh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from torch import Tensor

from amortized.assets.field import Field

CPU = torch.device("cpu")
TURN = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
HALF = 0.43  # of the cube's side


def sphere(p: Tensor) -> Tensor:
    return p.norm(dim=-1) - 0.6


def torus(p: Tensor) -> Tensor:
    return ((p[..., :2].norm(dim=-1) - 0.5) ** 2 + p[..., 2] ** 2).sqrt() - 0.2


def box(p: Tensor) -> Tensor:
    q = p.abs() - HALF
    return q.clamp(min=0).norm(dim=-1) + q.amax(dim=-1).clamp(max=0)


def turned_box(p: Tensor) -> Tensor:
    return box(p @ TURN.to(p.dtype))


VOLUMES = {sphere: 4 / 3 * pi * 0.6**3, torus: 2 * pi**2 * 0.5 * 0.2**2, turned_box: (2 * HALF) ** 3}


def side_colors(p: Tensor) -> Tensor:
    """Six colors, one for each side of the box: the largest coordinate's axis and sign."""
    axis = p.abs().argmax(dim=-1)
    sign = torch.gather(p, -1, axis[..., None])[..., 0] > 0
    return SIX[axis + 3 * sign]


SIX = torch.tensor([[0.1, 0.2, 0.9], [0.9, 0.1, 0.2], [0.2, 0.9, 0.1], [0.5] * 3, [0.9, 0.8, 0.1], [0.0] * 3])


@dataclass
class Shape:
    """A scene of P = 1 with any field, and the colors of the six sides."""

    field: Callable[[Tensor], Tensor]
    colors: Callable[[Tensor], Tensor] = side_colors
    bounding_radius: float = 1.0
    num_prompts: int = 1

    def sdf(self, points: Tensor) -> Tensor:
        assert (points.norm(dim=-1) <= self.bounding_radius * 1.0001).all()
        return self.field(points)

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.sdf(points), self.colors(points)

    def select(self, index: int) -> Shape:
        return self


def field(function: Callable[[Tensor], Tensor], **changes: object) -> Field:
    return Field(Shape(function, **changes), CPU)  # type: ignore[arg-type]


def waves(seed: int, frequency: float = 7.0, level: float = 0.0) -> Callable[[Tensor], Tensor]:
    """A random smooth field with many bodies, handles and cavities, inside a ball of radius 0.8."""
    random = torch.Generator().manual_seed(seed)
    directions = frequency * torch.randn(24, 3, generator=random)
    phases = 2 * pi * torch.rand(24, generator=random)

    def value(p: Tensor) -> Tensor:
        wave = torch.sin(p @ directions.T + phases).mean(dim=-1) + level
        return torch.maximum(wave / frequency, p.norm(dim=-1) - 0.8)

    return value


# ---- measures -------------------------------------------------------------------------------------


def is_closed(faces: np.ndarray) -> bool:
    """Whether each edge lies in exactly two faces, in opposite directions."""
    edges = Counter((a, b) for face in faces.tolist() for a, b in zip(face, face[1:] + face[:1], strict=True))
    return all(count == 1 and edges[b, a] == 1 for (a, b), count in edges.items())


def volume_of(vertices: np.ndarray, faces: np.ndarray) -> float:
    """The signed volume that closed triangles enclose: positive if they face outward."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.einsum("fi,fi", a, np.cross(b, c)) / 6)


def euler_number(vertices: np.ndarray, faces: np.ndarray) -> int:
    edges = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)
    return len(np.unique(faces)) - len(edges) + len(faces)
