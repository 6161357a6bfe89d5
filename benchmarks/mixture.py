"""Guidance methods on a prior that is known exactly: a Gaussian mixture.

Each method optimizes free images at equal denoiser calls, from many starts.

- one: the text names one of the components. The true images are that component's, N(m, s^2): how far the
  results lie from its mean on average (in units of s; 0 is the mode, about sqrt(dims) a typical image)
  after a quarter, half and all of the calls, and how much of that is the same for all starts: a bias.
- two: the text names two components alike: how many of the starts end nearer to the first, and whether any
  end at neither. The prior's own sampler is half and half.
- noise of the gradient at the starts: how far it lies from its mean over draws, by the norm of that mean.
"""

from __future__ import annotations

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
# As published, and as the embedded prior wants it: low scales, no time where nothing is left to say, and, at
# so few steps, what is learned at a rate at which it does.
TAMED = {"guidance_scale": 2.0, "t_min": (0.5, 0.05), "t_max": (0.95, 0.4)}
RATE = {"learned": {"learning_rate": 0.02}}
SCHEDULES: dict[str, dict] = {"published": {}, "tamed": TAMED}
SHARES = (0.25, 0.5, 1.0)  # of the calls, when distances are taken


def mixture() -> GaussianMixturePrior:
    """Components at distance about 1 from each other and from the middle."""
    means = torch.stack([normal(SHAPE, "mixture", k) for k in range(COMPONENTS)])
    means = means / means.flatten(1).norm(dim=1)[:, None, None, None] * 3
    return GaussianMixturePrior(means, torch.full((COMPONENTS,), STD))


def weights(*named: int) -> TextCondition:
    """A text that names components; none: all."""
    pooled = torch.tensor([[float(k in named or not named) for k in range(COMPONENTS)]]).clamp(min=1e-4)
    return TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(1, 1, dtype=torch.bool))


def guidance_for(method: str, schedule: dict) -> Guidance:
    """A published method with another schedule, on a mixture of its own, its learned model untrained."""
    prior, learns = mixture(), "learned" in METHODS[method]
    config = published(method, **schedule, **(RATE if schedule and learns else {}))
    return build_guidance(config, prior, encode=lambda texts: weights(), num_prompts=1, seed=0)


def measure(seed: int = 0) -> list[dict[str, str | float]]:
    """A row for each method and schedule, and one for the prior's own sampler."""
    prior = mixture()
    starts = torch.stack([0.3 * normal(SHAPE, "start", seed, i) for i in range(STARTS)])
    rows: list[dict[str, str | float]] = []
    for name, schedule in SCHEDULES.items():
        for method in METHODS:
            guidance = guidance_for(method, schedule)
            steps = round(CALLS / calls_per_image(guidance.config))
            noise = _noise(guidance, starts[:8], seed)
            one, two = (_run(guidance_for(method, schedule), starts, n, steps, seed) for n in ((0,), (0, 1)))
            found = {"method": method, "schedule": name, "steps": steps, **_scores(prior, one, two[-1])}
            rows.append(found | {"noise of the gradient": round(noise, 2)})
    noise = torch.stack([normal(SHAPE, "sample", seed, i) for i in range(STARTS)])
    one, two = (ddim(prior, noise, _rows(n), _rows(()), num_steps=50, cfg=1.0) for n in ((0,), (0, 1)))
    return [*rows, {"method": "the prior's sampler", "steps": 50, **_scores(prior, [one], two)}]


def _run(guidance: Guidance, starts: Tensor, named: tuple[int, ...], steps: int, seed: int) -> list[Tensor]:
    """The latents after each of SHARES of the steps."""
    kept, found = [max(1, round(share * steps)) for share in SHARES], []

    def each(step: int, latents: Tensor) -> None:
        found.extend(latents.clone() for at in kept if at == step)

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
    return found


def _rows(named: tuple[int, ...]) -> TextCondition:
    return expand_row(weights(*named), STARTS)


def _scores(prior: GaussianMixturePrior, one: list[Tensor], two: Tensor) -> dict[str, float | str]:
    away = [(latents - prior.means[0]).flatten(1) / STD for latents in one]
    distances = torch.cdist(two.flatten(1), prior.means.flatten(1)) / STD
    nearest = distances.argmin(1)
    near = distances.amin(1) < 3 * (two[0].numel() ** 0.5)
    return {
        "one: distance / s": ", ".join(f"{latents.norm(dim=1).mean().item():.2f}" for latents in away),
        "one: bias / s": round(away[-1].mean(0).norm().item(), 2),
        "two: at the first": round(((nearest == 0) & near).float().mean().item(), 2),
        "two: at neither": round(((nearest > 1) | ~near).float().mean().item(), 2),
    }


def _noise(guidance: Guidance, latents: Tensor, seed: int, repeats: int = 64) -> float:
    """|g - mean g| over |mean g|, g over draws at the start of the run, averaged over latents."""
    text = plain_text(expand_row(weights(0), len(latents)), weights())
    found = []
    for step in range(repeats):
        latents = latents.detach().requires_grad_()
        taught = guidance(latents, text, draws_of(latents, seed, step), 0.0, learn=False)
        found.append(torch.autograd.grad(taught.loss, latents)[0].flatten(1))
    gradients = torch.stack(found)  # [repeats, N, dims]
    mean = gradients.mean(0)
    return ((gradients - mean).norm(dim=2).mean(0) / mean.norm(dim=1)).mean().item()


if __name__ == "__main__":
    print(markdown(measure()))
