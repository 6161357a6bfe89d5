"""Convert MVDream's published checkpoint, a state dict with CompVis names, to a folder in diffusers format.

It has no tokenizer: use that of any Stable Diffusion 2 folder. Functions of diffusers convert the names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amortized.model_folders import load_tokenizer, local_folder
from amortized.priors.multi_view import CAMERA_WIDTH, VIEWS_FILE
from amortized.tensor_files import read_tensor_file


def _unet() -> dict[str, Any]:
    return {
        "sample_size": 32,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": CAMERA_WIDTH,
    }


def _vae() -> dict[str, Any]:
    return {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "sample_size": 256,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def _text() -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "projection_dim": 512,
        "hidden_act": "gelu",
        "eos_token_id": 49407,
        "bos_token_id": 49406,
        "pad_token_id": 0,
    }


@dataclass(frozen=True, kw_only=True)
class NetworkConfigs:
    """Network configs; the defaults are Stable Diffusion 2.1-base with a camera embedding."""

    num_views: int = 4
    unet: Mapping[str, Any] = field(default_factory=_unet)
    vae: Mapping[str, Any] = field(default_factory=_vae)
    text: Mapping[str, Any] = field(default_factory=_text)  # without the unused 24th layer


def convert_networks(state: Mapping[str, Tensor], configs: NetworkConfigs) -> dict[str, nn.Module]:
    """Build unet, vae and text_encoder from a state dict with the published names.

    Raises ValueError if names or shapes do not fit.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel  # pyright: ignore (lazy exports)
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
        convert_open_clip_checkpoint,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    camera = "model.diffusion_model.camera_embed."
    if not any(name.startswith(camera) for name in state):
        raise ValueError(f"no weights named {camera}*: this is not an MVDream checkpoint")
    renamed = {
        name.replace(camera, "model.diffusion_model.label_emb.0."): value for name, value in state.items()
    }
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**configs.unet)
        vae: Any = AutoencoderKL(**configs.vae)
        text: Any = CLIPTextModel(CLIPTextConfig(**configs.text))
    converted = {
        "unet": convert_ldm_unet_checkpoint(dict(renamed), unet.config),
        "vae": convert_ldm_vae_checkpoint(dict(renamed), vae.config),
        "text_encoder": _match_names(text, convert_open_clip_checkpoint(text, dict(renamed))),
    }
    networks = {"unet": unet, "vae": vae, "text_encoder": text}
    for name, network in networks.items():
        try:
            network.load_state_dict(converted[name], assign=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).strip().splitlines()[1:3]]
            raise ValueError(f"the weights of the {name} do not fit: {' '.join(lines)[:300]}") from error
    return networks


def _match_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of the installed transformers version; drop others."""
    expected = set(model.state_dict())
    matching = {name: value for name, value in state.items() if name in expected}
    return matching or {
        name.removeprefix("text_model."): value
        for name, value in state.items()
        if name.removeprefix("text_model.") in expected
    }


def convert(file: Path, folder: Path, tokenizer: str, configs: NetworkConfigs | None = None) -> None:
    """Write `folder` in diffusers format, with float16 weights as safetensors.

    `tokenizer` is the folder of a Stable Diffusion 2. Raises ValueError if the file is not an MVDream
    checkpoint.
    """
    from diffusers import DDIMScheduler  # pyright: ignore (lazy exports)

    configs = configs or NetworkConfigs()
    state, _ = read_tensor_file(file)
    for name, network in convert_networks(state, configs).items():
        network.to(torch.float16).save_pretrained(folder / name)  # type: ignore[operator]
    own = load_tokenizer(local_folder(tokenizer) / "tokenizer", "CLIPTokenizer")
    own.save_pretrained(folder / "tokenizer")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    ).save_pretrained(folder / "scheduler")
    (folder / VIEWS_FILE).write_text(json.dumps({"num_views": configs.num_views}) + "\n", encoding="utf-8")
