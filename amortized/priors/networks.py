"""The networks of a prior's folder: built, run without memory, and only then loaded."""

from __future__ import annotations

from typing import Any

import torch

from amortized.model_folders import (
    FlowFolder,
    PriorFolder,
    Weights,
    build_empty,
    check_fit,
    load_weights,
    sentences,
)
from amortized.priors.stable_diffusion import check_parts
from amortized.priors.stable_diffusion_3 import check_parts_3

OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def load_unet(files: PriorFolder, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return UNet and VAE on the CPU; raises ValueError before reading the weights if they do not fit."""
    from diffusers import UNet2DConditionModel  # pyright: ignore (lazy exports)

    file = files.folder / "unet/config.json"
    unet = build_empty(file, lambda: UNet2DConditionModel(**files.unet))
    unet_headers = check_fit(unet, files.unet_weights)
    vae, vae_headers = _empty_vae(files)
    width, second = files.text.width, 0 if files.text.second is None else files.text.second.width
    check_parts(unet, vae, width, is_xl=second > 0)
    with sentences(f"{files.folder} does not describe networks that run together"), torch.no_grad():
        _run_unet(unet, vae, width, second)
    load_weights(unet, unet_headers, dtype)
    # The VAE of SDXL overflows float16, and its config says so.
    overflows = second > 0 and files.vae.get("force_upcast", True) and dtype == torch.float16
    load_weights(vae, vae_headers, torch.float32 if overflows else dtype)
    return unet, vae


def load_transformer(files: FlowFolder, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return transformer and VAE on the CPU; raises ValueError as `load_unet` does."""
    from diffusers import SD3Transformer2DModel  # pyright: ignore (lazy exports)

    file = files.folder / "transformer/config.json"
    transformer = build_empty(file, lambda: SD3Transformer2DModel(**files.transformer))
    headers = check_fit(transformer, files.transformer_weights)
    vae, vae_headers = _empty_vae(files)
    pooled_width = sum(each.config.get("projection_dim", 512) or 0 for each in files.text.all[:2])
    check_parts_3(transformer, vae, files.text.width, pooled_width)
    with sentences(f"{files.folder} does not describe networks that run together"), torch.no_grad():
        latents = torch.empty(1, *_latent_shape(transformer, vae), device="meta")
        predicted = transformer(
            latents,
            timestep=torch.zeros(1, device="meta"),
            encoder_hidden_states=torch.empty(1, 8, files.text.width, device="meta"),
            pooled_projections=torch.empty(1, pooled_width, device="meta"),
            return_dict=False,
        )[0]
        _check_run("transformer", vae, latents, predicted)
    load_weights(transformer, headers, dtype)
    load_weights(vae, vae_headers, dtype)
    return transformer, vae


def _empty_vae(files: PriorFolder | FlowFolder) -> tuple[Any, Any]:
    """Return the VAE without memory for its weights, and their headers."""
    from diffusers import AutoencoderKL  # pyright: ignore (lazy exports)

    vae = build_empty(files.folder / "vae/config.json", lambda: AutoencoderKL(**files.vae))
    weights: Weights = files.vae_weights
    return vae, check_fit(vae, weights, _vae_name)


def _vae_name(name: str) -> str:
    """Return the present name of a VAE's tensor; files of 2022 have other names in attention."""
    if ".attentions." in name:
        for old, new in OLD_ATTENTION.items():
            name = name.replace(old, new)
    return name


def _latent_shape(denoiser: Any, vae: Any) -> tuple[int, int, int]:
    return vae.config.latent_channels, denoiser.config.sample_size, denoiser.config.sample_size


def _run_unet(unet: Any, vae: Any, text_width: int, second: int = 0) -> None:
    """Run networks whose weights have no memory, in milliseconds, so that a wrong config fails now."""
    latents = torch.empty(1, *_latent_shape(unet, vae), device="meta")
    labels = {}
    if unet.config.class_embed_type == "projection":
        width = unet.config.projection_class_embeddings_input_dim
        labels["class_labels"] = torch.empty(1, width, device="meta")
    elif unet.config.class_embed_type is not None:
        return  # refused with a remedy by the prior
    if second:
        added = {
            "text_embeds": torch.empty(1, second, device="meta"),
            "time_ids": torch.empty(1, 6, device="meta"),
        }
        labels["added_cond_kwargs"] = added
    times, text = (
        torch.zeros(1, dtype=torch.long, device="meta"),
        torch.empty(1, 8, text_width, device="meta"),
    )
    predicted = unet(latents, times, encoder_hidden_states=text, return_dict=False, **labels)[0]
    _check_run("UNet", vae, latents, predicted)


def _check_run(name: str, vae: Any, latents: torch.Tensor, predicted: torch.Tensor) -> None:
    """Raise ValueError unless the prediction and the VAE's round trip have the shape of the latents."""
    images = vae.decode(latents).sample
    again = vae.encode(images).latent_dist.parameters
    _, channels, size, _ = latents.shape
    if predicted.shape != latents.shape or again.shape != (1, 2 * channels, size, size):
        raise ValueError(
            f"for latents {list(latents.shape)} the {name} predicts {list(predicted.shape)}, and the VAE "
            f"encodes its image to mean and variance {list(again.shape)}"
        )
