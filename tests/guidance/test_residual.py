"""The loss at the latents or, decoded, at the images, and its gradient at the pixels."""

from __future__ import annotations

import pytest
import torch

from amortized.conditioning import TextBank, ViewTextConfig
from amortized.conditioning.views import plain_text
from amortized.guidance import Guidance, GuidanceDraws, published
from amortized.guidance.distillation import surrogate
from tests.guidance.closed_form import SHAPE, random_step
from tests.guidance.steps import guidance_for, relative_error, step


def test_surrogate_keeps_small_gradients_at_large_latents():
    """0.5 |z - sg(z - g)|^2 in float32 would round a gradient of 1e-4 to z's last digit, 1e-3."""
    latents = torch.full((1, *SHAPE), 1e4, requires_grad=True)
    expected = torch.full((1, *SHAPE), 1e-4)
    (got,) = torch.autograd.grad(surrogate(latents, expected).sum(), latents)
    assert torch.equal(got, expected)


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
    by_latent, by_image = (
        guidance_for(method, residual=kind, weighting="sigma_over_alpha") for kind in ("latent", "image")
    )
    first = by_latent(by_latent.prior.encode(images), text, draws, 0.3)
    second = by_image(by_image.prior.encode(images).detach(), text, draws, 0.3, images=images)
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
