"""The folder of a prior in diffusers format: tokenizer, text_encoder, vae, unet or transformer, scheduler."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amortized.model_folders.configs import (
    check_depth,
    check_name,
    check_no_adapter,
    first_line,
    known_values,
    version_of,
)
from amortized.model_folders.formats import TRANSFORMER, UNET, VAE
from amortized.model_folders.text_folder import (
    TextFolders,
    is_flow_folder,
    more_text_files,
    read_text_folders,
)
from amortized.model_folders.weights import Weights, choose_files, read_weights
from amortized.untrusted import read_json_object, short

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
FLOW_PARTS = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "vae", "transformer", "scheduler")
STEMS = {"text_encoder": "model"} | dict.fromkeys(("vae", "unet", "transformer"), "diffusion_pytorch_model")
VIEWS_FILE = "multi_view.json"
LARGEST_LATENTS = 512  # side of the latents; 64 and 96 are usual
# Samplers of models that are trained with betas (DDPM). Consistency models (LCM, TCD) are sampled with betas
# too, but are distilled, and no longer predict the noise of one forward process.
SCHEDULERS = tuple(
    f"{name}Scheduler"
    for name in (
        "DDIM DDIMInverse DDIMParallel DDPM DDPMParallel PNDM LMSDiscrete EulerDiscrete "
        "EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete DPMSolverMultistep "
        "DPMSolverMultistepInverse DPMSolverSinglestep DPMSolverSDE DEISMultistep UniPCMultistep "
        "SASolver"
    ).split()
)
SCHEDULE = {
    "num_train_timesteps": "int",
    "beta_start": "float",
    "beta_end": "float",
    "beta_schedule": "str",
    "trained_betas": "list[float] | None",
    "prediction_type": "str",
    "rescale_betas_zero_snr": "bool",
}
# Keys of samplers, which do not change what the model was trained with.
SAMPLING = frozenset(
    """
    algorithm_type clip_sample clip_sample_range corrector_order disable_corrector
    dynamic_thresholding_ratio euler_at_final final_sigmas_type flow_shift interpolation_type
    lambda_min_clipped lower_order_final noise_sampler_seed predict_x0 predictor_order sample_max_value
    set_alpha_to_one sigma_max sigma_min shift_terminal skip_prk_steps solver_order solver_p solver_type
    steps_offset tau_func tensor_format thresholding time_shift_type timestep_spacing timestep_type
    use_beta_sigmas use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas
    use_lu_lambdas variance_type
    """.split()
)
# Values of those keys with which the model was not trained by DDPM's betas.
OTHER_PROCESSES = {"use_flow_sigmas": True, "use_dynamic_shifting": True, "timestep_type": "continuous"}
# A rectified flow is trained at all times; `num_train_timesteps` and `shift` choose those that are distilled.
FLOW_SCHEDULE = {"num_train_timesteps": "int", "shift": "float"}
FLOW_SAMPLING = SAMPLING | frozenset(
    "base_image_seq_len base_shift invert_sigmas max_image_seq_len max_shift stochastic_sampling".split()
)
SHIFTS = (0.05, 20.0)  # smallest and largest; 3 is usual


@dataclass(frozen=True)
class PriorFolder:
    """The checked configs of a prior, and the headers of its weights."""

    folder: Path
    unet: Mapping[str, Any]  # arguments of UNet2DConditionModel
    vae: Mapping[str, Any]  # arguments of AutoencoderKL
    schedule: Mapping[str, Any]  # arguments of DDPMScheduler: betas and prediction type
    unet_weights: Weights
    vae_weights: Weights
    text: TextFolders
    num_views: int  # denoised jointly; 1 without multi_view.json


@dataclass(frozen=True)
class FlowFolder:
    """The checked configs of a Stable Diffusion 3, and the headers of its weights."""

    folder: Path
    transformer: Mapping[str, Any]  # arguments of SD3Transformer2DModel
    vae: Mapping[str, Any]  # arguments of AutoencoderKL
    shift: float  # of the flow times
    num_timesteps: int
    transformer_weights: Weights
    vae_weights: Weights
    text: TextFolders


def read_prior_folder(folder: Path, variant: str | None = None) -> PriorFolder | FlowFolder:
    """Read all of a prior's folder but its weights.

    Raises ValueError if a part is missing or invalid, or of a model that cannot be distilled.
    """
    is_flow = is_flow_folder(folder)
    missing = [part for part in (FLOW_PARTS if is_flow else PARTS) if not (folder / part).is_dir()]
    if missing:
        raise ValueError(f"the folder lacks {', '.join(missing)}")
    check_no_adapter(folder)
    num_views = read_num_views(folder)
    vae, vae_weights = _read_network(folder / "vae", "AutoencoderKL", VAE, variant)
    _check_latents(folder / "vae/config.json", vae)
    schedule_file = folder / "scheduler/scheduler_config.json"
    if is_flow:
        if num_views > 1:
            raise ValueError(f"{short(folder / VIEWS_FILE)} is of MVDream, which has a UNet: remove the file")
        transformer, weights = _read_network(
            folder / "transformer", "SD3Transformer2DModel", TRANSFORMER, variant
        )
        shift, num_timesteps = _read_flow_schedule(schedule_file)
        text = read_text_folders(folder, variant)
        return FlowFolder(folder, transformer, vae, shift, num_timesteps, weights, vae_weights, text)
    unet, unet_weights = _read_network(folder / "unet", "UNet2DConditionModel", UNET, variant)
    return PriorFolder(
        folder=folder,
        unet=unet,
        vae=vae,
        schedule=_read_schedule(schedule_file),
        unet_weights=unet_weights,
        vae_weights=vae_weights,
        text=read_text_folders(folder, variant),
        num_views=num_views,
    )


def _read_network(
    folder: Path, name: str, keys: Mapping[str, str], variant: str | None
) -> tuple[dict[str, Any], Weights]:
    check_no_adapter(folder)
    file = folder / "config.json"
    data = read_json_object(file)
    check_name(file, data, "_class_name", (name,))
    config = known_values(file, data, keys)
    weights = read_weights(folder, STEMS[folder.name], variant)
    check_depth(file, config, len(weights.tensors))
    if folder.name != "vae":
        config["sample_size"] = _latent_size(file, data)
    return config, weights


def _latent_size(file: Path, data: Mapping[str, Any]) -> int:
    """Return the side of the latents; diffusers' pipelines correct it in files of 2022 in the same way."""
    size = data.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is not int or not 1 <= size <= LARGEST_LATENTS:
        raise ValueError(
            f"{short(file)}: 'sample_size' must be the side of square latents, such as 64 for images of 512 "
            f"pixels, and at most {LARGEST_LATENTS}; got {short(json.dumps(size))}"
        )
    version = version_of(data)
    if version is not None and version < (0, 9) and size < 64:
        logging.getLogger("amortized").warning(
            "%s: sample_size is %d in a file of diffusers %d.%d, which wrote the size wrongly; 64 is used, "
            "for images of 512 pixels",
            short(file),
            size,
            *version,
        )
        return 64
    return size


