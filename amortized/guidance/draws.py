"""The random numbers of a guidance step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GuidanceDraws:
    """Random numbers of B images, drawn outside the step: functions of (seed, step, image) alone.

    Any device and float dtype. Images that share a timestep use the u of the first; noise is always per
    image. Numbers that only some methods need are drawn from `keys` on demand: equal keys, equal numbers.
    """

    u_timestep: Tensor  # [B] in [0, 1)
    u_shift: Tensor  # [B] in [0, 1)
    u_learned: Tensor  # [B] in [0, 1), for the timestep at which the reference model is trained
    noise: Tensor  # [B, C, h, w] standard normal
    keys: Tensor  # [B] int64 on the CPU
    seeds: Tensor  # [B] int64 on the CPU: seed of the trajectory of the image's asset
    prompts: Tensor  # [B] int64: index of the image's prompt among the training prompts
