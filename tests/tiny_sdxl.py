"""Tiny random models in the folder format of SDXL; the published config with tiny widths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from tests.tiny_sd import make_tiny_sd

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, whose widths are 320, 640, 1280.
UNET = {
    "sample_size": 8, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [1, 2, 4],
    "use_linear_projection": True, "addition_embed_type": "text_time", "norm_num_groups": 8,
    "block_out_channels": [8, 16, 32],
    "cross_attention_dim": 32 + 24, "projection_class_embeddings_input_dim": 24 + 6 * 8,
    "addition_time_embed_dim": 8,
}  # fmt: skip
EULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading",
    "steps_offset": 1,
}  # fmt: skip


def make_tiny_sdxl(folder: Path) -> Path:
    """Write a prior's folder, and return it. Images are 16x16, latents 4x8x8, tokens [48, 56]."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    make_tiny_sd(folder)
    config = json.loads((folder / "text_encoder/config.json").read_text())
    sizes = {"hidden_size": 24, "intermediate_size": 48, "projection_dim": 24, "hidden_act": "gelu"}
    config = {
        key: value for key, value in config.items() if key not in ("architectures", "model_type")
    } | sizes
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        text = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        for weight in text.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder_2")
    EulerDiscreteScheduler(**EULER).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
