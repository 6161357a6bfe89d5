"""The volume that rays pass: values that are interpolated between points, and the density they imply."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from amortized.rendering.quadrature import laplace_density
from amortized.types import DensityScene, FieldScene, Scene


@dataclass(frozen=True)
class SDFVolume:
    """A scene's signed distances, from which the density follows (VolSDF)."""

    scene: Scene
    sharpness: float | Tensor

    @property
    def outside(self) -> float:
        """A value far outside all objects."""
        return self.scene.bounding_radius

    def values(self, points: Tensor) -> Tensor:
        """Return values [P, N] at points [P, N, 3]."""
        return self.scene.sdf(points)

    def values_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return values [P, N] and albedo [P, N, 3], from one field evaluation."""
        return self.scene.sdf_and_albedo(points)

    def densities(self, values: Tensor) -> Tensor:
        """Return densities in 1/length, in the shape of `values`."""
        return laplace_density(values, self.sharpness)

    def outward(self, gradient: Tensor) -> Tensor:
        """Return the direction out of the objects, given the gradient of the values."""
        return gradient


@dataclass(frozen=True)
class DensityVolume:
    """A scene's densities themselves; the methods are those of `SDFVolume`."""

    scene: DensityScene
    outside: float = 0.0

    def values(self, points: Tensor) -> Tensor:
        return self.scene.density(points)

    def values_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.scene.density_and_albedo(points)

    def densities(self, values: Tensor) -> Tensor:
        return values

    def outward(self, gradient: Tensor) -> Tensor:
        return -gradient


Volume = SDFVolume | DensityVolume


def volume_of(scene: FieldScene, sharpness: float | Tensor) -> Volume:
    """Return the volume of a scene; a `DensityScene` does not use `sharpness`, k of the Laplace density."""
    return DensityVolume(scene) if isinstance(scene, DensityScene) else SDFVolume(scene, sharpness)
