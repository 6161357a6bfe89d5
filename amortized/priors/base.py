"""The `Prior` protocol: the part of a diffusion model that score distillation uses."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from amortized.conditioning.text_encoder import TextEncoder
from amortized.config import PathText, check
from amortized.model_folders import check_scales
from amortized.types import Cameras, TextCondition

ADAPTER_EXISTS = "this prior already has an adapter: load another prior for another learned model"
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Which diffusion model supervises the generator, and its devices and precision."""

    shorthand: ClassVar[str] = "path"  # `prior: FOLDER` in a preset means `prior: {path: FOLDER}`

    path: PathText  # a folder in diffusers format, a single-file checkpoint (.safetensors), or a Hub id
    revision: str | None = None  # branch, tag or commit of a Hub id
    allow_network: bool = False  # download a Hub id that is not cached
    variant: str | None = (
        None  # e.g. fp16, of *.fp16.safetensors; null: the plain weights, else the only variant
    )
    # Of a single file of Stable Diffusion 2 that does not say whether it predicts noise or velocity.
    architecture: (
        Literal["stable-diffusion-v1", "stable-diffusion-v2-512", "stable-diffusion-v2-768-v"] | None
    ) = None
    # LoRAs (.safetensors), added to the weights of UNet and text encoder, each times its scale (null: 1)
    loras: tuple[PathText, ...] | None = None
    lora_scales: tuple[float, ...] | None = None
    tokens: tuple[PathText, ...] | None = None  # files of textual inversion: new words for prompts
    # The sizes that SDXL is conditioned on: an image's height and width before cropping, the crop's offset
    # from top and left, height and width after it. null: the size of the prior's images, not cropped.
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    num_views: int | None = None  # views the model must denoise jointly; null: any
    # To save memory: the denoiser on another GPU, or in CPU memory between calls; texts encoded on the CPU.
    denoiser_device: str | None = None  # e.g. cuda:1; null: the run's device
    offload: bool = False
    text_on_cpu: bool = False
    compile: bool = False  # torch.compile the denoiser: minutes of start-up, then faster steps on a GPU
    # Replay denoiser and VAE encoder as CUDA graphs, which keeps a GPU busy at small batches. null: on if the
    # denoiser stays on the run's GPU and is not compiled.
    graphs: bool | None = None
    # float16 and bfloat16 halve the memory; gradients with respect to images are float32
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if self.offload and (self.denoiser_device or self.compile):
            raise ValueError(
                "offload moves the denoiser on every call, so it excludes denoiser_device and compile: "
                "set only one of them"
            )
        if self.graphs and (self.offload or self.denoiser_device or self.compile):
            raise ValueError(
                "graphs needs a denoiser that stays on the run's device, uncompiled: set graphs=null, or "
                "offload=false, denoiser_device=null and compile=false"
            )
        if self.variant is not None and not re.fullmatch(r"\w{1,40}", self.variant):
            raise ValueError(f"variant must be letters and digits, such as fp16, got {self.variant!r}")
        check_scales(self.loras, self.lora_scales)
        check(self, "original_size", "target_size", at_least=1, limit=2**16)
        check(self, "crop", at_least=0, limit=2**16)
        check(self, "num_views", at_least=1, limit=64)


@runtime_checkable
class Prior(Protocol):
    """A frozen text-to-image diffusion model over latents [B, C, h, w], h = w = latent_size.

    Latents are variance preserving: x_t = sqrt(abar) x0 + sqrt(1 - abar) noise with abar = alphas_cumprod[t].
    A model with another process, such as a rectified flow, converts.
    """

    alphas_cumprod: Tensor  # [T] float32, decreasing
    num_timesteps: int  # T
    prediction_type: str  # the network's raw prediction: "epsilon", "v_prediction" or "flow_prediction"
    views_per_group: int  # images denoised jointly at one timestep: 1, or 4 for multi-view models
    latent_channels: int  # C
    latent_size: int  # h = w
    image_size: int  # side of the square images that `encode` resizes to
    device: torch.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's latents."""
        ...

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The encoder of its text conditions; None if they do not come from strings."""
        ...

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return all networks, including the text model."""
        ...

    def resize(self, images: Tensor) -> Tensor:
        """Resize images [B, H, W, 3] to [B, image_size, image_size, 3]; differentiable."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [B, H, W, 3] in [0, 1] to scaled latents [B, C, h, w]; differentiable.

        The latents are the mean of the encoder's posterior.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [B, C, h, w] to images [B, H, W, 3] in [0, 1]."""
        ...

    def predict_noise(
        self,
        latents_noisy: Tensor,
        timesteps: Tensor,
        text: TextCondition,
        cameras: Cameras | None = None,
        *,
        adapted: bool = False,
    ) -> Tensor:
        """Predict the noise [N, C, h, w] in `latents_noisy` [N, C, h, w].

        timesteps  [N], long
        text       N rows
        cameras    N cameras when flattened prompt-major; ignored by models without camera input
        adapted    run the model with its adapter, to whose weights gradients then flow

        Other prediction types are converted to noise. Gradients flow to `latents_noisy` and `text` if the
        caller has enabled them, never to the frozen weights.
        """
        ...

    def add_adapter(self, rank: int, scale: float) -> torch.nn.Module:
        """Add a LoRA (arXiv 2106.09685) and return its trainable weights; initially it changes nothing.

        `scale` multiplies its contribution. Only `predict_noise(adapted=True)` uses it. Raises ValueError if
        the prior already has an adapter.
        """
        ...


def fingerprint_of(prior: Prior) -> str:
    """Hash all of the prior but its adapter: "2:" and 16 hexadecimal digits; "" if it has no weights.

    Covers every weight, and the schedule and scaling of a prior that was loaded from a folder. The same on
    all devices. About 2 s for the 2.6 GB of Stable Diffusion 2.1 in float16 on one CPU core.
    """
    digest, any_weights = hashlib.blake2b(digest_size=8), False
    for module in prior.modules():
        for name, value in module.named_parameters():
            if "lora_" not in name:  # an adapter is trained, not part of the prior
                any_weights = True
                digest.update(_checksums(value))
    digest.update(getattr(prior, "identity", "").encode())
    return f"2:{digest.hexdigest()}" if any_weights else ""


def _checksums(value: Tensor) -> bytes:
    """Return the sums of the rows and of the columns of a tensor's bytes, as integers: exact in any order."""
    flat = value.detach().contiguous().reshape(-1)
    flat = flat.clone() if flat.storage_offset() % 8 else flat  # the view of 8 bytes needs it aligned
    raw = flat.view(torch.uint8)
    side = 1 << max((len(raw) // 8).bit_length() // 2, 1)
    whole = len(raw) // (8 * side) * 8 * side
    rows = raw[:whole].view(torch.int64).view(-1, side)
    sums = torch.cat([rows.sum(0), rows.sum(1), raw[whole:].long()])  # overflow wraps, on every device
    return str(tuple(value.shape)).encode() + sums.cpu().numpy().tobytes()
