"""The noisy latents a step asks about: how their noise is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from amortized.conditioning.views import ViewText
from amortized.priors.base import Prior
from amortized.priors.schedule import add_noise, alphas_at


@dataclass(frozen=True, kw_only=True)
class NoisedLatents:
    """Latents at two noise levels."""

    noisy: Tensor  # [B, C, h, w] at t
    noisy_reference: Tensor  # [B, C, h, w] at t'
    noise: Tensor  # [B, C, h, w] what `noisy` was made with
    num_denoiser_calls: int = 0  # images sent through the denoiser to find the noise


class NoiseSource(Protocol):
    """Adds noise to clean latents; runs without gradients."""

    def __call__(
        self,
        prior: Prior,
        latents: Tensor,
        text: ViewText,
        timesteps: Tensor,
        timesteps_reference: Tensor,
        noise: Tensor,
    ) -> NoisedLatents:
        """latents, noise [B, C, h, w]; timesteps [B] long; `noise` is the step's standard normal draw."""
        ...


def gaussian_noise(
    prior: Prior,
    latents: Tensor,
    text: ViewText,
    timesteps: Tensor,
    timesteps_reference: Tensor,
    noise: Tensor,
) -> NoisedLatents:
    """The draw itself, and the same one at both levels."""

    def at(times: Tensor) -> Tensor:
        return add_noise(latents, noise, alphas_at(prior.alphas_cumprod, times, latents))

    return NoisedLatents(noisy=at(timesteps), noisy_reference=at(timesteps_reference), noise=noise)
