"""Renderer and prior agree between GPU and CPU. Run with `make test ARGS="-m gpu"`."""

import pytest
import torch

from amortized.cameras import orbit
from amortized.encodings import HashGridConfig
from amortized.rendering import RendererConfig, ShadingConfig, render
from amortized.transfer import to_device
from amortized.types import Render, TextCondition
from benchmarks.sizes import TINY_MVDREAM, TINY_SD, random_prior
from generators.hyper_ingp import HyperINGP, HyperINGPConfig

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


def generator_on(device: torch.device) -> HyperINGP:
    torch.manual_seed(0)
    grid = HashGridConfig(num_levels=4, log2_table_size=10, base_resolution=4, growth=1.7)
    generator = HyperINGPConfig(grid=grid, hidden=(16,)).build(8)
    with torch.no_grad():
        generator.grid.table.normal_(std=0.5)
    return generator.to(device)


def render_on(generator: HyperINGP, device: torch.device, training: bool) -> Render:
    """Render two prompts from two views each, with shading and normals."""
    pooled = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)).to(device)
    text = TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(2, 1, dtype=torch.bool))
    cameras = to_device(orbit(2, 2, elevation_deg=20.0, distance=2.0, fovy_deg=50.0), device)
    config = RendererConfig(num_coarse=32, num_fine=16, lattice=16, shading=ShadingConfig(kind="lambert"))
    return render(
        generator(to_device(text, device)),
        cameras,
        24,
        24,
        config=config,
        sharpness=20.0,
        background=torch.full((2, 2, 3), 0.5, device=device),
        training=training,
        want_normal=True,
    )


@pytest.mark.parametrize("training", [False, True])
def test_images_equal_those_of_the_cpu(device: torch.device, training: bool):
    gpu, cpu = (render_on(generator_on(target), target, training) for target in (device, CPU))
    assert 0.02 < cpu.opacity.mean() < 0.9
    for name in ("rgb", "opacity", "depth", "normal"):
        # Rounding decides whether a ray at the opacity threshold, 1e-3, is rendered.
        torch.testing.assert_close(getattr(gpu, name).cpu(), getattr(cpu, name), rtol=0, atol=5e-3, msg=name)


def test_gradients_of_images_equal_those_of_the_cpu(device: torch.device):
    gradients = []
    for target in (device, CPU):
        generator = generator_on(target)
        render_on(generator, target, True).rgb.square().mean().backward()
        gradients.append({name: value.grad.cpu() for name, value in generator.named_parameters()})
    for name, expected in gradients[1].items():
        difference = (gradients[0][name] - expected).norm() / expected.norm()
        assert difference < 1e-2, name


@pytest.mark.parametrize("sizes", [TINY_SD, TINY_MVDREAM], ids=["one view", "four views"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_prior_in_any_precision_is_close_to_float32_on_the_cpu(
    device: torch.device, dtype: torch.dtype, sizes
):
    exact = random_prior(sizes, device=CPU, dtype=torch.float32)
    other = random_prior(sizes, device=device, dtype=dtype)
    for module, exact_module in zip(other.modules(), exact.modules(), strict=True):
        module.load_state_dict(exact_module.state_dict())
    random = torch.Generator().manual_seed(0)
    images = torch.rand(4, 16, 16, 3, generator=random)
    noisy = torch.randn(4, *exact.latent_shape, generator=random)
    cameras = orbit(1, 4, elevation_deg=10.0, distance=1.5, fovy_deg=50.0)
    results = []
    for prior, target in ((other, device), (exact, CPU)):
        pixels = images.to(target).requires_grad_()
        latents = prior.encode(pixels)
        latents.square().mean().mul(1e-6).backward()  # as small as a guidance gradient may be
        with torch.no_grad():
            text = prior.text_encoder.encode(["a red cube"] * 4)
            timesteps = torch.tensor([20, 500, 500, 900], device=target)
            noise = prior.predict_noise(noisy.to(target), timesteps, text, to_device(cameras, target))
        results.append([value.detach().float().cpu() for value in (latents, pixels.grad, text.tokens, noise)])
    # float32: TF32 in convolutions, 10 bits of mantissa; bfloat16 has 8.
    limit = {torch.float32: 1e-2, torch.float16: 3e-2, torch.bfloat16: 2e-1}[dtype]
    for name, actual, expected in zip(("latents", "gradient", "text", "noise"), *results, strict=True):
        assert (actual - expected).norm() / expected.norm() < limit, name


@pytest.mark.parametrize("sizes", [TINY_SD, TINY_MVDREAM], ids=["one view", "four views"])
def test_replayed_networks_equal_called_ones(device: torch.device, sizes):
    """Inputs differ between calls: a replay must read its inputs, and must not overwrite earlier outputs."""
    if device.type != "cuda":
        pytest.skip("only a CUDA device has graphs")
    prior = random_prior(sizes, device=device, dtype=torch.float16)
    cameras = to_device(orbit(1, 4, elevation_deg=10.0, distance=1.5, fovy_deg=50.0), device)
    text = prior.text_encoder.encode(["a red cube"] * 4)
    results: dict[bool, list[torch.Tensor]] = {}
    for prior.graphs in (False, True):
        random, results[prior.graphs] = torch.Generator().manual_seed(0), []
        for call in range(6):
            pixels = torch.rand(4, 16, 16, 3, generator=random).to(device).requires_grad_()
            noisy = torch.randn(4, *prior.latent_shape, generator=random).to(device)
            latents = prior.encode(pixels)
            latents.square().mean().mul(1e-6).backward()
            with torch.no_grad():
                timesteps = torch.full((4,), 100 + call, device=device)
                noise = prior.predict_noise(noisy, timesteps, text, cameras)
            results[prior.graphs] += [latents.detach(), pixels.grad, noise]
    assert prior.denoiser.graphed._graphs and prior.autoencoder.graphed._graphs
    for plain, replayed in zip(results[False], results[True], strict=True):
        torch.testing.assert_close(replayed, plain, rtol=1e-2, atol=1e-3)
