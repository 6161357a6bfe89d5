"""Starts and bounds of splat parameters."""

from __future__ import annotations

import math

import pytest
import torch

from amortized.splats import ball, bound, colors_of, from_points
from amortized.splats.starts import neighbor_distances
from tests.splats import made


def test_a_ball_is_uniform_in_its_volume():
    parameters = ball(20_000, 0.5, torch.Generator().manual_seed(0))
    distances = parameters["means"].norm(dim=-1)
    shares = [(distances < radius).double().mean() for radius in (0.25, 0.4, 0.5)]
    torch.testing.assert_close(
        torch.stack(shares), torch.tensor([1 / 8, 0.512, 1]).double(), rtol=0, atol=0.01
    )
    assert parameters["means"].mean(0).abs().max() < 0.01
    torch.testing.assert_close(torch.sigmoid(parameters["logits"]), torch.full((20_000,), 0.1))
    assert torch.equal(colors_of(parameters["colors"]), torch.full((20_000, 3), 0.5))
    again = ball(20_000, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(again["means"], parameters["means"])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 40])
def test_scales_are_the_distance_to_three_neighbors(count: int):
    points = torch.rand(count, 3).double()
    distances = (points[:, None] - points).norm(dim=-1).sort(dim=1).values[:, 1:4]
    if count < 4:
        last = distances[:, -1:] if count > 1 else torch.full((1, 1), 0.1).double()
        distances = torch.cat([distances, last.expand(-1, 3 - distances.shape[1])], dim=1)
    torch.testing.assert_close(neighbor_distances(points, 3), distances)
    scales = from_points(points)["log_scales"].exp()
    torch.testing.assert_close(scales, distances.square().mean(1).sqrt()[:, None].expand(-1, 3))


def test_coinciding_points_have_a_scale():
    assert from_points(torch.zeros(5, 3))["log_scales"].exp().min() > 3e-4


@pytest.mark.parametrize(
    ("points", "rgb", "message"),
    [
        (torch.zeros(0, 3), None, "need 1 to 1,000,000 points to start from, got 0"),
        (torch.zeros(1, 3).expand(1_000_001, 3), None, "got 1,000,001"),
        (torch.tensor([[0, torch.nan, 0], [0, 0, 0]]), None, "to start splats from are not finite in 1 rows"),
        (torch.zeros(2, 3), torch.tensor([[0, torch.inf, 0]] * 2), "colors .* are not finite in 2 rows"),
    ],
)  # fmt: skip
def test_wrong_points_are_refused(points: torch.Tensor, rgb: torch.Tensor | None, message: str):
    with pytest.raises(ValueError, match=message):
        from_points(points, rgb)


def test_bounds_hold_and_change_nothing_within():
    parameters = made.cloud(500)
    parameters["log_scales"] *= 2
    parameters["colors"] *= 3
    before = {name: value.clone() for name, value in parameters.items()}
    bound(parameters, max_scale=0.05, max_anisotropy=10.0)
    scales = parameters["log_scales"].exp()
    assert scales.max() <= 0.05 * (1 + 1e-9)
    assert (scales.amax(1) / scales.amin(1)).max() <= 10 * (1 + 1e-9)
    rgb = colors_of(parameters["colors"])
    assert rgb.min() >= 0 and rgb.max() <= 1 + 1e-9
    fits = before["log_scales"].amax(1) <= math.log(0.05)
    fits &= (before["log_scales"].amax(1) - before["log_scales"].amin(1)) <= math.log(10)
    assert torch.equal(parameters["log_scales"][fits], before["log_scales"][fits]) and 0 < fits.sum() < 500
    for name in ("means", "quaternions", "logits"):
        assert torch.equal(parameters[name], before[name])


def test_a_color_at_the_bound_has_a_gradient():
    parameters = {**made.cloud(1), "colors": torch.full((1, 3), -9.0)}
    bound(parameters, max_scale=1.0, max_anisotropy=10.0)
    colors = parameters["colors"].requires_grad_()
    colors_of(colors).sum().backward()
    assert (colors.grad > 0).all()
