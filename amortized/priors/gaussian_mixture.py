"""A prior that is known exactly: an isotropic Gaussian mixture, its weights chosen by the text."""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.priors.base import ADAPTED
from amortized.priors.schedule import alphas_at, scaled_linear_alphas_cumprod
from amortized.types import Cameras, TextCondition


class GaussianMixturePrior:
    """Noise prediction in closed form, for tests and studies of guidance; see `amortized.priors.Prior`.

    Component k is N(means[k], stds[k]^2 I). Row n of `text.pooled` [N, K] holds the weights of the
    components (normalized here; what is not positive, as a learned text may become, weighs nothing);
    tokens are not read. "Images" are the latents
    themselves with channels last. Everything is computed in the dtype of the inputs.
    """

    prediction_type = "epsilon"
    text_encoder = None

    def __init__(
        self, means: Tensor, stds: Tensor, *, alphas_cumprod: Tensor | None = None, views_per_group: int = 1
    ) -> None:
        """means [K, C, h, w] with h = w, stds [K] > 0."""
        if means.ndim != 4 or means.shape[-1] != means.shape[-2] or stds.shape != means.shape[:1]:
            raise ValueError(
                f"a Gaussian mixture needs means [K, C, h, h] and stds [K], got {tuple(means.shape)} "
                f"and {tuple(stds.shape)}"
            )
        self.means, self.stds = means, stds
        self.device = means.device
        abar = scaled_linear_alphas_cumprod() if alphas_cumprod is None else alphas_cumprod
        self.alphas_cumprod = abar.float().to(self.device)
        self.num_timesteps = len(self.alphas_cumprod)
        self.views_per_group = views_per_group
        self.latent_channels, self.latent_size = means.shape[1], means.shape[2]
        self.image_size = self.latent_size
        self.adapter: MeanShift | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_channels, self.latent_size, self.latent_size

    def modules(self) -> tuple[torch.nn.Module, ...]:
        return ()

    def resize(self, images: Tensor) -> Tensor:
        """As they are."""
        return images

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Channels first; the posterior is a point, so `noise` changes nothing."""
        return images.movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Channels last; values are not clamped to [0, 1]."""
        return latents.movedim(1, -1)

    def predict_noise(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: TextCondition,
        cameras: Cameras | None = None,
        *,
        adapted: bool = False,
    ) -> Tensor:
        """-sqrt(1 - abar) grad log p_t, p_t = sum_k w_k N(sqrt(abar) m_k, (abar s_k^2 + 1 - abar) I)."""
        abar = alphas_at(self.alphas_cumprod, timesteps, noisy)  # [N, 1, 1, 1]
        means = self.means.to(noisy)
        if adapted:
            assert self.adapter is not None, "no adapter was added"
            means = means + self.adapter.scale * self.adapter.shift.to(noisy)
        residual = noisy[:, None] - abar[:, None].sqrt() * means  # [N, K, C, h, w]
        variance = abar[:, :, 0, 0] * self.stds.to(noisy) ** 2 + 1 - abar[:, :, 0, 0]  # [N, K]
        squares = residual.flatten(2).square().sum(-1)  # [N, K]
        num_dims = noisy[0].numel()
        weights, nothing = text.pooled.to(noisy), noisy.new_tensor(-torch.inf)
        named = weights > 0
        log_weights = torch.where(named, torch.where(named, weights, 1.0).log(), nothing)
        log_joint = log_weights - 0.5 * (squares / variance + num_dims * variance.log())
        share = torch.softmax(log_joint, dim=1) / variance  # responsibilities over variances [N, K]
        return (1 - abar).sqrt() * torch.einsum("nk,nkchw->nchw", share, residual)

    def add_adapter(self, rank: int, scale: float) -> torch.nn.Module:
        """A shift of every mean, times `scale`: a mixture's simplest adapter; it has no rank."""
        if self.adapter is not None:
            raise ValueError(ADAPTED)
        self.adapter = MeanShift(torch.zeros_like(self.means[0]), scale)
        return self.adapter


class MeanShift(torch.nn.Module):
    """The adapter of a Gaussian mixture."""

    def __init__(self, shift: Tensor, scale: float) -> None:
        super().__init__()
        self.shift, self.scale = torch.nn.Parameter(shift), scale
