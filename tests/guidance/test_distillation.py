"""The gradient of every method: against its closed form, against other methods, and per item of a batch."""

from __future__ import annotations

import pytest
import torch

from amortized.cameras import cameras_at, view_index
from amortized.conditioning import TextBank, ViewTextConfig, perp_neg_text, take_rows
from amortized.conditioning.views import plain_text
from amortized.guidance import METHODS, Guidance, GuidanceDraws, build_guidance, published
from amortized.guidance.distillation import surrogate
from amortized.guidance.methods import build_method
from amortized.guidance.noise import ddim_step
from amortized.guidance.scores import CleanBatch, Denoiser, perpendicular
from amortized.guidance.timesteps import share_in_groups
from amortized.random import normal
from tests.guidance.closed_form import SHAPE, gradient_of, mixture, random_step, rows, weights_of_text
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


def test_asd_without_shift_is_csd_at_scale_minus_one():
    latents, text, draws = random_step(5, perp_neg=False)
    _, asd = step(guidance_for("asd", mixture(), shift_eta=0.0), latents, text, draws)
    _, csd = step(guidance_for("csd", mixture(), guidance_scale=6.5), latents, text, draws)
    assert relative_error(asd, csd) <= 1e-12


SAME = {"t_min": 0.1, "t_max": 0.9, "weighting": "one_minus_alphas_cumprod", "weight": 1.0}


def untrained(method, prior=None, **settings) -> Guidance:
    """Build a published method with its untrained reference model; its null is the first image's."""
    null = rows(random_step(4)[1].unconditional, slice(0, 1))
    config = published(method, **settings)
    guidance = build_guidance(config, prior or mixture(), encode=lambda texts: null, num_prompts=3, seed=0)
    guidance.learned.double()
    return guidance


def first_image():
    latents, text, draws = random_step(4, perp_neg=True)
    return [rows(value, slice(0, 1)) for value in (latents, text, draws)]


def test_untrained_lods_is_sds_over_its_scale_and_approaches_csd():
    for scale in (7.5, 1e6):
        _, lods = step(untrained("lods-embedding", guidance_scale=scale, **SAME), *first_image())
        _, sds = step(guidance_for("sds", guidance_scale=scale, **SAME), *first_image())
        assert relative_error(lods, sds / scale) <= 1e-9
    _, csd = step(guidance_for("csd", guidance_scale=1.0, **SAME), *first_image())
    assert relative_error(lods, csd) <= 1e-5


@pytest.mark.parametrize("kind", ["null", "prompt-nulls", "adapter"])
def test_every_learned_null_is_initially_the_plain_null(kind):
    _, csd = step(guidance_for("csd", **SAME), *first_image())
    _, learned = step(untrained("csd", null="learned", learned={"kind": kind}, **SAME), *first_image())
    assert relative_error(learned, csd) <= 1e-12


def test_untrained_vsd_is_csd_at_scale_minus_one():
    latents, text, draws = random_step(3)
    _, vsd = step(untrained("vsd", **SAME), latents, text, draws)
    _, csd = step(guidance_for("csd", guidance_scale=6.5, **SAME), latents, text, draws)
    assert relative_error(vsd, csd) <= 1e-12


@pytest.mark.parametrize("perp_neg", [False, True])
def test_dsd_without_shift_is_csd_with_trajectory_noise(perp_neg):
    latents, text, draws = random_step(4, perp_neg=perp_neg)
    _, dsd = step(guidance_for("dsd", shift_eta=0.0, **SAME), latents, text, draws)
    _, csd = step(guidance_for("csd", guidance_scale=6.5, noise="seed", **SAME), latents, text, draws)
    assert relative_error(dsd, csd) <= 1e-9


def test_dsd_at_equal_scales_and_times_has_no_gradient():
    latents, text, draws = random_step(4, perp_neg=True)
    guidance = guidance_for("dsd", shift_eta=0.0, reference_scale=7.5)
    assert step(guidance, latents, text, draws)[1].abs().max() < 1e-12


