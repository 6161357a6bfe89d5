"""The gradient of every method: against its closed form, and for each item of a batch."""

from __future__ import annotations

import pytest
import torch

from amortized.cameras import cameras_at, view_index
from amortized.conditioning import ViewTextConfig, perp_neg_text, take_rows
from amortized.conditioning.views import plain_text
from amortized.guidance import METHODS, GuidanceDraws
from amortized.guidance.timesteps import share_in_groups
from tests.guidance.closed_form import gradient_of, mixture, random_step, rows, weights_of_text
from tests.guidance.steps import (
    CountingPrior,
    camera_dependent,
    counting,
    guidance_for,
    learned_mixture,
    relative_error,
    step,
)

SETTINGS = {
    "as published": {},
    "scheduled scale": {"guidance_scale": (100.0, 7.5)},
    "uniform weight": {"weighting": "uniform", "weight": 3.0},
    "sqrt weight": {"weighting": "sqrt", "guidance_scale": 1.0},
    "normalized": {"normalize": "per_sample", "weight": 0.1},
    "clipped": {"max_norm": 2.0, "weighting": "uniform", "weight": 1.0},
    "full shift": {"shift_random": False, "shift_eta": 0.25},
    "constant range": {"t_min": 0.02, "t_max": 0.98},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_is_the_closed_form(method, perp_neg, settings):
    guidance, batch = guidance_for(method, **settings), 4
    prior, config, learned = guidance.prior, guidance.config, learned_mixture(guidance)
    for progress in (0.0, 0.3, 1.0):
        latents, text, draws = random_step(batch, perp_neg=perp_neg)
        output, gradient = step(guidance, latents, text, draws, progress)
        for b in range(batch):
            item = (rows(value, slice(b, b + 1)) for value in (latents, text, draws))
            expected, t, later = gradient_of(prior, method, config, *item, progress, batch, learned)
            assert (output.timesteps[b].item(), output.timesteps_reference[b].item()) == (t, later)
            assert relative_error(gradient[b], torch.from_numpy(expected)) <= 1e-7
            per_sample = 0.5 * (expected * batch / config.weight) ** 2
            assert output.per_sample[b].item() == pytest.approx(per_sample.sum(), rel=1e-6)
        torch.testing.assert_close(output.loss.detach(), config.weight * output.per_sample.mean())


def view_text(table, null, cameras, config):
    """Return the view-dependent text of P prompts, from a table with a row for each of their four views."""
    if config.perp_neg:
        return perp_neg_text(table, null, cameras, config)
    first = 4 * torch.arange(len(cameras.azimuth_deg))[:, None]
    view = view_index(cameras, overhead_deg=config.overhead_deg, front_deg=config.front_deg)
    return plain_text(take_rows(table, (first + view).flatten()), null)


@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_prompts_equals_its_prompts_one_by_one(method, perp_neg, num_prompts, num_views):
    """From cameras and per-view texts to gradients; groups of V views share their timestep.

    The prior depends on the cameras: a query of one image with another's camera would show.
    """
    batch = num_prompts * num_views
    guidance = guidance_for(method, camera_dependent(views_per_group=num_views))
    config = ViewTextConfig(perp_neg=perp_neg)
    latents, _, draws = random_step(batch, perp_neg=False)
    generator = torch.Generator().manual_seed(5)
    azimuth = 360 * torch.rand(num_prompts, num_views, generator=generator, dtype=torch.float64) - 180
    table, null = weights_of_text(4 * num_prompts, 7), weights_of_text(1, 8)

    def cameras(azimuth):
        flat = torch.zeros_like(azimuth)
        return cameras_at(azimuth_deg=azimuth, elevation_deg=flat, distance=flat + 1, fovy_deg=flat + 40)

    text = view_text(table, null, cameras(azimuth), config)
    output, gradient = step(guidance, latents, text, draws, cameras=cameras(azimuth))
    for p in range(num_prompts):
        images, one_camera = slice(p * num_views, (p + 1) * num_views), cameras(azimuth[p : p + 1])
        one_text = view_text(rows(table, slice(4 * p, 4 * p + 4)), null, one_camera, config)
        single, expected = step(guidance, latents[images], one_text, rows(draws, images), cameras=one_camera)
        assert relative_error(gradient[images] * num_prompts, expected) <= 1e-9
        torch.testing.assert_close(output.per_sample[images], single.per_sample)
        assert torch.equal(output.timesteps[images], single.timesteps)
        assert len(set(single.timesteps.tolist())) == len(set(single.timesteps_reference.tolist())) == 1


def test_every_query_gets_the_cameras_of_its_images():
    prior = counting(views_per_group=2)
    latents, text, draws = random_step(6, perp_neg=False)
    azimuth = torch.arange(6.0).reshape(3, 2)
    flat = torch.zeros_like(azimuth)
    cameras = cameras_at(azimuth_deg=azimuth, elevation_deg=flat, distance=flat + 1, fovy_deg=flat + 40)
    step(guidance_for("asd", prior), latents, text, draws, cameras=cameras)
    noisy, _, _, passed = prior.calls[0]
    assert passed.c2w.shape == (9, 2, 4, 4)
    assert passed.azimuth_deg.flatten().tolist() == [0, 1, 2, 3, 4, 5] * 3 and len(noisy) == 18


def test_an_incomplete_group_of_views_raises():
    latents, text, draws = random_step(6, perp_neg=False)
    with pytest.raises(ValueError, match="groups of 4 views"):
        guidance_for("asd", mixture(views_per_group=4))(latents, text, draws, 0.0)


def test_float32_draws_work_with_float64_latents():
    latents, text, draws = random_step(3, perp_neg=False)
    float32 = {name: value.float() for name, value in vars(draws).items() if value.is_floating_point()}
    single = GuidanceDraws(**{**vars(draws), **float32})
    output, gradient = step(guidance_for("asd"), latents, text, single)
    assert gradient.dtype == output.loss.dtype == torch.float64


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("normalize", ["none", "per_sample"])
def test_a_bad_prediction_makes_the_loss_non_finite(method, bad, normalize):
    class BrokenPrior(CountingPrior):
        def predict_noise(self, noisy, timesteps, text, cameras=None, *, adapted=False):
            noise = super().predict_noise(noisy, timesteps, text, cameras, adapted=adapted).clone()
            if len(noise) % 3 == 0:  # a query of all three images
                noise[2, 0, 0, 0] = bad  # one pixel of the last image, in the first query
            return noise

    prior = BrokenPrior(mixture().means, mixture().stds)
    latents, text, draws = random_step(3, perp_neg=False)
    output, _ = step(guidance_for(method, prior, normalize=normalize), latents, text, draws)
    assert not torch.isfinite(output.loss)
    assert torch.isfinite(output.per_sample[:2]).all()


def test_metrics_are_detached_scalars_of_the_step():
    latents, text, draws = random_step(3, perp_neg=False)
    guidance = guidance_for("sds", normalize="per_sample")
    output, _ = step(guidance, latents, text, draws)
    assert all(value.ndim == 0 and not value.requires_grad for value in output.metrics.values())
    assert output.metrics["reference_norm"].item() == pytest.approx(
        draws.noise.flatten(1).norm(dim=1).mean().item()
    )
    assert output.metrics["timestep"].item() == output.timesteps.double().mean().item()
    for name, weighting in (("gradient", "one_minus_alphas_cumprod"), ("difference", "uniform")):
        _, gradient = step(guidance_for("sds", weighting=weighting), latents, text, draws)
        norm = (3 * gradient).flatten(1).norm(dim=1).mean()
        assert output.metrics[f"{name}_norm"].item() == pytest.approx(norm.item())


@pytest.mark.parametrize("method", METHODS)
def test_descent_reaches_the_component_named_by_the_text(method):
    """100 steps of any method move free latents from another component toward the named one."""
    prior = mixture()
    target = torch.full((1, 4), 0.02, dtype=torch.float64)
    target[0, 2] = 1.0
    null = torch.ones(1, 4, dtype=torch.float64)
    _, text, _ = random_step(1, perp_neg=False)

    def condition(pooled):
        mask = torch.ones(1, 1, dtype=torch.bool)
        return type(text.positive)(pooled=pooled, tokens=pooled[:, None], mask=mask)

    text = type(text)(
        positive=condition(target),
        unconditional=condition(null),
        empty=condition(null),
        negatives=(),
        negative_weights=null[:0, :1],
    )
    guidance = guidance_for(method, prior, guidance_scale=5.0)
    latents = prior.means[:1].clone().requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for i in range(100):
        _, _, draws = random_step(1, seed=i)
        optimizer.zero_grad()
        guidance(latents, text, draws, i / 100).loss.backward()
        optimizer.step()
    distances = (latents.detach() - prior.means).flatten(1).norm(dim=1)
    # Guidance overshoots the component, away from all others: only the order of distances is certain.
    assert distances.argmin() == 2


def test_a_group_shares_its_first_draw():
    assert share_in_groups(torch.tensor([1, 2, 3, 4, 5, 6]), 3).tolist() == [1, 1, 1, 4, 4, 4]


@pytest.mark.parametrize("method", METHODS)
def test_the_views_of_a_prompt_can_share_t(method):
    """The result is as if all views of a prompt had the draws of its first view."""
    latents, text, draws = random_step(6)
    flat = torch.zeros(3, 2)
    cameras = cameras_at(azimuth_deg=flat, elevation_deg=flat, distance=flat + 1, fovy_deg=flat + 40)
    output, gradient = step(guidance_for(method, time_per="prompt"), latents, text, draws, cameras=cameras)
    first = {name: getattr(draws, name)[[0, 0, 2, 2, 4, 4]] for name in ("u_timestep", "u_shift")}
    shared = GuidanceDraws(**{**vars(draws), **first})
    expected, expected_gradient = step(guidance_for(method), latents, text, shared)
    assert torch.equal(output.timesteps, expected.timesteps) and torch.equal(gradient, expected_gradient)
    assert torch.equal(output.timesteps_reference, expected.timesteps_reference)
    with pytest.raises(ValueError, match="time_per=prompt needs cameras"):
        step(guidance_for(method, time_per="prompt"), latents, text, draws)
