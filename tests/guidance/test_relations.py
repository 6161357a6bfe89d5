"""Methods coincide if their formulas do: special cases of one method are another one."""

from __future__ import annotations

import pytest
import torch

from amortized.guidance import Guidance, build_guidance, published
from amortized.guidance.methods import build_method
from amortized.guidance.scores import perpendicular
from tests.guidance.closed_form import SHAPE, mixture, random_step, rows
from tests.guidance.steps import guidance_for, relative_error, step

# Settings under which methods are comparable.
SAME = {"t_min": 0.1, "t_max": 0.9, "weighting": "one_minus_alphas_cumprod", "weight": 1.0}


def test_asd_without_shift_is_csd_at_scale_minus_one():
    latents, text, draws = random_step(5, perp_neg=False)
    _, asd = step(guidance_for("asd", mixture(), shift_eta=0.0), latents, text, draws)
    _, csd = step(guidance_for("csd", mixture(), guidance_scale=6.5), latents, text, draws)
    assert relative_error(asd, csd) <= 1e-12


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


def test_a_custom_method_is_a_choice_of_parts():
    """ASD's shift with CSD's reference, without a new class or a registration."""
    asd, csd = build_method(published("asd")), build_method(published("csd"))
    mixed = type(asd)(**{**vars(asd), "reference": csd.reference})
    latents, text, draws = random_step(3, perp_neg=False)
    _, got = step(Guidance(mixture(), published("asd"), method=mixed), latents, text, draws)
    _, expected = step(guidance_for("csd", mixture()), latents, text, draws)
    assert relative_error(got, expected) <= 1e-12


def test_the_perpendicular_component_is_finite_without_a_direction():
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.stack([torch.zeros(SHAPE, dtype=torch.float64), x[0]])
    component = perpendicular(x, direction)
    assert torch.equal(component[0], x[0])
    assert abs((component[1] * direction[1]).sum()) < 1e-12
    assert (component[1] - x[1]).norm() > 0.1
