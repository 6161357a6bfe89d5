"""Loading a Stable Diffusion prior from a folder in diffusers format or from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from amortized.conditioning.text_encoder import LOAD_ERRORS, first_line, read_text_encoder
from amortized.devices import parse_device
from amortized.files import in_project, restore_hint
from amortized.network import network_on_request
from amortized.priors.base import DTYPES, PriorConfig
from amortized.priors.multi_view import read_num_views
from amortized.priors.stable_diffusion import StableDiffusionPrior

SUBFOLDERS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")


def load_prior(config: PriorConfig, device: torch.device | str = "cpu") -> StableDiffusionPrior:
    """Load the frozen prior of a config onto `device`.

    Raises ValueError if it cannot be loaded, has another number of views than the config requires, or if
    `denoiser_device` does not exist.
    """
    if config.denoiser_device is not None:
        parse_device("prior.denoiser_device", config.denoiser_device)
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
    prior.graphs = should_use_graphs(config, prior.device)
    if config.compile:
        prior.unet.compile()
    if config.num_views is not None and config.num_views != prior.views_per_group:
        raise ValueError(
            f"prior.num_views is {config.num_views}, but '{config.path}' denoises {prior.views_per_group} "
            "jointly: choose another prior.path, or set prior.num_views=null to accept any"
        )
    return prior


def should_use_graphs(config: PriorConfig, device: torch.device) -> bool:
    """Return whether to run the networks as CUDA graphs; raises ValueError if graphs=true on a CPU."""
    on_cuda = device.type == "cuda"
    if config.graphs is None:
        return on_cuda and not (config.offload or config.denoiser_device or config.compile)
    if config.graphs and not on_cuda:
        raise ValueError(f"prior.graphs=true needs a GPU, and the prior is on {device}: set it to null")
    return config.graphs


@network_on_request
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
    """Load a prior from a folder in diffusers format or a Hub id, which is cached or (if allowed) downloaded.

    dtype            of all networks
    denoiser_device  the UNet's device; None: `device`
    offload          keep the UNet in CPU memory between calls
    text_on_cpu      run the text encoder on the CPU

    Only safetensors weights are read. Raises ValueError if the folder or a part of it is missing or
    unreadable.
    """
    path = in_project(path)
    _check_folder(path, allow_network)
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # pyright: ignore (lazy exports)

    source = {"revision": revision, "local_files_only": not allow_network}
    weights = {**source, "use_safetensors": True, "dtype": dtype}  # the default is the file's dtype
    try:
        text_encoder = read_text_encoder(
            path,
            revision=revision,
            dtype=dtype,
            device="cpu" if text_on_cpu else device,
            allow_network=allow_network,
        )
        vae: Any = AutoencoderKL.from_pretrained(path, subfolder="vae", **weights)
        unet: Any = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **weights)
        # Every scheduler's config has the betas and the prediction type, and DDIMScheduler reads all of them.
        scheduler: Any = DDIMScheduler.from_pretrained(path, subfolder="scheduler", **source)
    except torch.OutOfMemoryError:
        raise
    except LOAD_ERRORS as error:
        raise ValueError(_load_failure(path, allow_network, reason=first_line(error))) from error
    return StableDiffusionPrior(
        unet=unet.to("cpu" if offload else denoiser_device or device),
        vae=vae.to(device),
        text_encoder=text_encoder,
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction_type=scheduler.config.prediction_type,
        views_per_group=read_num_views(path, revision, allow_network),
        offload=offload,
    )


def _check_folder(path: str, allow_network: bool) -> None:
    """Raise ValueError if `path` is clearly a folder, and missing or incomplete."""
    folder = Path(path)
    if folder.is_dir():
        missing = [part for part in SUBFOLDERS if not (folder / part).is_dir()]
        if missing:
            reason = f"the folder lacks {', '.join(missing)}"
            raise ValueError(_load_failure(path, allow_network, reason=reason))
    elif folder.is_absolute() or path.startswith((".", "checkpoints/", "outputs/")) or path.count("/") != 1:
        raise ValueError(_load_failure(path, allow_network, reason="the folder does not exist"))


def _load_failure(path: str, allow_network: bool, *, reason: str) -> str:
    """Return the error message for a prior that cannot be loaded, with a remedy."""
    remedy = f"give a diffusers folder with {', '.join(SUBFOLDERS)} and weights as .safetensors"
    if hint := restore_hint(path):
        remedy = hint
    elif not Path(path).is_dir() and not allow_network:
        remedy += ", or a Hub id with prior.allow_network=true"
    return f"prior.path '{path}' cannot be loaded: {reason.rstrip('.')}; {remedy}"
