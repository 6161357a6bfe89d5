"""(t, t'): when the target is asked, and when the reference is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from amortized.guidance.config import GuidanceConfig, linear


def timestep_range(config: GuidanceConfig, progress: float, num_timesteps: int) -> tuple[int, int]:
    """The smallest and largest timestep that may be drawn at this progress, both inclusive."""

    def timestep(fraction: float) -> int:  # 0.57 * 1000 is 569.99...: nudge before rounding down
        return min(int(fraction * num_timesteps + 1e-6), num_timesteps - 1)

    return timestep(linear(config.t_min, progress)), timestep(linear(config.t_max, progress))


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


class ReferenceTime(Protocol):
    """Chooses t' given t."""

    def __call__(self, timesteps: Tensor, u: Tensor, low: int, num_timesteps: int) -> Tensor:
        """t' [B] long from t [B] and u [B] in [0, 1); `low` is the annealed smallest timestep."""
        ...


def same_time(timesteps: Tensor, u: Tensor, low: int, num_timesteps: int) -> Tensor:
    """t' = t."""
    return timesteps


@dataclass(frozen=True, kw_only=True)
class LaterTime:
    """t' = t + floor(min(eta * (t - low), T - 1 - t) * u): never before t, never after the end.

    ScaleDreamer (arXiv 2407.02040) as its code has it. The shift grows with t - low, so it is zero
    at the lowest timestep, and flooring makes it zero in about a tenth of all draws at eta = 0.1.
    """

    eta: float
    random: bool = True  # False: u = 1

    def __call__(self, timesteps: Tensor, u: Tensor, low: int, num_timesteps: int) -> Tensor:
        time = timesteps.double()
        longest = torch.minimum(self.eta * (time - low), num_timesteps - 1 - time)
        shift = longest * u.double() if self.random else longest
        return timesteps + torch.floor(shift + 1e-9).long()  # 0.7 * 10 is 6.99...
