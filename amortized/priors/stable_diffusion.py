"""Stable Diffusion 1.x and 2.x, SDXL, and models of these formats, as a prior."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from amortized.conditioning.text_encoder import AnyTextEncoder
from amortized.priors.base import ADAPTER_EXISTS
from amortized.priors.graphs import GraphedFunction
from amortized.priors.multi_view import VIEWS_FILE, camera_vectors, join_views
from amortized.priors.offload import OffloadedWeights
from amortized.priors.precision import normalize_gradient_through
from amortized.priors.schedule import alphas_at, usable_schedule, velocity_to_noise
from amortized.types import Cameras, TextCondition

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the projections of every attention in the UNet


class StableDiffusionPrior:
    """A frozen latent diffusion model with a text-conditioned UNet; see `amortized.priors.Prior`.

    The networks run in their own dtype; latents and noise keep the caller's. With more than one view per
    group the model is MVDream, see `amortized.priors.multi_view`. The UNet may be on another device than the
    rest; results return to the caller's device. With `offload` the UNet stays in CPU memory and is copied to
    the device for each call. With `graphs`, UNet and VAE encoder run as CUDA graphs, see
    `amortized.priors.graphs`.
    """

    def __init__(
        self,
        *,
        unet: Any,
        vae: Any,
        text_encoder: AnyTextEncoder,
        alphas_cumprod: Tensor,
        prediction_type: str,
        views_per_group: int = 1,
        offload: bool = False,
        graphs: bool = False,
        identity: str = "",
        size_ids: tuple[int, ...] | None = None,
    ) -> None:
        """Freeze the networks and wrap them.

        unet, vae        UNet2DConditionModel and AutoencoderKL of diffusers
        alphas_cumprod   [T], decreasing; last timesteps of pure noise are dropped
        prediction_type  "epsilon" or "v_prediction"
        identity         a text for the fingerprint: schedule, scaling and other properties besides weights

        size_ids         of SDXL: original size, crop and target size, the same for every image

        Raises ValueError for another prediction type, or parts that do not fit each other.
        """
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"the prior's scheduler predicts '{prediction_type}'; "
                "only epsilon and v_prediction can be distilled"
            )
        alphas_cumprod = usable_schedule(alphas_cumprod)
        check_parts(unet, vae, text_encoder.width, is_xl=size_ids is not None)
        if views_per_group > 1:
            join_views(unet, views_per_group)
        elif unet.config.class_embed_type is not None:
            raise ValueError(
                f"this prior's UNet has a class embedding ({unet.config.class_embed_type}): if that is "
                f"the camera of a multi-view prior, its folder needs {VIEWS_FILE}"
            )
        self.views_per_group = views_per_group
        self._size_ids = None if size_ids is None else torch.tensor([size_ids])  # [1, 6]
        self.identity = identity
        self.unet = unet.eval().requires_grad_(False)
        self._dtype: torch.dtype = unet.dtype
        self.vae = vae.eval().requires_grad_(False)
        self.adapter: LoraWeights | None = None
        self.text_encoder = text_encoder
        self.device = next(vae.parameters()).device
        self._unet_device = self.device if offload else next(unet.parameters()).device
        self._offloaded = OffloadedWeights(unet, self.device) if offload else None
        if self.device.type == "cuda":  # the layout that convolutions on tensor cores use
            for network in (unet, vae):
                network.to(memory_format=torch.channels_last)
        self.graphs = graphs
        # The UNet of SDXL takes the pooled vector of the second encoder only.
        self._pooled_width: int = getattr(getattr(text_encoder, "second", None), "width", text_encoder.width)
        self._graphed_unet = GraphedFunction(self._run_unet)
        self._graphed_moments = GraphedFunction(self._moments)
        self.alphas_cumprod = alphas_cumprod.float().to(self.device)
        self.num_timesteps = len(alphas_cumprod)
        self.prediction_type = prediction_type
        self._shift, self._scale = (value.to(self.device) for value in latent_scaling(vae.config))
        self.latent_channels: int = unet.config.in_channels
        self.latent_size: int = unet.config.sample_size
        self.image_size = self.latent_size * 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_channels, self.latent_size, self.latent_size

    def modules(self) -> tuple[torch.nn.Module, ...]:
        return self.unet, self.vae, self.text_encoder.model

    def resize(self, images: Tensor) -> Tensor:
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

    def encode(self, images: Tensor) -> Tensor:
        compute_moments = self._graphed_moments if self.graphs else self._moments

        def encode_pixels(pixels: Tensor) -> Tensor:
            moments = compute_moments((pixels * 2 - 1).to(self.vae.dtype))
            mean, _ = moments.to(images.dtype).chunk(2, dim=1)
            return (mean - self._shift.to(mean)) * self._scale.to(mean)

        pixels = self.resize(images).movedim(-1, 1)  # [B, 3, h, w]
        if self.vae.dtype == torch.float16:
            return normalize_gradient_through(encode_pixels, pixels)
        return encode_pixels(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        unscaled = latents / self._scale.to(latents) + self._shift.to(latents)
        pixels = self.vae.decode(unscaled.to(self.vae.dtype)).sample
        return (pixels.to(latents.dtype) / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    def predict_noise(
        self,
        latents_noisy: Tensor,
        timesteps: Tensor,
        text: TextCondition,
        cameras: Cameras | None = None,
        *,
        adapted: bool = False,
    ) -> Tensor:
        target = {"device": self._unet_device, "dtype": self._dtype}
        # Padding is attended to, as in training: Stable Diffusion has no attention mask.
        inputs = [latents_noisy.to(**target), timesteps.to(self._unet_device), text.tokens.to(**target)]
        if self.views_per_group > 1:
            if cameras is None:
                raise ValueError("a multi-view prior needs the cameras of its views")
            inputs.append(camera_vectors(cameras).to(**target))
        elif self._size_ids is not None:
            inputs.append(text.pooled[:, -self._pooled_width :].to(**target))
            inputs.append(self._size_ids.to(**target).expand(len(latents_noisy), -1))
        # No graph with an adapter, which is switched on and off, or with the gradient of a learned text.
        use_graph = self.graphs and self.adapter is None and not torch.is_grad_enabled()
        with_adapter = adapted or self.adapter is None
        with self._unet_on_device(), nullcontext() if with_adapter else self._adapter_disabled():
            prediction = (self._graphed_unet if use_graph else self._run_unet)(*inputs).to(latents_noisy)
        if self.prediction_type == "epsilon":
            return prediction
        abar = alphas_at(self.alphas_cumprod, timesteps, latents_noisy)
        return velocity_to_noise(prediction, latents_noisy, abar)

    def _run_unet(self, latents_noisy: Tensor, timesteps: Tensor, tokens: Tensor, *more: Tensor) -> Tensor:
        """Return the UNet's raw prediction [N, C, h, w], in its dtype and on its device.

        more  the cameras of a multi-view model, or the pooled text and the sizes of SDXL
        """
        labels: dict[str, Any] = {"class_labels": more[0]} if len(more) == 1 else {}
        if len(more) == 2:
            labels["added_cond_kwargs"] = dict(zip(("text_embeds", "time_ids"), more, strict=True))
        outputs = self.unet(
            latents_noisy, timesteps, encoder_hidden_states=tokens, return_dict=False, **labels
        )
        return outputs[0]

    def _moments(self, pixels: Tensor) -> Tensor:
        """Return mean and log-variance [B, 2 C, h, w] of the VAE's posterior."""
        return self.vae.encode(pixels).latent_dist.parameters

    def add_adapter(self, rank: int, scale: float) -> torch.nn.Module:
        """Add a LoRA to the queries, keys, values and outputs of all attentions; its weights are float32."""
        from peft import LoraConfig

        if self.adapter is not None:
            raise ValueError(ADAPTER_EXISTS)
        alpha: Any = rank * scale  # annotated as an integer in peft; any number works
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS)
        self.unet.add_adapter(config)
        weights = {name: value for name, value in self.unet.named_parameters() if "lora_" in name}
        for value in weights.values():
            value.data = value.data.float()
        self.adapter = LoraWeights(weights)
        return self.adapter

    def _unet_on_device(self) -> AbstractContextManager[None]:
        """Context: copy an offloaded UNet to its compute device."""
        return nullcontext() if self._offloaded is None else self._offloaded

    @contextmanager
    def _adapter_disabled(self) -> Iterator[None]:
        """Context: disable the LoRA adapter."""
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()


