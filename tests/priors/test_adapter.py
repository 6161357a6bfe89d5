"""LoRA on a prior: zero at first, used only with adapted=True, and equal to W + scale * B A."""

from __future__ import annotations

import pytest
import torch

from amortized.priors import load_stable_diffusion
from amortized.priors.convert_mvdream import NetworkConfigs
from amortized.priors.denoiser import FrozenDenoiser
from amortized.priors.stable_diffusion import LORA_TARGETS
from amortized.types import TextCondition


@pytest.fixture
def prior(folder):
    return load_stable_diffusion(folder, dtype=torch.float64)


def denoiser_inputs(num: int = 3):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(num, 48, 32, generator=generator, dtype=torch.float64)
    text = TextCondition(pooled=tokens[:, 0], tokens=tokens, mask=torch.ones(num, 48, dtype=torch.bool))
    latents_noisy = torch.randn(num, 4, 8, 8, generator=generator, dtype=torch.float64)
    return latents_noisy, torch.tensor([10, 500, 900])[:num], text


def train(adapter) -> None:
    """Stand in for training: perturb the adapter's weights."""
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))


def test_a_new_adapter_changes_nothing_and_a_trained_one_only_when_enabled(prior):
    before = prior.predict_noise(*denoiser_inputs())
    adapter = prior.add_adapter(rank=2, scale=1.0)
    torch.testing.assert_close(
        prior.predict_noise(*denoiser_inputs(), adapted=True), before, rtol=0, atol=1e-12
    )
    train(adapter)
    assert torch.equal(prior.predict_noise(*denoiser_inputs()), before)
    assert (prior.predict_noise(*denoiser_inputs(), adapted=True) - before).abs().max() > 1e-3


def test_an_adapter_adds_low_rank_weights(prior, folder):
    adapter = prior.add_adapter(rank=2, scale=0.5)
    train(adapter)
    merged = load_stable_diffusion(folder, dtype=torch.float64)
    weights = {name.replace("/", "."): value for name, value in adapter.weights.items()}
    num_merged = 0
    for name, module in merged.unet.named_modules():
        down, up = weights.get(f"{name}.lora_A.default.weight"), weights.get(f"{name}.lora_B.default.weight")
        if down is not None and up is not None:
            assert name.split(".")[-1] in ("to_q", "to_k", "to_v", "0") and down.shape[0] == up.shape[1] == 2
            module.weight.data += 0.5 * (up @ down).double()
            num_merged += 1
    assert num_merged == len(weights) / 2 > 0
    got = prior.predict_noise(*denoiser_inputs(), adapted=True)
    torch.testing.assert_close(
        got, merged.predict_noise(*denoiser_inputs()), rtol=0, atol=1e-7
    )  # float32 weights


def test_gradients_reach_only_the_adapter(prior):
    adapter = prior.add_adapter(rank=2, scale=1.0)
    train(adapter)
    prior.predict_noise(*denoiser_inputs(), adapted=True).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())
    assert all(p.grad is None for name, p in prior.unet.named_parameters() if "lora_" not in name)
    # A call without the adapter between forward and backward, as in a training step, changes no gradient.
    expected = [p.grad.clone() for p in adapter.parameters()]
    adapter.zero_grad()
    loss = prior.predict_noise(*denoiser_inputs(), adapted=True).square().sum()
    with torch.no_grad():
        prior.predict_noise(*denoiser_inputs())
    loss.backward()
    assert all(torch.equal(p.grad, old) for p, old in zip(adapter.parameters(), expected, strict=True))


def test_adapter_weights_are_float32(folder):
    half = load_stable_diffusion(folder, dtype=torch.bfloat16)
    adapter = half.add_adapter(rank=1, scale=1.0)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    latents_noisy, times, text = denoiser_inputs()
    assert half.predict_noise(latents_noisy.float(), times, text, adapted=True).dtype == torch.float32


def test_the_adapter_of_stable_diffusion_has_the_published_size():
    """829,952 parameters at rank 4 on all self- and cross-attentions of SD 2.1."""
    from diffusers import UNet2DConditionModel

    config = {k: v for k, v in NetworkConfigs().unet.items() if "class" not in k}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        denoiser = FrozenDenoiser(unet, unet, torch.device("meta"), lora_targets=LORA_TARGETS)
        assert sum(p.numel() for p in denoiser.add_adapter(rank=4, scale=0.5).parameters()) == 829_952


def test_a_prior_takes_one_adapter(prior):
    prior.add_adapter(rank=1, scale=1.0)
    with pytest.raises(ValueError, match="already has an adapter"):
        prior.add_adapter(rank=1, scale=1.0)
