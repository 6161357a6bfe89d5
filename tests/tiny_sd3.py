"""Tiny random models in the folder format of Stable Diffusion 3; the published configs with tiny widths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from tests.tiny_sd import make_tiny_sd
from tests.tiny_t5 import make_tiny_t5

# transformer/config.json of stabilityai/stable-diffusion-3-medium-diffusers, but for its widths and depth.
TRANSFORMER = {
    "attention_head_dim": 8, "caption_projection_dim": 16, "in_channels": 16, "joint_attention_dim": 64,
    "num_attention_heads": 2, "num_layers": 2, "out_channels": 16, "patch_size": 2,
    "pooled_projection_dim": 32 + 24, "pos_embed_max_size": 12, "sample_size": 8,
}  # fmt: skip
# What 3.5 has besides.
NEWER = {"qk_norm": "rms_norm", "dual_attention_layers": [0]}
VAE = {
    "latent_channels": 16, "latents_mean": None, "latents_std": None, "scaling_factor": 1.5305,
    "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True,
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}


def make_tiny_sd3(folder: Path, *, t5: bool = False, newer: bool = False) -> Path:
    """Write a prior's folder, with or without the third text encoder, and return it.

    Images are 16x16, latents 16x8x8, tokens [48 + 256, 64].
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    make_tiny_sd(folder)
    shutil.rmtree(folder / "unet")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    config = json.loads((folder / "text_encoder/config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    wide = {"hidden_size": 24, "intermediate_size": 48, "projection_dim": 24}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, sizes in (("text_encoder", {}), ("text_encoder_2", wide)):
            text = CLIPTextModelWithProjection(CLIPTextConfig(**{**config, **sizes}))
            for weight in text.parameters():
                if weight.ndim > 1:
                    torch.nn.init.normal_(weight, std=0.3)
            text.save_pretrained(folder / name)
        transformer = SD3Transformer2DModel(**TRANSFORMER, **(NEWER if newer else {}))
        for weight in transformer.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        transformer.save_pretrained(folder / "transformer")
        AutoencoderKL(**VAE).save_pretrained(folder / "vae")
        if t5:
            make_tiny_t5(folder / "text_encoder_3", width=64)
            (folder / "tokenizer_3").mkdir()
            for file in (folder / "text_encoder_3").glob("*token*"):
                file.rename(folder / "tokenizer_3" / file.name)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    return folder
