"""Build Stable Diffusion 2.1-base and MVDream with random weights, at their published sizes or tiny.

    python -m benchmarks.sizes FOLDER      (write Stable Diffusion's 2.6 GB in float16, about a minute)

Random weights show whether the full sizes load, fit in memory and take a step, and how long a step takes. The
images are noise.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from amortized.conditioning import CLIPTextEncoder
from amortized.priors import StableDiffusionPrior

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
    "eos_token_id": 2,  # as published: transformers then pools at the largest id
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


# MVDream's changes: latents of 256 px images, and a camera of 16 numbers added to the time embedding.
CAMERAS = {"sample_size": 32, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
# Every kind of layer at minimal width and two of four levels, so that a step is quick on a CPU.
TINY_UNET = {
    "sample_size": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
TINY_VAE = {
    "sample_size": 64,
    "block_out_channels": [8, 8, 8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The arguments of a model's networks, as diffusers and transformers name them."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    num_views: int = 1  # denoised together

    def networks(self) -> dict[str, Callable[[], Any]]:
        """Return a builder for each network, with random weights on torch's default device."""
        return {"unet": self._unet, "vae": self._vae, "text_encoder": self._text_encoder}

    def _unet(self) -> Any:
        from diffusers import UNet2DConditionModel  # pyright: ignore (lazy exports)

        return UNet2DConditionModel(**self.unet)

    def _vae(self) -> Any:
        from diffusers import AutoencoderKL  # pyright: ignore (lazy exports)

        return AutoencoderKL(**self.vae)

    def _text_encoder(self) -> Any:
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig(**self.text))


SD21 = Sizes(unet=UNET, vae=VAE, text=TEXT)
MVDREAM = Sizes(unet=UNET | CAMERAS, vae=VAE | {"sample_size": 256}, text=TEXT, num_views=4)
TINY_SD = Sizes(unet=UNET | TINY_UNET, vae=VAE | TINY_VAE, text=TEXT | TINY_TEXT)
TINY_MVDREAM = Sizes(unet=UNET | CAMERAS | TINY_UNET, vae=VAE | TINY_VAE, text=TEXT | TINY_TEXT, num_views=4)


@cache
def tokenizer() -> Any:
    """Return CLIP's tokenizer, 49,408 entries, built from the merges that open_clip ships."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe
    from transformers import CLIPTokenizer

    characters = list(bytes_to_unicode().values())
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : TEXT["vocab_size"] - 2 * len(characters) - 2 + 1]
    # Annotated as str in transformers, which accepts pairs.
    merges: Any = [(first, second) for first, second in map(str.split, lines)]
    begin, end = "<|startoftext|>", "<|endoftext|>"
    word_ends = [f"{character}</w>" for character in characters]
    names = [*characters, *word_ends, *map("".join, merges), begin, end]
    return CLIPTokenizer(
        vocab={name: index for index, name in enumerate(names)},
        merges=merges,
        bos_token=begin,
        eos_token=end,
        unk_token=end,
        pad_token="!",
        model_max_length=77,
    )


def scheduler() -> Any:
    """Return the noise scheduler of both models."""
    from diffusers import DDIMScheduler  # pyright: ignore (lazy exports)

    return DDIMScheduler(**SCHEDULER)


def random_prior(
    sizes: Sizes, *, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> StableDiffusionPrior:
    """Build a prior with random weights directly on its device, which takes seconds on a GPU.

    On a GPU its networks are replayed as CUDA graphs, like those of a loaded prior.
    """
    networks = {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        for name, build in sizes.networks().items():
            # Not the libraries' `to`, which warns about layers that these models do not have.
            networks[name] = torch.nn.Module.to(build(), dtype)
    return StableDiffusionPrior(
        unet=networks["unet"],
        vae=networks["vae"],
        text_encoder=CLIPTextEncoder(tokenizer(), networks["text_encoder"]),
        alphas_cumprod=scheduler().alphas_cumprod,
        prediction_type=SCHEDULER["prediction_type"],
        views_per_group=sizes.num_views,
        graphs=device.type == "cuda",
    )


def make_sd21_random(folder: str | Path, *, seed: int = 0) -> Path:
    """Write the five parts to `folder`, with one in memory at a time (3.5 GB at most), and return it."""
    folder = Path(folder)
    tokenizer().save_pretrained(folder / "tokenizer")
    scheduler().save_pretrained(folder / "scheduler")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, build in SD21.networks().items():
            build().half().save_pretrained(folder / name)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sizes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    print(make_sd21_random(parser.parse_args().folder))
