"""The forward process of a diffusion model and the four ways to name one prediction.

    x_t = sqrt(abar) x0 + sqrt(1 - abar) noise          (DDPM, arXiv 2006.11239, eq. 4)
    v   = sqrt(abar) noise - sqrt(1 - abar) x0          (progressive distillation, 2202.00512, app. D)

`abar` below is the cumulated alpha at each item's timestep, broadcastable to the latents: make it
with `alphas_at`. All functions are elementwise and differentiable, in the dtype they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.transfer import to_device


def scaled_linear_alphas_cumprod(
    num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """Stable Diffusion's schedule: sqrt(beta) linear in the timestep; [T] float32, decreasing."""
    root_betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - root_betas**2, dim=0).float()


def alphas_at(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """abar [N, 1, 1, 1] at long timesteps [N], in the dtype and on the device of `like` [N, C, h, w]."""
    abar = alphas_cumprod.to(like)[to_device(timesteps, like.device)]
    return abar.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """x_t from x0 and noise."""
    return abar.sqrt() * x0 + (1 - abar).sqrt() * noise


def noise_to_x0(noise: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    """x0 that explains x_t with this noise; undefined at abar = 0, where x_t tells nothing of x0."""
    return (x_t - (1 - abar).sqrt() * noise) / abar.sqrt()


def x0_to_noise(x0: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    """Noise that explains x_t with this x0; undefined at abar = 1."""
    return (x_t - abar.sqrt() * x0) / (1 - abar).sqrt()


def velocity_to_noise(velocity: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    """Noise of a v-prediction; defined at every abar."""
    return abar.sqrt() * velocity + (1 - abar).sqrt() * x_t


def velocity_to_x0(velocity: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    """x0 of a v-prediction; defined at every abar."""
    return abar.sqrt() * x_t - (1 - abar).sqrt() * velocity


def noise_to_velocity(noise: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    """v of a noise prediction; undefined at abar = 0."""
    return (noise - (1 - abar).sqrt() * x_t) / abar.sqrt()


def x0_to_velocity(x0: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    """v of an x0-prediction; undefined at abar = 1."""
    return (abar.sqrt() * x_t - x0) / (1 - abar).sqrt()
