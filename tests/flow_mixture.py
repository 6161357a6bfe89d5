"""A Stable Diffusion 3 whose transformer and autoencoder are replaced by closed forms: a Gaussian mixture."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from amortized.priors import GaussianMixturePrior, StableDiffusion3Prior


class MixtureVelocity(nn.Module):
    """The velocity E[noise - x0 | x] of x = (1 - s) x0 + s noise, in the flow's own terms.

    Component k is N(means[k], stds[k]^2); the pooled text [N, K] has the component weights.
    """

    def __init__(self, means: Tensor, stds: Tensor, num_timesteps: int) -> None:
        super().__init__()
        self.means, self.stds = nn.Parameter(means), nn.Parameter(stds)
        num, channels, size, _ = means.shape
        self.num_timesteps, self.dtype = num_timesteps, means.dtype
        self.config = SimpleNamespace(
            in_channels=channels, sample_size=size, joint_attention_dim=num, pooled_projection_dim=num
        )

    def forward(self, x, *, timestep, encoder_hidden_states, pooled_projections, return_dict):
        s = (timestep / self.num_timesteps)[:, None, None, None, None]  # [N, 1, 1, 1, 1]
        means, variances = self.means[None], self.stds[None, :, None, None, None] ** 2  # [1, K, C, h, w]
        total = (1 - s) ** 2 * variances + s**2
        residual = x[:, None] - (1 - s) * means
        x0 = means + (1 - s) * variances / total * residual
        noise = s / total * residual
        density = -0.5 * (residual**2 / total + total.log()).flatten(2).sum(2)
        share = torch.softmax(pooled_projections.clamp(min=1e-30).log() + density, dim=1)
        return (torch.einsum("nk,nkchw->nchw", share, noise - x0),)


class Pixels(nn.Module):
    """An autoencoder whose latents are the pixels, from -1 to 1."""

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.unused, self.dtype = nn.Parameter(torch.zeros(1, dtype=dtype)), dtype
        self.config = SimpleNamespace(
            latent_channels=channels, block_out_channels=(1,), latents_mean=None, latents_std=None,
            shift_factor=None, scaling_factor=1.0,
        )  # fmt: skip

    def encode(self, pixels):
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=torch.cat([pixels, 0 * pixels], 1)))

    def decode(self, latents):
        return SimpleNamespace(sample=latents)


def flow_mixture(
    means: Tensor, stds: Tensor, *, shift: float = 3.0, num_timesteps: int = 1004
) -> tuple[StableDiffusion3Prior, GaussianMixturePrior]:
    """The prior, and the same mixture in the variance-preserving frame; 1,000 timesteps by default."""
    num = len(means)
    text = SimpleNamespace(width=num, pooled_width=num, model=nn.Module())
    prior = StableDiffusion3Prior(
        transformer=MixtureVelocity(means, stds, num_timesteps),
        vae=Pixels(means.shape[1], means.dtype),
        text_encoder=text,  # type: ignore[arg-type]
        shift=shift,
        num_timesteps=num_timesteps,
    )
    return prior, GaussianMixturePrior(means, stds, alphas_cumprod=prior.alphas_cumprod)
