"""What all priors in the latents of an autoencoder share: images to latents, and a frozen denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amortized.priors.autoencoder import Autoencoder
from amortized.priors.denoiser import FrozenDenoiser


class LatentPrior:
    """A prior of `amortized.priors.Prior` but for `predict_noise`."""

    def __init__(
        self,
        *,
        network: Any,
        run: Callable[..., Tensor],
        vae: Any,
        text_encoder: Any,
        alphas_cumprod: Tensor,
        lora_targets: Sequence[str],
        offload: bool,
        graphs: bool,
        identity: str,
    ) -> None:
        """Freeze the networks; `network` and `run` as for `FrozenDenoiser`."""
        self.vae, self.text_encoder, self.graphs, self.identity = vae, text_encoder, graphs, identity
        self.latent_channels: int = network.config.in_channels
        self.latent_size: int = network.config.sample_size
        self.autoencoder = Autoencoder(vae, self.latent_size)
        self.image_size, self.device = self.autoencoder.image_size, self.autoencoder.device
        self.denoiser = FrozenDenoiser(network, run, self.device, lora_targets=lora_targets, offload=offload)
        self.alphas_cumprod = alphas_cumprod.float().to(self.device)
        self.num_timesteps = len(alphas_cumprod)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_channels, self.latent_size, self.latent_size

    def modules(self) -> tuple[torch.nn.Module, ...]:
        return self.denoiser.network, self.vae, self.text_encoder.model

    def resize(self, images: Tensor) -> Tensor:
        return self.autoencoder.resize(images)

    def encode(self, images: Tensor) -> Tensor:
        return self.autoencoder.encode(images, graph=self.graphs)

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents)

    def add_adapter(self, rank: int, scale: float) -> torch.nn.Module:
        """Add a LoRA to `lora_targets`, the projections of all attentions; its weights are float32."""
        return self.denoiser.add_adapter(rank, scale)
