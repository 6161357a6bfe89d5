"""Reference models: a text condition or LoRA under which the prior predicts the noise of the renders.

LODS (arXiv 2312.04820) learns a null text or a LoRA for one object; VSD (arXiv 2305.16213) a LoRA that is
queried with the prompt. Over a corpus, one null models the mixture of all renders; a null per prompt learns
little, because each prompt is visited rarely; `adapter` adds to one null a residual that it predicts from the
prompt's tokens.
"""

from __future__ import annotations

import math

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

MAX_TABLE_GIB = 16.0  # size of a table of nulls, with gradients and Adam's moments


class LearnedReference(nn.Module):
    """A trainable model of the distribution of renders: with its output, the prior predicts their noise.

    Its parameters are trained by `denoising_loss`, at `learned.learning_rate`.
    """

    def forward(self, text: ViewText, prompts: Tensor) -> LearnedText:
        """Return how to query the prior for B images: B rows, on the parameters' device.

        text     the images' view-dependent texts, B rows, on the same device
        prompts  [B] long, any device: indices among the training prompts
        """
        raise NotImplementedError


class LearnedNull(LearnedReference):
    """One text condition instead of the null, initialized to it. `null` has one row."""

    mask: Tensor

    def __init__(self, null: TextCondition) -> None:
        super().__init__()
        self.pooled, self.tokens = nn.Parameter(null.pooled.clone()), nn.Parameter(null.tokens.clone())
        self.register_buffer("mask", null.mask, persistent=False)

    def forward(self, text: ViewText, prompts: Tensor) -> LearnedText:
        null = TextCondition(pooled=self.pooled, tokens=self.tokens, mask=self.mask)
        return LearnedText(text=expand_row(null, len(prompts)), adapted=False)


class PromptNulls(LearnedReference):
    """One null for each of `num_prompts` prompts, all initialized to `null`, which has one row.

    Raises ValueError if they take more than MAX_TABLE_GIB with gradients and moments.
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


class NullAdapter(LearnedReference):
    """One null plus a residual that a small network predicts from the image's text; initially zero.

    `null` has one row; `width` is the network's hidden width.
    """

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


class AdaptedPrior(LearnedReference):
    """A LoRA of the prior, queried with one fixed text, one row, or with each image's text (None)."""

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
) -> LearnedReference:
    """Build the reference model. Its initial weights are a function of the seed.

    null  the text condition from which a learned null starts; its first row counts
    text  one row: the fixed text with which a LoRA is queried; None: each image's text

    A LoRA adds an adapter to the prior. Raises ValueError if a table of nulls would be too large.
    """
    null = take_rows(null, torch.tensor([0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "learned"))
        match config.kind:
            case "lora":
                model = AdaptedPrior(prior.add_adapter(config.rank, config.lora_scale), text)
                for weight in model.parameters():  # undo the scale of gradients inside the denoiser
                    weight.register_hook(lambda gradient: gradient / _loss_scale(prior))
            case "prompt-nulls":
                model = PromptNulls(null, num_prompts)
            case "adapter":
                model = NullAdapter(null, config.width)
            case "null":
                model = LearnedNull(null)
    return model


def _loss_scale(prior: Prior) -> float:
    """Return the scale of the loss's gradient inside the denoiser, which may run in float16.

    The loss is a mean over the latents: scaled by about their number, its gradient does not underflow. The
    scale is a power of two, which is exact.
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
    """Return the reference model's loss, a scalar: mean |noise_pred - noise|^2 over latents [B, C, h, w].

    VSD's, arXiv 2305.16213. t is uniform over the diffusion time; t and the noise are independent of the
    guidance's. `text` has B rows; cameras [P, V], B = P * V.
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
