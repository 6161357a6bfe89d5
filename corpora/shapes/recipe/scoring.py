"""Score how well samples of a prior match their prompts in shape, color and view, using the CLIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from amortized.cameras import cameras_at
from amortized.conditioning import ViewTextConfig, view_suffixes
from corpora.shapes.grammar import COLORS, PLAIN_ITEMS, Description, sentence, singles
from corpora.shapes.recipe.clip import build_model, model_config, normalize
from corpora.shapes.recipe.tokenizer import build_tokenizer

NUM_STEPS, GUIDANCE_SCALE = 25, 2.0  # of DDIM sampling; choices that the scores depend on


def load_judge(folder: Path) -> Callable[[Tensor, list[str]], Tensor]:
    """Load the finished CLIP as `similarity(images [N, 3, H, W] in [0, 1], texts [M]) -> [N, M]`.

    Images are resized to the input size of the CLIP.
    """
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
    """Sample one image per prompt with a diffusers pipeline: [N, 3, H, W] in [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    random = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(
        prompts,
        num_inference_steps=NUM_STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=random,
        output_type="pt",
    ).images.float()


def add_view_words(
    texts: list[str], azimuth_deg: Tensor, elevation_deg: Tensor, views: ViewTextConfig
) -> list[str]:
    """Append the words of its camera direction to each of N texts; angles are [N]."""
    ones = torch.ones(1, len(texts))
    cameras = cameras_at(
        azimuth_deg=azimuth_deg[None], elevation_deg=elevation_deg[None], distance=ones, fovy_deg=ones
    )
    return [text + words for text, words in zip(texts, view_suffixes(cameras, views), strict=True)]


def score_prior(
    pipe, judge: Callable[[Tensor, list[str]], Tensor], views: ViewTextConfig, marked_every: int = 2
) -> dict[str, float]:
    """Score a pipeline on one sample per prompt, each from a random or given direction.

    Returns `shape`, `color` and `both`: the fractions of samples of the 64 plain sentences whose best match
    has the right shape, color or both. `view` is the fraction of (front, back) pairs of samples of marked
    sentences in which the front sample shows the mark more (chance 0.5).
    """
    texts = [sentence(description) for description in singles()]
    azimuth, elevation = torch.rand(2, len(texts), generator=torch.Generator().manual_seed(0))
    images = sample(pipe, add_view_words(texts, 360 * azimuth - 180, 70 * elevation - 15, views))
    guess = judge(images, texts).argmax(-1)
    expected, num_colors = torch.arange(len(texts)), len(COLORS)
    items = PLAIN_ITEMS[::marked_every]
    marked = [sentence(Description((item,), marked=True)) for item in items]
    plain = [sentence(Description((item,))) for item in items]
    gaps = []
    for degrees in (0.0, 180.0):
        side = torch.full((len(items),), degrees)
        side_images = sample(
            pipe, add_view_words(marked, side, torch.full_like(side, 15.0), views), seed=1000
        )
        gaps.append((judge(side_images, marked) - judge(side_images, plain)).diagonal())
    return {
        "shape": (guess // num_colors == expected // num_colors).float().mean().item(),
        "color": (guess % num_colors == expected % num_colors).float().mean().item(),
        "both": (guess == expected).float().mean().item(),
        "view": (gaps[0][:, None] > gaps[1][None, :]).float().mean().item(),
    }