def _check_latents(file: Path, vae: Mapping[str, Any]) -> None:
    """Raise ValueError unless the VAE's factors and offsets are finite, and not zero if they divide."""
    if not vae.get("scaling_factor", 1.0) > 0:
        raise ValueError(f"{short(file)}: 'scaling_factor' must be positive, got {vae['scaling_factor']}")
    channels = vae.get("latent_channels", 4)
    for key in ("latents_mean", "latents_std"):
        values = vae.get(key)
        if values is not None and len(values) != channels:
            raise ValueError(
                f"{short(file)}: '{key}' needs one number for each of the {channels} latent channels"
            )
    if not all(value > 0 for value in vae.get("latents_std") or ()):
        raise ValueError(f"{short(file)}: 'latents_std' must be positive")
    if vae.get("latents_mean") is not None and vae.get("shift_factor"):
        raise ValueError(f"{short(file)}: 'latents_mean' and 'shift_factor' exclude each other: remove one")


def _read_schedule(file: Path) -> dict[str, Any]:
    """Return the arguments that determine the noise schedule; raises ValueError if some are missing."""
    data = read_json_object(file)
    name = data.get("_class_name")
    if name not in SCHEDULERS:
        kind = f"is a {short(name)}" if isinstance(name, str) else "has no '_class_name'"
        flow = "; flow matching is for the transformer of a Stable Diffusion 3, and this folder has a UNet"
        raise ValueError(
            f"{short(file)} {kind}: only models that were trained with DDPM's betas can be distilled, whose "
            f"scheduler is a {SCHEDULERS[0]}, {SCHEDULERS[5]}, {SCHEDULERS[7]} or similar"
            f"{flow if 'FlowMatch' in str(name) else ''}"
        )
    # The values of samplers may be anything: the file of a DPMSolverMultistep has minus infinity.
    schedule = known_values(file, data, SCHEDULE, SAMPLING)
    for key, value in OTHER_PROCESSES.items():
        if data.get(key) == value:
            raise ValueError(
                f"{short(file)}: {key}={json.dumps(value)} is of a model that was not trained with DDPM's "
                "betas, and cannot be distilled"
            )
    needed = ["num_train_timesteps", "beta_schedule", "beta_start", "beta_end"]
    needed = ["num_train_timesteps"] if schedule.get("trained_betas") is not None else needed
    if "prediction_type" not in schedule:
        # Files from before diffusers 0.9 are of models that predict noise. Later ones always name the type.
        version = version_of(data)
        if version is None or version >= (0, 13):
            needed.append("prediction_type")
        else:
            schedule["prediction_type"] = "epsilon"
    missing = [key for key in needed if key not in schedule]
    if missing:
        raise ValueError(
            f"{short(file)} lacks '{missing[0]}', without which the noise schedule of the model's training "
            "is unknown: add the value that it was trained with"
        )
    if schedule["prediction_type"] not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{short(file)}: the model predicts {short(repr(schedule['prediction_type']))}; only epsilon and "
            "v_prediction can be distilled"
        )
    num_steps, betas = schedule["num_train_timesteps"], schedule.get("trained_betas")
    if not 2 <= num_steps <= 10_000:
        raise ValueError(f"{short(file)}: 'num_train_timesteps' must be from 2 to 10,000, got {num_steps}")
    if betas is not None and len(betas) != num_steps:
        raise ValueError(f"{short(file)}: 'trained_betas' has {len(betas)} values for {num_steps} timesteps")
    return schedule


