"""One guidance step on the mixture, and priors that record their calls or depend on the cameras."""

from __future__ import annotations

import torch

from amortized.guidance import Guidance, build_guidance, published
from amortized.priors import GaussianMixturePrior
from tests.guidance.closed_form import mixture, weights_of_text


def guidance_for(method, prior=None, **settings) -> Guidance:
    """Build a published method with changed settings and a reference model moved away from its start."""

    def encode(texts):
        return weights_of_text(1, 21 if texts == [""] else 20)

    config = published(method, **settings)
    guidance = build_guidance(config, prior or mixture(), encode=encode, num_prompts=3, seed=0)
    if guidance.learned is not None:
        with torch.no_grad():
            for i, parameter in enumerate(guidance.learned.double().parameters()):
                parameter += 0.2 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(i))
    return guidance


def learned_mixture(guidance):
    """Return the reference model: (component weights or None for the image's text, shift of the means)."""
    if guidance.learned is None:
        return None
    if guidance.config.learned.kind == "null":
        return guidance.learned.pooled[0].detach().numpy(), 0.0
    text, scale = guidance.learned.text, guidance.config.learned.lora_scale
    weights = None if text is None else text.pooled[0].numpy()
    return weights, scale * guidance.learned.adapter.shift.detach().numpy()


def step(guidance, latents, text, draws, progress=0.3, cameras=None, **arguments):
    """Run a step and return (output, d loss / d latents)."""
    latents = latents.clone().requires_grad_()
    output = guidance(latents, text, draws, progress, cameras, **arguments)
    (gradient,) = torch.autograd.grad(output.loss, latents)
    return output, gradient


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest error relative to the largest expected value, or to 1e-9 if all are about zero."""
    return ((got - expected).abs().max() / expected.abs().max().clamp(min=1e-9)).item()


class CountingPrior(GaussianMixturePrior):
    """Records the arguments of each denoiser call."""

    def predict_noise(self, latents_noisy, timesteps, text, cameras=None, *, adapted=False):
        self.calls = [*getattr(self, "calls", []), (latents_noisy, timesteps, text, cameras)]
        return super().predict_noise(latents_noisy, timesteps, text, cameras, adapted=adapted)


class CameraPrior(GaussianMixturePrior):
    """Predicts differently for every azimuth."""

    def predict_noise(self, latents_noisy, timesteps, text, cameras=None, *, adapted=False):
        assert cameras is not None
        offset = torch.sin(cameras.azimuth_deg.flatten().to(latents_noisy))[:, None, None, None]
        return super().predict_noise(latents_noisy, timesteps, text, adapted=adapted) + 0.3 * offset


def camera_dependent(views_per_group: int = 1) -> CameraPrior:
    prior = mixture()
    return CameraPrior(prior.means, prior.stds, views_per_group=views_per_group)


def counting(views_per_group: int = 1) -> CountingPrior:
    prior = mixture()
    return CountingPrior(prior.means, prior.stds, views_per_group=views_per_group)
