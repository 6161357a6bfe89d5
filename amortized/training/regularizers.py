"""Terms that keep geometry alive and clean. Plain functions, unweighted, one value per prompt [P].

`opacity` is a render's [P, V, H, W] in [0, 1]; `sdf` and `gradient` are a render's samples
(`amortized.types.RaySamples`). The first three are ScaleDreamer's (arXiv 2407.02040), the last
three are guards against collapse: an emptied or all-filling object gives no guidance gradient
from which it could recover.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sparsity(opacity: Tensor) -> Tensor:
    """mean sqrt(opacity^2 + 0.01), in [0.1, 1.005]: low where little of the image is covered."""
    return (opacity.square() + 0.01).sqrt().mean(dim=(1, 2, 3))


def opaque(opacity: Tensor) -> Tensor:
    """Mean binary entropy -a log a - (1 - a) log(1 - a) in nats, a clamped to [0.001, 0.999].

    Low where every pixel is either covered or empty. Pixels beyond the clamp get no gradient.
    """
    a = opacity.clamp(1e-3, 1 - 1e-3)
    return -(a * a.log() + (1 - a) * (-a).log1p()).mean(dim=(1, 2, 3))


def eikonal(gradient: Tensor, seen: Tensor) -> Tensor:
    """mean (|g| - 1)^2 of SDF gradients [P, K, 3] where seen [P, K]: zero where the field is a distance."""
    error = (torch.linalg.vector_norm(gradient, dim=-1) - 1).square() * seen
    return error.sum(dim=1) / seen.sum(dim=1).clamp(min=1)


def opacity_floor(opacity: Tensor, floor: float) -> Tensor:
    """relu(floor - covered share of the image), mean over views: wakes an object that fades away.

    A floor of 0.08 is just below a thin ring seen from its side.
    """
    return (floor - opacity.mean(dim=(2, 3))).relu().mean(dim=1)


def opacity_cap(opacity: Tensor, cap: float) -> Tensor:
    """relu(covered share of the image - cap), mean over views: stops an object that fills all."""
    return (opacity.mean(dim=(2, 3)) - cap).relu().mean(dim=1)


def inside_hinge(sdf: Tensor, margin: float = 0.1) -> Tensor:
    """relu(min sdf + margin) over a prompt's samples [P, K, S]: zero once some sample is inside.

    Reaches objects that have become invisible, where opacity no longer has a gradient.
    """
    return (sdf.flatten(1).amin(dim=1) + margin).relu()
