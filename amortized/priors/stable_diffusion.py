"""Stable Diffusion 1.x and 2.x, or any folder of that format, as a prior."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amortized.conditioning.text_encoder import (
    UNREADABLE,
    T5TextEncoder,
    TextEncoder,
    read_text_encoder,
    reason_of,
)
from amortized.devices import device_of
from amortized.priors.base import ADAPTED, DTYPES, PriorConfig
from amortized.priors.graphs import Replayed
from amortized.priors.multi_view import FILE, camera_vectors, join_views, views_of
from amortized.priors.offload import OffloadedWeights
from amortized.priors.precision import sized_gradient
from amortized.priors.schedule import alphas_at, velocity_to_noise
from amortized.types import Cameras, TextCondition

ATTENTION_PARTS = ["to_q", "to_k", "to_v", "to_out.0"]  # of the UNet, that a LoRA changes
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")


class StableDiffusionPrior:
    """A frozen latent diffusion model with a text-conditioned UNet; see `amortized.priors.Prior`.

    The networks run in their own dtype; latents and noise come and go in the caller's. With more than
    one view to a group it is MVDream, see `amortized.priors.multi_view`. The UNet may be on another device
    than the rest; results come back. With `offload` it lies in main memory and is copied there for each call.
    With `graphs`, UNet and encoder are replayed as CUDA graphs, see `amortized.priors.graphs`.
    """

    def __init__(
        self,
        *,
        unet: Any,
        vae: Any,
        text_encoder: TextEncoder | T5TextEncoder,
        alphas_cumprod: Tensor,
        prediction_type: str,
        views_per_group: int = 1,
        offload: bool = False,
        graphs: bool = False,
    ) -> None:
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"the prior's scheduler predicts '{prediction_type}'; "
                "only epsilon and v_prediction can be distilled"
            )
        if not alphas_cumprod[-1] > 1e-6:
            raise ValueError(
                "the prior's last timestep is all noise (zero terminal SNR), which tells of no image: "
                "use a scheduler with rescale_betas_zero_snr=false"
            )
        _check_parts(unet, vae, text_encoder)
        if views_per_group > 1:
            join_views(unet, views_per_group)
        elif unet.config.class_embed_type is not None:
            raise ValueError(
                f"this prior's UNet wants a class ({unet.config.class_embed_type}): if that is the camera "
                f"of a multi-view prior, its folder needs {FILE}"
            )
        self.views_per_group = views_per_group
        self.unet = unet.eval().requires_grad_(False)
        self._dtype: torch.dtype = unet.dtype
        self.vae = vae.eval().requires_grad_(False)
        self.adapter: LoraWeights | None = None
        self.text_encoder = text_encoder
        self.device = next(vae.parameters()).device
        self._home = next(unet.parameters()).device
        self._denoiser_device = self.device if offload else self._home
        self._offloaded = OffloadedWeights(unet, self.device) if offload else None
        if self.device.type == "cuda":  # what convolutions on tensor cores read
            for network in (unet, vae):
                network.to(memory_format=torch.channels_last)
        self.graphs = graphs
        self._replayed_unet, self._replayed_moments = Replayed(self._denoise), Replayed(self._moments)
        self.alphas_cumprod = alphas_cumprod.float().to(self.device)
        self.num_timesteps = len(alphas_cumprod)
        self.prediction_type = prediction_type
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

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        moments_of = self._replayed_moments if self.graphs else self._moments

        def latents_of(pixels: Tensor) -> Tensor:
            moments = moments_of((pixels * 2 - 1).to(self.vae.dtype))
            latents, log_variance = moments.to(images.dtype).chunk(2, dim=1)
            if noise is not None:
                latents = latents + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
            return latents * self.vae.config.scaling_factor

        pixels = self.resize(images).movedim(-1, 1)  # [B, 3, h, w]
        return sized_gradient(latents_of, pixels) if self.vae.dtype == torch.float16 else latents_of(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        pixels = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
        return (pixels.to(latents.dtype) / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    def predict_noise(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: TextCondition,
        cameras: Cameras | None = None,
        *,
        adapted: bool = False,
    ) -> Tensor:
        there = {"device": self._denoiser_device, "dtype": self._dtype}
        # Padding is attended to, as in training: Stable Diffusion knows no attention mask.
        asked = [noisy.to(**there), timesteps.to(self._denoiser_device), text.tokens.to(**there)]
        if self.views_per_group > 1:
            if cameras is None:
                raise ValueError("a multi-view prior needs the cameras of its views")
            asked.append(camera_vectors(cameras).to(**there))
        # An adapter is switched on and off, and a learned text wants its gradient: as they are.
        fixed = self.graphs and self.adapter is None and not torch.is_grad_enabled()
        published = self._as_published() if self.adapter is not None and not adapted else nullcontext()
        with self._offloaded or nullcontext(), published:
            predicted = (self._replayed_unet if fixed else self._denoise)(*asked).to(noisy)
        if self.prediction_type == "epsilon":
            return predicted
        return velocity_to_noise(predicted, noisy, alphas_at(self.alphas_cumprod, timesteps, noisy))

    def _denoise(
        self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, cameras: Tensor | None = None
    ) -> Tensor:
        """The UNet's own prediction [N, C, h, w], in its type and on its device."""
        seen = {} if cameras is None else {"class_labels": cameras}
        return self.unet(noisy, timesteps, encoder_hidden_states=tokens, return_dict=False, **seen)[0]

    def _moments(self, pixels: Tensor) -> Tensor:
        """Mean and logarithm of the variance [B, 2 C, h, w] of the encoder's posterior."""
        return self.vae.encode(pixels).latent_dist.parameters

    def add_adapter(self, rank: int, scale: float) -> torch.nn.Module:
        """LoRA on the attentions' queries, keys, values and outputs, its weights in float32."""
        from peft import LoraConfig

        if self.adapter is not None:
            raise ValueError(ADAPTED)
        alpha: Any = rank * scale  # declared an integer there; any number does
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=ATTENTION_PARTS)
        self.unet.add_adapter(config)
        weights = {name: value for name, value in self.unet.named_parameters() if "lora_" in name}
        for value in weights.values():
            value.data = value.data.float()
        self.adapter = LoraWeights(weights)
        return self.adapter

    @contextmanager
    def _as_published(self) -> Iterator[None]:
        """Within, the adapter is off."""
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()


