"""Where a prior's parts lie, which parts can work together, and gradients through parts in half precision."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from amortized.conditioning.views import plain_text
from amortized.guidance import build_learned, published
from amortized.guidance.learned import denoising_loss
from amortized.priors import PriorConfig, fingerprint_of, load_prior, load_stable_diffusion
from amortized.priors.multi_view import views_of
from amortized.priors.stable_diffusion import StableDiffusionPrior
from tests.guidance.closed_form import random_step
from tests.tiny_sd import make_tiny_sd


def config_of(folder: Path, **changes) -> PriorConfig:
    return PriorConfig(path=str(folder), **changes)


def question(prior: StableDiffusionPrior):
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return noisy, torch.tensor([300, 700]), prior.text_encoder.encode(["a cube", "a cone"])


# ---- places -----------------------------------------------------------------------------------


def test_parts_lie_where_they_are_wanted(folder):
    prior = load_stable_diffusion(folder, device="meta", text_on_cpu=True)
    assert {next(part.parameters()).device.type for part in (prior.unet, prior.vae)} == {"meta"}
    assert prior.device.type == "meta" and prior.text_encoder.encode(["a cube"]).pooled.device.type == "cpu"
    prior = load_stable_diffusion(folder, denoiser_device="meta")
    assert next(prior.unet.parameters()).device.type == "meta" and prior.device.type == "cpu"


def test_a_denoiser_that_is_offloaded_comes_for_each_call_and_goes(folder, monkeypatch):
    prior, plain = (load_prior(config_of(folder, offload=offload)) for offload in (True, False))
    sent: list[torch.Tensor] = []

    def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append(tensor.clone())  # stands for the copy on the GPU
        return sent[-1]

    weights = [*prior.unet.parameters(), *prior.unet.buffers()]
    lying = [weight.data_ptr() for weight in weights]
    monkeypatch.setattr("amortized.priors.offload.to_device", send)
    used: list[int] = []
    prior.unet.register_forward_pre_hook(lambda *given: used.append(weights[0].data_ptr()))
    assert torch.equal(prior.predict_noise(*question(prior)), plain.predict_noise(*question(plain)))
    assert used == [sent[0].data_ptr()] and len(sent) == len(weights)
    assert [weight.data_ptr() for weight in weights] == lying  # nothing was copied back
    monkeypatch.setattr(prior.unet, "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prior.predict_noise(*question(prior))
    assert [weight.data_ptr() for weight in weights] == lying


@pytest.mark.parametrize("other", [{"compile": True}, {"denoiser_device": "cuda:1"}])
def test_a_denoiser_cannot_both_move_and_stay(folder, other):
    with pytest.raises(ValueError, match="prior.offload moves the denoiser .* set one of them"):
        config_of(folder, offload=True, **other)


@pytest.mark.slow
def test_a_compiled_denoiser_says_the_same(folder):
    compiled, plain = (load_prior(config_of(folder, compile=compile)) for compile in (True, False))
    with torch.no_grad():
        got, expected = (prior.predict_noise(*question(prior)) for prior in (compiled, plain))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_one_device_cannot_be_every_process(tmp_path, capsys, monkeypatch):
    import train
    from amortized.parallel import World

    class Two:
        def __enter__(self):
            return World(rank=0, size=2)

        def __exit__(self, *reason):
            return None

    monkeypatch.setattr(train, "join_world", lambda device, **how: Two())
    with pytest.raises(SystemExit) as left:
        sys.exit(
            train.main(["configs/quickstart.yaml", f"output={tmp_path}", "prior.denoiser_device=cuda:1"])
        )
    assert left.value.code == 2
    assert "prior.denoiser_device=cuda:1 is one device, for 2 processes" in capsys.readouterr().err


# ---- parts that fit ---------------------------------------------------------------------------

TIMES = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16}


@pytest.mark.parametrize(
    ("part", "changes", "problem"),
    [
        ("unet", {"in_channels": 9}, "reads 9 channels, and its VAE makes 4"),
        ("vae", {"latent_channels": 16}, "reads 4 channels, and its VAE makes 16"),
        ("unet", {"cross_attention_dim": 48}, "reads text of width 48, and its text encoder makes 32"),
        ("unet", {"addition_embed_type": "text_time", **TIMES}, "wants to be told 'text_time' besides"),
    ],
)
def test_parts_that_cannot_work_together_are_refused(folder, part, changes, problem):
    prior = load_stable_diffusion(folder)
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    other = kind.from_config({**getattr(prior, part).config, **changes})
    parts = {"unet": prior.unet, "vae": prior.vae, part: other, "text_encoder": prior.text_encoder}
    with pytest.raises(ValueError, match=f"this prior's UNet {problem}.*: only text-to-image models of"):
        StableDiffusionPrior(**parts, alphas_cumprod=prior.alphas_cumprod, prediction_type="epsilon")


def test_a_hub_id_tells_its_views_too(tmp_path, monkeypatch):
    import transformers.utils

    file, asked = tmp_path / "multi_view.json", []
    file.write_text(json.dumps({"num_views": 4}))

    def cached(repository, name, **how):
        asked.append((repository, name, how["revision"], how["local_files_only"]))
        return str(file)

    def gone(*arguments, **how):
        raise OSError("not in the cache")

    monkeypatch.setattr(transformers.utils, "cached_file", cached)
    assert views_of("someone/mvdream", "abc", allow_network=True) == 4
    assert asked == [("someone/mvdream", "multi_view.json", "abc", False)]
    for answer in (lambda *a, **k: None, gone):
        monkeypatch.setattr(transformers.utils, "cached_file", answer)
        assert views_of("someone/sd") == 1


def test_a_fingerprint_is_of_the_weights(folder, tmp_path):
    prior = load_stable_diffusion(folder)
    mark = fingerprint_of(prior)
    assert mark == fingerprint_of(load_stable_diffusion(folder)) and len(mark) == 16
    prior.add_adapter(rank=2, scale=1.0)
    assert fingerprint_of(prior) == mark  # it is learned, not given
    assert fingerprint_of(load_stable_diffusion(make_tiny_sd(tmp_path, seed=1))) != mark


# ---- half precision ---------------------------------------------------------------------------


def test_gradients_of_images_are_kept_in_full_through_an_encoder_in_half(folder):
    """d loss / d image from latents' gradients of 1e-9, which float16 knows nothing of."""
    images = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    towards = 1e-9 * torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    found = []
    for name in ("float16", "float32"):
        prior, variable = load_prior(config_of(folder, dtype=name)), images.clone().requires_grad_()
        found.append(torch.autograd.grad(prior.encode(variable), variable, towards)[0])
    half, single = found
    assert half.dtype == torch.float32 and single.abs().max() > 0
    assert (half - single).norm() < 0.02 * single.norm()


def test_a_learned_null_gets_its_gradient_through_a_denoiser_in_half(folder):
    """The loss is a mean over latents, here of a weight so small that float16 would lose its gradient."""
    found, (_, _, draws) = [], random_step(2)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    learned = published("lods-embedding").learned
    for name in ("float16", "float32"):
        prior = load_prior(config_of(folder, dtype=name))
        null = prior.text_encoder.encode([""])
        model = build_learned(learned, prior, null=null, text=None, num_prompts=1, seed=0)
        text = plain_text(prior.text_encoder.encode(["a cube"] * 2), null)
        loss = 1e-4 * denoising_loss(prior, model, latents, text, draws, None)
        found.append(torch.autograd.grad(loss, model.tokens)[0])
    half, single = found
    assert half.dtype == torch.float32 and single.abs().max() > 0
    assert (half - single).norm() < 0.1 * single.norm()  # 0.062 on torch 2.11
