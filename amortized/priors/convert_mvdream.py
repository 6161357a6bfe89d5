"""From MVDream's published file to a folder in diffusers format.

  python -m amortized.priors.convert_mvdream sd-v2.1-base-4view.pt FOLDER --tokenizer SD2_FOLDER

The file is a plain state dict in CompVis' names; it is read with `weights_only=True`, so that a file that
holds anything but tensors is refused instead of run. It has no tokenizer: any Stable Diffusion 2 folder
has the same. The names are translated by diffusers' own functions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amortized.priors.multi_view import CAMERA_WIDTH, FILE


def _unet() -> dict[str, Any]:
    return {
        "sample_size": 32, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True, "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": CAMERA_WIDTH,
    }  # fmt: skip


def _vae() -> dict[str, Any]:
    return {
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 256,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip


def _text() -> dict[str, Any]:
    return {
        "vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
        "num_attention_heads": 16, "projection_dim": 512, "hidden_act": "gelu", "eos_token_id": 49407,
        "bos_token_id": 49406, "pad_token_id": 0,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Configs of the networks; the defaults are those of Stable Diffusion 2.1-base with cameras."""

    num_views: int = 4
    unet: Mapping[str, Any] = field(default_factory=_unet)
    vae: Mapping[str, Any] = field(default_factory=_vae)
    text: Mapping[str, Any] = field(default_factory=_text)  # without the last layer, which is not used


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a file; raises ValueError where it is none of tensors alone."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler's refusal, a damaged archive, no such file
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file} cannot be read as a file of tensors, and is not read otherwise: {reason}"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} is no state dict: every value must be a tensor")
    return state


def networks_of(state: Mapping[str, Tensor], sizes: Sizes) -> dict[str, nn.Module]:
    """unet, vae and text_encoder with the weights of a state dict in the published names.

    Raises ValueError where names or sizes do not fit.
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
        raise ValueError(f"no weights named {camera}*: this is no MVDream file")
    named = {
        name.replace(camera, "model.diffusion_model.label_emb.0."): value for name, value in state.items()
    }
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**sizes.unet)
        vae: Any = AutoencoderKL(**sizes.vae)
        text: Any = CLIPTextModel(CLIPTextConfig(**sizes.text))
    found = {
        "unet": convert_ldm_unet_checkpoint(dict(named), unet.config),
        "vae": convert_ldm_vae_checkpoint(dict(named), vae.config),
        "text_encoder": _as_named_in(text, convert_open_clip_checkpoint(text, dict(named))),
    }
    networks = {"unet": unet, "vae": vae, "text_encoder": text}
    for name, network in networks.items():
        try:
            network.load_state_dict(found[name], assign=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).strip().splitlines()[1:3]]
            raise ValueError(f"the weights of the {name} do not fit: {' '.join(lines)[:300]}") from error
    return networks


def _as_named_in(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that this version of transformers gives the same weights; others are left out."""
    wanted = set(model.state_dict())
    either = {name: value for name, value in state.items() if name in wanted}
    return either or {
        name.removeprefix("text_model."): value
        for name, value in state.items()
        if name.removeprefix("text_model.") in wanted
    }


def convert(file: Path, folder: Path, tokenizer: str, sizes: Sizes | None = None) -> None:
    """Write `folder` in diffusers format, weights in half precision as safetensors."""
    from diffusers import DDIMScheduler  # pyright: ignore (lazy exports)
    from transformers import CLIPTokenizer

    sizes = sizes or Sizes()
    for name, network in networks_of(read_state(file), sizes).items():
        network.to(torch.float16).save_pretrained(folder / name)  # type: ignore[operator]
    CLIPTokenizer.from_pretrained(tokenizer, subfolder="tokenizer", local_files_only=True).save_pretrained(
        folder / "tokenizer"
    )
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    (folder / FILE).write_text(json.dumps({"num_views": sizes.num_views}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m amortized.priors.convert_mvdream", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("file", type=Path, help="sd-v2.1-base-4view.pt")
    parser.add_argument("folder", type=Path, help="where the converted prior goes")
    parser.add_argument("--tokenizer", required=True, help="folder of any Stable Diffusion 2.x")
    given = parser.parse_args()
    try:
        convert(given.file, given.folder, given.tokenizer)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {str(error).strip().splitlines()[0]}\n")
    print(f"{given.folder}: now prior={given.folder}")


if __name__ == "__main__":
    main()
