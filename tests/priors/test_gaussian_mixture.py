"""The mixture's noise prediction is the score of its density, to float64 precision."""

from __future__ import annotations

import math

import pytest
import torch

from amortized.priors import GaussianMixturePrior, Prior, ddim
from amortized.types import TextCondition


def text(pooled: torch.Tensor) -> TextCondition:
    mask = torch.ones(len(pooled), 1, dtype=torch.bool)
    return TextCondition(pooled=pooled, tokens=pooled[:, None], mask=mask)


@pytest.fixture
def prior() -> GaussianMixturePrior:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([0.1, 0.3, 0.5, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("t", [0, 10, 300, 700, 999])
def test_noise_is_the_score_of_the_log_density(prior, t):
    """eps = -sqrt(1 - abar) grad log p_t, with the density computed one Gaussian and pixel at a time."""
    generator = torch.Generator().manual_seed(t)
    weights = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    weights[1] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    abar = prior.alphas_cumprod[t].double()
    clean = prior.means[torch.randint(4, (5,), generator=generator)]
    noise = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    latents_noisy = (abar.sqrt() * clean + (1 - abar).sqrt() * noise).requires_grad_()
    log_density = torch.zeros((), dtype=torch.float64)
    for n in range(5):
        terms = []
        for k in range(4):
            if weights[n, k] == 0:
                continue
            normal = torch.distributions.Normal(
                abar.sqrt() * prior.means[k], (abar * prior.stds[k] ** 2 + 1 - abar).sqrt()
            )
            terms.append(
                torch.log(weights[n, k] / weights[n].sum()) + normal.log_prob(latents_noisy[n]).sum()
            )
        log_density = log_density + torch.logsumexp(torch.stack(terms), 0)
    (score,) = torch.autograd.grad(log_density, latents_noisy)
    got = prior.predict_noise(latents_noisy, torch.full((5,), t), text(weights))
    torch.testing.assert_close(got, -(1 - abar).sqrt() * score, rtol=1e-9, atol=1e-10)


def test_scaling_the_weights_changes_nothing(prior):
    latents_noisy = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights, t = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64), torch.tensor([400])
    one, ten = (prior.predict_noise(latents_noisy, t, text(factor * weights)) for factor in (1, 10))
    torch.testing.assert_close(one, ten)


def test_a_batch_equals_its_items(prior):
    generator = torch.Generator().manual_seed(2)
    latents_noisy = torch.randn(6, 2, 3, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 5, 100, 500, 900, 999])
    batch = prior.predict_noise(latents_noisy, t, text(weights))
    for n in range(6):
        single = prior.predict_noise(latents_noisy[n : n + 1], t[n : n + 1], text(weights[n : n + 1]))
        torch.testing.assert_close(batch[n : n + 1], single, rtol=1e-12, atol=1e-12)


def test_ddim_transports_noise_to_the_gaussian():
    """For one Gaussian the exact probability-flow map is x0 = mean + std * x_T-residual / std_T."""
    generator = torch.Generator().manual_seed(3)
    mean, std = torch.randn(1, 2, 2, 2, generator=generator, dtype=torch.float64), 0.4
    prior = GaussianMixturePrior(mean, torch.tensor([std], dtype=torch.float64))
    noise = torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64)
    condition = text(torch.ones(3, 1, dtype=torch.float64))
    got = ddim(prior, noise, condition, condition, num_steps=1000, cfg=3.0)  # equal texts: the scale cancels
    last = prior.alphas_cumprod[-1].item()
    last_std = math.sqrt(last * std**2 + 1 - last)
    torch.testing.assert_close(
        got, mean + std * (noise - math.sqrt(last) * mean) / last_std, rtol=0, atol=0.02
    )


def test_ddim_guides_towards_the_text():
    means = torch.stack([torch.full((1, 2, 2), value, dtype=torch.float64) for value in (-1.0, 1.0)])
    prior = GaussianMixturePrior(means, torch.tensor([0.1, 0.1], dtype=torch.float64))
    noise = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    right = text(torch.tensor([[0.2, 0.8]], dtype=torch.float64).expand(8, 2))
    both = text(torch.tensor([[0.5, 0.5]], dtype=torch.float64).expand(8, 2))
    share = [(ddim(prior, noise, right, both, num_steps=50, cfg=s) > 0).double().mean() for s in (0.0, 8.0)]
    assert share[1] == 1.0 and share[0] < 0.9


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_ddim_refuses_impossible_step_counts(prior, num_steps):
    condition = text(torch.ones(1, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="num_steps must lie in"):
        ddim(prior, prior.means[:1], condition, condition, num_steps=num_steps, cfg=1.0)


def test_images_are_the_latents(prior):
    images = torch.rand(2, 3, 3, 2, dtype=torch.float64)
    assert prior.encode(images).shape == (2, 2, 3, 3)
    assert torch.equal(prior.decode(prior.encode(images)), images)


def test_a_mixture_implements_prior(prior):
    assert isinstance(prior, Prior)


def test_mismatched_shapes_are_refused():
    with pytest.raises(ValueError, match=r"means \[K, C, h, h\] and stds \[K\]"):
        GaussianMixturePrior(torch.zeros(2, 1, 4, 4), torch.ones(3))


def test_weights_that_are_not_positive_count_as_zero():
    """In values and gradients: a learned text may cross zero."""
    means = torch.stack([torch.full((1, 2, 2), value, dtype=torch.float64) for value in (-1.0, 0.0, 2.0)])
    prior = GaussianMixturePrior(means, torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64))
    latents_noisy, t = torch.randn(1, 1, 2, 2, dtype=torch.float64), torch.tensor([400])

    def predicted(*weights: float):
        pooled = torch.tensor([weights], dtype=torch.float64, requires_grad=True)
        mask = torch.ones(1, 1, dtype=torch.bool)
        noise = prior.predict_noise(
            latents_noisy, t, TextCondition(pooled=pooled, tokens=pooled[:, None], mask=mask)
        )
        return noise, torch.autograd.grad(noise.sum(), pooled, retain_graph=True)[0]

    (negative, gradient), (zero, _) = predicted(0.3, -0.2, 0.5), predicted(0.3, 0.0, 0.5)
    without = GaussianMixturePrior(means[[0, 2]], prior.stds[[0, 2]])
    pooled = torch.tensor([[0.3, 0.5]], dtype=torch.float64)
    text = TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(negative, without.predict_noise(latents_noisy, t, text))
    assert torch.equal(negative, zero) and gradient[0, 1] == 0 and gradient.isfinite().all()
