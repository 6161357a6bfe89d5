"""Reference models: their loss and its gradient in closed form, for each image and each batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from amortized.conditioning.views import ViewText
from amortized.guidance import published
from amortized.guidance.learned import build_learned, denoising_loss
from amortized.priors import GaussianMixturePrior
from amortized.priors.precision import normalize_gradient_through, scale_gradient
from amortized.random import normal
from tests.guidance.closed_form import SHAPE, mixture, noise_of, random_step, rows, weights_of_text

KINDS = ("null", "prompt-nulls", "adapter", "lora")


def perturbed_model(kind: str, prior: GaussianMixturePrior) -> torch.nn.Module:
    """Build a reference model with all weights moved away from their start, by different amounts."""
    config = published("csd", null="learned", learned={"kind": kind}).learned
    model = build_learned(config, prior, null=weights_of_text(1, 21), text=None, num_prompts=3, seed=0)
    model = model.double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter += 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(i))
    return model


def expected_mixture(kind: str, model: torch.nn.Module, text: ViewText, prompt: int, row: int):
    """Return (component weights, shift of the means) for an image of a prompt, computed in numpy."""
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    pooled = text.positive.pooled[row].numpy()
    if kind == "null":
        return weights["pooled"][0], 0.0
    if kind == "prompt-nulls":
        return weights["pooled"][prompt], 0.0
    if kind == "lora":
        return pooled, weights["adapter.shift"]
    hidden = weights["residual.0.weight"] @ pooled + weights["residual.0.bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    residual = weights["residual.2.weight"] @ hidden + weights["residual.2.bias"]
    return weights["null.pooled"][0] + residual, 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_its_gradient_are_the_closed_form(kind: str):
    prior, (latents, text, draws) = mixture(), random_step(4)
    model = perturbed_model(kind, prior)
    loss = denoising_loss(prior, model, latents, text, draws, None)

    def expected() -> float:
        squares = []
        for b in range(4):
            t = math.floor(float(draws.u_learned[b]) * 1000)
            abar = float(prior.alphas_cumprod[t])
            noise = normal(SHAPE, int(draws.keys[b]), "learned").double().numpy()
            x = math.sqrt(abar) * latents[b].numpy() + math.sqrt(1 - abar) * noise
            mixture_b = expected_mixture(kind, model, text, int(draws.prompts[b]), b)
            noise_pred = noise_of(prior, x, t, *mixture_b)
            squares.append((noise_pred - noise) ** 2)
        return float(np.mean(squares))

    assert loss.item() == pytest.approx(expected(), rel=1e-9)
    used = [p for name, p in model.named_parameters() if "tokens" not in name]
    gradients = torch.autograd.grad(loss, used)
    for parameter, gradient in zip(used, gradients, strict=True):
        direction = torch.rand_like(parameter)
        with torch.no_grad():
            parameter += 1e-5 * direction
            above = expected()
            parameter -= 2e-5 * direction
            slope = (above - expected()) / 2e-5
            parameter += 1e-5 * direction
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_the_loss_of_a_batch_is_the_mean_of_its_prompts(kind: str, num_prompts: int, num_views: int):
    prior = mixture(views_per_group=num_views)
    model, batch = perturbed_model(kind, prior), num_prompts * num_views
    latents, text, draws = random_step(batch)
    draws.prompts[:] = torch.arange(num_prompts).repeat_interleave(num_views)
    batch_loss = denoising_loss(prior, model, latents, text, draws, None)
    groups = [slice(p * num_views, (p + 1) * num_views) for p in range(num_prompts)]
    losses = [
        denoising_loss(prior, model, *(rows(value, group) for value in (latents, text, draws)), None)
        for group in groups
    ]
    torch.testing.assert_close(batch_loss, torch.stack(losses).mean())
    assert len({round(loss.item(), 9) for loss in losses}) == num_prompts


def test_small_gradients_survive_half_precision():
    """Each row is scaled by its own norm, here 1e-9 and 1e-3: the first would underflow in float16."""
    x = torch.randn(2, 5, requires_grad=True)
    weights = torch.tensor([[1e-9], [1e-3]]) * torch.rand(2, 5)

    def network(values: torch.Tensor) -> torch.Tensor:
        return (3 * values.half()).float()

    (plain,) = torch.autograd.grad((network(x) * weights).sum(), x)
    assert plain[0].abs().max() == 0
    (normalized,) = torch.autograd.grad((normalize_gradient_through(network, x) * weights).sum(), x)
    torch.testing.assert_close(normalized, 3 * weights, rtol=2e-3, atol=0)
    torch.testing.assert_close(normalize_gradient_through(network, x), network(x))
    (zero,) = torch.autograd.grad((normalize_gradient_through(network, x) * 0).sum(), x)
    assert torch.equal(zero, torch.zeros(2, 5))


def test_a_non_finite_gradient_stays_non_finite():
    x = torch.randn(2, 5, requires_grad=True)
    weights = torch.ones(2, 5)
    weights[1, 2] = math.nan
    y = normalize_gradient_through(lambda v: v.half().float(), x)
    (got,) = torch.autograd.grad((y * weights).sum(), x)
    assert got[0].isfinite().all() and not got[1].isfinite().all()


@pytest.mark.parametrize(
    "through", [lambda x: normalize_gradient_through(lambda v: 2 * v, x), lambda x: scale_gradient(x, 8)]
)
def test_gradient_scaling_is_the_identity_under_no_grad(through):
    x = torch.randn(2, 5, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(through(x), through(x.detach()))


def test_scale_gradient_leaves_the_values_unchanged():
    x = torch.randn(3, requires_grad=True)
    y = scale_gradient(x, 8.0)
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((3,), 8.0))
