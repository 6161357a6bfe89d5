"""Splats to start training from: a ball of random points, given points, or a file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from amortized.splats.files import PROPERTIES, read_points_ply, read_splat_file, read_splat_ply
from amortized.splats.parameters import Parameters, check_points, coefficients_of, parameters_of
from amortized.splats.ply_reader import read_vertices

MIN_SCALE = math.sqrt(1e-7)  # if points coincide
START_OPACITY = 0.1


def ball(count: int, radius: float, rng: torch.Generator | None = None) -> Parameters:
    """Return `count` gray splats at random points of a ball, uniform in its volume."""
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    distances = radius * torch.rand(count, 1, generator=rng) ** (1 / 3)
    return from_points(distances * directions)


def from_points(points: Tensor, rgb: Tensor | None = None, *, opacity: float = START_OPACITY) -> Parameters:
    """Return round splats at points [N, 3], with colors [N, 3] in [0, 1] or gray.

    The standard deviation is the root mean square distance to the 3 nearest neighbors. Raises ValueError if
    there is no point, more than a million, or a number that is not finite.
    """
    check_points(points, rgb)
    deviations = neighbor_distances(points, 3).square().mean(1).sqrt()
    log_scales = deviations.clamp(min=MIN_SCALE).log().to(points)[:, None].expand(-1, 3)
    identity = points.new_tensor([1.0, 0.0, 0.0, 0.0])
    return {
        "means": points.clone(),
        "quaternions": identity.repeat(len(points), 1),
        "log_scales": log_scales.contiguous(),
        "logits": points.new_full((len(points),), math.log(opacity / (1 - opacity))),
        "colors": torch.zeros_like(points) if rgb is None else coefficients_of(rgb).to(points),
    }


def read_start(path: str | Path) -> Parameters:
    """Return the splats of a file: `.splat`, 3D Gaussian Splatting's PLY, or else a PLY of points.

    A PLY with an opacity, a scale or a rotation holds splats. Splats have y up in files; points are taken in
    our axes, z up and +x in front. Raises ValueError; see the readers.
    """
    if Path(path).suffix.lower() == ".splat":
        return parameters_of(read_splat_file(path))
    of_splats = set(PROPERTIES[PROPERTIES.index("opacity") :])
    if of_splats & set(read_vertices(path, ()).dtype.names or ()):
        return parameters_of(read_splat_ply(path))
    return from_points(*read_points_ply(path))


def neighbor_distances(points: Tensor, number: int) -> Tensor:
    """Return distances [N, number], float64, of points [N, 3] to the nearest others.

    If there are fewer others, the last distance repeats; it is 0.1 for a single point.
    """
    number_there = min(number, len(points) - 1)
    if number_there == 0:
        return torch.full((len(points), number), 0.1, dtype=torch.float64)
    array = points.detach().cpu().double().numpy()
    distances = KDTree(array).query(array, k=number_there + 1)[0][:, 1:]
    filled = np.concatenate([distances, np.repeat(distances[:, -1:], number - number_there, axis=1)], axis=1)
    return torch.from_numpy(filled)
