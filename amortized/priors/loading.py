"""Loading a Stable Diffusion prior from a folder in diffusers format, a file or the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from amortized.conditioning.text_encoder import add_to_encoder, build_text_encoders
from amortized.conditioning.three_encoders import ThreeTextEncoders
from amortized.devices import parse_device
from amortized.files import in_project, restore_hint
from amortized.model_folders import (
    NO_ADDITIONS,
    PARTS,
    Additions,
    FlowFolder,
    PriorFolder,
    is_single_file,
    local_folder,
    read_additions,
    read_prior_folder,
    read_single_file,
    sentences,
)
from amortized.model_folders.lora import UNET, fuse
from amortized.model_folders.prior_folder import wanted_files
from amortized.model_folders.single_file import check_schedule
from amortized.network import network_on_request
from amortized.priors.base import DTYPES, PriorConfig
from amortized.priors.networks import load_transformer, load_unet
from amortized.priors.schedule import usable_schedule
from amortized.priors.stable_diffusion import StableDiffusionPrior
from amortized.priors.stable_diffusion_3 import StableDiffusion3Prior

Size = tuple[int, int] | None
Sizes = tuple[Size, Size, Size]
FolderPrior = StableDiffusionPrior | StableDiffusion3Prior


def load_prior(config: PriorConfig, device: torch.device | str = "cpu") -> FolderPrior:
    """Load the frozen prior of a config onto `device`.

    Raises ValueError if it cannot be loaded, has another number of views than the config requires, or if
    `denoiser_device` does not exist.
    """
    if config.denoiser_device is not None:
        parse_device("prior.denoiser_device", config.denoiser_device)
    prior = load_stable_diffusion(
        config.path,
        revision=config.revision,
        variant=config.variant,
        dtype=DTYPES[config.dtype],
        device=device,
        denoiser_device=config.denoiser_device,
        offload=config.offload,
        text_on_cpu=config.text_on_cpu,
        allow_network=config.allow_network,
        architecture=config.architecture,
        additions=read_additions(config.loras, config.lora_scales, config.tokens),
        sizes=(config.original_size, config.crop, config.target_size),
    )
    prior.graphs = should_use_graphs(config, prior.device)
    if config.compile:
        prior.denoiser.network.compile()
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
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    denoiser_device: torch.device | str | None = None,
    offload: bool = False,
    text_on_cpu: bool = False,
    allow_network: bool = False,
    architecture: str | None = None,
    additions: Additions = NO_ADDITIONS,
    sizes: Sizes = (None, None, None),
) -> FolderPrior:
    """Load a prior from a folder in diffusers format, a single file or a Hub id.

    A Hub id is cached or (if allowed) downloaded.

    variant          of the weights, such as "fp16" for *.fp16.safetensors; None: the plain or only one
    dtype            of all networks
    denoiser_device  the denoiser's device; None: `device`
    offload          keep the denoiser in CPU memory between calls
    text_on_cpu      run the text encoder on the CPU
    architecture     of a single file, see `amortized.model_folders.single_file`; None: as the file says
    additions        LoRAs that are added to the weights, and tokens
    sizes            original size, crop and target size of SDXL, see `PriorConfig`

    Configs and headers are checked before any weights are read, see `amortized.model_folders`. Raises
    ValueError if the folder or a part of it is missing, damaged or not supported.
    """
    path = in_project(path)
    with _one_failure(path, allow_network):
        if is_single_file(path):
            files = read_single_file(Path(path), architecture)
        else:
            folder = local_folder(
                path,
                revision=revision,
                allow_network=allow_network,
                wanted=lambda names: wanted_files(names, variant),
            )
            files = read_prior_folder(folder, variant)
        is_flow = isinstance(files, FlowFolder)
        denoiser, vae = load_transformer(files, dtype) if is_flow else load_unet(files, dtype)
        encoder = build_text_encoders(
            files.text,
            path if revision is None else f"{path} at {revision}",
            dtype=dtype,
            device="cpu" if text_on_cpu else device,
        )
    if architecture is not None and not is_single_file(path):
        raise ValueError(f"prior.architecture is for a single file, and '{path}' is not one: set it to null")
    add_to_encoder(encoder, additions)
    for lora in additions.loras:
        fuse(lora, UNET, denoiser)
    size_ids = size_ids_of(files, sizes)
    with _one_failure(path, allow_network):
        denoiser, vae = denoiser.to("cpu" if offload else denoiser_device or device), vae.to(device)
        identity = _identity(files, additions, size_ids)
        if isinstance(files, FlowFolder):
            assert isinstance(encoder, ThreeTextEncoders)
            return StableDiffusion3Prior(
                transformer=denoiser,
                vae=vae,
                text_encoder=encoder,
                shift=files.shift,
                num_timesteps=files.num_timesteps,
                offload=offload,
                identity=identity,
            )
        return StableDiffusionPrior(
            unet=denoiser,
            vae=vae,
            text_encoder=encoder,
            alphas_cumprod=_alphas_cumprod(files),
            prediction_type=files.schedule["prediction_type"],
            views_per_group=files.num_views,
            offload=offload,
            identity=identity,
            size_ids=size_ids,
        )


@contextmanager
def _one_failure(path: str, allow_network: bool) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(_load_failure(path, allow_network, reason=str(error))) from error


def _alphas_cumprod(files: PriorFolder) -> Tensor:
    from diffusers import DDPMScheduler  # pyright: ignore (lazy exports)

    file = files.folder / "scheduler/scheduler_config.json"
    with sentences(f"{file} does not describe a noise schedule"):
        alphas_cumprod = usable_schedule(DDPMScheduler(**files.schedule).alphas_cumprod)
    if files.folder.is_file():
        check_schedule(files.folder, alphas_cumprod)
    return alphas_cumprod


def size_ids_of(files: PriorFolder | FlowFolder, sizes: Sizes) -> tuple[int, ...] | None:
    """Return original size, crop and target size, six numbers, for an SDXL; None for others.

    Raises ValueError if sizes are set for another model.
    """
    if isinstance(files, FlowFolder) or files.text.second is None:
        if any(size is not None for size in sizes):
            raise ValueError(
                "prior.original_size, prior.crop and prior.target_size are of SDXL, which "
                f"'{files.folder}' is not: set them to null"
            )
        return None
    side = files.unet["sample_size"] * 2 ** (len(files.vae.get("block_out_channels", (1, 1, 1, 1))) - 1)
    original, crop, target = sizes
    return (*(original or (side, side)), *(crop or (0, 0)), *(target or (side, side)))


def _identity(files: PriorFolder | FlowFolder, additions: Additions, size_ids: tuple[int, ...] | None) -> str:
    """Return what the prior depends on besides its weights: schedule, scaling, sizes, words of new tokens."""
    scaling = {
        key: files.vae.get(key) for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    }
    if isinstance(files, FlowFolder):
        schedule = {"shift": files.shift, "num_train_timesteps": files.num_timesteps}
        size, text = files.transformer["sample_size"], {"has_t5": files.text.third is not None}
        return json.dumps([schedule, scaling, {"sample_size": size}, text], sort_keys=True)
    schedule = {"trained_betas": None, "rescale_betas_zero_snr": False, **files.schedule}
    sizes = {"sample_size": files.unet["sample_size"], "num_views": files.num_views}
    tokens = [[new.token for new in additions.tokens]] if additions.tokens else []
    xl = [] if size_ids is None else [size_ids, files.text.zero_empty]
    return json.dumps([schedule, scaling, sizes, *tokens, *xl], sort_keys=True)


def _load_failure(path: str, allow_network: bool, *, reason: str) -> str:
    """Return the error message for a prior that cannot be loaded, with a remedy."""
    parts = ", ".join(PARTS).replace("unet", "unet (or transformer)")
    remedy = f"give a diffusers folder with {parts} and weights as .safetensors, or a single file"
    if hint := restore_hint(path):
        remedy = hint
    elif not Path(path).exists() and not allow_network:
        remedy += ", or a Hub id with prior.allow_network=true"
    return f"prior.path '{path}' cannot be loaded: {reason.rstrip('.')}; {remedy}"
