"""Every method's gradient is its formula; a batch is its items; one denoiser call serves a step."""

from __future__ import annotations

import pytest
import torch

from amortized.cameras import cameras_at
from amortized.conditioning import TextBank, ViewTextConfig, view_text
from amortized.guidance import (
    METHOD_NAMES,
    METHODS,
    Guidance,
    GuidanceConfig,
    GuidanceDraws,
    perpendicular,
    share_in_groups,
    surrogate,
)
from amortized.priors import GaussianMixturePrior
from tests.guidance.closed_form import SHAPE, gradient_of, mixture, random_step, rows, weights_of_text


def step(guidance, latents, text, draws, progress=0.3, cameras=None):
    """(output, d loss / d latents)"""
    latents = latents.clone().requires_grad_()
    output = guidance(latents, text, draws, progress, cameras)
    (gradient,) = torch.autograd.grad(output.loss, latents)
    return output, gradient


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


class CountingPrior(GaussianMixturePrior):
    """Remembers the arguments of each denoiser call."""

    def predict_noise(self, noisy, timesteps, text, cameras=None):
        self.calls = [*getattr(self, "calls", []), (noisy, timesteps, text, cameras)]
        return super().predict_noise(noisy, timesteps, text, cameras)


def counting(views_per_group: int = 1) -> CountingPrior:
    prior = mixture()
    return CountingPrior(prior.means, prior.stds, views_per_group=views_per_group)


