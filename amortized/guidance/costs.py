"""The cost of a method in denoiser calls, counted from the names of its queries."""

from __future__ import annotations

import torch

from amortized.config import value_at
from amortized.guidance.config import GuidanceConfig
from amortized.guidance.methods import Method, build_method
from amortized.guidance.noise import SeedTrajectory
from amortized.guidance.timesteps import draw_timesteps, reference_timesteps, timestep_range, to_timestep
from amortized.priors.base import Prior


def queries_per_image(config: GuidanceConfig, num_negatives: int = 0, progress: float = 0.0) -> int:
    """Return denoiser images per rendered image for target and reference, at `progress` in [0, 1]."""
    method, scale = build_method(config), value_at(config.guidance_scale, progress)
    scores = (method.target, method.reference)
    return len(set().union(*(score.query_names(scale, num_negatives) for score in scores)))


def calls_per_image(config: GuidanceConfig, num_negatives: int = 0, num_timesteps: int = 1000) -> float:
    """Return denoiser images per rendered image and step, averaged over a run, without a trajectory cache.

    Training of the reference model is included.
    """
    noise, total = build_method(config).noise, 0.0
    u = (torch.arange(64) + 0.5) / 64
    u_shift = (u * 27.0) % 1  # nearly independent of u
    for progress in u.tolist():
        low, high = timestep_range(config, progress, num_timesteps)
        timesteps = draw_timesteps(u, low, high)
        reference = reference_timesteps(
            config, timesteps, u_shift, low=low, num_timesteps=num_timesteps, progress=progress
        )
        total += noise.calls(reference, num_timesteps, num_negatives).double().mean().item()
        total += queries_per_image(config, num_negatives, progress)
    training = 0.0 if config.learned is None else 1 / config.learned.every
    return total / len(u) + training


def trajectory_cache_bytes(
    config: GuidanceConfig, method: Method, prior: Prior, num_assets: int, num_views: int
) -> int:
    """Return the final size of the trajectory cache; 0 without one."""
    if not isinstance(method.noise, SeedTrajectory):
        return 0
    lowest = min(timestep_range(config, p / 100, prior.num_timesteps)[0] for p in range(101))
    if config.shift == "earlier":
        span = max(value_at(config.shift_span, p / 100) for p in range(101))
        lowest -= to_timestep(span, prior.num_timesteps)
    num_cached = method.noise.num_cached(lowest, prior.num_timesteps)
    channels, height, width = prior.latent_shape
    return 4 * channels * height * width * num_cached * num_assets * num_views