class LoraWeights(torch.nn.Module):
    """The weights of an adapter that lives in another module, as a module of their own."""

    def __init__(self, weights: dict[str, torch.nn.Parameter]) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterDict({k.replace(".", "/"): v for k, v in weights.items()})


def load_prior(config: PriorConfig, device: torch.device | str = "cpu") -> StableDiffusionPrior:
    """The prior a config names, frozen, on `device`.

    Raises ValueError where it has another number of views than the config expects, or where
    `denoiser_device` is not there.
    """
    if config.denoiser_device is not None:
        device_of("prior.denoiser_device", config.denoiser_device)
    prior = load_stable_diffusion(
        config.path,
        revision=config.revision,
        dtype=DTYPES[config.dtype],
        device=device,
        denoiser_device=config.denoiser_device,
        offload=config.offload,
        text_on_cpu=config.text_on_cpu,
        allow_network=config.allow_network,
    )
    prior.graphs = graphs_serve(config, prior.device)
    if config.compile:
        prior.unet.compile()
    if config.num_views is not None and config.num_views != prior.views_per_group:
        raise ValueError(
            f"prior.num_views is {config.num_views}, but '{config.path}' denoises {prior.views_per_group} "
            "at once: choose another prior.path, or set prior.num_views=null to take what is there"
        )
    return prior


