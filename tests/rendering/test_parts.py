"""Quadrature, backgrounds and shading against their formulas."""

import math

import numpy as np
import pytest
import torch

from amortized.config import build_config
from amortized.rendering import (
    BackgroundConfig,
    ShadingConfig,
    background_from_uniform,
    field_gradient,
    laplace_density,
)
from amortized.rendering.quadrature import (
    compositing_weights,
    even_edges,
    importance_edges,
    positions_in,
    sphere_bounds,
    subdivide,
)
from amortized.rendering.shading import brightness, normals
from tests.rendering.scenes import Balls, Cubes


def test_density_is_sharpness_times_the_laplace_distribution():
    sdf = torch.linspace(-2, 2, 101, dtype=torch.float64)
    for k in (1.0, 30.0):
        laplace = torch.distributions.Laplace(torch.tensor(0.0).double(), torch.tensor(1 / k).double())
        torch.testing.assert_close(laplace_density(sdf, k), k * laplace.cdf(-sdf))
    assert laplace_density(torch.tensor(0.0), 30.0).item() == 15.0
    assert laplace_density(torch.tensor(-9.0), 30.0).item() == 30.0


def test_density_gradient():
    sdf = torch.tensor([-0.3, -0.01, 0.02, 0.4], dtype=torch.float64, requires_grad=True)
    sharpness = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(laplace_density, (sdf, sharpness))


def test_compositing_equals_python_loop():
    torch.manual_seed(0)
    densities = 40 * torch.rand(5, 12, dtype=torch.float64) ** 4
    lengths = 0.2 * torch.rand(5, 12, dtype=torch.float64)
    expected = []
    for ray_densities, ray_lengths in zip(densities.tolist(), lengths.tolist(), strict=True):
        transmittance, row = 1.0, []
        for density, length in zip(ray_densities, ray_lengths, strict=True):
            alpha = 1 - math.exp(-density * length)
            row.append(transmittance * alpha)
            transmittance *= 1 - alpha
        expected.append(row)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(compositing_weights(densities, lengths), expected, rtol=1e-12, atol=1e-15)
    single = compositing_weights(densities.float(), lengths.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-6)


def test_compositing_gradient_through_opaque_interval():
    densities = torch.tensor([[0.5, 3.0, 800.0, 2.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    lengths = torch.full_like(densities, 0.3)
    assert torch.autograd.gradcheck(
        compositing_weights, (densities.requires_grad_(), lengths.requires_grad_())
    )


def test_sphere_bounds():
    origins = torch.tensor([[3.0, 0, 0], [3.0, 0, 0], [0.2, 0, 0], [3.0, 0, 0], [3.0, 0.6, 0]])
    directions = torch.tensor([[-1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0]])
    near, far, hit = sphere_bounds(origins, directions, 1.0)
    # through the center; sideways; camera inside; ball behind; off center by 0.6: half chord 0.8
    assert hit.tolist() == [True, False, True, False, True]
    assert near.tolist() == pytest.approx([2.0, 0.0, 0.0, 0.0, 2.2])
    assert far.tolist() == pytest.approx([4.0, 0.0, 0.8, 0.0, 3.8])


def test_positions_lie_in_intervals():
    edges = even_edges(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.5]]), 4)
    torch.testing.assert_close(edges[0], torch.tensor([[1, 1.5, 2, 2.5, 3], [2, 2.125, 2.25, 2.375, 2.5]]))
    torch.testing.assert_close(positions_in(edges, None)[0, 0], torch.tensor([1.25, 1.75, 2.25, 2.75]))
    u = torch.rand(1, 2, 4)
    positions = positions_in(edges, u)
    assert torch.all((positions >= edges[..., :-1]) & (positions <= edges[..., 1:]))
    torch.testing.assert_close((positions - edges[..., :-1]) / edges.diff(dim=-1), u)


def test_importance_edges_split_weight_equally():
    torch.manual_seed(0)
    edges = torch.rand(3, 2, 9, dtype=torch.float64).cumsum(dim=-1)
    weights = torch.rand(3, 2, 8, dtype=torch.float64) ** 6
    new = importance_edges(edges, weights, 5)
    torch.testing.assert_close(new[..., 0], edges[..., 0])
    torch.testing.assert_close(new[..., -1], edges[..., -1])
    share = 0.9 * weights / weights.sum(dim=-1, keepdim=True) + 0.1 / 8
    rate = share / edges.diff(dim=-1)
    overlap = torch.minimum(edges[..., None, 1:], new[..., 1:, None]) - torch.maximum(
        edges[..., None, :-1], new[..., :-1, None]
    )
    mass = (overlap.clamp(min=0) * rate[..., None, :]).sum(dim=-1)
    torch.testing.assert_close(mass, torch.full_like(mass, 0.2))


