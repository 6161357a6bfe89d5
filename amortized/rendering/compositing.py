"""Front-to-back alpha compositing (Max 1995, in the form of NeRF)."""

from __future__ import annotations

import torch
from torch import Tensor


def compositing_weights(densities: Tensor, lengths: Tensor) -> Tensor:
    """Share of a ray's light that each of its S intervals contributes, [..., S], summing to <= 1.

    densities, lengths: [..., S], front to back. With optical depths d = density * length,

        weight_i = (1 - exp(-d_i)) * exp(-(d_0 + ... + d_{i-1}))

    The sum of the weights is the ray's opacity. Transmittance is a sum of logarithms, so that it
    neither vanishes early nor has a zero to divide by in the gradient.
    """
    optical_depths = densities * lengths
    before = torch.nn.functional.pad(optical_depths[..., :-1].cumsum(dim=-1), (1, 0))
    return -torch.expm1(-optical_depths) * torch.exp(-before)
