"""Tiny random models in Stable Diffusion's folder format: a few thousand weights, created in a second."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch


def make_tiny_sd(
    folder: str | Path,
    *,
    prediction_type: str = "epsilon",
    legacy_eos: bool = False,
    num_views: int = 1,
    seed: int = 0,
) -> Path:
    """Write tokenizer, text_encoder, vae, unet and scheduler to `folder`, and return it.

    Images are 16x16, latents 4x8x8, text [48, 32] with one token per letter (lower case, digits, , . -). With
    `legacy_eos` the end-of-text id is 2, below all letters: transformers then pools at the largest id.
    Otherwise the end-of-text id is the largest.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = Path(folder)
    letters = [*string.ascii_lowercase, *string.digits, ",", ".", "-"]
    letters = [*letters, *(letter + "</w>" for letter in letters)]
    begin, end = "<|startoftext|>", "<|endoftext|>"
    names = ["!", begin, end, *letters] if legacy_eos else ["!", *letters, begin, end]
    vocab = {name: index for index, name in enumerate(names)}
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=[],
        bos_token=begin,
        eos_token=end,
        unk_token=end,
        pad_token="!",
        model_max_length=48,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocab),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=48,
                projection_dim=32,
                hidden_act="gelu",
                bos_token_id=vocab[begin],
                eos_token_id=vocab[end],
                pad_token_id=0,
            )
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.18215,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=4,
            use_linear_projection=True,
            class_embed_type=None if num_views == 1 else "projection",
            projection_class_embeddings_input_dim=None if num_views == 1 else 16,
        )
        # The default std of 0.02 is too small for a word to change the output noticeably.
        for parameter in text_model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        num_train_timesteps=1000,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": text_model,
        "vae": vae,
        "unet": unet,
        "scheduler": scheduler,
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    if num_views > 1:
        (folder / "multi_view.json").write_text(json.dumps({"num_views": num_views}))
    return folder