class LoraWeights(torch.nn.Module):
    """The weights of an adapter inside another module, as a module for optimizer and checkpoints."""

    def __init__(self, weights: dict[str, torch.nn.Parameter]) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterDict({k.replace(".", "/"): v for k, v in weights.items()})


def latent_scaling(config: Any) -> tuple[Tensor, Tensor]:
    """Return shift and scale [C, 1, 1] of a VAE: the denoiser's latents are (latents - shift) * scale."""
    channels = config.latent_channels
    shift, std = config.latents_mean, config.latents_std
    shift = torch.tensor(
        [config.shift_factor or 0.0] * channels if shift is None else shift, dtype=torch.float64
    )
    std = torch.tensor([1.0] * channels if std is None else std, dtype=torch.float64)
    return shift[:, None, None], config.scaling_factor / std[:, None, None]


def check_parts(unet: Any, vae: Any, text_width: int, *, is_xl: bool = False) -> None:
    """Raise ValueError for parts that do not fit each other, or a UNet that needs further conditions."""
    problem, width = None, unet.config.cross_attention_dim
    if unet.config.in_channels != vae.config.latent_channels:
        problem = f"takes {unet.config.in_channels} channels, but its VAE has {vae.config.latent_channels}"
    elif isinstance(width, int) and width != text_width:
        problem = f"takes text of width {width}, but its text encoder has {text_width}"
    elif is_xl and unet.config.addition_embed_type != "text_time":
        problem = "takes no sizes, but there are two text encoders as in SDXL"
    elif not is_xl and unet.config.addition_embed_type not in (None, "text"):
        problem = f"needs '{unet.config.addition_embed_type}' in addition to the text"
    if problem is not None:
        raise ValueError(
            f"this prior's UNet {problem}: only text-to-image models in the format of Stable Diffusion 1, 2 "
            "and XL can be distilled"
        )
