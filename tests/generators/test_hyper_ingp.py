"""Hyper-iNGP: published sizes, initialization, and the heads against their formula."""

import pytest
import torch

from amortized.encodings import HashGridConfig
from amortized.types import Scene, TextCondition
from generators.hyper_ingp import HyperINGP, HyperINGPConfig, TokenPooling
from tests.generators.helpers import TEXT_DIM, in_double, perturb, texts

GRID = HashGridConfig(
    num_levels=4, features_per_level=4, log2_table_size=11, base_resolution=8, growth=5 ** (1 / 3)
)
SMALL = HyperINGPConfig(grid=GRID, include_position=True, shared_width=32, hidden=(32,), bounding_radius=0.85)
PLAIN = HyperINGPConfig(grid=GRID, hidden=(16, 8), sphere_radius=0.4)
RICH = HyperINGPConfig(
    grid=GRID, hidden=(8,), text="tokens", token_queries=3, z_dim=5, spectral_norm=True, include_position=True
)


def perturbed(config: HyperINGPConfig) -> HyperINGP:
    torch.manual_seed(0)
    return perturb(HyperINGP(config, TEXT_DIM))


def test_published_parameter_counts():
    generator = HyperINGPConfig().build(1024)
    assert generator.grid.table.numel() == 12_599_920
    assert sum(p.numel() for p in generator.hypernet.parameters()) == 348_544
    assert sum(p.numel() for p in generator.parameters()) == 12_599_920 + 348_544
    assert generator.num_weights == [2048 + 64, 2048 + 192]


@pytest.mark.parametrize("config", [SMALL, PLAIN, RICH, HyperINGPConfig(grid=GRID, include_position=True)])
def test_every_prompt_starts_as_mid_gray_sphere(config: HyperINGPConfig):
    generator = HyperINGP(config, TEXT_DIM)
    scene = generator(texts(3))
    assert isinstance(scene, Scene)
    assert scene.bounding_radius == config.bounding_radius
    points = config.bounding_radius * (2 * torch.rand(3, 50, 3) - 1) / 3**0.5
    sdf, albedo = scene.sdf_and_albedo(points)
    torch.testing.assert_close(sdf, points.norm(dim=-1) - config.sphere_radius, rtol=0, atol=0.005)
    torch.testing.assert_close(albedo, torch.full_like(albedo, 0.5), rtol=0, atol=0.005)


def test_first_gradient_reaches_every_layer():
    """Despite the small initialization, one step trains every layer, and two make prompts differ."""
    torch.manual_seed(0)
    generator = HyperINGP(SMALL, TEXT_DIM)
    text, points = texts(2), torch.rand(2, 200, 3) - 0.5
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        sdf, albedo = generator(text).sdf_and_albedo(points)
        (sdf[0].square().mean() + (albedo[1] - 0.9).square().mean()).backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in generator.parameters())
        optimizer.step()
    sdf, albedo = generator(text).sdf_and_albedo(points)
    assert (sdf[0] - sdf[1]).abs().mean() > 1e-3
    assert albedo[1].mean() > 0.51


def test_heads_equal_formula():
    generator = perturbed(PLAIN).double()
    text, points = in_double(texts(1)), torch.rand(1, 9, 3).double() - 0.5
    sdf, albedo = generator(text).sdf_and_albedo(points)
    flat = generator.hypernet(text.pooled)[0]
    widths = [(16, 16), (16, 8), (8, 1), (16, 16), (16, 8), (8, 3)]  # grid 4 x 4 = 16 features
    matrices, start = [], 0
    for a, b in widths:
        matrices.append(flat[start : start + a * b].reshape(a, b))
        start += a * b
    assert start == len(flat)
    f = generator.grid((points[0] + 1) / 2)
    net = ((f @ matrices[0]).relu() @ matrices[1]).relu() @ matrices[2]
    rgb = ((f @ matrices[3]).relu() @ matrices[4]).relu() @ matrices[5]
    torch.testing.assert_close(sdf[0], net[:, 0] + points[0].norm(dim=-1) - 0.4)
    torch.testing.assert_close(albedo[0], 1 / (1 + torch.exp(-rgb)))


def test_tokens_z_and_spectral_norm_have_effect():
    generator, points = perturbed(RICH), torch.rand(1, 50, 3) - 0.5
    text, z = texts(1), torch.randn(1, 5)

    def sdf(**changes) -> torch.Tensor:
        z_used = changes.pop("z", z)
        with torch.no_grad():
            return generator(TextCondition(**{**vars(text), **changes}), z_used).sdf(points)

    reference = sdf()
    assert torch.equal(reference, sdf())
    assert (sdf(tokens=text.tokens + torch.randn_like(text.tokens)) - reference).abs().max() > 1e-4
    assert (sdf(z=-z) - reference).abs().max() > 1e-4
    shorter = torch.tensor([[True, True, False, False, False]])
    padded = text.tokens.clone()
    padded[:, 2:] = 100.0
    torch.testing.assert_close(sdf(mask=shorter, tokens=padded), sdf(mask=shorter))
    first, last = generator.hypernet[0], generator.hypernet[3]
    for _ in range(60):  # power iterations
        generator.train()(text, z)
    for layer in (first, last):
        assert torch.linalg.svdvals(layer.weight.detach())[0].item() == pytest.approx(1, abs=0.02)


def test_pooling_equals_pytorch_attention():
    torch.manual_seed(0)
    pooling, text = TokenPooling(TEXT_DIM, 3), texts(3)
    with torch.no_grad():
        pooling.queries.normal_()
        actual = pooling(text.tokens, text.mask)
    expected = torch.nn.functional.scaled_dot_product_attention(
        pooling.queries.expand(3, -1, -1), text.tokens, text.tokens, attn_mask=text.mask[:, None]
    )
    torch.testing.assert_close(actual, expected.flatten(1))


def test_bad_sizes_raise():
    text = texts(2)
    with pytest.raises(ValueError, match=r"z must be \[P, z_dim\] = \[2, 5\], got \[2, 3\]"):
        perturbed(RICH)(text, torch.randn(2, 3))
    with pytest.raises(ValueError, match="need a bool mask"):
        perturbed(RICH)(TextCondition(pooled=text.pooled, tokens=text.tokens, mask=None))
    for name, value in (
        ("sphere_radius", 1.2),
        ("hidden", (0,)),
        ("shared_width", 0),
        ("z_dim", -1),
        ("token_queries", 0),
    ):
        with pytest.raises(ValueError, match=name):
            HyperINGPConfig(**{name: value})
