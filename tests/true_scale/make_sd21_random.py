"""A folder of Stable Diffusion 2.1-base's exact published configuration, with random weights.

    python -m tests.true_scale.make_sd21_random FOLDER      (2.6 GB of float16, about a minute)

What it is for: whether the true sizes load, fit in memory and take a step. Its images are noise.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import torch

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE = {
    "sample_size": 768,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,  # as published: the case where transformers pools at the largest id
    "pad_token_id": 1,
}
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNET)


def vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE)


def text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**TEXT))


def tokenizer() -> Any:
    """CLIP's own tokenizer, 49408 entries, from the merges that open_clip carries."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe
    from transformers import CLIPTokenizer

    letters = list(bytes_to_unicode().values())
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : TEXT["vocab_size"] - 2 * len(letters) - 2 + 1]
    merges = [(first, second) for first, second in map(str.split, lines)]
    begin, end = "<|startoftext|>", "<|endoftext|>"
    names = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), begin, end]
    return CLIPTokenizer(
        vocab={name: index for index, name in enumerate(names)}, merges=merges, bos_token=begin,
        eos_token=end, unk_token=end, pad_token="!", model_max_length=77,
    )  # fmt: skip


NETWORKS = {"unet": unet, "vae": vae, "text_encoder": text_encoder}


def make_sd21_random(folder: str | Path, *, seed: int = 0) -> Path:
    """Write the five parts to `folder`, one in memory at a time (3.5 GB at most), and return it."""
    from diffusers import DDIMScheduler

    folder = Path(folder)
    tokenizer().save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, build in NETWORKS.items():
            build().half().save_pretrained(folder / name)
    return folder


if __name__ == "__main__":
    print(make_sd21_random(sys.argv[1]))
