"""How well a prior obeys its text, judged by the CLIP: shape, colour and view, each on samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from amortized.cameras import cameras_at
from amortized.conditioning import ViewTextConfig, view_suffixes
from corpora.shapes.grammar import COLOURS, PLAIN_ITEMS, Description, sentence, singles
from corpora.shapes.recipe.clip import build_model, model_config, normalize
from corpora.shapes.recipe.tokenizer import build_tokenizer

NUM_STEPS, GUIDANCE_SCALE = 25, 2.0


def load_judge(folder: Path) -> Callable[[Tensor, list[str]], Tensor]:
    """`similarity(images [N, 3, H, W] in [0, 1], texts [M]) -> [N, M]` of the finished CLIP, which sees
    images of other sizes than its own resized."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    model.eval()
    size = model_config(len(tokenizer))["vision_cfg"]["image_size"]

    @torch.no_grad()
    def similarity(images: Tensor, texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
        pixels = normalize(images.permute(0, 2, 3, 1) * 255)
        return model.encode_image(pixels, normalize=True) @ model.encode_text(tokens, normalize=True).T

    return similarity


def sample(pipe, prompts: list[str], seed: int = 0) -> Tensor:
    """One image [N, 3, H, W] per prompt."""
    pipe.set_progress_bar_config(disable=True)
    random = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(
        prompts,
        num_inference_steps=NUM_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=random,
        output_type="pt",
    ).images.float()


def seen_from(
    texts: list[str], azimuth_deg: Tensor, elevation_deg: Tensor, views: ViewTextConfig
) -> list[str]:
    """Each text with the words for its direction, [N] each."""
    ones = torch.ones(1, len(texts))
    cameras = cameras_at(
        azimuth_deg=azimuth_deg[None], elevation_deg=elevation_deg[None], distance=ones, fovy_deg=ones
    )
    return [text + words for text, words in zip(texts, view_suffixes(cameras, views), strict=True)]


def score_prior(
    pipe, judge: Callable[[Tensor, list[str]], Tensor], views: ViewTextConfig, marked_every: int = 2
) -> dict[str, float]:
    """Shape, colour and both of one sample a plain sentence, from any side; `view`: how often a sample
    asked for from the front shows the mark more than one asked for from the back (0.5 is chance)."""
    texts = [sentence(description) for description in singles()]
    azimuth, elevation = torch.rand(2, len(texts), generator=torch.Generator().manual_seed(0))
    images = sample(pipe, seen_from(texts, 360 * azimuth - 180, 70 * elevation - 15, views))
    guess = judge(images, texts).argmax(-1)
    own, num = torch.arange(len(texts)), len(COLOURS)
    some = PLAIN_ITEMS[::marked_every]
    marked = [sentence(Description((item,), marked=True)) for item in some]
    plain = [sentence(Description((item,))) for item in some]
    gaps = []
    for degrees in (0.0, 180.0):
        side = torch.full((len(some),), degrees)
        pictures = sample(pipe, seen_from(marked, side, torch.full_like(side, 15.0), views), seed=1000)
        gaps.append((judge(pictures, marked) - judge(pictures, plain)).diagonal())
    return {
        "shape": (guess // num == own // num).float().mean().item(),
        "colour": (guess % num == own % num).float().mean().item(),
        "both": (guess == own).float().mean().item(),
        "view": (gaps[0][:, None] > gaps[1][None, :]).float().mean().item(),
    }
