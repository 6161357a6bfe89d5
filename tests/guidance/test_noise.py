"""Noise sources: inversion reverses sampling, a trajectory is DDIM, a cache changes the cost alone."""

from __future__ import annotations

import pytest
import torch

from amortized.guidance import published
from amortized.guidance.methods import build_method
from amortized.guidance.noise import ddim_step
from amortized.guidance.scores import CleanBatch, Denoiser
from amortized.random import normal
from tests.guidance.closed_form import SHAPE, mixture, random_step
from tests.guidance.steps import counting, guidance_for, relative_error, step


def test_ddim_from_the_inverted_noise_returns_to_the_latents():
    """Without text, DDIM from the inverted latents reverses the inversion."""
    prior, (latents, text, draws) = mixture(), random_step(3)
    draws.u_timestep[:] = 0.999
    config = published("sdi", inversion={"stride": 0.001, "scale": 0.0, "eta": 0.0}, t_min=0.6, t_max=0.6)
    times = torch.full((3,), 600)
    clean = CleanBatch(
        latents=latents,
        timesteps=times,
        timesteps_reference=times,
        reference_on_host=times,
        text=text,
        draws=draws,
    )
    batch = build_method(config).noise(Denoiser(prior), clean)
    x = batch.latents_noisy
    for t in range(600, 0, -1):
        now, to = torch.full((3,), t), torch.full((3,), t - 1)
        x = ddim_step(prior, x, prior.predict_noise(x, now, text.empty), now, to)
    abar = prior.alphas_cumprod[0].double()
    start = abar.sqrt() * latents + (1 - abar).sqrt() * draws.noise
    assert (x - start).abs().max() < 0.02 * start.abs().max()
    abar = prior.alphas_cumprod[600].double()
    expected = (batch.latents_noisy - abar.sqrt() * latents) / (1 - abar).sqrt()
    torch.testing.assert_close(batch.noise, expected)


def test_a_trajectory_is_ddim_and_depends_on_seeds_and_texts_alone():
    """Its noise is that of DDIM sampling from the same start, for any latents."""
    prior, (latents, text, draws) = mixture(), random_step(3)
    times, reference = torch.zeros(3, dtype=torch.long), torch.full((3,), 99)
    timesteps = {"timesteps": times, "timesteps_reference": reference, "reference_on_host": reference}
    source = build_method(published("dsd", trajectory={"num_steps": 10, "scale": 3.0})).noise
    batch = source(Denoiser(prior), CleanBatch(latents=latents, text=text, draws=draws, **timesteps))
    start = torch.stack([normal(SHAPE, seed, "trajectory") for seed in draws.seeds.tolist()]).double()
    x = start
    for t in range(999, 99, -100):
        now, to = torch.full((3,), t), torch.full((3,), t - 100)
        conditional, null = (prior.predict_noise(x, now, c) for c in (text.positive, text.unconditional))
        x = ddim_step(prior, x, null + 3.0 * (conditional - null), now, to)
    now = torch.full((3,), 99)
    conditional, null = (prior.predict_noise(x, now, c) for c in (text.positive, text.unconditional))
    torch.testing.assert_close(batch.noise, null + 3.0 * (conditional - null))
    other = source(Denoiser(prior), CleanBatch(latents=latents + 1, text=text, draws=draws, **timesteps))
    assert torch.equal(other.noise, batch.noise)
    assert torch.equal(start[0], start[2]) and not torch.equal(start[0], start[1])  # seeds 50, 51, 50


@pytest.mark.parametrize("perp_neg", [False, True])
def test_a_cached_trajectory_is_the_same_and_is_predicted_once(perp_neg):
    plain = guidance_for("dsd", counting(), shift_eta=0.0)
    cached = guidance_for("dsd", counting(), shift_eta=0.0, trajectory={"cache": True})
    counts = []
    for progress in (0.0, 0.1, 0.25, 0.25):
        latents, text, draws = random_step(3, perp_neg=perp_neg)
        first, a = step(plain, latents, text, draws, progress)
        second, b = step(cached, latents, text, draws, progress)
        assert relative_error(b, a) <= 1e-12
        counts.append((first.num_denoiser_calls, second.num_denoiser_calls))
    per_cfg = 3 * (2 + 2 * perp_neg)
    last = per_cfg + 3 * (per_cfg // 3 if perp_neg else 1)  # target and reference
    steps = [1, 3, 4, 4]  # nodes above t = 980, 771, 650, 650: 999, then 899 and 799, then 699
    assert [count for count, _ in counts] == [per_cfg * (n + 1) + last for n in steps]
    assert [count for _, count in counts] == [per_cfg * (n + 1) + last for n in (1, 2, 1, 0)]
    assert len(cached.method.noise.cached) == 3 * 4
    assert cached.cache_bytes(num_assets=5, num_views=4) == 4 * 2 * 3 * 3 * 7 * 5 * 4  # 999 to 399, above 320
    assert plain.cache_bytes(num_assets=5, num_views=4) == 0


def test_a_trajectory_cache_with_a_multi_view_prior_raises():
    with pytest.raises(ValueError, match="trajectory.cache .* denoises 4 views together"):
        guidance_for("dsd", mixture(views_per_group=4), trajectory={"cache": True})


def test_views_denoised_together_start_from_different_noise():
    prior, (latents, text, draws) = counting(views_per_group=4), random_step(8)
    draws.seeds[:] = 7
    step(guidance_for("dsd", prior), latents, text, draws)
    first = prior.calls[0][0][:8]
    assert torch.equal(first[:4], first[4:]) and len({float(x.sum()) for x in first}) == 4
