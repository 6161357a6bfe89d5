"""Single-file checkpoints of Stable Diffusion 1 and 2, read as the folder that they stand for.

They hold the tensors only. Configs and vocabulary are those that were published for the architecture, and are
part of this program: nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amortized.model_folders.configs import sentences
from amortized.model_folders.prior_folder import PriorFolder
from amortized.model_folders.published_names import open_clip_name, unet_name, vae_name
from amortized.model_folders.text_folder import TextFolder, TextFolders
from amortized.model_folders.weights import TensorHeader, Weights, check_format, headers_of
from amortized.safetensors_header import read_header
from amortized.untrusted import short

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
# Constants of training, a second copy of the UNet, and heads that are not used.
IGNORED = re.compile(
    r"(model_ema|model_type|first_stage_model\.loss)\..*|betas|logvar|lvlb_weights|global_step|scale_factor|"
    r"(sqrt|log|posterior)_\w+|alphas_cumprod(_prev)?|"
    r"cond_stage_model\.(logit_scale|transformer\.(text_model\.)?embeddings\.position_ids)|"
    r"cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)"
)
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a single file does not say about its model."""

    text: str  # the prefix of its text encoder's tensors
    prediction_type: str
    unet: Mapping[str, Any]  # arguments of UNet2DConditionModel
    vae: Mapping[str, Any]  # arguments of AutoencoderKL
    text_config: Mapping[str, Any]  # arguments of CLIPTextConfig
    padding: str  # the token that fills a text