def test_ism_without_an_interval_is_csd_with_inverted_noise():
    latents, text, draws = random_step(4, perp_neg=True)
    text = type(text)(**{**vars(text), "empty": text.unconditional})
    _, ism = step(guidance_for("ism", shift_span=0.0, **SAME), latents, text, draws)
    _, csd = step(guidance_for("csd", noise="inversion", **SAME), latents, text, draws)
    assert relative_error(ism, csd) <= 1e-9


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


def test_asd_without_shift_at_scale_one_has_no_gradient():
    latents, text, draws = random_step(5, perp_neg=False)
    guidance = guidance_for("asd", shift_eta=0.0, guidance_scale=1.0)
    assert step(guidance, latents, text, draws)[1].abs().max() < 1e-12


def test_sds_minus_csd_is_the_null_score_minus_the_noise():
    """Perp-Neg and the scale contribute equally to both, so they cancel."""
    latents, text, draws = random_step(5, perp_neg=True)
    prior, same = mixture(), {"weighting": "uniform", "guidance_scale": 7.5, "t_min": 0.1, "t_max": 0.9}
    sds, csd = (step(guidance_for(m, prior, **same), latents, text, draws) for m in ("sds", "csd"))
    times = sds[0].timesteps
    abar = prior.alphas_cumprod[times].double()[:, None, None, None]
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * draws.noise
    expected = (prior.predict_noise(noisy, times, text.unconditional) - draws.noise) / 5
    assert relative_error(sds[1] - csd[1], expected) <= 1e-9


def test_a_negative_of_weight_zero_changes_nothing():
    latents, text, draws = random_step(3, perp_neg=True)
    text.negative_weights.zero_()
    _, with_negatives = step(guidance_for("asd"), latents, text, draws)
    _, plain_text, _ = random_step(3, perp_neg=False)
    _, without = step(guidance_for("asd"), latents, plain_text, draws)
    assert relative_error(with_negatives, without) <= 1e-12


def test_a_negative_equal_to_the_positive_changes_nothing():
    """Its component perpendicular to the positive direction is zero."""
    latents, text, draws = random_step(3, perp_neg=True)
    same = type(text)(**{**vars(text), "negatives": (text.positive, text.positive)})
    plain = type(text)(**{**vars(text), "negatives": (), "negative_weights": text.negative_weights[:0]})
    guidance = guidance_for("asd")
    _, got = step(guidance, latents, same, draws)
    _, expected = step(guidance, latents, plain, draws)
    assert relative_error(got, expected) < 1e-9


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


def test_a_trajectory_cache_with_a_multi_view_prior_raises():
    with pytest.raises(ValueError, match="trajectory.cache .* denoises 4 views together"):
        guidance_for("dsd", mixture(views_per_group=4), trajectory={"cache": True})


def test_views_denoised_together_start_from_different_noise():
    prior, (latents, text, draws) = counting(views_per_group=4), random_step(8)
    draws.seeds[:] = 7
    step(guidance_for("dsd", prior), latents, text, draws)
    first = prior.calls[0][0][:8]
    assert torch.equal(first[:4], first[4:]) and len({float(x.sum()) for x in first}) == 4


def test_float32_draws_work_with_float64_latents():
    latents, text, draws = random_step(3, perp_neg=False)
    wide = {name: value.float() for name, value in vars(draws).items() if value.is_floating_point()}
    single = GuidanceDraws(**{**vars(draws), **wide})
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


