"""A diffusers folder loads and computes as in diffusers, or fails with one clear sentence."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from amortized.config import build_config
from amortized.priors import Prior, PriorConfig, ddim, load_prior, load_stable_diffusion, sample
from amortized.random import normal


@pytest.fixture(scope="session")
def prior(folder):
    return load_stable_diffusion(folder, dtype=torch.float64)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_prior_is_frozen_and_has_the_sizes_of_its_configs(prior):
    assert isinstance(prior, Prior)
    assert (prior.image_size, prior.latent_size, prior.latent_channels) == (16, 8, 4)
    assert prior.num_timesteps == 1000 and prior.alphas_cumprod.dtype == torch.float32
    assert prior.latent_shape == prior.encode(images(1, 16, 16))[0].shape
    networks = prior.modules()
    assert networks == (prior.unet, prior.vae, prior.text_encoder.model)
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())
    assert not any(module.training for network in networks for module in network.modules())


def test_encode_agrees_with_diffusers(folder, prior):
    from diffusers import AutoencoderKL
    from diffusers.image_processor import VaeImageProcessor

    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float64)
    pixels = VaeImageProcessor.normalize(images(2, 16, 16).movedim(-1, 1))
    posterior = vae.encode(pixels).latent_dist
    torch.testing.assert_close(prior.encode(images(2, 16, 16)), posterior.mean * 0.18215)


def test_decode_agrees_with_diffusers(prior):
    latents = 0.2 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = (prior.vae.decode(latents / 0.18215).sample * 0.5 + 0.5).clamp(0, 1)
    got = prior.decode(latents)
    assert got.shape == (2, 16, 16, 3)
    torch.testing.assert_close(got, expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [4, 8, 40])
def test_encode_resizes_images(prior, size):
    flat = torch.full((1, size, size, 3), 0.3, dtype=torch.float64)
    torch.testing.assert_close(prior.encode(flat), prior.encode(torch.full((1, 16, 16, 3), 0.3).double()))


def test_enlarging_is_bilinear_between_pixel_centers(prior):
    small = images(1, 8, 8)
    axis = ((torch.arange(16, dtype=torch.float64) + 0.5) / 2 - 0.5).clamp(0, 7)
    low = axis.floor().long().clamp(max=6)
    tent = torch.zeros(16, 8, dtype=torch.float64)
    tent[torch.arange(16), low], tent[torch.arange(16), low + 1] = 1 - (axis - low), axis - low
    large = torch.einsum("yi,xj,bijc->byxc", tent, tent, small)
    torch.testing.assert_close(prior.encode(small), prior.encode(large))


@pytest.mark.parametrize("size", [16, 8, 40])
def test_gradient_through_resize_and_encoder_against_finite_differences(prior, size):
    generator = torch.Generator().manual_seed(5)
    picture = images(2, size, size).requires_grad_()
    seed = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((prior.encode(picture) * seed).sum(), picture)
    for _ in range(3):
        direction = torch.randn(picture.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ends = [(prior.encode(picture + h * direction) * seed).sum() for h in (1e-5, -1e-5)]
        numeric, exact = (ends[0] - ends[1]) / 2e-5, (gradient * direction).sum()
        assert numeric.item() == pytest.approx(exact.item(), rel=1e-6)


def test_predicted_noise_is_the_unets_output(prior):
    text = prior.text_encoder.encode(["a cube", "a cone"])
    latents_noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    timesteps = torch.tensor([3, 700])
    got = prior.predict_noise(latents_noisy, timesteps, text)
    for n in range(2):
        one = slice(n, n + 1)
        expected = prior.unet(latents_noisy[one], int(timesteps[n]), text.tokens[one].double()).sample
        torch.testing.assert_close(got[one], expected)


def test_v_prediction_is_converted(v_folder):
    prior = load_stable_diffusion(v_folder, dtype=torch.float64)
    assert prior.prediction_type == "v_prediction"
    text = prior.text_encoder.encode(["a cube", "a cone"])
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    timesteps = torch.tensor([20, 900])
    noise = prior.predict_noise(x_t, timesteps, text)
    v = prior.unet(x_t, timesteps, text.tokens.double()).sample
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_pretrained(v_folder / "scheduler")
    scheduler.set_timesteps(50)
    for n, t in enumerate(timesteps.tolist()):
        x0 = scheduler.step(v[n], t, x_t[n]).pred_original_sample
        again = scheduler.add_noise(x0, noise[n], torch.tensor([t]))
        torch.testing.assert_close(again, x_t[n], rtol=1e-5, atol=1e-5)


def test_gradients_reach_noisy_latents_only_when_enabled(prior):
    text = prior.text_encoder.encode(["a cube"])
    latents_noisy = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    t = torch.tensor([500])
    assert not prior.predict_noise(latents_noisy, t, text).requires_grad
    assert prior.predict_noise(latents_noisy.requires_grad_(), t, text).requires_grad
    with torch.no_grad():
        assert not prior.predict_noise(latents_noisy, t, text).requires_grad


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_results_are_float32_at_every_dtype(folder, name: Any):
    prior = load_prior(PriorConfig(path=str(folder), dtype=name))
    assert prior.unet.dtype == prior.vae.dtype == getattr(torch, name)
    text = prior.text_encoder.encode(["a cube"])
    latents = prior.encode(images(1, 8, 8).float())
    noise = prior.predict_noise(latents, torch.tensor([500]), text)
    assert latents.dtype == noise.dtype == text.tokens.dtype == torch.float32
    reference = load_prior(PriorConfig(path=str(folder)))
    tolerance = {"float32": 1e-6, "float16": 5e-3, "bfloat16": 5e-2}[name]
    torch.testing.assert_close(latents, reference.encode(images(1, 8, 8).float()), rtol=0, atol=tolerance)


def test_a_half_precision_file_is_loaded_at_the_configured_precision(folder, tmp_path):
    from transformers import CLIPTextModel

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    CLIPTextModel.from_pretrained(folder / "text_encoder").half().save_pretrained(tmp_path / "text_encoder")
    prior = load_stable_diffusion(tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in prior.text_encoder.model.parameters())


def test_samples_depend_only_on_seed_index_and_text(folder):
    prior = load_stable_diffusion(folder)
    pair = sample(prior, ["a cube", "a cone"], seed=1, num_steps=3)
    assert pair.shape == (2, 16, 16, 3) and 0 <= pair.min() and pair.max() <= 1
    torch.testing.assert_close(sample(prior, ["a cube"], seed=1, num_steps=3)[0], pair[0], rtol=0, atol=1e-4)
    assert not torch.allclose(sample(prior, ["a cube"], seed=2, num_steps=3)[0], pair[0], atol=1e-2)


@pytest.mark.parametrize("which", ["folder", "v_folder"])
def test_ddim_agrees_with_diffusers_scheduler(which, request):
    """Ten timesteps 999, 888, ..., 0 with the steps of diffusers, for both prediction types."""
    from diffusers import DDIMScheduler

    path = request.getfixturevalue(which)
    prior = load_stable_diffusion(path, dtype=torch.float64)
    text, null = prior.text_encoder.encode(["a cube"]), prior.text_encoder.encode([""])
    noise = normal((1, 4, 8, 8), 0, "test").double()
    got = ddim(prior, noise, text, null, num_steps=10, cfg=4.0)
    scheduler = DDIMScheduler.from_pretrained(path / "scheduler", set_alpha_to_one=True)
    scheduler.num_inference_steps = 9  # its stride is 1000 // 9 = 111
    latents = noise
    with torch.no_grad():
        for t in range(999, -1, -111):
            conditional, unconditional = (
                prior.unet(latents, t, condition.tokens.double()).sample for condition in (text, null)
            )
            output = unconditional + 4.0 * (conditional - unconditional)
            latents = scheduler.step(output, t, latents).prev_sample
    torch.testing.assert_close(got, latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["checkpoints/no-such-prior", "checkpoints/lost/again"])
def test_the_message_for_a_missing_checkpoint_restores_it(path):
    """Training the embedded models again would take hours."""
    with pytest.raises(ValueError, match=f"prior.path '{path}' cannot be loaded.*checkout -- {path}"):
        load_prior(PriorConfig(path=path))


@pytest.mark.parametrize("path", ["/no/such/folder", "./here", "some-org/not-cached-here"])
def test_a_missing_folder_or_hub_id_gives_one_sentence(path):
    with pytest.raises(ValueError, match=r"allow_network=true") as error:
        load_prior(PriorConfig(path=path))
    assert path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
@pytest.mark.parametrize("missing", ["folder", "files"])
def test_the_message_for_an_incomplete_folder_names_the_missing_part(folder, tmp_path, part, missing):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / part)
    if missing == "files":
        (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        load_stable_diffusion(tmp_path)
    assert str(tmp_path) in str(error.value) and (missing == "files" or f"lacks {part};" in str(error.value))


def test_pickled_weights_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="safetensors"):
        load_stable_diffusion(tmp_path)


def test_other_prediction_types_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"sample"'))
    with pytest.raises(ValueError, match="the model predicts 'sample'; only epsilon and v_prediction"):
        load_stable_diffusion(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dtype": "int8"}, "dtype must be one of .*float64, got 'int8'"), ({"path": ""}, "is empty")],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_config(PriorConfig, {"path": "here", **settings})
