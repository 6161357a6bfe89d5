"""The field of one scene: its SDF, or the level of its densities or splats, closed by the bounding ball."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import numpy as np
import torch
from torch import Tensor

from amortized.assets.mesh import AssetError
from amortized.scenes import level_and_albedo_of, level_of
from amortized.splats import SplatSolid, as_field
from amortized.types import AnyScene, DensityScene

CHUNK = 2**18  # evaluations at once
# Corners of a regular tetrahedron on the unit sphere, for gradients from 4 evaluations.
TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)


Carve = Callable[[Tensor], Tensor]  # points [N, 3] => [N], negative where the solid remains


class Field:
    """A scene of one prompt as a function of points in NumPy arrays; counts its evaluations.

    The field of a point is max(level, |p| - bounding_radius), negative inside, with the level of
    `scenes.level_of`: an SDF, or, of densities and splats, a function that is no distance. Outside the ball
    the scene is undefined, so there it is evaluated at the nearest point of the ball. What `carved` removes
    is positive too.
    """

    def __init__(self, scene: AnyScene, device: torch.device) -> None:
        solid = as_field(scene)
        if solid.num_prompts != 1:
            raise ValueError(f"a field is a scene of one prompt, got {solid.num_prompts}: select one")
        self.device = device
        self.level, self.level_and_albedo = level_of(solid, device), level_and_albedo_of(solid, device)
        self.is_distance = not isinstance(solid, DensityScene | SplatSolid)
        self.radius = float(solid.bounding_radius)
        self.evaluations = 0
        self.carve: Carve | None = None
        self.parent: Field | None = None

    def carved(self, carve: Carve) -> Field:
        """The same field, positive also where `carve` is; its evaluations count for this field too."""
        field = copy(self)
        field.evaluations, field.carve, field.parent = 0, carve, self
        return field

    def value(self, points: np.ndarray) -> np.ndarray:
        """The field [N] float32 at points [N, 3]. Raises AssetError if it is not finite."""
        chunks = (self._value(chunk).cpu().numpy() for chunk in self._chunks(points))
        values = np.concatenate([np.zeros(0, np.float32), *chunks])
        if not np.isfinite(values).all():
            raise AssetError("the field of the object is not finite: the generator's weights are damaged")
        return values

    def distance(self, points: np.ndarray, max_step: float) -> np.ndarray:
        """Distances [N] >= 0 of points [N, 3] near the surface from it; no SDF: at most 4 `max_step`."""
        if self.is_distance:
            return np.abs(self.value(points))
        moved = self.project(points, max_step=max_step, epsilon=max_step / 2, steps=4)
        return np.linalg.norm(moved - points, axis=1)

    def cut_by_ball(self, points: np.ndarray) -> np.ndarray:
        """Whether the ball, not the scene, bounds the solid at points [N, 3] of its surface: bool [N]."""
        found = [np.zeros(0, bool)]
        for chunk in self._chunks(points):
            with torch.no_grad():
                inside, norm = self._into_ball(chunk)
                found.append((norm - self.radius > self.level(inside[None])[0]).cpu().numpy())
        return np.concatenate(found)

    def gradient(self, points: np.ndarray, epsilon: float) -> np.ndarray:
        """The gradient [N, 3] of the field at points [N, 3], by differences: 4 evaluations each.

        `epsilon` is their step. Exact for linear fields, like `rendering.field_gradient`.
        """
        corners = points[:, None] + epsilon * TETRAHEDRON
        values = self.value(corners.reshape(-1, 3)).reshape(-1, 4)
        return values @ TETRAHEDRON * (0.75 / epsilon)

    def normals(self, points: np.ndarray, epsilon: float) -> np.ndarray:
        """Unit outward normals [N, 3] at points [N, 3] near the surface; radial if the field is flat."""
        gradient = self.gradient(points, epsilon)
        flat = np.linalg.norm(gradient, axis=1) < 1e-6
        gradient[flat] = points[flat] + (0, 0, 1e-12)
        return gradient / np.linalg.norm(gradient, axis=1, keepdims=True)

    def albedo(self, points: np.ndarray) -> np.ndarray:
        """Albedo [N, 3] float32 in [0, 1], the sRGB colors of the pictures, at points [N, 3]."""
        return self.value_and_albedo(points)[1]

    def value_and_albedo(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [N] of the scene alone, without `carve`, and albedo [N, 3], from one evaluation each."""
        values, colors = [np.zeros(0)], [np.zeros((0, 3), np.float32)]
        for chunk in self._chunks(points):
            with torch.no_grad():
                value, albedo = self.level_and_albedo(self._into_ball(chunk)[0][None])
            values.append(value[0].cpu().numpy())
            colors.append(albedo[0].float().clamp(0, 1).cpu().numpy())
        return np.concatenate(values), np.concatenate(colors)

    def project(self, points: np.ndarray, *, max_step: float, epsilon: float, steps: int = 2) -> np.ndarray:
        """Move points [N, 3] onto the surface by Newton steps p - f g / |g|^2, where |f| decreases."""
        points, values = points.copy(), self.value(points)
        for _ in range(steps):
            gradient = self.gradient(points, epsilon)
            step = (values / np.square(gradient).sum(1).clip(1e-6))[:, None] * gradient
            length = np.linalg.norm(step, axis=1, keepdims=True)
            moved = points - step * np.minimum(1, max_step / length.clip(1e-12))
            moved_values = self.value(moved)
            better = np.abs(moved_values) < np.abs(values)
            points[better], values[better] = moved[better], moved_values[better]
        return points

    def _chunks(self, points: np.ndarray) -> list[Tensor]:
        self._count(len(points))
        together = torch.from_numpy(np.ascontiguousarray(points, np.float32)).to(self.device)
        return list(together.split(CHUNK)) if len(points) else []

    def _count(self, number: int) -> None:
        self.evaluations += number
        if self.parent is not None:
            self.parent._count(number)

    @torch.no_grad()
    def _value(self, points: Tensor) -> Tensor:
        inside, norm = self._into_ball(points)
        level = self.level(inside[None])[0].float()
        value = torch.maximum(level, norm - self.radius)
        if self.carve is not None:
            value = torch.maximum(value, self.carve(points))
        return value

    def _into_ball(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest points [N, 3] of the ball, and the norms [N] of the points."""
        norm = torch.linalg.vector_norm(points, dim=1)
        return points * (self.radius / norm.clamp(min=self.radius))[:, None], norm
