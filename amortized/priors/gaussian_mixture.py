"""A prior in closed form: an isotropic Gaussian mixture whose weights are the text condition."""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.priors.base import ADAPTER_EXISTS
from amortized.priors.schedule import alphas_at, scaled_linear_alphas_cumprod
from amortized.types import Cameras, TextCondition


class GaussianMixturePrior:
    """Noise prediction in closed form, for tests and studies of guidance; see `amortized.priors.Prior`.

    Component k is N(means[k], stds[k]^2 I). Row n of `text.pooled` [N, K] holds the component weights; they
    are normalized here, and weights that are not positive (a learned text may cross zero) count as zero.
    Tokens are ignored. "Images" are the latents with channels last. Everything is computed in the dtype of
    the inputs.
    """

    prediction_type = "epsilon"
    text_encoder = None

    def __init__(
        self, means: Tensor, stds: Tensor, *, alphas_cumprod: Tensor | None = None, views_per_group: int = 1
    ) -> None:
        """Build the mixture from means [K, C, h, w], h = w, and stds [K] > 0.

        Raises ValueError for other shapes.
        """
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
        """Return the images unchanged."""
        return images

    def encode(self, images: Tensor) -> Tensor:
        """Move channels first."""
        return images.movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Move channels last; values are not clamped to [0, 1]."""
        return latents.movedim(1, -1)

    def predict_noise(
        self,
        latents_noisy: Tensor,
        timesteps: Tensor,
        text: TextCondition,
        cameras: Cameras | None = None,
        *,
        adapted: bool = False,
    ) -> Tensor:
        """Return -sqrt(1 - abar) grad log p_t, [N, C, h, w].

        p_t = sum_k w_k N(sqrt(abar) m_k, (abar s_k^2 + 1 - abar) I)
        """
        abar = alphas_at(self.alphas_cumprod, timesteps, latents_noisy)  # [N, 1, 1, 1]
        means = self.means.to(latents_noisy)
        if adapted:
            assert self.adapter is not None, "the prior has no adapter"
            means = means + self.adapter.scale * self.adapter.shift.to(latents_noisy)
        residual = latents_noisy[:, None] - abar[:, None].sqrt() * means  # [N, K, C, h, w]
        variance = abar[:, :, 0, 0] * self.stds.to(latents_noisy) ** 2 + 1 - abar[:, :, 0, 0]  # [N, K]
        squares = residual.flatten(2).square().sum(-1)  # [N, K]
        num_dims = latents_noisy[0].numel()
        weights, log_zero = text.pooled.to(latents_noisy), latents_noisy.new_tensor(-torch.inf)
        is_positive = weights > 0
        # The inner `where` keeps log's gradient finite at weights that are not positive.
        log_weights = torch.where(is_positive, torch.where(is_positive, weights, 1.0).log(), log_zero)
        log_joint = log_weights - 0.5 * (squares / variance + num_dims * variance.log())
        share = torch.softmax(log_joint, dim=1) / variance  # responsibilities over variances [N, K]
        return (1 - abar).sqrt() * torch.einsum("nk,nkchw->nchw", share, residual)

    def add_adapter(self, rank: int, scale: float) -> torch.nn.Module:
        """Add a trainable shift of all means, multiplied by `scale`; `rank` is ignored."""
        if self.adapter is not None:
            raise ValueError(ADAPTER_EXISTS)
        self.adapter = MeanShift(torch.zeros_like(self.means[0]), scale)
        return self.adapter


class MeanShift(torch.nn.Module):
    """The adapter of a Gaussian mixture: one shift [C, h, w] of all means."""

    def __init__(self, shift: Tensor, scale: float) -> None:
        super().__init__()
        self.shift, self.scale = torch.nn.Parameter(shift), scale
