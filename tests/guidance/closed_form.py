"""Score distillation on a Gaussian mixture, written again: numpy, float64, one image at a time."""

from __future__ import annotations

import math

import numpy as np
import torch

from amortized.conditioning import ViewText
from amortized.guidance import GuidanceConfig, GuidanceDraws
from amortized.priors import GaussianMixturePrior
from amortized.types import TextCondition

SHAPE = (2, 3, 3)  # C, h, w
NUM_COMPONENTS = 4


def mixture(views_per_group: int = 1) -> GaussianMixturePrior:
    """Components that overlap, so that the text makes a difference at every timestep."""
    generator = torch.Generator().manual_seed(0)
    means = 0.6 * torch.randn(NUM_COMPONENTS, *SHAPE, generator=generator, dtype=torch.float64)
    stds = torch.tensor([0.8, 0.9, 1.0, 1.2], dtype=torch.float64)
    return GaussianMixturePrior(means, stds, views_per_group=views_per_group)


def weights_of_text(num_rows: int, seed: int) -> TextCondition:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.rand(num_rows, NUM_COMPONENTS, generator=generator, dtype=torch.float64) ** 3
    return TextCondition(
        pooled=pooled, tokens=pooled[:, None].clone(), mask=torch.ones(num_rows, 1, dtype=torch.bool)
    )


def random_step(batch: int, *, perp_neg: bool, seed: int = 0) -> tuple[torch.Tensor, ViewText, GuidanceDraws]:
    """Latents, texts and draws of `batch` unrelated images."""
    generator = torch.Generator().manual_seed(100 + seed)
    text = ViewText(
        positive=weights_of_text(batch, seed + 1),
        unconditional=weights_of_text(batch, seed + 2),
        negatives=(weights_of_text(batch, seed + 3), weights_of_text(batch, seed + 4)) if perp_neg else (),
        negative_weights=-torch.rand(2 if perp_neg else 0, batch, generator=generator, dtype=torch.float64),
    )
    draws = GuidanceDraws(
        u_timestep=torch.rand(batch, generator=generator),
        u_shift=torch.rand(batch, generator=generator),
        noise=torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64),
    )
    return torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64), text, draws


def rows(value, index: slice):
    """The same rows of a tensor, condition, view text or draws."""
    if isinstance(value, torch.Tensor):
        return value[index]
    if isinstance(value, ViewText):
        return ViewText(
            positive=rows(value.positive, index),
            unconditional=rows(value.unconditional, index),
            negatives=tuple(rows(negative, index) for negative in value.negatives),
            negative_weights=value.negative_weights[:, index],
        )
    return type(value)(**{name: part[index] for name, part in vars(value).items()})


def noise_of(prior: GaussianMixturePrior, x: np.ndarray, t: int, weights: np.ndarray) -> np.ndarray:
    """Predicted noise = E[noise | x_t = x], by Bayes' rule over the components."""
    abar = float(prior.alphas_cumprod[t])
    posterior, means = [], []
    for k in range(NUM_COMPONENTS):
        mean, std = prior.means[k].numpy(), float(prior.stds[k])
        total = abar * std**2 + 1 - abar
        distance = float(((x - math.sqrt(abar) * mean) ** 2).sum())
        posterior.append(math.log(weights[k]) - 0.5 * distance / total - 0.5 * x.size * math.log(total))
        # E[x0 | x_t, k], then the noise that is left.
        x0 = mean + math.sqrt(abar) * std**2 / total * (x - math.sqrt(abar) * mean)
        means.append((x - math.sqrt(abar) * x0) / math.sqrt(1 - abar))
    share = np.exp(np.array(posterior) - max(posterior))
    return sum(s * m for s, m in zip(share / share.sum(), means, strict=True))


def gradient_of(
    prior: GaussianMixturePrior,
    config: GuidanceConfig,
    latents: torch.Tensor,
    text: ViewText,
    draws: GuidanceDraws,
    progress: float,
    batch: int,
) -> tuple[np.ndarray, int, int]:
    """(d loss / d latents, t, t') of the single image in the arguments, in a step of `batch` images."""
    low = round(1000 * (config.t_min[0] + progress * (config.t_min[1] - config.t_min[0])))
    high = round(1000 * (config.t_max[0] + progress * (config.t_max[1] - config.t_max[0])))
    t = low + math.floor(float(draws.u_timestep) * (high - low + 1))
    later = t
    if config.method == "asd":
        u = float(draws.u_shift) if config.shift_random else 1.0
        later = t + math.floor(min(config.shift_eta * (t - low), 999 - t) * u)
    z, noise = latents[0].numpy(), draws.noise[0].numpy()

    def noisy(time: int) -> np.ndarray:
        abar = float(prior.alphas_cumprod[time])
        return math.sqrt(abar) * z + math.sqrt(1 - abar) * noise

    def score(time: int, condition: TextCondition) -> np.ndarray:
        return noise_of(prior, noisy(time), time, condition.pooled[0].numpy())

    null = score(t, text.unconditional)
    positive = score(t, text.positive) - null
    direction = positive.copy()
    for i, negative in enumerate(text.negatives):
        other = score(t, negative) - null
        other = other - (other * positive).sum() / max((positive**2).sum(), 1e-6) * positive
        direction += float(text.negative_weights[i, 0]) * other
    scale = config.guidance_scale
    if isinstance(scale, tuple):
        scale = scale[0] + progress * (scale[1] - scale[0])
    reference = {"sds": noise, "csd": null, "asd": None}[config.method]
    if reference is None:
        reference = score(later, text.positive)
    abar = float(prior.alphas_cumprod[t])
    weight = {"one_minus_alphas_cumprod": 1 - abar, "uniform": 1.0, "sqrt": math.sqrt(abar) * (1 - abar)}
    gradient = weight[config.weighting] * (null + scale * direction - reference)
    if config.normalize == "per_sample":
        gradient = gradient / np.linalg.norm(gradient)
    return config.weight / batch * gradient, t, later
