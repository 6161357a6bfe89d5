"""Sample images from a prior with DDIM, to inspect it before distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amortized.cameras import repeat_cameras
from amortized.conditioning.rows import concatenate_rows, expand_row
from amortized.priors.base import Prior
from amortized.priors.schedule import add_noise, alphas_at, noise_to_x0
from amortized.random import normal
from amortized.types import Cameras, TextCondition


@torch.no_grad()
def sample(
    prior: Prior,
    texts: Sequence[str],
    *,
    seed: int = 0,
    num_steps: int = 50,
    cfg: float = 7.5,
    negative_prompt: str = "",
) -> Tensor:
    """Sample images [N, H, W, 3] in [0, 1] for N texts with DDIM and classifier-free guidance.

    Image n depends only on (seed, n, its text), not on the rest of the batch. Raises ValueError if the prior
    has no text encoder.
    """
    if prior.text_encoder is None:
        raise ValueError("this prior has no text encoder, so it cannot encode strings; use `ddim`")
    draws = [normal(prior.latent_shape, seed, "prior sample", index) for index in range(len(texts))]
    text = prior.text_encoder.encode(texts)
    unconditional = expand_row(prior.text_encoder.encode([negative_prompt]), len(texts))
    noise = torch.stack(draws).to(prior.device)
    latents = ddim(prior, noise, text, unconditional, num_steps=num_steps, cfg=cfg)
    return prior.decode(latents)


@torch.no_grad()
def ddim(
    prior: Prior,
    noise: Tensor,
    text: TextCondition,
    unconditional: TextCondition,
    *,
    num_steps: int,
    cfg: float,
    cameras: Cameras | None = None,
) -> Tensor:
    """Denoise `noise` [N, C, h, w] at the last timestep to latents [N, C, h, w] with DDIM.

    Deterministic (arXiv 2010.02502, eta = 0), with classifier-free guidance of scale `cfg`.

    `text` and `unconditional` have N rows; a multi-view prior needs N `cameras`. The `num_steps` timesteps
    are evenly spaced from T - 1 to 0 inclusive. Raises ValueError unless num_steps lies in [1, T].
    """
    if not 1 <= num_steps <= prior.num_timesteps:
        raise ValueError(f"num_steps must lie in [1, {prior.num_timesteps}], got {num_steps}")
    latents, both_texts = noise, concatenate_rows([text, unconditional])
    both_cameras = None if cameras is None else repeat_cameras(cameras, 2)
    grid = torch.linspace(prior.num_timesteps - 1, 0, num_steps).round().long().tolist()
    for step, t in enumerate(grid):
        timesteps = torch.full((len(noise),), t, device=noise.device)
        doubled = (latents.repeat(2, 1, 1, 1), timesteps.repeat(2))
        conditional, null = prior.predict_noise(*doubled, both_texts, both_cameras).chunk(2)
        noise_pred = null + cfg * (conditional - null)
        x0 = noise_to_x0(noise_pred, latents, alphas_at(prior.alphas_cumprod, timesteps, latents))
        if step + 1 == num_steps:
            return x0
        next_timesteps = torch.full_like(timesteps, grid[step + 1])
        latents = add_noise(x0, noise_pred, alphas_at(prior.alphas_cumprod, next_timesteps, latents))
    raise AssertionError("unreachable: the grid has at least one timestep")