def _read_flow_schedule(file: Path) -> tuple[float, int]:
    """Return shift and number of timesteps of a rectified flow; raises ValueError if they are invalid."""
    data = read_json_object(file)
    check_name(file, data, "_class_name", ("FlowMatchEulerDiscreteScheduler",))
    schedule = known_values(file, data, FLOW_SCHEDULE, FLOW_SAMPLING)
    for key in ("use_dynamic_shifting", "invert_sigmas"):
        if data.get(key):
            raise ValueError(
                f"{short(file)}: {key}=true is not of a Stable Diffusion 3, and cannot be distilled"
            )
    for key in FLOW_SCHEDULE:
        if key not in schedule:
            raise ValueError(f"{short(file)} lacks '{key}': add the value that the model was published with")
    shift, num_timesteps = schedule["shift"], schedule["num_train_timesteps"]
    if not SHIFTS[0] <= shift <= SHIFTS[1]:
        raise ValueError(f"{short(file)}: 'shift' must be from {SHIFTS[0]} to {SHIFTS[1]:g}, got {shift}")
    if not 100 <= num_timesteps <= 10_000:
        raise ValueError(
            f"{short(file)}: 'num_train_timesteps' must be from 100 to 10,000, got {num_timesteps}"
        )
    return shift, num_timesteps


def read_num_views(folder: Path) -> int:
    """Return the number of views that a prior denoises jointly; 1 without `multi_view.json`."""
    file = folder / VIEWS_FILE
    if not os.path.lexists(file):
        return 1
    try:
        num_views = read_json_object(file)["num_views"]
    except KeyError:
        raise ValueError(f'{file} must hold {{"num_views": N}}') from None
    except ValueError as error:
        raise ValueError(f'{first_line(error)}: the file must hold {{"num_views": N}}') from error
    if type(num_views) is not int or not 2 <= num_views <= 64:
        raise ValueError(f"{file}: num_views must be an integer from 2 to 64, got {short(repr(num_views))}")
    return num_views


def wanted_files(names: list[str], variant: str | None = None) -> list[str]:
    """Return which files of a repository to download: configs, tokenizer, and one variant of the weights."""
    wanted = [name for name in names if name == VIEWS_FILE or name.startswith("tokenizer/")]
    has_unet = any(name.startswith("unet/") for name in names)
    is_flow = not has_unet and any(name.startswith("transformer/") for name in names)
    for part in ("text_encoder", "vae", "transformer" if is_flow else "unet", "scheduler"):
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        chosen = [name for name in inside if name.endswith("config.json")]
        if part in STEMS:
            chosen += choose_files(inside, STEMS[part], variant, Path(part))
        wanted += [f"{part}/{name}" for name in chosen]
    return list(dict.fromkeys([*wanted, *more_text_files(names, variant)]))