def graphs_serve(config: PriorConfig, device: torch.device) -> bool:
    """Whether the networks are replayed as CUDA graphs; raises ValueError where they should and cannot."""
    on_cuda = device.type == "cuda"
    if config.graphs is None:
        return on_cuda and not (config.offload or config.denoiser_device or config.compile)
    if config.graphs and not on_cuda:
        raise ValueError(f"prior.graphs=true needs a GPU, and the prior is on {device}: set it to null")
    return config.graphs


def load_stable_diffusion(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    denoiser_device: torch.device | str | None = None,
    offload: bool = False,
    text_on_cpu: bool = False,
    allow_network: bool = False,
) -> StableDiffusionPrior:
    """A prior from a folder in diffusers format, or from a Hub id, cached or (if allowed) fetched.

    Only safetensors are read. Raises ValueError where the folder or a part of it is missing.
    """
    path = str(path)
    _check_folder(path, allow_network)
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # pyright: ignore (lazy exports)

    source = {"revision": revision, "local_files_only": not allow_network}
    weights = {**source, "use_safetensors": True, "dtype": dtype}  # transformers would keep the file's dtype
    try:
        text_encoder = read_text_encoder(
            path, revision=revision, dtype=dtype, device="cpu" if text_on_cpu else device,
            allow_network=allow_network,
        )  # fmt: skip
        vae: Any = AutoencoderKL.from_pretrained(path, subfolder="vae", **weights)
        unet: Any = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **weights)
        # Any scheduler's config holds the betas and the prediction type; DDIM's class reads them all.
        scheduler: Any = DDIMScheduler.from_pretrained(path, subfolder="scheduler", **source)
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise ValueError(_missing(path, allow_network, reason=reason_of(error))) from error
    return StableDiffusionPrior(
        unet=unet.to("cpu" if offload else denoiser_device or device),
        vae=vae.to(device),
        text_encoder=text_encoder,
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction_type=scheduler.config.prediction_type,
        views_per_group=views_of(path, revision, allow_network),
        offload=offload,
    )


def _check_parts(unet: Any, vae: Any, text_encoder: TextEncoder | T5TextEncoder) -> None:
    """Raise ValueError for parts that cannot work together, or that want to be told more than we know."""
    problem, width = None, unet.config.cross_attention_dim
    if unet.config.in_channels != vae.config.latent_channels:
        problem = f"reads {unet.config.in_channels} channels, and its VAE makes {vae.config.latent_channels}"
    elif isinstance(width, int) and width != text_encoder.width:
        problem = f"reads text of width {width}, and its text encoder makes {text_encoder.width}"
    elif unet.config.addition_embed_type not in (None, "text"):
        problem = f"wants to be told '{unet.config.addition_embed_type}' besides the text"
    if problem is not None:
        raise ValueError(
            f"this prior's UNet {problem}: only text-to-image models of Stable Diffusion 1's and 2's make "
            "can be distilled"
        )


def _check_folder(path: str, allow_network: bool) -> None:
    """Raise ValueError for what is clearly a folder, but absent or incomplete."""
    folder = Path(path)
    if folder.is_dir():
        missing = [part for part in PARTS if not (folder / part).is_dir()]
        if missing:
            reason = f"the folder lacks {', '.join(missing)}"
            raise ValueError(_missing(path, allow_network, reason=reason))
    elif folder.is_absolute() or path.startswith((".", "checkpoints/", "outputs/")) or path.count("/") != 1:
        raise ValueError(_missing(path, allow_network, reason="there is no such folder"))


def _missing(path: str, allow_network: bool, *, reason: str) -> str:
    remedy = f"give a diffusers folder with {', '.join(PARTS)} and weights as .safetensors"
    if "checkpoints" in Path(path).parts:
        remedy = "run `make weights`"
    elif not Path(path).is_dir() and not allow_network:
        remedy += ", or a Hub id with prior.allow_network=true"
    return f"prior.path '{path}' cannot be loaded: {reason.rstrip('.')}; {remedy}"
