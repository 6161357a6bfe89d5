"""Where along a ray the field is asked. All edges and positions are distances along unit rays."""

from __future__ import annotations

import torch
from torch import Tensor


def sphere_bounds(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Near and far distance [...] of the ball around the world's origin, and whether rays hit it.

    origins, directions [..., 3], directions of unit length. Near is at least 0 (a camera inside the
    ball); rays that miss, or only touch, get near = far = 0.
    """
    along = -(origins * directions).sum(dim=-1)  # distance to the closest approach
    closest = origins + along[..., None] * directions
    half_squared = radius**2 - closest.square().sum(dim=-1)
    half = half_squared.clamp(min=0).sqrt()
    near, far = (along - half).clamp(min=0), along + half
    hit = (half_squared > 0) & (far > near)
    return torch.where(hit, near, 0.0), torch.where(hit, far, 0.0), hit


def even_edges(near: Tensor, far: Tensor, num_intervals: int) -> Tensor:
    """Edges [..., S + 1] that cut [near, far] into S equal intervals."""
    steps = torch.linspace(0, 1, num_intervals + 1, dtype=near.dtype, device=near.device)
    return near[..., None] + (far - near)[..., None] * steps


def positions_in(edges: Tensor, u: Tensor | None) -> Tensor:
    """One position [..., S] in each interval of edges [..., S + 1]: at u in [0, 1), or the middle."""
    low, high = edges[..., :-1], edges[..., 1:]
    return low + (high - low) * (0.5 if u is None else u)


def importance_edges(
    edges: Tensor, weights: Tensor, num_intervals: int, *, even_share: float = 0.1
) -> Tensor:
    """Edges [..., S' + 1] that give each interval the same share of the weights, ends included.

    edges [..., S + 1], weights [..., S] >= 0, taken as constant over each interval. A fraction
    `even_share` of the intervals is spread evenly over all S, so that nothing is ever unseen; all
    of them are where the weights vanish.
    """
    share = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)
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


def subdivide(edges: Tensor, values: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation of values given at edges, both [..., S + 1].

    Returns the edges [..., S * parts + 1] of the parts and the values [..., S * parts] in their
    middles.
    """
    steps = torch.arange(parts, dtype=edges.dtype, device=edges.device) / parts
    low, step = edges[..., :-1, None], edges.diff(dim=-1)[..., None]
    fine = (low + step * steps).flatten(-2)
    middles = (values[..., :-1, None] + values.diff(dim=-1)[..., None] * (steps + 0.5 / parts)).flatten(-2)
    return torch.cat([fine, edges[..., -1:]], dim=-1), middles