def test_surrogate_keeps_small_gradients_at_large_latents():
    """0.5 |z - sg(z - g)|^2 in float32 would round a gradient of 1e-4 to z's last digit, 1e-3."""
    latents = torch.full((1, *SHAPE), 1e4, requires_grad=True)
    expected = torch.full((1, *SHAPE), 1e-4)
    (got,) = torch.autograd.grad(surrogate(latents, expected).sum(), latents)
    assert torch.equal(got, expected)


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
    named = torch.full((1, 4), 0.02, dtype=torch.float64)
    named[0, 2] = 1.0
    null = torch.ones(1, 4, dtype=torch.float64)
    _, text, _ = random_step(1, perp_neg=False)

    def condition(pooled):
        mask = torch.ones(1, 1, dtype=torch.bool)
        return type(text.positive)(pooled=pooled, tokens=pooled[:, None], mask=mask)

    text = type(text)(
        positive=condition(named),
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


def test_a_custom_method_is_a_choice_of_parts():
    """ASD's shift with CSD's reference, without a new class or a registration."""
    asd, csd = build_method(published("asd")), build_method(published("csd"))
    mixed = type(asd)(**{**vars(asd), "reference": csd.reference})
    latents, text, draws = random_step(3, perp_neg=False)
    _, got = step(Guidance(mixture(), published("asd"), method=mixed), latents, text, draws)
    _, expected = step(guidance_for("csd", mixture()), latents, text, draws)
    assert relative_error(got, expected) <= 1e-12


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
        u_learned=torch.rand(2, generator=generator),
        keys=torch.arange(2),
        seeds=torch.zeros(2, dtype=torch.long),
        prompts=torch.zeros(2, dtype=torch.long),
        noise=torch.randn(2, 4, 8, 8, generator=generator),
    )
    latents = prior.encode(images)
    output = guidance_for("asd", prior)(latents, bank.prior_text(["a cube"], cameras), draws, 0.0, cameras)
    at_latents, at_pixels = torch.autograd.grad(output.loss, (latents, images))
    assert output.num_denoiser_calls == 10
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        moved = (prior.encode(images + 1e-5 * direction) - prior.encode(images - 1e-5 * direction)) / 2e-5
    assert (at_pixels * direction).sum().item() == pytest.approx((at_latents * moved).sum().item(), rel=1e-6)
    assert at_pixels.abs().max() > 0


@pytest.mark.parametrize("method", ["sdi", "sds", "lods-embedding"])
def test_image_and_latent_residuals_agree_if_the_decoder_is_linear(method):
    latents, text, draws = random_step(3, perp_neg=True)
    images = latents.movedim(1, -1).requires_grad_()
    through, around = (
        guidance_for(method, residual=kind, weighting="sigma_over_alpha") for kind in ("latent", "image")
    )
    first = through(through.prior.encode(images), text, draws, 0.3)
    second = around(around.prior.encode(images).detach(), text, draws, 0.3, images=images)
    a, b = (torch.autograd.grad(output.loss, images)[0] for output in (first, second))
    assert relative_error(b, a) <= 1e-12
    torch.testing.assert_close(first.per_sample, second.per_sample)


def test_the_image_residual_is_decoded_and_resized(tmp_path):
    from amortized.priors import load_stable_diffusion
    from tests.tiny_sd import make_tiny_sd

    prior = load_stable_diffusion(make_tiny_sd(tmp_path), dtype=torch.float64)
    encoder, generator = prior.text_encoder, torch.Generator().manual_seed(0)
    text = plain_text(encoder.encode(["a cube"] * 2), encoder.encode([""]))
    images = torch.rand(2, 8, 8, 3, generator=generator, dtype=torch.float64).requires_grad_()
    _, _, draws = random_step(2)
    draws = GuidanceDraws(**{**vars(draws), "noise": torch.randn(2, 4, 8, 8, generator=generator)})
    with torch.no_grad():
        latents = prior.encode(images)
    settings = {"weighting": "sigma_over_alpha", "guidance_scale": 2.0}
    guidance = Guidance(prior, published("sds", residual="image", **settings))
    output = guidance(latents, text, draws, 0.3, images=images)
    (got,) = torch.autograd.grad(output.loss, images)
    _, gradient = step(Guidance(prior, published("sds", **settings)), latents, text, draws)
    change = prior.decode(latents) - prior.decode(latents - 2 * gradient)  # the loss is a mean over 2
    (expected,) = torch.autograd.grad(prior.resize(images), images, change / 2)
    torch.testing.assert_close(got, expected)


def test_the_perpendicular_component_is_finite_without_a_direction():
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.stack([torch.zeros(SHAPE, dtype=torch.float64), x[0]])
    component = perpendicular(x, direction)
    assert torch.equal(component[0], x[0])
    assert abs((component[1] * direction[1]).sum()) < 1e-12
    assert (component[1] - x[1]).norm() > 0.1