SETTINGS = {
    "defaults": {},
    "scheduled scale": {"guidance_scale": (100.0, 7.5)},
    "uniform weight": {"weighting": "uniform", "weight": 3.0},
    "sqrt weight": {"weighting": "sqrt", "guidance_scale": 1.0},
    "normalized": {"normalize": "per_sample", "weight": 0.1},
    "whole shift": {"shift_random": False, "shift_eta": 0.25},
    "constant range": {"t_min": (0.02, 0.02), "t_max": (0.98, 0.98)},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_gradient_is_the_closed_form(method, perp_neg, settings):
    config, prior, batch = GuidanceConfig(method=method, **settings), mixture(), 6
    for progress in (0.0, 0.3, 1.0):
        latents, text, draws = random_step(batch, perp_neg=perp_neg)
        output, gradient = step(Guidance(prior, config), latents, text, draws, progress)
        for b in range(batch):
            item = (rows(value, slice(b, b + 1)) for value in (latents, text, draws))
            expected, t, later = gradient_of(prior, config, *item, progress, batch)
            assert (output.timesteps[b].item(), output.timesteps_reference[b].item()) == (t, later)
            assert relative_error(gradient[b], torch.from_numpy(expected)) <= 1e-9
            own = 0.5 * (expected * batch / config.weight) ** 2
            assert output.per_sample[b].item() == pytest.approx(own.sum(), rel=1e-9)
        torch.testing.assert_close(output.loss.detach(), config.weight * output.per_sample.mean())


@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_batch_of_prompts_equals_its_prompts_one_by_one(method, perp_neg, num_prompts, num_views):
    """From cameras and per-view texts to gradients; groups of V views share their timestep."""
    batch = num_prompts * num_views
    prior = mixture(views_per_group=num_views)
    guidance, config = Guidance(prior, GuidanceConfig(method=method)), ViewTextConfig(perp_neg=perp_neg)
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
        mine = slice(p * num_views, (p + 1) * num_views)
        own = view_text(rows(table, slice(4 * p, 4 * p + 4)), null, cameras(azimuth[p : p + 1]), config)
        single, own_gradient = step(guidance, latents[mine], own, rows(draws, mine))
        assert relative_error(gradient[mine] * num_prompts, own_gradient) <= 1e-9
        torch.testing.assert_close(output.per_sample[mine], single.per_sample)
        assert torch.equal(output.timesteps[mine], single.timesteps)
        assert len(set(single.timesteps.tolist())) == len(set(single.timesteps_reference.tolist())) == 1


def test_asd_without_shift_is_csd_at_one_scale_less():
    latents, text, draws = random_step(5, perp_neg=False)
    _, asd = step(Guidance(mixture(), GuidanceConfig(method="asd", shift_eta=0.0)), latents, text, draws)
    _, csd = step(Guidance(mixture(), GuidanceConfig(method="csd", guidance_scale=6.5)), latents, text, draws)
    assert relative_error(asd, csd) <= 1e-12


def test_asd_without_shift_at_scale_one_is_nothing():
    latents, text, draws = random_step(5, perp_neg=False)
    config = GuidanceConfig(method="asd", shift_eta=0.0, guidance_scale=1.0)
    assert step(Guidance(mixture(), config), latents, text, draws)[1].abs().max() < 1e-12


def test_sds_minus_csd_is_the_null_score_minus_the_noise():
    """Perp-neg and the scale act on both alike, so they cancel."""
    latents, text, draws = random_step(5, perp_neg=True)
    prior = mixture()
    sds, csd = (
        step(Guidance(prior, GuidanceConfig(method=m, weighting="uniform")), latents, text, draws)
        for m in ("sds", "csd")
    )
    times = sds[0].timesteps
    abar = prior.alphas_cumprod[times].double()[:, None, None, None]
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * draws.noise
    expected = (prior.predict_noise(noisy, times, text.unconditional) - draws.noise) / 5
    assert relative_error(sds[1] - csd[1], expected) <= 1e-9


def test_a_negative_of_weight_zero_changes_nothing():
    latents, text, draws = random_step(3, perp_neg=True)
    text.negative_weights.zero_()
    _, with_negatives = step(Guidance(mixture(), GuidanceConfig()), latents, text, draws)
    _, plain_text, _ = random_step(3, perp_neg=False)
    _, without = step(Guidance(mixture(), GuidanceConfig()), latents, plain_text, draws)
    assert relative_error(with_negatives, without) <= 1e-12


def test_a_negative_equal_to_the_positive_changes_nothing():
    """Its part perpendicular to the positive direction is zero."""
    latents, text, draws = random_step(3, perp_neg=True)
    same = type(text)(**{**vars(text), "negatives": (text.positive, text.positive)})
    plain = type(text)(**{**vars(text), "negatives": (), "negative_weights": text.negative_weights[:0]})
    guidance = Guidance(mixture(), GuidanceConfig())
    _, got = step(guidance, latents, same, draws)
    _, expected = step(guidance, latents, plain, draws)
    assert relative_error(got, expected) < 1e-9


@pytest.mark.parametrize(("method", "branches"), [("sds", 2), ("csd", 2), ("asd", 3)])
@pytest.mark.parametrize("perp_neg", [False, True])
def test_one_denoiser_call_a_step(method, branches, perp_neg):
    prior, branches = counting(), branches + 2 * perp_neg
    latents, text, draws = random_step(4, perp_neg=perp_neg)
    guidance = Guidance(prior, GuidanceConfig(method=method))
    output, _ = step(guidance, latents, text, draws)
    assert len(prior.calls) == 1
    assert guidance.branches_per_image(len(text.negatives)) == branches
    noisy, timesteps, condition, _ = prior.calls[0]
    assert len(noisy) == len(timesteps) == len(condition.pooled) == output.num_denoiser_calls == 4 * branches
    assert not noisy.requires_grad


def test_every_branch_gets_the_cameras_of_its_images():
    prior = counting(views_per_group=2)
    latents, text, draws = random_step(6, perp_neg=False)
    azimuth = torch.arange(6.0).reshape(3, 2)
    flat = torch.zeros_like(azimuth)
    cameras = cameras_at(azimuth_deg=azimuth, elevation_deg=flat, distance=flat + 1, fovy_deg=flat + 40)
    step(Guidance(prior, GuidanceConfig(method="asd")), latents, text, draws, cameras=cameras)
    noisy, _, _, passed = prior.calls[0]
    assert passed.c2w.shape == (9, 2, 4, 4)
    assert passed.azimuth_deg.flatten().tolist() == [0, 1, 2, 3, 4, 5] * 3 and len(noisy) == 18


def test_views_that_do_not_fill_their_groups_are_refused():
    latents, text, draws = random_step(6, perp_neg=False)
    with pytest.raises(ValueError, match="groups of 4 views"):
        Guidance(mixture(views_per_group=4), GuidanceConfig())(latents, text, draws, 0.0)


def test_draws_may_be_float32_whatever_the_latents():
    latents, text, draws = random_step(3, perp_neg=False)
    single = GuidanceDraws(**{name: value.float() for name, value in vars(draws).items()})
    output, gradient = step(Guidance(mixture(), GuidanceConfig()), latents, text, single)
    assert gradient.dtype == output.loss.dtype == torch.float64


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("normalize", ["none", "per_sample"])
def test_a_bad_prediction_makes_the_loss_non_finite(method, bad, normalize):
    class BrokenPrior(CountingPrior):
        def predict_noise(self, noisy, timesteps, text, cameras=None):
            noise = super().predict_noise(noisy, timesteps, text, cameras)
            noise[1, 0, 0, 0] = bad  # one pixel of one image of the first branch
            return noise

    prior = BrokenPrior(mixture().means, mixture().stds)
    latents, text, draws = random_step(3, perp_neg=False)
    config = GuidanceConfig(method=method, normalize=normalize)
    output, _ = step(Guidance(prior, config), latents, text, draws)
    assert not torch.isfinite(output.loss)
    assert torch.isfinite(output.per_sample[[0, 2]]).all()


def test_surrogate_hands_over_small_gradients_beside_large_latents():
    """0.5 |z - sg(z - g)|^2 in float32 would round a gradient of 1e-4 to z's last digit, 1e-3."""
    latents = torch.full((1, *SHAPE), 1e4, requires_grad=True)
    wanted = torch.full((1, *SHAPE), 1e-4)
    (got,) = torch.autograd.grad(surrogate(latents, wanted).sum(), latents)
    assert torch.equal(got, wanted)


def test_metrics_are_detached_scalars_of_the_step():
    latents, text, draws = random_step(3, perp_neg=False)
    config = GuidanceConfig(method="sds", weighting="uniform", normalize="per_sample")
    output, _ = step(Guidance(mixture(), config), latents, text, draws)
    assert all(value.ndim == 0 and not value.requires_grad for value in output.metrics.values())
    assert output.metrics["reference_norm"].item() == pytest.approx(
        draws.noise.flatten(1).norm(dim=1).mean().item()
    )
    assert output.metrics["timestep"].item() == output.timesteps.double().mean().item()
    config = GuidanceConfig(method="sds", weighting="uniform")
    _, gradient = step(Guidance(mixture(), config), latents, text, draws)
    norm = (3 * gradient).flatten(1).norm(dim=1).mean()
    assert output.metrics["gradient_norm"].item() == pytest.approx(norm.item())


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_descent_finds_the_component_that_the_text_names(method):
    """A free image, 100 steps: every method leads it from another component towards the named one."""
    prior = mixture()
    named = torch.full((1, 4), 0.02, dtype=torch.float64)
    named[0, 2] = 1.0
    null = torch.ones(1, 4, dtype=torch.float64)
    _, text, _ = random_step(1, perp_neg=False)

    def condition(pooled):
        mask = torch.ones(1, 1, dtype=torch.bool)
        return type(text.positive)(pooled=pooled, tokens=pooled[:, None], mask=mask)

    text = type(text)(
        positive=condition(named), unconditional=condition(null), negatives=(), negative_weights=null[:0, :1]
    )
    guidance = Guidance(prior, GuidanceConfig(method=method, guidance_scale=5.0))
    latents = prior.means[:1].clone().requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for i in range(100):
        _, _, draws = random_step(1, perp_neg=False, seed=i)
        optimizer.zero_grad()
        guidance(latents, text, draws, i / 100).loss.backward()
        optimizer.step()
    distances = (latents.detach() - prior.means).flatten(1).norm(dim=1)
    # Guidance overshoots the component, away from all others; so the order of distances is the claim.
    assert distances.argmin() == 2


def test_names_and_methods_agree():
    assert set(METHODS) == set(METHOD_NAMES)


def test_a_custom_method_is_only_other_parts():
    """ASD's shift with CSD's reference: no class to derive from, nothing to register."""
    asd, csd = METHODS["asd"](GuidanceConfig()), METHODS["csd"](GuidanceConfig())
    mixed = type(asd)(**{**vars(asd), "reference": csd.reference})
    latents, text, draws = random_step(3, perp_neg=False)
    _, got = step(Guidance(mixture(), GuidanceConfig(), mixed), latents, text, draws)
    _, expected = step(Guidance(mixture(), GuidanceConfig(method="csd")), latents, text, draws)
    assert relative_error(got, expected) <= 1e-12


def test_groups_take_their_first_draw():
    assert share_in_groups(torch.tensor([1, 2, 3, 4, 5, 6]), 3).tolist() == [1, 1, 1, 4, 4, 4]


def test_a_gradient_reaches_pixels_through_a_real_prior(tmp_path):
    """d loss / d image = J^T (d loss / d latents), J = resize then VAE, by finite differences."""
    from amortized.cameras import orbit
    from amortized.priors import load_stable_diffusion
    from tests.tiny_sd import make_tiny_sd

    prior = load_stable_diffusion(make_tiny_sd(tmp_path), dtype=torch.float64)
    bank = TextBank(prior.text_encoder, ViewTextConfig(perp_neg=True))
    cameras = orbit(1, 2, elevation_deg=10, distance=1, fovy_deg=40)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 8, 8, 3, generator=generator, dtype=torch.float64).requires_grad_()
    draws = GuidanceDraws(
        u_timestep=torch.rand(2, generator=generator),
        u_shift=torch.rand(2, generator=generator),
        noise=torch.randn(2, 4, 8, 8, generator=generator),
    )
    latents = prior.encode(images)
    output = Guidance(prior, GuidanceConfig())(latents, bank.views(["a cube"], cameras), draws, 0.0, cameras)
    at_latents, at_pixels = torch.autograd.grad(output.loss, (latents, images))
    assert output.num_denoiser_calls == 10
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        moved = (prior.encode(images + 1e-5 * direction) - prior.encode(images - 1e-5 * direction)) / 2e-5
    assert (at_pixels * direction).sum().item() == pytest.approx((at_latents * moved).sum().item(), rel=1e-6)
    assert at_pixels.abs().max() > 0


def test_the_perpendicular_part_is_safe_where_there_is_no_direction():
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.stack([torch.zeros(SHAPE, dtype=torch.float64), x[0]])
    part = perpendicular(x, direction)
    assert torch.equal(part[0], x[0])
    assert abs((part[1] * direction[1]).sum()) < 1e-12
    assert (part[1] - x[1]).norm() > 0.1
