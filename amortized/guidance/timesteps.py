"""(t, t'): when the target is asked, and when the reference is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amortized.config import value_at
from amortized.guidance.config import GuidanceConfig


def timestep_range(config: GuidanceConfig, progress: float, num_timesteps: int) -> tuple[int, int]:
    """The smallest and largest timestep that may be drawn at this progress, both inclusive."""
    run = min(max(progress, 0.0), 1.0)
    run = math.sqrt(run) if config.t_curve == "sqrt" else run
    low, high = (whole(value_at(bound, run), num_timesteps) for bound in (config.t_min, config.t_max))
    return min(low, num_timesteps - 1), min(high, num_timesteps - 1)


def whole(fraction: float, num_timesteps: int) -> int:
    """A fraction of the diffusion time in whole timesteps, rounded down."""
    return int(fraction * num_timesteps + 1e-6)  # 0.57 * 1000 is 569.99...


def draw_timesteps(u: Tensor, low: int, high: int) -> Tensor:
    """Integers [B] uniform on {low, ..., high} from u [B] in [0, 1)."""
    # A u just below 1 can round up to `high + 1` in the multiplication.
    return (low + torch.floor(u.double() * (high - low + 1)).long()).clamp(max=high)


def share_in_groups(values: Tensor, group: int) -> Tensor:
    """[B] values with each run of `group` neighbours set to its first."""
    if len(values) % group:
        raise ValueError(
            f"this prior denoises groups of {group} views, which {len(values)} images do not fill; "
            f"make the number of views a multiple of {group}"
        )
    return values.reshape(-1, group)[:, :1].expand(-1, group).reshape(-1)


def reference_timesteps(
    config: GuidanceConfig, timesteps: Tensor, u: Tensor, *, low: int, num_timesteps: int, progress: float
) -> Tensor:
    """t' [B] long from t [B] and u [B] in [0, 1); `low` is the smallest t that may be drawn now."""
    if config.shift == "none":
        return timesteps
    if config.shift == "earlier":
        return (timesteps - whole(value_at(config.shift_span, progress), num_timesteps)).clamp(min=0)
    start = low if config.shift_start is None else whole(config.shift_start, num_timesteps)
    return later(
        timesteps, u if config.shift_random else torch.ones_like(u), config.shift_eta, start, num_timesteps
    )


def later(timesteps: Tensor, u: Tensor, eta: float, start: int, num_timesteps: int) -> Tensor:
    """t + floor(min(eta * (t - start), T - 1 - t) * u): never before t, never after the end.

    ScaleDreamer (arXiv 2407.02040) as its code has it. The shift grows with t - start, so it is zero
    at the lowest timestep, and flooring makes it zero in about a tenth of all draws at eta = 0.1.
    """
    time = timesteps.double()
    longest = torch.minimum(eta * (time - start), num_timesteps - 1 - time).clamp(min=0)
    return timesteps + torch.floor(longest * u.double() + 1e-9).long()  # 0.7 * 10 is 6.99...
