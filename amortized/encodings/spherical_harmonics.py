"""Real spherical harmonics, smooth functions of direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_BANDS = 4


def spherical_harmonics(directions: Tensor, num_bands: int) -> Tensor:
    """Return the first num_bands^2 real harmonics [..., num_bands^2] of unit directions [..., 3].

    Band l has 2 l + 1 functions, m = -l to l, without the Condon-Shortley phase, orthonormal over the
    sphere. At most MAX_BANDS bands. (Sloan 2013, "Efficient Spherical Harmonic Evaluation".)
    """
    x, y, z = directions.unbind(dim=-1)
    xx, yy, zz = x * x, y * y, z * z
    s = math.sqrt
    values = [
        torch.full_like(x, s(1 / 4)),
        *(s(3 / 4) * y, s(3 / 4) * z, s(3 / 4) * x),
        *(s(15 / 4) * x * y, s(15 / 4) * y * z, s(5 / 16) * (3 * zz - 1), s(15 / 4) * x * z),
        s(15 / 16) * (xx - yy),
        *(s(35 / 32) * y * (3 * xx - yy), s(105 / 4) * x * y * z, s(21 / 32) * y * (5 * zz - 1)),
        *(s(7 / 16) * z * (5 * zz - 3), s(21 / 32) * x * (5 * zz - 1), s(105 / 16) * z * (xx - yy)),
        s(35 / 32) * x * (xx - 3 * yy),
    ]
    return torch.stack(values[: num_bands**2], dim=-1) / s(math.pi)
