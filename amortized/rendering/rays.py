"""Selecting rays: each row of every tensor belongs to one prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def compact(wanted: Tensor) -> Tensor:
    """Return indices [P, K] of each prompt's wanted rays (bool [P, R]) in order, then of others as padding.

    K is the busiest prompt's count. It determines shapes, so the host waits for it.
    """
    count = max(int(wanted.sum(dim=1).amax()), 1)
    return torch.argsort(wanted.byte(), dim=1, descending=True, stable=True)[:, :count]


def all_rays(wanted: Tensor) -> Tensor:
    """Return indices [P, R] of all rays, in order."""
    return torch.arange(wanted.shape[1], device=wanted.device).expand_as(wanted)


def gather_rays(values: Tensor, index: Tensor) -> Tensor:
    """Return the rays index [P, K] of values [P, R, ...]: [P, K, ...]."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def points_at(origins: Tensor, directions: Tensor, distances: Tensor) -> Tensor:
    """Return points [P, K * S, 3] at distances [P, K, S] along K rays."""
    return (origins[:, :, None] + distances[..., None] * directions[:, :, None]).flatten(1, 2)
