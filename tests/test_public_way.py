"""The public way's twin: as many evaluations as it says, its formulas, and a gradient that arrives."""

from dataclasses import dataclass, field

import pytest
import torch

from amortized.cameras import orbit
from amortized.conditioning import TextBank, ViewTextConfig
from amortized.encodings import HashGridConfig
from benchmarks import public_way, sizes
from generators.hyper_ingp import HyperINGPConfig

RADIUS = 0.5


@dataclass
class CountingBall:
    """A grey ball that counts what it is asked."""

    bounding_radius: float = 2.0
    asked: dict[str, int] = field(default_factory=lambda: {"sdf": 0, "sdf_and_albedo": 0})

    def sdf(self, points: torch.Tensor) -> torch.Tensor:
        self.asked["sdf"] += points.shape[1]
        return points.norm(dim=-1) - RADIUS

    def sdf_and_albedo(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked["sdf_and_albedo"] += points.shape[1]
        return points.norm(dim=-1) - RADIUS, torch.full_like(points, 0.5)


def rays(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins and directions [1, R, 3] of parallel rays along -x; the first goes through the centre."""
    origins = torch.zeros(1, num, 3)
    origins[..., 0], origins[..., 1] = 1.5, torch.linspace(0, 1.2, num)
    return origins, torch.tensor([-1.0, 0.0, 0.0]).expand(1, num, 3)


def test_a_pixel_costs_900_evaluations():
    scene, (origins, directions) = CountingBall(), rays(7)
    public_way.march(scene, origins, directions, torch.zeros(1, 3))
    assert scene.asked == {"sdf": 7 * (128 + 193 * 3), "sdf_and_albedo": 7 * 193}
    assert sum(scene.asked.values()) == 7 * public_way.PER_PIXEL == 7 * 900


def test_a_ball_is_seen_where_it_is():
    torch.manual_seed(0)
    origins, directions = rays(2)
    seen = public_way.march(CountingBall(), origins, directions, torch.ones(1, 3))
    assert seen.opacity[0] > 0.9 and seen.opacity[1] < 0.01
    assert seen.depth[0] / seen.opacity[0] == pytest.approx(1.5 - RADIUS, abs=0.05)
    torch.testing.assert_close(seen.rgb[1], torch.ones(3), atol=0.01, rtol=0)
    # Facing the camera: towards +x, (n + 1) / 2 faded by opacity.
    expected = torch.tensor([1.0, 0.5, 0.5]) * seen.opacity[0]
    torch.testing.assert_close(seen.normal[0], expected.detach(), atol=0.05, rtol=0)
    assert seen.gradient.shape == (2, 193, 3)


def test_opacities_are_of_first_order():
    sdf, lengths = torch.tensor([[-0.1, 0.0, 0.2]]), torch.tensor([[0.01, 0.02, 0.03]])
    densities = torch.tensor([30 * (1 - 0.5 * torch.e**-3), 15.0, 15 * torch.e**-6])
    alphas = densities * lengths[0]
    expected = torch.stack(
        [alphas[0], alphas[1] * (1 - alphas[0]), alphas[2] * (1 - alphas[0]) * (1 - alphas[1])]
    )
    torch.testing.assert_close(public_way.weights_of(sdf, lengths)[0], expected)


def test_edges_crowd_where_the_weight_is():
    torch.manual_seed(0)
    edges, weights = torch.linspace(0, 1, 11)[None], torch.zeros(1, 10)
    weights[0, 3] = 1.0
    drawn = public_way.drawn_by(edges, weights)
    assert drawn.shape == (1, 65) and (drawn.diff() >= 0).all()
    assert ((drawn > 0.3 - 1e-6) & (drawn < 0.4 + 1e-6)).float().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_reaches_every_weight_of_the_generator(dtype: torch.dtype):
    torch.manual_seed(0)
    prior = sizes.random_prior(sizes.TINY_SD, device=torch.device("cpu"), dtype=dtype)
    grid = HashGridConfig(num_levels=2, log2_table_size=8, base_resolution=4, growth=2.0)
    generator = HyperINGPConfig(grid=grid, bounding_radius=2.0).build(prior.text_encoder.width)
    bank = TextBank(prior.text_encoder, ViewTextConfig(perp_neg=True))
    cameras = orbit(1, 1, elevation_deg=10.0, distance=1.2, fovy_deg=60.0, start_azimuth_deg=100.0)
    way = public_way.PublicWay(generator=generator, prior=prior, size=6)
    before = {name: value.clone() for name, value in generator.named_parameters()}
    marks: list[str] = []
    told = bank.prior_text(["a red cube"], cameras)
    loss = way.step(bank.generator_text(["a red cube"]), told, cameras, torch.zeros(1, 0), marks.append)
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
    asked = []
    predict = prior.predict_noise

    def counted(noisy, timesteps, text):
        asked.append((len(noisy), timesteps.tolist(), torch.is_grad_enabled()))
        return predict(noisy, timesteps, text)

    monkeypatch.setattr(prior, "predict_noise", counted)
    way = public_way.PublicWay(generator=torch.nn.Linear(1, 1), prior=prior)
    latents = torch.randn(1, *prior.latent_shape, requires_grad=True)
    way.teach(latents, bank.prior_text(["a red cube"], cameras)).backward()
    ((num, timesteps, with_graph),) = asked
    assert num == 5 and not with_graph
    assert len(set(timesteps[:4])) == 1 and 0 <= timesteps[4] - timesteps[0] <= 48
    assert latents.grad is not None and latents.grad.abs().max() > 0


def test_products_are_not_in_tf32_and_what_was_set_comes_back():
    before = torch.get_float32_matmul_precision()
    with public_way.public_precision():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before