def test_an_even_share_has_as_many_edges_everywhere_as_merging_even_and_important_ones():
    """ScaleDreamer merges 128 even intervals and 64 by importance: 193 intervals."""
    rng = np.random.default_rng(0)
    edges = np.linspace(0.4, 3.7, 129)
    weights = rng.random(128) ** 20
    cdf = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
    merged = np.sort(np.concatenate([edges, np.interp(np.linspace(0, 1, 65), cdf, edges)]))
    ours = importance_edges(torch.from_numpy(edges), torch.from_numpy(weights), 193, even_share=0.663).numpy()
    places = np.linspace(0.4, 3.7, 1000)
    counts = [np.searchsorted(sorted_edges, places) for sorted_edges in (ours, merged)]
    assert len(ours) == len(merged) == 194 and np.abs(counts[0] - counts[1]).max() <= 2
    default = importance_edges(torch.from_numpy(edges), torch.from_numpy(weights), 193).numpy()
    assert np.abs(np.searchsorted(default, places) - counts[1]).max() > 15


def test_importance_edges_of_empty_and_degenerate_rays():
    edges = torch.tensor([[0.0, 1.0, 2.0, 4.0], [3.0, 3.0, 3.0, 3.0]])
    new = importance_edges(edges, torch.zeros(2, 3), 3)
    torch.testing.assert_close(new, edges)


def test_subdivide_interpolates_lines_exactly():
    edges = torch.tensor([[0.0, 1.0, 3.0]])
    fine_edges, midpoints = subdivide(edges, 5 - 2 * edges, 4)
    torch.testing.assert_close(fine_edges, torch.tensor([[0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3]]))
    torch.testing.assert_close(midpoints, 5 - 2 * (fine_edges[:, 1:] + fine_edges[:, :-1]) / 2)


def test_backgrounds():
    u = torch.rand(2, 3, 3)
    assert torch.equal(background_from_uniform(BackgroundConfig(kind="random-rgb"), u), u)
    gray = background_from_uniform(BackgroundConfig(kind="random-gray"), u)
    assert torch.equal(gray, torch.stack([u[..., 0]] * 3, dim=-1))
    plain = background_from_uniform(BackgroundConfig(color=(0.1, 0.2, 0.3)), u)
    torch.testing.assert_close(plain, torch.tensor([0.1, 0.2, 0.3]).expand(2, 3, 3))
    with pytest.raises(ValueError, match="random-gray"):
        build_config(BackgroundConfig, {"kind": "grey"})
    with pytest.raises(ValueError, match="color"):
        BackgroundConfig(color=(0.0, 1.0, 2.0))


def test_field_gradient_takes_four_evaluations():
    scene = Balls(torch.tensor([0.5, 0.3], dtype=torch.float64))
    points = torch.randn(2, 20, 3, dtype=torch.float64)
    points = 0.6 * points / points.norm(dim=-1, keepdim=True)
    gradient = field_gradient(scene.sdf, points, 1e-3, 1.0)
    assert scene.num_calls == 4 * 2 * 20
    torch.testing.assert_close(gradient, points / 0.6, rtol=0, atol=2e-3)
    face = torch.tensor([[[0.3, 0.05, -0.1], [0.02, -0.01, -0.29]]], dtype=torch.float64)
    exact = torch.tensor([[[1.0, 0, 0], [0, 0, -1]]], dtype=torch.float64)
    cube = Cubes(torch.tensor([0.3], dtype=torch.float64))
    torch.testing.assert_close(field_gradient(cube.sdf, face, 1e-3, 1.0), exact, rtol=0, atol=1e-9)


def test_stencil_stays_in_ball():
    scene = Balls(torch.tensor([0.5]), bounding_radius=0.8)
    points = torch.nn.functional.normalize(torch.randn(1, 50, 3), dim=-1) * 0.9
    assert field_gradient(scene.sdf, points, 0.05, 0.8).isfinite().all()
    assert scene.farthest <= 0.8 + 1e-6


def test_brightness():
    normal = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0], [0, 0.6, 0.8]])
    config = ShadingConfig(kind="lambert", light=(0.0, 0.0, 2.0), ambient=0.2, diffuse=0.8)
    assert brightness(normal, config)[:, 0].tolist() == pytest.approx([1.0, 0.2, 0.2, 0.84])
    wrapped = ShadingConfig(kind="lambert", light=(0.0, 0.0, 2.0), ambient=0.2, diffuse=0.8, wrap=True)
    assert brightness(normal, wrapped)[:, 0].tolist() == pytest.approx([1.0, 0.2, 0.6, 0.92])
    assert normals(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kind": "phong"}, "none, lambert"),
        ({"light": (0.0, 0.0, 0.0)}, "light"),
        ({"ambient": 0.5, "diffuse": 0.6}, "sum to at most 1"),
    ],
)
def test_bad_shading_raises(settings: dict, match: str):
    with pytest.raises(ValueError, match=match):
        build_config(ShadingConfig, settings)
