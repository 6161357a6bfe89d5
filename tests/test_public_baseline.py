"""The public baseline has the public code's formulas and evaluation counts, and trains every weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from amortized.cameras import orbit
from amortized.conditioning import TextBank, ViewTextConfig
from amortized.encodings import HashGridConfig
from benchmarks import public_baseline, sizes
from generators.hyper_ingp import HyperINGPConfig

RADIUS = 0.5


@dataclass
class CountingBall:
    """A gray ball that counts its evaluations."""

    num_prompts: int = 1
    bounding_radius: float = 2.0
    counts: dict[str, int] = field(default_factory=lambda: {"sdf": 0, "sdf_and_albedo": 0})

    def sdf(self, points: torch.Tensor) -> torch.Tensor:
        self.counts["sdf"] += points.shape[1]
        return points.norm(dim=-1) - RADIUS

    def sdf_and_albedo(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.counts["sdf_and_albedo"] += points.shape[1]
        return points.norm(dim=-1) - RADIUS, torch.full_like(points, 0.5)

    def select(self, index: int) -> CountingBall:
        return self


def rays(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins and directions [1, R, 3] of parallel rays along -x; the first goes through the center."""
    origins = torch.zeros(1, num, 3)
    origins[..., 0], origins[..., 1] = 1.5, torch.linspace(0, 1.2, num)
    return origins, torch.tensor([-1.0, 0.0, 0.0]).expand(1, num, 3)


def test_a_pixel_costs_900_evaluations():
    scene, (origins, directions) = CountingBall(), rays(7)
    public_baseline.march(scene, origins, directions, torch.zeros(1, 3))
    assert scene.counts == {"sdf": 7 * (128 + 193 * 3), "sdf_and_albedo": 7 * 193}
    assert sum(scene.counts.values()) == 7 * public_baseline.PER_PIXEL == 7 * 900


def test_a_ball_is_rendered_at_its_position():
    torch.manual_seed(0)
    origins, directions = rays(2)
    rendered = public_baseline.march(CountingBall(), origins, directions, torch.ones(1, 3))
    assert rendered.opacity[0] > 0.9 and rendered.opacity[1] < 0.01
    assert rendered.depth[0] / rendered.opacity[0] == pytest.approx(1.5 - RADIUS, abs=0.05)
    torch.testing.assert_close(rendered.rgb[1], torch.ones(3), atol=0.01, rtol=0)
    # Facing the camera: towards +x, (n + 1) / 2 faded by opacity.
    expected = torch.tensor([1.0, 0.5, 0.5]) * rendered.opacity[0]
    torch.testing.assert_close(rendered.normal[0], expected.detach(), atol=0.05, rtol=0)
    assert rendered.gradient.shape == (2, 193, 3)


def test_opacities_are_first_order():
    sdf, lengths = torch.tensor([[-0.1, 0.0, 0.2]]), torch.tensor([[0.01, 0.02, 0.03]])
    densities = torch.tensor([30 * (1 - 0.5 * torch.e**-3), 15.0, 15 * torch.e**-6])
    alphas = densities * lengths[0]
    expected = torch.stack(
        [alphas[0], alphas[1] * (1 - alphas[0]), alphas[2] * (1 - alphas[0]) * (1 - alphas[1])]
    )
    torch.testing.assert_close(public_baseline.compositing_weights(sdf, lengths)[0], expected)


def test_edges_concentrate_at_the_weight():
    torch.manual_seed(0)
    edges, weights = torch.linspace(0, 1, 11)[None], torch.zeros(1, 10)
    weights[0, 3] = 1.0
    sampled = public_baseline.importance_edges(edges, weights)
    assert sampled.shape == (1, 65) and (sampled.diff() >= 0).all()
    assert ((sampled > 0.3 - 1e-6) & (sampled < 0.4 + 1e-6)).float().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_reaches_every_weight_of_the_generator(dtype: torch.dtype):
    torch.manual_seed(0)
    prior = sizes.random_prior(sizes.TINY_SD, device=torch.device("cpu"), dtype=dtype)
    grid = HashGridConfig(num_levels=2, log2_table_size=8, base_resolution=4, growth=2.0)
    generator = HyperINGPConfig(grid=grid, bounding_radius=2.0).build(prior.text_encoder.width)
    bank = TextBank(prior.text_encoder, ViewTextConfig(perp_neg=True))
    cameras = orbit(1, 1, elevation_deg=10.0, distance=1.2, fovy_deg=60.0, start_azimuth_deg=100.0)
    baseline = public_baseline.PublicBaseline(generator=generator, prior=prior, size=6)
    before = {name: value.clone() for name, value in generator.named_parameters()}
    marks: list[str] = []
    prior_text = bank.prior_text(["a red cube"], cameras)
    loss = baseline.step(
        bank.generator_text(["a red cube"]), prior_text, cameras, torch.zeros(1, 0), marks.append
    )
    assert loss.isfinite()
    assert marks == ["generator", "render", "encode", "denoise", "backward", "update"]
    for name, value in generator.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.abs().max() > 0, name
        assert not torch.equal(value, before[name]), name
    assert not any(weight.requires_grad for module in prior.modules() for weight in module.parameters())


def test_five_images_go_through_the_denoiser(monkeypatch: pytest.MonkeyPatch):
    prior = sizes.random_prior(sizes.TINY_SD, device=torch.device("cpu"), dtype=torch.float32)
    bank = TextBank(prior.text_encoder, ViewTextConfig(perp_neg=True))
    cameras = orbit(1, 1, elevation_deg=10.0, distance=1.2, fovy_deg=60.0)
    calls = []
    predict = prior.predict_noise

    def counted(noisy, timesteps, text):
        calls.append((len(noisy), timesteps.tolist(), torch.is_grad_enabled()))
        return predict(noisy, timesteps, text)

    monkeypatch.setattr(prior, "predict_noise", counted)
    baseline = public_baseline.PublicBaseline(generator=torch.nn.Linear(1, 1), prior=prior)
    latents = torch.randn(1, *prior.latent_shape, requires_grad=True)
    baseline.guidance_loss(latents, bank.prior_text(["a red cube"], cameras)).backward()
    ((num, timesteps, with_graph),) = calls
    assert num == 5 and not with_graph
    assert len(set(timesteps[:4])) == 1 and 0 <= timesteps[4] - timesteps[0] <= 48
    assert latents.grad is not None and latents.grad.abs().max() > 0


def test_tf32_is_off_and_the_previous_precision_is_restored():
    before = torch.get_float32_matmul_precision()
    with public_baseline.public_precision():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before
