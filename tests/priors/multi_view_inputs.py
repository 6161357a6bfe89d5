"""Inputs of a tiny multi-view denoiser."""

from __future__ import annotations

import torch

from amortized.cameras import cameras_at
from amortized.types import Cameras, TextCondition

V = 4


def denoiser_inputs(
    num_prompts: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, TextCondition, Cameras]:
    """Return random (latents_noisy, timesteps, text, cameras) of V views for each prompt, in float64."""
    generator = torch.Generator().manual_seed(seed)
    num = num_prompts * V
    text = torch.randn(num, 48, 32, generator=generator, dtype=torch.float64)
    azimuth = 360 * torch.rand(num_prompts, V, generator=generator, dtype=torch.float64)
    ones = torch.ones_like(azimuth)
    return (
        torch.randn(num, 4, 8, 8, generator=generator, dtype=torch.float64),
        torch.randint(1000, (num_prompts,), generator=generator).repeat_interleave(V),
        TextCondition(pooled=text[:, 0], tokens=text, mask=torch.ones(num, 48, dtype=torch.bool)),
        cameras_at(azimuth_deg=azimuth, elevation_deg=15 * ones, distance=2 * ones, fovy_deg=40 * ones),
    )
