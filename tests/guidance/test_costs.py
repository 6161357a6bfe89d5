"""The cost of a step: queries share denoiser batches, none is redundant, and the counts are exact."""

from __future__ import annotations

import pytest
import torch

from amortized.guidance import METHODS, calls_per_image, published, queries_per_image
from tests.guidance.closed_form import random_step
from tests.guidance.steps import counting, guidance_for, step

# Per method: denoiser images per rendered image, denoiser calls, and of both those with a gradient.
COSTS = {
    "sds": (2, 1, 0),
    "csd": (2, 1, 0),
    "asd": (3, 1, 0),
    "vsd": (3 + 1, 2 + 1, 1),
    "lods-embedding": (2 + 1, 1 + 1, 1),
    "lods-lora": (2 + 1, 2 + 1, 1),
}


@pytest.mark.parametrize(("method", "cost"), COSTS.items(), ids=COSTS)
@pytest.mark.parametrize("perp_neg", [False, True])
def test_queries_share_denoiser_calls(method, cost, perp_neg):
    prior, (images, calls, learning) = counting(), cost
    images += 2 * perp_neg
    latents, text, draws = random_step(4, perp_neg=perp_neg)
    guidance = guidance_for(method, prior)
    output, _ = step(guidance, latents, text, draws)
    assert len(prior.calls) == calls
    assert queries_per_image(guidance.config, len(text.negatives)) == images - learning
    assert output.num_denoiser_calls == 4 * images == sum(len(noisy) for noisy, *_ in prior.calls)
    assert output.num_gradient_calls == 4 * learning
    output, _ = step(guidance, latents, text, draws, learn=False)
    assert output.num_denoiser_calls == 4 * (images - learning) and output.learned_loss is None


@pytest.mark.parametrize("perp_neg", [False, True])
def test_an_inversion_makes_no_redundant_calls(perp_neg):
    """ISM with span 80 at t = 480 and 80: steps from 0 and 200 up to s = 400, none to s = 0; then s and t."""
    prior = counting()
    latents, text, draws = random_step(2, perp_neg=perp_neg)
    draws.u_timestep[:] = torch.tensor([0.999, 0.0])
    guidance = guidance_for("ism", prior, t_min=0.08, t_max=0.48, shift_span=0.08)
    output, _ = step(guidance, latents, text, draws)
    assert output.timesteps.tolist() == [480, 80] and output.timesteps_reference.tolist() == [400, 0]
    assert [len(noisy) for noisy, *_ in prior.calls] == [1, 1, 2, 2 * (2 + 2 * perp_neg)]
    assert output.num_denoiser_calls == sum(len(noisy) for noisy, *_ in prior.calls)
    assert [times.tolist() for _, times, *_ in prior.calls[:3]] == [[0], [200], [400, 0]]


# At scale 1 the null is not queried: in the first step only, and in the second half of the run.
SCHEDULED = [("sds", {"guidance_scale": (1.0, 7.5)}), ("sds", {"guidance_scale": (0.0, 7.5, 1.0, 0.5)})]


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize(("method", "settings"), [*((m, {}) for m in METHODS), *SCHEDULED])
def test_the_predicted_cost_of_a_run_is_the_sum_over_its_steps(method, settings, perp_neg):
    guidance, num_images = guidance_for(method, **settings), 0
    for i in range(60):
        latents, text, draws = random_step(4, perp_neg=perp_neg, seed=i)
        num_images += step(guidance, latents, text, draws, i / 60)[0].num_denoiser_calls
    # 240 random images against the expectation
    assert num_images / 240 == pytest.approx(calls_per_image(guidance.config, 2 * perp_neg), rel=0.04)


# Denoiser images per view and step of the public code: CFG counts as two, training of the reference model is
# included, Perp-Neg is not.
PUBLIC = {
    "sds": 2,
    "csd": 2,
    "vsd": 5,
    "asd": 3,
    "ism": 4.7,
    "lods-embedding": 3,
    "lods-lora": 3,
    "sdi": 17,
    "dsd": 16,
}


@pytest.mark.parametrize("method", METHODS)
def test_no_method_costs_more_than_its_public_code(method):
    assert 0.75 * PUBLIC[method] < calls_per_image(published(method)) < PUBLIC[method] + 0.05


@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_trajectory_makes_no_redundant_calls(perp_neg):
    """At progress 0.25, t = 650: nodes 999, 899, 799, 699; the noise at t'; then target and reference."""
    prior, per_cfg = counting(), 2 + 2 * perp_neg
    latents, text, draws = random_step(1, perp_neg=perp_neg)
    output, _ = step(guidance_for("dsd", prior, shift_eta=0.0), latents, text, draws, 0.25)
    assert output.timesteps.tolist() == output.timesteps_reference.tolist() == [650]
    reference = per_cfg if perp_neg else 1
    assert [len(noisy) for noisy, *_ in prior.calls] == [per_cfg] * 5 + [per_cfg + reference]
    assert [times[0].item() for _, times, *_ in prior.calls] == [999, 899, 799, 699, 650, 650]
