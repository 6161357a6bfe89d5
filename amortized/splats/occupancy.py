"""The solid that splats stand for, for measures that query points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from amortized.splats.parameters import colors_of, parameters_of, rotation_matrices
from amortized.types import AnyScene, FieldScene, SplatScene

LEVEL = 0.5  # density from which a point is inside
NEGLIGIBLE = 1e-4  # of one splat's density at a point
CELLS = 12  # per side of the box around the points: near points are evaluated together
PAIRS = 2**21  # of points and splats at once


@dataclass(frozen=True, eq=False)
class SplatSolid:
    """Splats as a `Scene`: a point is inside if sum of opacity * exp(-d^2 / 2) > 0.5.

    d is the Mahalanobis distance from each splat. `sdf` is negative inside, but it is not a distance. The
    color of a point is the mean of the splats' colors, weighted by the same terms.
    """

    splats: SplatScene

    @property
    def num_prompts(self) -> int:
        """P."""
        return self.splats.num_prompts

    @property
    def bounding_radius(self) -> float:
        """Radius of the ball around the origin that contains the object."""
        return self.splats.bounding_radius

    def sdf(self, points: Tensor) -> Tensor:
        """Return 0.5 minus the density [P, N] at points [P, N, 3]."""
        return LEVEL - self._sums(points)[..., 0]

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return 0.5 minus the density [P, N], and the mean color [P, N, 3], at points [P, N, 3]."""
        sums = self._sums(points)
        return LEVEL - sums[..., 0], (sums[..., 1:] / sums[..., :1].clamp(min=1e-12)).clamp(0, 1)

    def select(self, index: int) -> SplatSolid:
        """Return the solid of prompt `index` alone. Raises IndexError; see `Scene`."""
        return SplatSolid(self.splats.select(index))

    def _sums(self, points: Tensor) -> Tensor:
        """Return the density and the sum of weighted colors [P, N, 4] at points [P, N, 3]."""
        rows = [_sums(self.splats.select(p), points[p]) for p in range(self.num_prompts)]
        return torch.stack(rows)


def as_field(scene: AnyScene) -> FieldScene:
    """Return a scene that can be queried at points: the scene, or the `SplatSolid` of splats."""
    return SplatSolid(scene) if isinstance(scene, SplatScene) else scene


@torch.no_grad()
def _sums(scene: SplatScene, points: Tensor) -> Tensor:
    """Return the density and the sum of weighted colors [N, 4] of one prompt at points [N, 3]."""
    parameters = parameters_of(scene)
    means, opacities = parameters["means"], torch.sigmoid(parameters["logits"])
    scales = parameters["log_scales"].exp()
    axes = rotation_matrices(parameters["quaternions"])
    to_local = axes / scales[:, None]  # [K, 3, 3]: row vectors times this are in standard deviations
    # A splat is negligible beyond this box.
    distance = (2 * (opacities / NEGLIGIBLE).clamp(min=1).log()).sqrt()
    reach = distance[:, None] * ((axes * scales[:, None]) ** 2).sum(-1).sqrt()  # [K, 3]
    table = torch.cat([torch.ones_like(means[:, :1]), colors_of(parameters["colors"])], dim=-1)
    sums = points.new_zeros(len(points), 4, dtype=means.dtype)
    for cell in _cells(points):
        low, high = points[cell].amin(0), points[cell].amax(0)
        near = ((means + reach >= low) & (means - reach <= high)).all(-1).nonzero().squeeze(1)
        for part in near.split(max(1, PAIRS // len(cell))):
            offsets = points[cell][:, None].to(means.dtype) - means[part]  # [n, k, 3]
            local = torch.einsum("nki,kij->nkj", offsets, to_local[part])
            weights = opacities[part] * torch.exp(-0.5 * local.square().sum(-1))
            sums[cell] += weights @ table[part]
    return sums.to(points.dtype)


def _cells(points: Tensor) -> list[Tensor]:
    """Return the rows of points [N, 3] by the cell of a coarse grid that they are in."""
    if not len(points):
        return []
    low, high = points.amin(0), points.amax(0)
    cells = ((points - low) / (high - low).clamp(min=1e-9) * CELLS).long().clamp(max=CELLS - 1)
    number = (cells[:, 0] * CELLS + cells[:, 1]) * CELLS + cells[:, 2]
    order = number.argsort(stable=True)
    counts = torch.bincount(number, minlength=CELLS**3)
    limit = math.isqrt(PAIRS)
    parts = order.split(counts[counts > 0].tolist())
    return [chunk for part in parts for chunk in part.split(limit)]
