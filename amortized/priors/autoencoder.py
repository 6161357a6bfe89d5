"""The autoencoder of a latent diffusion model: images to latents and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amortized.priors.graphs import GraphedFunction
from amortized.priors.precision import normalize_gradient_through


class Autoencoder:
    """A frozen VAE, which runs in its own dtype; latents and images have the caller's."""

    def __init__(self, vae: Any, latent_size: int) -> None:
        """Freeze an AutoencoderKL of diffusers; `latent_size` is the side of the latents."""
        self.vae = vae.eval().requires_grad_(False)
        self.device: torch.device = next(vae.parameters()).device
        if self.device.type == "cuda":  # the layout that convolutions on tensor cores use
            vae.to(memory_format=torch.channels_last)
        self.image_size: int = latent_size * 2 ** (len(vae.config.block_out_channels) - 1)
        self.graphed = GraphedFunction(self._moments)
        self._shift, self._scale = (value.to(self.device) for value in latent_scaling(vae.config))

    def resize(self, images: Tensor) -> Tensor:
        """Resize images [B, H, W, 3] to [B, image_size, image_size, 3]; differentiable."""
        if images.shape[1:3] == (self.image_size, self.image_size):
            return images
        resized = torch.nn.functional.interpolate(
            images.movedim(-1, 1),
            (self.image_size, self.image_size),
            mode="bilinear",
            align_corners=False,
            antialias=max(images.shape[1:3]) > self.image_size,
        )
        return resized.movedim(1, -1)

    def encode(self, images: Tensor, *, graph: bool) -> Tensor:
        """Encode images [B, H, W, 3] in [0, 1] to scaled latents [B, C, h, w]; `graph`: as a CUDA graph."""
        compute_moments = self.graphed if graph else self._moments

        def encode_pixels(pixels: Tensor) -> Tensor:
            moments = compute_moments((pixels * 2 - 1).to(self.vae.dtype))
            mean, _ = moments.to(images.dtype).chunk(2, dim=1)
            return (mean - self._shift.to(mean)) * self._scale.to(mean)

        pixels = self.resize(images).movedim(-1, 1)  # [B, 3, h, w]
        if self.vae.dtype == torch.float16:
            return normalize_gradient_through(encode_pixels, pixels)
        return encode_pixels(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [B, C, h, w] to images [B, H, W, 3] in [0, 1]."""
        unscaled = latents / self._scale.to(latents) + self._shift.to(latents)
        pixels = self.vae.decode(unscaled.to(self.vae.dtype)).sample
        return (pixels.to(latents.dtype) / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    def _moments(self, pixels: Tensor) -> Tensor:
        """Return mean and log-variance [B, 2 C, h, w] of the VAE's posterior."""
        return self.vae.encode(pixels).latent_dist.parameters


def latent_scaling(config: Any) -> tuple[Tensor, Tensor]:
    """Return shift and scale [C, 1, 1] of a VAE: the denoiser's latents are (latents - shift) * scale."""
    channels = config.latent_channels
    shift, std = config.latents_mean, config.latents_std
    shift = torch.tensor(
        [config.shift_factor or 0.0] * channels if shift is None else shift, dtype=torch.float64
    )
    std = torch.tensor([1.0] * channels if std is None else std, dtype=torch.float64)
    return shift[:, None, None], config.scaling_factor / std[:, None, None]
