"""Reference models: a text condition or LoRA under which the prior predicts the noise of the renders.

LODS (arXiv 2312.04820) learns a null text or a LoRA for one object; VSD (arXiv 2305.16213) a LoRA that is
queried with the text. Over a corpus, one null models the mixture of all renders; a null per prompt learns
little, as a prompt has few visits; `adapter` predicts the difference of a prompt's null from its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from amortized.conditioning.rows import expand_row, take_rows
from amortized.conditioning.views import ViewText
from amortized.guidance.config import LearnedConfig
from amortized.guidance.draws import GuidanceDraws
from amortized.guidance.scores import LearnedText
from amortized.guidance.timesteps import draw_timesteps, share_in_groups
from amortized.priors.base import Prior
from amortized.priors.precision import scale_gradient
from amortized.priors.schedule import add_noise, alphas_at
from amortized.random import derive_seed, normal
from amortized.transfer import to_device
from amortized.types import Cameras, TextCondition

MAX_TABLE_GIB = 16.0  # of a table of nulls with gradients and moments


class LearnedReference(Protocol):
    """A trainable model of the distribution of renders, as an nn.Module."""

    def __call__(self, text: ViewText, prompts: Tensor) -> LearnedText:
        """How to query the prior for images with `text` (B rows) of prompts [B] long, any device; B rows."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


class LearnedNull(nn.Module):
    """One text condition [1, ...] instead of the null, initialized to it."""

    mask: Tensor

    def __init__(self, null: TextCondition) -> None:
        super().__init__()
        self.pooled, self.tokens = nn.Parameter(null.pooled.clone()), nn.Parameter(null.tokens.clone())
        self.register_buffer("mask", null.mask, persistent=False)

    def forward(self, text: ViewText, prompts: Tensor) -> LearnedText:
        null = TextCondition(pooled=self.pooled, tokens=self.tokens, mask=self.mask)
        return LearnedText(text=expand_row(null, len(prompts)), adapted=False)


class PromptNulls(nn.Module):
    """One null for each of `num_prompts` prompts.

    Raises ValueError if they exceed MAX_TABLE_GIB with gradients and moments.
    """

    mask: Tensor

    def __init__(self, null: TextCondition, num_prompts: int) -> None:
        super().__init__()
        numbers = num_prompts * (null.pooled.numel() + null.tokens.numel())
        if (size := 4 * 4 * numbers / 2**30) > MAX_TABLE_GIB:
            raise ValueError(
                f"one null for each of {num_prompts} prompts takes {size:.0f} GiB with gradients and "
                f"moments, more than {MAX_TABLE_GIB:.0f}: set guidance.learned.kind=adapter"
            )
        self.pooled = nn.Parameter(null.pooled.repeat(num_prompts, 1))
        self.tokens = nn.Parameter(null.tokens.repeat(num_prompts, 1, 1))
        self.register_buffer("mask", null.mask, persistent=False)

    def forward(self, text: ViewText, prompts: Tensor) -> LearnedText:
        rows = to_device(prompts, self.pooled.device)
        mask = self.mask.expand(len(rows), -1)
        nulls = TextCondition(pooled=self.pooled[rows], tokens=self.tokens[rows], mask=mask)
        return LearnedText(text=nulls, adapted=False)


class NullAdapter(nn.Module):
    """One null plus a residual that a small network predicts from the image's text; initially zero."""

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
    """A LoRA of the prior, queried with one fixed text [1, ...], or with each image's own (None)."""

    def __init__(self, adapter: nn.Module, text: TextCondition | None) -> None:
        super().__init__()
        self.adapter, self.text = adapter, text

    def forward(self, text: ViewText, prompts: Tensor) -> LearnedText:
        query = text.positive if self.text is None else expand_row(self.text, len(prompts))
        return LearnedText(text=query, adapted=True)


def build_learned(
    config: LearnedConfig,
    prior: Prior,
    *,
    null: TextCondition,
    text: TextCondition | None,
    num_prompts: int,
    seed: int,
) -> nn.Module:
    """Build the reference model, a LearnedReference. Its initial weights are a function of the seed.

    `null` is the text condition to start from, one row; `text`, one row, the fixed text of a LoRA (None: each
    image's own).
    """
    null = take_rows(null, torch.tensor([0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "learned"))
        match config.kind:
            case "lora":
                model = AdaptedPrior(prior.add_adapter(config.rank, config.lora_scale), text)
                for weight in model.parameters():  # inside the denoiser gradients are scaled up
                    weight.register_hook(lambda gradient: gradient / _loss_scale(prior))
            case "prompt-nulls":
                model = PromptNulls(null, num_prompts)
            case "adapter":
                model = NullAdapter(null, config.width)
            case "null":
                model = LearnedNull(null)
    return model


def _loss_scale(prior: Prior) -> float:
    """The scale of the loss's gradient inside the denoiser, which may run in float16.

    The loss is a mean over the latents: scaled by about their number, its gradient does not underflow.
    A power of two rounds nothing.
    """
    return 2.0 ** round(math.log2(math.prod(prior.latent_shape)))


def denoising_loss(
    prior: Prior,
    learned: LearnedReference,
    latents: Tensor,
    text: ViewText,
    draws: GuidanceDraws,
    cameras: Cameras | None,
) -> Tensor:
    """The reference model's loss: mean |noise_pred - noise|^2 over latents [B, C, h, w], a scalar.

    t is uniform over the diffusion time; t and the noise are independent of those of the guidance.
    """
    u = share_in_groups(draws.u_learned, prior.views_per_group)
    timesteps = to_device(draw_timesteps(u, 0, prior.num_timesteps - 1), latents.device)
    shape = tuple(latents.shape[1:])
    drawn = torch.stack([normal(shape, key, "learned") for key in draws.keys.tolist()])
    noise = to_device(drawn, latents.device).to(latents.dtype)
    latents_noisy = add_noise(latents, noise, alphas_at(prior.alphas_cumprod, timesteps, latents))
    query = learned(text, draws.prompts)
    text_scaled = TextCondition(
        pooled=scale_gradient(query.text.pooled, 1 / _loss_scale(prior)),
        tokens=scale_gradient(query.text.tokens, 1 / _loss_scale(prior)),
        mask=query.text.mask,
    )
    noise_pred = prior.predict_noise(latents_noisy, timesteps, text_scaled, cameras, adapted=query.adapted)
    noise_pred = scale_gradient(noise_pred, _loss_scale(prior))
    return (noise_pred - noise).square().mean()
