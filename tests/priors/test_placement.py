"""Devices of a prior's networks, compatibility of its parts, and gradients in half precision."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from amortized.conditioning.views import plain_text
from amortized.guidance import published
from amortized.guidance.learned import build_learned, denoising_loss
from amortized.priors import PriorConfig, load_prior, load_stable_diffusion
from amortized.priors.stable_diffusion import StableDiffusionPrior
from tests.guidance.closed_form import random_step


def config_of(folder: Path, **changes) -> PriorConfig:
    return PriorConfig(path=str(folder), **changes)


def denoiser_inputs(prior: StableDiffusionPrior):
    latents_noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return latents_noisy, torch.tensor([300, 700]), prior.text_encoder.encode(["a cube", "a cone"])


# ---- devices -----------------------------------------------------------------------------------


def test_parts_are_loaded_to_their_devices(folder):
    prior = load_stable_diffusion(folder, device="meta", text_on_cpu=True)
    assert {next(part.parameters()).device.type for part in (prior.unet, prior.vae)} == {"meta"}
    assert prior.device.type == "meta" and prior.text_encoder.encode(["a cube"]).pooled.device.type == "cpu"
    prior = load_stable_diffusion(folder, denoiser_device="meta")
    assert next(prior.unet.parameters()).device.type == "meta" and prior.device.type == "cpu"


def test_an_offloaded_denoiser_is_copied_for_each_call_and_dropped(folder, monkeypatch):
    prior, plain = (load_prior(config_of(folder, offload=offload)) for offload in (True, False))
    sent: list[torch.Tensor] = []

    def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append(tensor.clone())  # stands in for the GPU copy
        return sent[-1]

    weights = [*prior.unet.parameters(), *prior.unet.buffers()]
    original = [weight.data_ptr() for weight in weights]
    monkeypatch.setattr("amortized.priors.offload.to_device", send)
    used: list[int] = []
    prior.unet.register_forward_pre_hook(lambda *given: used.append(weights[0].data_ptr()))
    assert torch.equal(
        prior.predict_noise(*denoiser_inputs(prior)), plain.predict_noise(*denoiser_inputs(plain))
    )
    assert used == [sent[0].data_ptr()] and len(sent) == len(weights)
    assert [weight.data_ptr() for weight in weights] == original  # nothing was copied back
    monkeypatch.setattr(prior.unet, "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prior.predict_noise(*denoiser_inputs(prior))
    assert [weight.data_ptr() for weight in weights] == original


@pytest.mark.parametrize("other", [{"compile": True}, {"denoiser_device": "cuda:1"}])
def test_offload_excludes_compile_and_another_device(folder, other):
    with pytest.raises(ValueError, match="^offload moves the denoiser .* set only one of them"):
        config_of(folder, offload=True, **other)


@pytest.mark.slow
def test_a_compiled_denoiser_predicts_the_same(folder):
    compiled, plain = (load_prior(config_of(folder, compile=compile)) for compile in (True, False))
    with torch.no_grad():
        got, expected = (prior.predict_noise(*denoiser_inputs(prior)) for prior in (compiled, plain))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_denoiser_device_needs_a_single_process(tmp_path, capsys, monkeypatch):
    import train
    from amortized import parallel
    from amortized.parallel import World

    class TwoProcesses:
        def __enter__(self):
            return World(rank=0, size=2)

        def __exit__(self, *reason):
            return None

    monkeypatch.setattr(parallel, "join_world", lambda device, **how: TwoProcesses())
    with pytest.raises(SystemExit) as exited:
        sys.exit(
            train.main(["configs/quickstart.yaml", f"output={tmp_path}", "prior.denoiser_device=cuda:1"])
        )
    assert exited.value.code == 2
    error = capsys.readouterr().err
    assert "prior.denoiser_device=cuda:1 is a single device, but there are 2 processes" in error


# ---- compatible parts ---------------------------------------------------------------------------

TIMES = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16}


@pytest.mark.parametrize(
    ("part", "changes", "problem"),
    [
        ("unet", {"in_channels": 9}, "takes 9 channels, but its VAE has 4"),
        ("vae", {"latent_channels": 16}, "takes 4 channels, but its VAE has 16"),
        ("unet", {"cross_attention_dim": 48}, "takes text of width 48, but its text encoder has 32"),
        ("unet", {"addition_embed_type": "text_time", **TIMES}, "needs 'text_time' in addition"),
    ],
)
def test_incompatible_parts_are_refused(folder, part, changes, problem):
    prior = load_stable_diffusion(folder)
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    other = kind.from_config({**getattr(prior, part).config, **changes})
    parts = {"unet": prior.unet, "vae": prior.vae, part: other, "text_encoder": prior.text_encoder}
    with pytest.raises(ValueError, match=f"this prior's UNet {problem}.*: only text-to-image models in"):
        StableDiffusionPrior(**parts, alphas_cumprod=prior.alphas_cumprod, prediction_type="epsilon")


# ---- half precision ---------------------------------------------------------------------------


def test_image_gradients_survive_a_float16_encoder(folder):
    """d loss / d image for latent gradients of 1e-9, which underflow in float16."""
    images = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    latent_gradient = 1e-9 * torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    gradients = []
    for name in ("float16", "float32"):
        prior, variable = load_prior(config_of(folder, dtype=name)), images.clone().requires_grad_()
        gradients.append(torch.autograd.grad(prior.encode(variable), variable, latent_gradient)[0])
    half, single = gradients
    assert half.dtype == torch.float32 and single.abs().max() > 0
    assert (half - single).norm() < 0.02 * single.norm()


def test_the_gradient_of_a_learned_null_survives_a_float16_denoiser(folder):
    """The loss is a mean over latents, weighted so little that its gradient would underflow in float16."""
    gradients, (_, _, draws) = [], random_step(2)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    learned = published("lods-embedding").learned
    for name in ("float16", "float32"):
        prior = load_prior(config_of(folder, dtype=name))
        null = prior.text_encoder.encode([""])
        model = build_learned(learned, prior, null=null, text=None, num_prompts=1, seed=0)
        text = plain_text(prior.text_encoder.encode(["a cube"] * 2), null)
        loss = 1e-4 * denoising_loss(prior, model, latents, text, draws, None)
        gradients.append(torch.autograd.grad(loss, model.tokens)[0])
    half, single = gradients
    assert half.dtype == torch.float32 and single.abs().max() > 0
    assert (half - single).norm() < 0.1 * single.norm()  # 0.062 on torch 2.11
