"""The settings of an asset."""

from __future__ import annotations

from dataclasses import dataclass

from amortized.assets.clean import Keep
from amortized.assets.extraction import grid_of
from amortized.config import check


@dataclass(frozen=True, kw_only=True)
class AssetConfig:
    """How an object is extracted and simplified, and which files it should serve."""

    resolution: int = 256  # cells across the bounding ball
    exact: bool = False  # evaluate the field everywhere, not only near the surface
    keep: Keep = "main"  # bodies: those of at least 1 % of the largest's volume; all; the largest
    faces: int = 20_000  # triangles after simplification; 0: all
    texture: int = 1024  # texels of the texture's larger side; 0: colors at vertices only
    printable: bool = False  # also a single body with a flat base, for 3D printers
    base: float = 0.01  # its base: the share of the height that is cut off
    height_mm: float = 60.0  # its height
    wall_mm: float | None = None  # hollow, open at the base, with walls about this thick; None: solid

    def __post_init__(self) -> None:
        grid_of(1.0, self.resolution)
        check(self, "faces", at_least=0, limit=10**8)
        check(self, "texture", at_least=0, limit=16_384)
        check(self, "base", at_least=0, at_most=0.5)
        check(self, "height_mm", above=0, limit=10_000)
        check(self, "wall_mm", above=0, limit=10_000)

    def max_step(self, radius: float) -> float:
        """The longest way on which a point may be projected onto the surface: half a cell."""
        return grid_of(radius, self.resolution).cell / 2
