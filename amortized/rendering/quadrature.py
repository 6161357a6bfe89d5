"""Volume rendering along rays: the placement of intervals, their densities and weights.

Edges and positions are distances along rays of unit direction.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sphere_bounds(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the near and far distance [...] of the ball around the world origin, and if rays hit it (bool).

    origins, directions: [..., 3], directions of unit length. `near` is at least 0 (a camera inside the
    ball). Rays that miss, or only touch the ball, get near = far = 0.
    """
    along = -(origins * directions).sum(dim=-1)  # distance to the closest approach
    closest = origins + along[..., None] * directions
    half_squared = radius**2 - closest.square().sum(dim=-1)
    half = half_squared.clamp(min=0).sqrt()
    near, far = (along - half).clamp(min=0), along + half
    hit = (half_squared > 0) & (far > near)
    return torch.where(hit, near, 0.0), torch.where(hit, far, 0.0), hit


def even_edges(near: Tensor, far: Tensor, num_intervals: int) -> Tensor:
    """Return edges [..., S + 1] that divide [near, far] into S equal intervals."""
    steps = torch.linspace(0, 1, num_intervals + 1, dtype=near.dtype, device=near.device)
    return near[..., None] + (far - near)[..., None] * steps


def importance_edges(
    edges: Tensor, weights: Tensor, num_intervals: int, *, even_share: float | None = None
) -> Tensor:
    """Return edges [..., S' + 1] with an equal share of the weights in each interval, by inverting the CDF.

    edges: [..., S + 1]. weights: [..., S] >= 0, constant over each interval. A fraction `even_share` (0.1) of
    the probability mass is spread evenly over all S intervals, so that every part of the ray is sampled;
    if all weights vanish, or for `even_share` 1, the intervals are even. The first and last edge stay.
    """
    share = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    even_share = 0.1 if even_share is None else even_share
    share = (1 - even_share) * share + even_share / weights.shape[-1]
    cdf = torch.nn.functional.pad(share.cumsum(dim=-1), (1, 0))
    cdf = cdf / cdf[..., -1:]
    quantiles = torch.linspace(0, 1, num_intervals + 1, dtype=cdf.dtype, device=cdf.device)
    quantiles = quantiles.expand(*cdf.shape[:-1], -1).contiguous()
    right = torch.searchsorted(cdf, quantiles, right=True).clamp(1, weights.shape[-1])
    c0, c1 = cdf.gather(-1, right - 1), cdf.gather(-1, right)
    e0, e1 = edges.gather(-1, right - 1), edges.gather(-1, right)
    inside = ((quantiles - c0) / (c1 - c0).clamp(min=1e-12)).clamp(0, 1)
    return e0 + (e1 - e0) * inside


def subdivide(edges: Tensor, values: Tensor, num_parts: int) -> tuple[Tensor, Tensor]:
    """Divide each interval into `num_parts` equal ones and interpolate values linearly.

    edges, values: [..., S + 1], values at the edges. Returns edges [..., S * num_parts + 1] and the
    values [..., S * num_parts] at the midpoints of the new intervals.
    """
    steps = torch.arange(num_parts, dtype=edges.dtype, device=edges.device) / num_parts
    low, step = edges[..., :-1, None], edges.diff(dim=-1)[..., None]
    fine = (low + step * steps).flatten(-2)
    slopes = values.diff(dim=-1)[..., None]
    midpoints = (values[..., :-1, None] + slopes * (steps + 0.5 / num_parts)).flatten(-2)
    return torch.cat([fine, edges[..., -1:]], dim=-1), midpoints


def positions_in(edges: Tensor, u: Tensor | None) -> Tensor:
    """Return one position [..., S] per interval of edges [..., S + 1]: at u in [0, 1), or its midpoint."""
    low, high = edges[..., :-1], edges[..., 1:]
    return low + (high - low) * (0.5 if u is None else u)


def laplace_density(sdf: Tensor, sharpness: float | Tensor) -> Tensor:
    """Return the VolSDF density (Yariv et al. 2021, eq. 2-3) in 1/length, in the shape of `sdf`.

    k (1 - exp(s k) / 2) inside (s < 0) and k exp(-s k) / 2 outside, k = sharpness: k deep inside,
    k / 2 on the surface. The surface is about 1 / k thick.
    """
    return sharpness * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() * sharpness))


def compositing_weights(densities: Tensor, lengths: Tensor) -> Tensor:
    """Return the contribution of each interval to the ray's color, [..., S], summing to at most 1.

    Front-to-back alpha compositing (Max 1995, in NeRF's form). densities, lengths: [..., S], front to
    back. With optical depths d = density * length,

        weight_i = (1 - exp(-d_i)) * exp(-(d_0 + ... + d_{i-1}))

    The sum of the weights is the ray's opacity. Transmittance is computed from a sum of logarithms: a
    product underflows early, and its gradient divides by zero at an opaque interval.
    """
    optical_depths = densities * lengths
    before = torch.nn.functional.pad(optical_depths[..., :-1].cumsum(dim=-1), (1, 0))
    return -torch.expm1(-optical_depths) * torch.exp(-before)
