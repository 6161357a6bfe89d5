"""The timesteps t of the target and t' of the reference, and the weight w(t)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from amortized.config import value_at
from amortized.guidance.config import GuidanceConfig, Weighting

# w(t) as a function of abar = alphas_cumprod[t].
WEIGHTINGS: dict[Weighting, Callable[[Tensor], Tensor]] = {
    "one_minus_alphas_cumprod": lambda abar: 1 - abar,  # DreamFusion's sigma_t^2
    "uniform": torch.ones_like,
    "sqrt": lambda abar: abar.sqrt() * (1 - abar),  # small at both ends, maximal at abar = 1/3
    "sigma_over_alpha": lambda abar: ((1 - abar) / abar).sqrt(),  # converts a noise residual to one of x0
}


def timestep_range(config: GuidanceConfig, progress: float, num_timesteps: int) -> tuple[int, int]:
    """Return the smallest and the largest t that can be drawn at `progress` in [0, 1], both inclusive."""
    run = min(max(progress, 0.0), 1.0)
    run = math.sqrt(run) if config.t_curve == "sqrt" else run
    low, high = (to_timestep(value_at(bound, run), num_timesteps) for bound in (config.t_min, config.t_max))
    return min(low, num_timesteps - 1), min(high, num_timesteps - 1)


def to_timestep(fraction: float, num_timesteps: int) -> int:
    """Convert a fraction of the diffusion time to a timestep, rounded down."""
    return int(fraction * num_timesteps + 1e-6)  # 0.57 * 1000 is 569.99...


def draw_timesteps(u: Tensor, low: int, high: int) -> Tensor:
    """Return integers [B], uniform on {low, ..., high}, from u [B] in [0, 1)."""
    # For u just below 1 the product can round up to `high + 1`: clamp.
    return (low + torch.floor(u.double() * (high - low + 1)).long()).clamp(max=high)


def share_in_groups(values: Tensor, group: int) -> Tensor:
    """Return values [B] in which each group of `group` consecutive ones shares the value of its first.

    Raises ValueError if B is not a multiple of `group`.
    """
    if len(values) % group:
        raise ValueError(
            f"this prior denoises groups of {group} views, but there are {len(values)} images; "
            f"make the number of views a multiple of {group}"
        )
    return values.reshape(-1, group)[:, :1].expand(-1, group).reshape(-1)


def reference_timesteps(
    config: GuidanceConfig, timesteps: Tensor, u: Tensor, *, low: int, num_timesteps: int, progress: float
) -> Tensor:
    """Return t' [B] long from t [B] and u [B] in [0, 1); `low` is the smallest t at this progress."""
    if config.shift == "none":
        return timesteps
    if config.shift == "earlier":
        return (timesteps - to_timestep(value_at(config.shift_span, progress), num_timesteps)).clamp(min=0)
    start = low if config.shift_start is None else to_timestep(config.shift_start, num_timesteps)
    u = u if config.shift_random else torch.ones_like(u)
    return shift_later(timesteps, u, config.shift_eta, start, num_timesteps)


def shift_later(timesteps: Tensor, u: Tensor, eta: float, start: int, num_timesteps: int) -> Tensor:
    """Return t + floor(min(eta * (t - start), T - 1 - t) * u), which lies in [t, T - 1].

    As in ScaleDreamer's code (arXiv 2407.02040). The shift grows with t - start and is zero at the lowest
    timestep; rounding down makes it zero for about a tenth of all draws at eta = 0.1.
    """
    time = timesteps.double()
    longest = torch.minimum(eta * (time - start), num_timesteps - 1 - time).clamp(min=0)
    return timesteps + torch.floor(longest * u.double() + 1e-9).long()  # 0.7 * 10 is 6.99...