VAE_CONFIG = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}
UNET_CONFIG = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
SPECIAL_IDS = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
VERSION_1 = Architecture(
    text=CLIP,
    prediction_type="epsilon",
    unet={**UNET_CONFIG, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    vae=VAE_CONFIG,
    text_config={
        **SPECIAL_IDS,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "pad_token_id": 1,
    },
    padding="<|endoftext|>",
)
VERSION_2 = Architecture(
    text=OPEN_CLIP,
    prediction_type="epsilon",
    unet={
        **UNET_CONFIG,
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    vae=VAE_CONFIG,
    text_config={
        **SPECIAL_IDS,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,  # of 24: the last is not used
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
    padding="!",
)
# Under the names that files give in their metadata as modelspec.architecture.
ARCHITECTURES = {
    "stable-diffusion-v1": VERSION_1,
    "stable-diffusion-v2-512": VERSION_2,
    "stable-diffusion-v2-768-v": replace(
        VERSION_2,
        prediction_type="v_prediction",
        unet={**VERSION_2.unet, "sample_size": 96, "upcast_attention": True},
    ),
}


def is_single_file(path: str) -> bool:
    """Return whether a path is that of a checkpoint file; raises ValueError for one that can run code."""
    if os.path.isfile(path):
        check_format(Path(path))
    return path.endswith(".safetensors") and not os.path.isdir(path)


def read_single_file(file: Path, name: str | None = None) -> PriorFolder:
    """Read all of a single-file checkpoint but its weights.

    name  its architecture; None: as its metadata or its tensors say

    Raises ValueError if it is damaged, or not a Stable Diffusion 1 or 2 for text to image.
    """
    tensors = headers_of([file], short(file)).tensors
    chosen = ARCHITECTURES[_architecture_of(file, tensors, name)]
    _check_all_known(file, tensors, chosen)
    layers, blocks = chosen.unet["layers_per_block"], len(chosen.vae["block_out_channels"])
    unet = _renamed(file, _inside(tensors, UNET), lambda name: unet_name(name, layers))
    vae = _renamed(file, _inside(tensors, VAE), lambda name: vae_name(name, blocks))
    return PriorFolder(
        folder=file,
        unet=chosen.unet,
        vae=chosen.vae,
        schedule={**SCHEDULE, "prediction_type": chosen.prediction_type},
        unet_weights=Weights(f"the UNet in {short(file)}", unet),
        vae_weights=Weights(f"the VAE in {short(file)}", dict(map(_as_linear, vae.items()))),
        text=TextFolders(_text_in(file, tensors, chosen)),
        num_views=1,
    )


def read_single_text(file: Path) -> TextFolder:
    """Read the text encoder of a single-file checkpoint; raises ValueError, see `read_single_file`."""
    tensors = headers_of([file], short(file)).tensors
    return _text_in(file, tensors, _family_of(file, tensors))


def _inside(tensors: Mapping[str, TensorHeader], prefix: str) -> Iterable[tuple[str, TensorHeader]]:
    for name, header in tensors.items():
        if name.startswith(prefix) and not IGNORED.fullmatch(name):
            yield name.removeprefix(prefix), header


def _renamed(
    file: Path, tensors: Iterable[tuple[str, TensorHeader]], rename: Callable[[str], str]
) -> dict[str, TensorHeader]:
    found: dict[str, TensorHeader] = {}
    for name, header in tensors:
        if (new := rename(name)) in found:
            raise ValueError(
                f"{short(file)}: '{short(found[new].name)}' and '{short(header.name)}' are the same tensor"
            )
        found[new] = header
    return found


def _as_linear(item: tuple[str, TensorHeader]) -> tuple[str, TensorHeader]:
    """The VAE's attention, which has convolutions of one pixel in the file."""
    name, header = item
    if ".attentions." in name and header.shape[2:] == (1, 1):
        header = replace(header, shape=header.shape[:2])
    return name, header


def _text_in(file: Path, tensors: Mapping[str, TensorHeader], chosen: Architecture) -> TextFolder:
    found = dict(_inside(tensors, chosen.text))
    if chosen.text == OPEN_CLIP:
        unused = f"transformer.resblocks.{chosen.text_config['num_hidden_layers']}."
        used = [(name, header) for name, header in found.items() if not name.startswith(unused)]
        renamed = _renamed(file, used, open_clip_name)
        found = dict(part for name, header in renamed.items() for part in _split(name, header))
    return TextFolder(
        kind="CLIP",
        config_file=file,
        config=chosen.text_config,
        weights=Weights(f"the text encoder in {short(file)}", found),
        tokenizer=None,
        padding=chosen.padding,
    )


def _split(name: str, header: TensorHeader) -> Iterable[tuple[str, TensorHeader]]:
    """open_clip stores the projections to query, key and value as one tensor."""
    found = re.fullmatch(r"(.+\.self_attn\.)in_proj_(weight|bias)", name)
    if found is None or not header.shape or header.shape[0] % 3:
        yield name, header
        return
    height = header.shape[0] // 3
    for index, each in enumerate("qkv"):
        rows = (index * height, (index + 1) * height)
        yield (
            f"{found[1]}{each}_proj.{found[2]}",
            replace(header, shape=(height, *header.shape[1:]), rows=rows),
        )


def _check_all_known(file: Path, tensors: Mapping[str, TensorHeader], chosen: Architecture) -> None:
    known = (UNET, VAE, chosen.text)
    others = [name for name in tensors if not name.startswith(known) and not IGNORED.fullmatch(name)]
    if others:
        raise ValueError(
            f"{short(file)} has the unexpected tensor {short(others[0])}: it is not a Stable Diffusion "
            "1 or 2 for text to image"
        )
    if any(name.startswith("model_ema.") for name in tensors):
        logging.getLogger("amortized").info(
            "%s has a second UNet, its moving average, which is not used", short(file)
        )


def _family_of(file: Path, tensors: Mapping[str, TensorHeader]) -> Architecture:
    """Return an architecture with the file's text encoder; its UNet may be of another one."""
    for name in tensors:
        for each in ARCHITECTURES.values():
            if name.startswith(each.text):
                return each
    other = "this is not a checkpoint of Stable Diffusion 1 or 2"
    if any(name.startswith("conditioner.embedders.") for name in tensors):
        other = "this is a checkpoint of SDXL, of which only folders are supported"
    elif any(".joint_blocks." in name for name in tensors):
        other = "this is a checkpoint of Stable Diffusion 3, of which only folders are supported"
    elif any("lora" in name for name in tensors):
        other = "this is a LoRA: give it as prior.loras, and its base model as prior.path"
    raise ValueError(f"{short(file)} has no tensors named {CLIP}* or {OPEN_CLIP}*: {other}")


def _architecture_of(file: Path, tensors: Mapping[str, TensorHeader], name: str | None) -> str:
    family = _family_of(file, tensors)
    possible = [each for each, known in ARCHITECTURES.items() if known.text == family.text]
    if name is None:
        recorded = read_header(file)[1].get("modelspec.architecture", "")
        name = recorded.partition("/")[0]  # after a slash: what of the model the file is, such as /lora
        name = possible[0] if len(possible) == 1 else name
        if name not in possible:
            raise ValueError(
                f"{short(file)} does not say whether its model predicts noise or velocity: set "
                f"prior.architecture={' or '.join(possible)}"
            )
    if name not in possible:
        raise ValueError(
            f"prior.architecture is {name}, but {short(file)} has the text encoder of "
            f"{' and '.join(possible)}: set it to null"
        )
    return name


def check_schedule(file: Path, alphas_cumprod: Any) -> None:
    """Raise ValueError if a single file stores another noise schedule than `alphas_cumprod` [T]."""
    from safetensors import safe_open

    if "alphas_cumprod" not in read_header(file)[0]:
        return
    with sentences(f"{short(file)} is damaged"), safe_open(file, "pt") as tensors:
        stored = tensors.get_tensor("alphas_cumprod").to(alphas_cumprod)
    # Files in half precision have rounded it; a rescaled schedule differs by several times as much.
    if stored.shape != alphas_cumprod.shape or not (stored - alphas_cumprod).abs().max() < 5e-3:
        raise ValueError(
            f"{short(file)} stores another noise schedule (alphas_cumprod) than Stable Diffusion's: convert "
            "the file to a folder whose scheduler has the betas of the training"
        )
