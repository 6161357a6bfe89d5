"""A rectified flow in the variance-preserving frame: exact, for a velocity in closed form."""

from __future__ import annotations

import pytest
import torch

from amortized.conditioning.rows import expand_row
from amortized.conditioning.views import plain_text
from amortized.guidance import METHODS, Guidance, published
from amortized.guidance.playground import optimize
from amortized.priors.schedule import (
    add_noise,
    flow_alphas_cumprod,
    flow_time,
    flow_velocity_to_noise,
    to_flow,
)
from tests.flow_mixture import flow_mixture
from tests.guidance.closed_form import gradient_of, mixture, random_step, rows, weights_of_text
from tests.guidance.steps import guidance_for, learned_mixture, relative_error, step
from tests.priors.test_gaussian_mixture import text

# A LoRA needs attention, which the closed form has not.
LORA_METHODS = ("vsd", "lods-lora")


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_the_frame_has_the_flows_mixture_and_the_schedulers_times(shift) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    s = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.flip(0).double()
    abar = flow_alphas_cumprod(1000, shift)
    torch.testing.assert_close(flow_time(abar), s, rtol=0, atol=1e-6)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 1000, generator=generator, dtype=torch.float64)
    s = flow_time(abar)
    x_flow = to_flow(add_noise(x0, noise, abar), abar)
    torch.testing.assert_close(x_flow, (1 - s) * x0 + s * noise)
    torch.testing.assert_close(flow_velocity_to_noise(noise - x0, x_flow, abar), noise)
    ratio = ((1 - s) / s) ** 2  # of signal to noise
    torch.testing.assert_close(abar / (1 - abar), ratio)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("t", [0, 3, 200, 700, 998])
def test_noise_is_that_of_the_variance_preserving_mixture(shift, t) -> None:
    """The velocity's closed form is in the flow's terms; the noise's is independent of flows."""
    whole = mixture()
    prior, expected = flow_mixture(whole.means, whole.stds, shift=shift)
    latents = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    condition, times = weights_of_text(5, 0), torch.full((5,), t)
    got = prior.predict_noise(latents, times, condition)
    assert relative_error(got, expected.predict_noise(latents, times, condition)) < 1e-9


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in LORA_METHODS])
def test_gradients_of_every_method_are_the_closed_form(method, perp_neg) -> None:
    whole, batch = mixture(), 3
    prior, closed = flow_mixture(whole.means, whole.stds)
    assert prior.num_timesteps == 1000
    guidance = guidance_for(method, prior)
    learned = learned_mixture(guidance)
    for progress in (0.0, 0.7):
        latents, view_text, draws = random_step(batch, perp_neg=perp_neg)
        output, gradient = step(guidance, latents, view_text, draws, progress)
        for b in range(batch):
            item = (rows(value, slice(b, b + 1)) for value in (latents, view_text, draws))
            expected, t, later = gradient_of(closed, method, guidance.config, *item, progress, batch, learned)
            assert (output.timesteps[b].item(), output.timesteps_reference[b].item()) == (t, later)
            assert relative_error(gradient[b], torch.from_numpy(expected)) <= 1e-7


def test_sds_reaches_the_component_that_the_text_names() -> None:
    means = torch.stack([torch.full((1, 2, 2), value) for value in (-0.8, 0.8)])
    prior, _ = flow_mixture(means, torch.tensor([0.15, 0.15]))
    views = plain_text(expand_row(text(torch.tensor([[1e-3, 1.0]])), 3), text(torch.ones(1, 2)))
    guidance = Guidance(prior, published("sds", guidance_scale=1.0))
    result = optimize(guidance, torch.zeros(3, 1, 2, 2), views, None, steps=120, learning_rate=0.03, seed=0)
    assert (result - 0.8).abs().max() < 0.3
