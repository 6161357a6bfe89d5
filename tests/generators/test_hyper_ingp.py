"""Hyper-iNGP: published sizes, the start sphere, and prompts that never mix."""

import pytest
import torch

from amortized.encodings import HashGridConfig
from amortized.types import Scene, TextCondition
from generators import GENERATORS, HyperINGP, HyperINGPConfig, build_generator

TEXT_DIM = 12
GRID = HashGridConfig(
    num_levels=4, features_per_level=4, log2_table_size=11, base_resolution=8, growth=5 ** (1 / 3)
)
SMALL = HyperINGPConfig(grid=GRID, include_position=True, shared_width=32, hidden=(32,), bounding_radius=0.85)
PLAIN = HyperINGPConfig(grid=GRID, hidden=(16, 8), sphere_radius=0.4)


def text_of(pooled: torch.Tensor) -> TextCondition:
    return TextCondition(
        pooled=pooled, tokens=pooled[:, None], mask=torch.ones(len(pooled), 1, dtype=torch.bool)
    )


def trained_like(config: HyperINGPConfig) -> HyperINGP:
    """A generator whose every parameter has moved away from its start."""
    torch.manual_seed(0)
    generator = HyperINGP(config, TEXT_DIM)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return generator


def test_published_parameter_counts():
    generator = build_generator(HyperINGPConfig(), 1024)
    assert generator.grid.table.numel() == 12_599_920
    assert sum(p.numel() for p in generator.hypernet.parameters()) == 348_544
    assert sum(p.numel() for p in generator.parameters()) == 12_599_920 + 348_544
    assert generator.num_weights == [2048 + 64, 2048 + 192]


@pytest.mark.parametrize("config", [SMALL, PLAIN, HyperINGPConfig(grid=GRID, include_position=True)])
def test_every_prompt_starts_as_the_mid_grey_sphere(config: HyperINGPConfig):
    generator = HyperINGP(config, TEXT_DIM)
    scene = generator(text_of(torch.randn(3, TEXT_DIM)))
    assert isinstance(scene, Scene)
    assert scene.bounding_radius == config.bounding_radius
    points = config.bounding_radius * (2 * torch.rand(3, 50, 3) - 1) / 3**0.5
    sdf, albedo = scene.sdf_and_radiance(points)
    torch.testing.assert_close(sdf, points.norm(dim=-1) - config.sphere_radius, rtol=0, atol=0.005)
    torch.testing.assert_close(albedo, torch.full_like(albedo, 0.5), rtol=0, atol=0.005)


def test_the_first_gradient_reaches_every_layer():
    """A quiet start must not be a dead one: one step trains every layer, two move prompts apart."""
    torch.manual_seed(0)
    generator = HyperINGP(SMALL, TEXT_DIM)
    text, points = text_of(torch.randn(2, TEXT_DIM)), torch.rand(2, 200, 3) - 0.5
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        sdf, albedo = generator(text).sdf_and_radiance(points)
        (sdf[0].square().mean() + (albedo[1] - 0.9).square().mean()).backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in generator.parameters())
        optimizer.step()
    sdf, albedo = generator(text).sdf_and_radiance(points)
    assert (sdf[0] - sdf[1]).abs().mean() > 1e-3
    assert albedo[1].mean() > 0.51


@pytest.mark.parametrize("config", [SMALL, PLAIN])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_a_batch_equals_its_prompts_one_by_one(config: HyperINGPConfig, num_prompts: int):
    generator = trained_like(config)
    pooled, points = torch.randn(num_prompts, TEXT_DIM), torch.rand(num_prompts, 30, 3) - 0.5
    seed = torch.randn(num_prompts, 30)

    def run(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        scene = generator(text_of(pooled[rows]))
        sdf, albedo = scene.sdf_and_radiance(points[rows])
        torch.testing.assert_close(scene.sdf(points[rows]), sdf)
        (sdf * seed[rows] + albedo.sum(dim=-1)).sum().backward()
        return sdf, albedo

    together = run(slice(None))
    gradients = [p.grad.clone() for p in generator.parameters()]
    generator.zero_grad()
    apart = [run(slice(i, i + 1)) for i in range(num_prompts)]
    for got, parts in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(got, torch.cat(parts), rtol=1e-4, atol=1e-5)
    for got, parameter in zip(gradients, generator.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-3, atol=1e-4)
    if num_prompts > 1:
        assert not torch.allclose(together[0][0], generator(text_of(pooled[1:2])).sdf(points[:1])[0])


def test_heads_follow_the_formula():
    generator = trained_like(PLAIN).double()
    pooled, points = torch.randn(1, TEXT_DIM).double(), torch.rand(1, 9, 3).double() - 0.5
    sdf, albedo = generator(text_of(pooled)).sdf_and_radiance(points)
    flat = generator.hypernet(pooled)[0]
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


def test_table_of_generators():
    assert set(GENERATORS) == {"hyper-ingp"}
    with pytest.raises(ValueError, match="known generators: hyper-ingp"):
        build_generator(GRID, TEXT_DIM)
    with pytest.raises(ValueError, match="sphere_radius"):
        HyperINGPConfig(sphere_radius=1.2)
    with pytest.raises(ValueError, match="hidden"):
        HyperINGPConfig(hidden=(0,))
    with pytest.raises(ValueError, match="shared_width"):
        HyperINGPConfig(shared_width=0)
