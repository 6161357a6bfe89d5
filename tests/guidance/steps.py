"""One step of a method on the mixture, and priors that record their calls."""

from __future__ import annotations

import torch

from amortized.guidance import Guidance, build_learned, published
from amortized.priors import GaussianMixturePrior
from tests.guidance.closed_form import mixture, weights_of_text


def guidance_for(method, prior=None, **settings) -> Guidance:
    """A published method with changed settings and a reference model that differs from its initialization."""
    prior, config = prior or mixture(), published(method, **settings)
    if config.learned is None:
        return Guidance(prior, config)
    own = weights_of_text(1, 20) if config.learned.text else None
    null = weights_of_text(1, 21)
    learned = build_learned(config.learned, prior, null=null, text=own, num_prompts=3, seed=0).double()
    with torch.no_grad():
        for i, parameter in enumerate(learned.parameters()):
            parameter += 0.2 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(i))
    return Guidance(prior, config, learned)


def learned_parameters(guidance):
    """(weights of the components or None for the image's own, shift of the means)"""
    if guidance.learned is None:
        return None
    if guidance.config.learned.kind == "null":
        return guidance.learned.pooled[0].detach().numpy(), 0.0
    text, scale = guidance.learned.text, guidance.config.learned.lora_scale
    weights = None if text is None else text.pooled[0].numpy()
    return weights, scale * guidance.learned.adapter.shift.detach().numpy()


def step(guidance, latents, text, draws, progress=0.3, cameras=None, **arguments):
    """(output, d loss / d latents)"""
    latents = latents.clone().requires_grad_()
    output = guidance(latents, text, draws, progress, cameras, **arguments)
    (gradient,) = torch.autograd.grad(output.loss, latents)
    return output, gradient


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error relative to the largest expected number."""
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-9)).item()


class CountingPrior(GaussianMixturePrior):
    """Records the arguments of each denoiser call."""

    def predict_noise(self, noisy, timesteps, text, cameras=None, *, adapted=False):
        self.calls = [*getattr(self, "calls", []), (noisy, timesteps, text, cameras)]
        return super().predict_noise(noisy, timesteps, text, cameras, adapted=adapted)


class SeeingPrior(GaussianMixturePrior):
    """Predicts another image for every camera."""

    def predict_noise(self, noisy, timesteps, text, cameras=None, *, adapted=False):
        assert cameras is not None
        seen = torch.sin(cameras.azimuth_deg.flatten().to(noisy))[:, None, None, None]
        return super().predict_noise(noisy, timesteps, text, adapted=adapted) + 0.3 * seen


def seeing(views_per_group: int = 1) -> SeeingPrior:
    prior = mixture()
    return SeeingPrior(prior.means, prior.stds, views_per_group=views_per_group)


def counting(views_per_group: int = 1) -> CountingPrior:
    prior = mixture()
    return CountingPrior(prior.means, prior.stds, views_per_group=views_per_group)
