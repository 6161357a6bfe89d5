"""Measure guidance methods on a prior with an exact denoiser: a Gaussian mixture.

Each method optimizes free images from many starts, at equal denoiser calls.

- one: the text names one of the components. The true images are samples of that component, N(m, s^2).
  Reported are the mean distance of the results from m (in units of s; 0 is the mode, about sqrt(dims) a
  typical sample) after a quarter, half and all of the calls, and the part of it common to all starts: a bias.
- two: the text names two components with equal weights. Reported are the share of starts that end nearer to
  the first, and the share that ends at neither. The prior's sampler yields a half of each.
- noise of the initial gradient: the mean distance from its mean over draws, divided by that mean's norm.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from amortized.conditioning.rows import expand_row
from amortized.conditioning.views import plain_text
from amortized.guidance import METHODS, Guidance, build_guidance, calls_per_image, published
from amortized.guidance.playground import draws_of, optimize
from amortized.priors import GaussianMixturePrior, ddim
from amortized.random import normal
from amortized.types import TextCondition
from benchmarks.timing import markdown

COMPONENTS, SHAPE, STD = 4, (1, 6, 6), 0.25
STARTS, CALLS, LEARNING_RATE = 64, 1200, 0.05
# As published, and as suits the embedded prior: low scales, no timesteps at which the prior adds no
# information, and a learning rate at which a reference model learns in so few steps.
TAMED = {"guidance_scale": 2.0, "t_min": (0.5, 0.05), "t_max": (0.95, 0.4)}
TAMED_REFERENCE = {"learned": {"learning_rate": 0.02}}
SCHEDULES: dict[str, dict] = {"published": {}, "tamed": TAMED}
SHARES = (0.25, 0.5, 1.0)  # of the calls, at which distances are measured


def mixture() -> GaussianMixturePrior:
    """Return a mixture of components [1, 6, 6] with means of norm 3 in random directions."""
    means = torch.stack([normal(SHAPE, "mixture", k) for k in range(COMPONENTS)])
    means = means / means.flatten(1).norm(dim=1)[:, None, None, None] * 3
    return GaussianMixturePrior(means, torch.full((COMPONENTS,), STD))


def weights(*named: int) -> TextCondition:
    """Return a text, one row, that names the given components, or all if none is given."""
    pooled = torch.tensor([[float(k in named or not named) for k in range(COMPONENTS)]]).clamp(min=1e-4)
    return TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(1, 1, dtype=torch.bool))


def guidance_for(method: str, schedule: dict) -> Guidance:
    """Build a published method with another schedule on a new mixture, its reference model untrained."""
    prior, learns = mixture(), "learned" in METHODS[method]
    config = published(method, **schedule, **(TAMED_REFERENCE if schedule and learns else {}))
    return build_guidance(config, prior, encode=lambda texts: weights(), num_prompts=1, seed=0)


def measure(seed: int = 0) -> list[dict[str, str | float]]:
    """Return a row per method and schedule, and one for the prior's sampler."""
    prior = mixture()
    starts = torch.stack([0.3 * normal(SHAPE, "start", seed, i) for i in range(STARTS)])
    rows: list[dict[str, str | float]] = []
    for name, schedule in SCHEDULES.items():
        for method in METHODS:
            guidance = guidance_for(method, schedule)
            steps = round(CALLS / calls_per_image(guidance.config))
            noise = _noise(guidance, starts[:8], seed)
            one, two = (_run(guidance_for(method, schedule), starts, n, steps, seed) for n in ((0,), (0, 1)))
            row = {"method": method, "schedule": name, "steps": steps, **_scores(prior, one, two[-1])}
            rows.append(row | {"noise of the gradient": round(noise, 2)})
    noise = torch.stack([normal(SHAPE, "sample", seed, i) for i in range(STARTS)])
    one, two = (ddim(prior, noise, _rows(n), _rows(()), num_steps=50, cfg=1.0) for n in ((0,), (0, 1)))
    return [*rows, {"method": "the prior's sampler", "steps": 50, **_scores(prior, [one], two)}]


def _run(guidance: Guidance, starts: Tensor, named: tuple[int, ...], steps: int, seed: int) -> list[Tensor]:
    """Return the latents [STARTS, 1, 6, 6] after each of SHARES of the steps."""
    record_at, recorded = [max(1, round(share * steps)) for share in SHARES], []

    def each(step: int, latents: Tensor) -> None:
        recorded.extend(latents.clone() for at in record_at if at == step)

    optimize(
        guidance,
        starts,
        plain_text(_rows(named), weights()),
        None,
        steps=steps,
        learning_rate=LEARNING_RATE,
        seed=seed,
        each=each,
    )
    return recorded


def _rows(named: tuple[int, ...]) -> TextCondition:
    return expand_row(weights(*named), STARTS)


def _scores(prior: GaussianMixturePrior, one: list[Tensor], two: Tensor) -> dict[str, float | str]:
    offsets = [(latents - prior.means[0]).flatten(1) / STD for latents in one]
    distances = torch.cdist(two.flatten(1), prior.means.flatten(1)) / STD
    nearest = distances.argmin(1)
    near = distances.amin(1) < 3 * (two[0].numel() ** 0.5)
    return {
        "one: distance / s": ", ".join(f"{latents.norm(dim=1).mean().item():.2f}" for latents in offsets),
        "one: bias / s": round(offsets[-1].mean(0).norm().item(), 2),
        "two: at the first": round(((nearest == 0) & near).float().mean().item(), 2),
        "two: at neither": round(((nearest > 1) | ~near).float().mean().item(), 2),
    }


def _noise(guidance: Guidance, latents: Tensor, seed: int, repeats: int = 64) -> float:
    """Return mean |g - mean g| / |mean g| over draws of the initial gradient g, averaged over latents."""
    text = plain_text(expand_row(weights(0), len(latents)), weights())
    draws = []
    for step in range(repeats):
        latents = latents.detach().requires_grad_()
        output = guidance(latents, text, draws_of(latents, seed, step), 0.0, learn=False)
        draws.append(torch.autograd.grad(output.loss, latents)[0].flatten(1))
    gradients = torch.stack(draws)  # [repeats, N, dims]
    mean = gradients.mean(0)
    return ((gradients - mean).norm(dim=2).mean(0) / mean.norm(dim=1)).mean().item()


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m benchmarks.mixture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    print(markdown(measure()))
