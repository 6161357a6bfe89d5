"""From signed distance to volume density."""

from __future__ import annotations

import torch
from torch import Tensor


def laplace_density(sdf: Tensor, sharpness: float | Tensor) -> Tensor:
    """VolSDF density (Yariv et al. 2021, eq. 2-3) in 1/length, with the shape of `sdf`.

    k (1 - exp(s k) / 2) inside (s < 0) and k exp(-s k) / 2 outside, k = sharpness: k deep inside,
    k / 2 on the surface. The surface is about 1 / k thick.
    """
    return sharpness * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() * sharpness))
