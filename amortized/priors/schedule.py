"""The forward process of a diffusion model, and conversions between noise, x0 and v.

    x_t = sqrt(abar) x0 + sqrt(1 - abar) noise          (DDPM, arXiv 2006.11239, eq. 4)
    v   = sqrt(abar) noise - sqrt(1 - abar) x0          (progressive distillation, 2202.00512, app. D)

`abar` is alphas_cumprod at each item's timestep, broadcastable to the latents; `alphas_at` returns it. All
functions are elementwise, differentiable and computed in the dtype of the inputs.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from amortized.transfer import to_device

SMALLEST = 1e-6  # of alphas_cumprod; below, noise in x_t is amplified more than a thousandfold in x0


def scaled_linear_alphas_cumprod(
    num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """Return Stable Diffusion's alphas_cumprod [T], sqrt(beta) linear in t; float32, decreasing."""
    root_betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - root_betas**2, dim=0).float()


def usable_schedule(alphas_cumprod: Tensor) -> Tensor:
    """Return alphas_cumprod [T] without its last timesteps if these are pure noise (zero terminal SNR).

    From pure noise, x0 is undefined, so there is nothing to distill. Of a rescaled schedule
    (arXiv 2305.08891) the last two of 1,000 are dropped. Raises ValueError for a schedule that is not
    decreasing within (0, 1], or mostly noise.
    """
    values = alphas_cumprod.double()
    if not (values.isfinite().all() and (values.diff() <= 0).all() and 0 <= values[-1] <= values[0] <= 1):
        raise ValueError("the noise schedule is not decreasing between 1 and 0: check its betas")
    usable = int((values > SMALLEST).sum())
    if usable < 0.9 * len(values):
        raise ValueError(
            f"the noise schedule is pure noise at {len(values) - usable} of {len(values)} timesteps: "
            "check its betas"
        )
    if usable < len(values):
        logging.getLogger("amortized").info(
            "the prior's last %d timesteps are pure noise; distilling from the first %d",
            len(values) - usable,
            usable,
        )
    return alphas_cumprod[:usable]


def alphas_at(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """Look up abar [N, 1, 1, 1] at long timesteps [N], with dtype and device of `like` [N, C, h, w]."""
    abar = alphas_cumprod.to(like)[to_device(timesteps, like.device)]
    return abar.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Return x_t from x0 and noise."""
    return abar.sqrt() * x0 + (1 - abar).sqrt() * noise


def noise_to_x0(noise: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    """Return the x0 that gives x_t with this noise; undefined at abar = 0 (x_t is then pure noise)."""
    return (x_t - (1 - abar).sqrt() * noise) / abar.sqrt()


def x0_to_noise(x0: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    """Return the noise that gives x_t with this x0; undefined at abar = 1."""
    return (x_t - abar.sqrt() * x0) / (1 - abar).sqrt()


def velocity_to_noise(velocity: Tensor, x_t: Tensor, abar: Tensor) -> Tensor:
    """Convert a v-prediction to noise; defined at every abar."""
    return abar.sqrt() * velocity + (1 - abar).sqrt() * x_t


# ---- rectified flow -------------------------------------------------------------------------
#
# A rectified flow (arXiv 2209.03003) mixes x = (1 - s) x0 + s noise, with the flow time s in [0, 1], and
# predicts the velocity noise - x0. Divided by n = sqrt((1 - s)^2 + s^2), x is a variance-preserving x_t with
# sqrt(abar) = (1 - s) / n and sqrt(1 - abar) = s / n: the same image, the same ratio of signal to noise. All
# guidance runs in that frame, and the functions below go back.


def flow_alphas_cumprod(num_timesteps: int, shift: float) -> Tensor:
    """Return the alphas_cumprod [T] of a rectified flow, float64; the last is 0, pure noise.

    Timestep t has the flow time s = shift * u / (1 + (shift - 1) * u), u = (t + 1) / T (arXiv 2403.03206,
    section 5.3.2), as in diffusers' FlowMatchEulerDiscreteScheduler.
    """
    u = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
    s = shift * u / (1 + (shift - 1) * u)
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2)


def flow_time(abar: Tensor) -> Tensor:
    """Return the flow time s in [0, 1] with the signal-to-noise ratio of abar."""
    return (1 - abar).sqrt() / (abar.sqrt() + (1 - abar).sqrt())


def to_flow(x_t: Tensor, abar: Tensor) -> Tensor:
    """Return the flow's latents (1 - s) x0 + s noise of x_t = sqrt(abar) x0 + sqrt(1 - abar) noise."""
    return x_t / (abar.sqrt() + (1 - abar).sqrt())


def flow_velocity_to_noise(velocity: Tensor, x_flow: Tensor, abar: Tensor) -> Tensor:
    """Return the noise in the flow's latents from the velocity noise - x0; defined at every abar."""
    return x_flow + (1 - flow_time(abar)) * velocity
