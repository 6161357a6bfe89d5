"""What a diffusion model must offer to teach a generator."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from amortized.conditioning.source import SentenceEncoder
from amortized.types import Cameras, TextCondition

ADAPTED = "this prior has an adapter already: load another for another learned model"
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Which diffusion model teaches, and at what precision it runs."""

    shorthand: ClassVar[str] = "path"  # `prior: FOLDER` in a preset means `prior: {path: FOLDER}`

    path: str  # a folder in diffusers format, or a Hub id
    revision: str | None = None  # of a Hub id: a branch, tag or commit
    allow_network: bool = False  # fetch a Hub id that is not on this machine
    num_views: int | None = None  # that it must denoise together; null: as many as it does
    # Where memory is short: the denoiser on a GPU of its own, or in CPU memory between its calls; sentences
    # encoded on the CPU.
    denoiser_device: str | None = None  # e.g. cuda:1; null: with the rest
    offload: bool = False
    text_on_cpu: bool = False
    compile: bool = False  # torch.compile the denoiser: minutes at the start, faster steps on a GPU
    # Replay denoiser and encoder as CUDA graphs: small batches need it to keep a GPU busy. null: on a GPU,
    # where the denoiser stays in its place and is not compiled.
    graphs: bool | None = None
    dtype: str = "float32"  # float16 and bfloat16 halve the memory; gradients reach images as float32

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"prior.dtype must be one of {', '.join(DTYPES)}, got '{self.dtype}'")
        if self.offload and (self.denoiser_device or self.compile):
            raise ValueError(
                "prior.offload moves the denoiser at each call, and prior.denoiser_device and prior.compile "
                "want it to stay: set one of them"
            )
        if self.graphs and (self.offload or self.denoiser_device or self.compile):
            raise ValueError(
                "prior.graphs replays a denoiser that stays on the run's device as it is: set prior.graphs="
                "null, or prior.offload=false, prior.denoiser_device=null and prior.compile=false"
            )
        if not self.path:
            raise ValueError("prior.path is empty; give a folder in diffusers format, or a Hub id")


@runtime_checkable
class Prior(Protocol):
    """A frozen text-to-image diffusion model over latents [B, C, h, w], h = w = latent_size."""

    alphas_cumprod: Tensor  # [T] float32, decreasing
    num_timesteps: int  # T
    prediction_type: str  # what the network itself predicts: "epsilon" or "v_prediction"
    views_per_group: int  # images denoised together at one timestep: 1, or 4 for multi-view models
    latent_channels: int  # C
    latent_size: int  # h = w
    image_size: int  # side of the square images that `encode` resizes to
    device: torch.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's latents."""
        ...

    @property
    def text_encoder(self) -> SentenceEncoder | None:
        """Makes its conditions; None where they are not made from sentences."""
        ...

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Its networks, the text model included: what takes memory."""
        ...

    def resize(self, images: Tensor) -> Tensor:
        """Images [B, H, W, 3] at the size that `encode` sees; differentiable."""
        ...

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images [B, H, W, 3] in [0, 1] => scaled latents [B, C, h, w]; differentiable.

        The mean of the encoder's posterior, or a sample of it with the given noise [B, C, h, w].
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] => images [B, H, W, 3] in [0, 1]."""
        ...

    def predict_noise(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: TextCondition,
        cameras: Cameras | None = None,
        *,
        adapted: bool = False,
    ) -> Tensor:
        """The noise in `noisy` [N, C, h, w] at long timesteps [N] given N rows of text: [N, C, h, w].

        Whatever the network predicts is converted to noise. Gradients flow to `noisy` and `text`
        only where the caller has them enabled; the network's own weights never get any. Flattened
        prompt-major, `cameras` has N cameras; models without camera input ignore it. `adapted` asks
        the model together with its adapter, to whose weights gradients flow too.
        """
        ...

    def add_adapter(self, rank: int, scale: float) -> torch.nn.Module:
        """The trainable weights of a new LoRA (arXiv 2106.09685) that changes nothing yet.

        `scale` multiplies what it adds. Only `predict_noise(adapted=True)` sees it. A prior takes one.
        """
        ...


def fingerprint_of(prior: Prior) -> str:
    """16 hexadecimal digits that tell a prior's weights from others'; "" for none."""
    digest, any_weights = hashlib.blake2b(digest_size=8), False
    for module in prior.modules():
        weights = [
            value.detach().flatten()[:4].float()
            for name, value in module.named_parameters()
            if "lora_" not in name  # an adapter is learned beside it
        ]
        if weights:
            any_weights = True
            digest.update(torch.cat(weights).cpu().numpy().tobytes())
    return digest.hexdigest() if any_weights else ""
