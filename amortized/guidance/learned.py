"""Learned models of the renders: what the prior would have to be told to predict their noise.

LODS (arXiv 2312.04820) learns a null text or a LoRA for one object; VSD (arXiv 2305.16213) a LoRA that
reads the text. Over a corpus one null models the mixture of all renders, a null a prompt hardly learns
(few visits), and `adapter` lets a prompt's tokens say how its null differs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amortized.conditioning.rows import expand_row, take_rows
from amortized.conditioning.views import ViewText
from amortized.guidance.config import GuidanceDraws, LearnedConfig
from amortized.guidance.scores import LearnedText
from amortized.guidance.timesteps import draw_timesteps, share_in_groups
from amortized.priors.base import Prior
from amortized.priors.precision import scale_gradient
from amortized.priors.schedule import add_noise, alphas_at
from amortized.random import derive_seed, normal
from amortized.transfer import to_device
from amortized.types import Cameras, TextCondition

MAX_TABLE_GIB = 16.0


class LearnedNull(nn.Module):
    """One text in place of the null; starts as the null."""

    mask: Tensor

    def __init__(self, null: TextCondition) -> None:
        super().__init__()
        self.pooled, self.tokens = nn.Parameter(null.pooled.clone()), nn.Parameter(null.tokens.clone())
        self.register_buffer("mask", null.mask, persistent=False)

    def forward(self, text: ViewText, prompts: Tensor) -> LearnedText:
        null = TextCondition(pooled=self.pooled, tokens=self.tokens, mask=self.mask)
        return LearnedText(text=expand_row(null, len(prompts)), adapted=False)


class PromptNulls(nn.Module):
    """A null of its own for each of `num_prompts` prompts.

    Raises ValueError where they would not fit in MAX_TABLE_GIB with gradients and moments.
    """

    mask: Tensor

    def __init__(self, null: TextCondition, num_prompts: int) -> None:
        super().__init__()
        numbers = num_prompts * (null.pooled.numel() + null.tokens.numel())
        if (size := 4 * 4 * numbers / 2**30) > MAX_TABLE_GIB:
            raise ValueError(
                f"a null for each of {num_prompts} prompts takes {size:.0f} GiB with gradients and moments, "
                f"more than {MAX_TABLE_GIB:.0f}: set guidance.learned.kind=adapter"
            )
        self.pooled = nn.Parameter(null.pooled.repeat(num_prompts, 1))
        self.tokens = nn.Parameter(null.tokens.repeat(num_prompts, 1, 1))
        self.register_buffer("mask", null.mask, persistent=False)

    def forward(self, text: ViewText, prompts: Tensor) -> LearnedText:
        rows = to_device(prompts, self.pooled.device)
        mask = self.mask.expand(len(rows), -1)
        own = TextCondition(pooled=self.pooled[rows], tokens=self.tokens[rows], mask=mask)
        return LearnedText(text=own, adapted=False)


class NullAdapter(nn.Module):
    """One null, and what a small network adds to it from the image's own text; at first nothing."""

    def __init__(self, null: TextCondition, width: int) -> None:
        super().__init__()
        self.null = LearnedNull(null)
        text_dim = null.pooled.shape[-1]
        last = nn.Linear(width, text_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.residual = nn.Sequential(nn.Linear(text_dim, width), nn.SiLU(), last).to(null.pooled)

    def forward(self, text: ViewText, prompts: Tensor) -> LearnedText:
        null = self.null(text, prompts).text
        return LearnedText(
            text=TextCondition(
                pooled=null.pooled + self.residual(text.positive.pooled),
                tokens=null.tokens + self.residual(text.positive.tokens),
                mask=null.mask,
            ),
            adapted=False,
        )


class AdaptedPrior(nn.Module):
    """A LoRA of the prior, that reads one text of its own, or each image's."""

    def __init__(self, adapter: nn.Module, text: TextCondition | None) -> None:
        super().__init__()
        self.adapter, self.text = adapter, text

    def forward(self, text: ViewText, prompts: Tensor) -> LearnedText:
        own = text.positive if self.text is None else expand_row(self.text, len(prompts))
        return LearnedText(text=own, adapted=True)


def build_learned(
    config: LearnedConfig,
    prior: Prior,
    *,
    null: TextCondition,
    text: TextCondition | None,
    num_prompts: int,
    seed: int,
) -> nn.Module:
    """What is learned of the renders; `null` is one row, `text` (one row) what a LoRA reads, if not each
    image's own. Its initial weights depend on the seed alone."""
    null = take_rows(null, torch.tensor([0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "learned"))
        match config.kind:
            case "lora":
                model = AdaptedPrior(prior.add_adapter(config.rank, config.lora_scale), text)
                for weight in model.parameters():  # they are in the denoiser
                    weight.register_hook(lambda gradient: gradient / _within(prior))
            case "prompt-nulls":
                model = PromptNulls(null, num_prompts)
            case "adapter":
                model = NullAdapter(null, config.width)
            case "null":
                model = LearnedNull(null)
    return model


def _within(prior: Prior) -> float:
    """How much larger the gradient of the loss, a mean over latents, is while in the denoiser, which may run
    in float16. A power of two: nothing is rounded."""
    return 2.0 ** round(math.log2(math.prod(prior.latent_shape)))


def denoising_loss(
    prior: Prior,
    learned: nn.Module,
    clean: Tensor,
    text: ViewText,
    draws: GuidanceDraws,
    cameras: Cameras | None,
) -> Tensor:
    """mean |e(z_t', t', learned) - noise|^2 of clean latents [B, C, h, w], its time and noise its own."""
    u = share_in_groups(draws.u_learned, prior.views_per_group)
    timesteps = to_device(draw_timesteps(u, 0, prior.num_timesteps - 1), clean.device)
    shape = tuple(clean.shape[1:])
    drawn = torch.stack([normal(shape, key, "learned") for key in draws.keys.tolist()])
    noise = to_device(drawn, clean.device).to(clean.dtype)
    noisy = add_noise(clean, noise, alphas_at(prior.alphas_cumprod, timesteps, clean))
    asked: LearnedText = learned(text, draws.prompts)
    text_within = TextCondition(
        pooled=scale_gradient(asked.text.pooled, 1 / _within(prior)),
        tokens=scale_gradient(asked.text.tokens, 1 / _within(prior)),
        mask=asked.text.mask,
    )
    predicted = prior.predict_noise(noisy, timesteps, text_within, cameras, adapted=asked.adapted)
    predicted = scale_gradient(predicted, _within(prior))
    return (predicted - noise).square().mean()
