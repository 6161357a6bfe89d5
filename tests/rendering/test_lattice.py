"""The distance lattice: exact for linear fields, evaluated in the ball only, separate for each prompt."""

from dataclasses import replace

import pytest
import torch

from amortized.rendering.lattice import radius_of, read_lattice, value_lattice
from amortized.rendering.volumes import volume_of
from tests.rendering.scenes import Balls, Cubes
from tests.splats.made import filled_ball


class Planes:
    """P linear fields, each with its slope and offset."""

    bounding_radius = 0.7

    def __init__(self) -> None:
        self.slopes = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]]).double()

    def sdf(self, points: torch.Tensor) -> torch.Tensor:
        return (points * self.slopes[:, None]).sum(dim=-1) + torch.tensor([[0.1], [0.2]])


def points_in_ball(num: int) -> torch.Tensor:
    points = torch.randn(2, num, 3, dtype=torch.float64)
    return points / points.norm(dim=-1, keepdim=True) * torch.rand(2, num, 1).double() ** (1 / 3)


def test_linear_fields_are_exact():
    """Except near the ball's surface, because vertices outside take the distance at the surface."""
    scene, points = Planes(), points_in_ball(300)
    lattice, _ = value_lattice(volume_of(scene, 1.0), 2, 9, like=points, chunk=10**6)
    points = 0.55 * points  # cells are a quarter wide
    expected = scene.sdf(points * scene.bounding_radius)
    torch.testing.assert_close(read_lattice(lattice, points), expected, rtol=0, atol=1e-9)


def test_ball_distances_from_evaluations_in_ball_only():
    for resolution in (8, 9, 33):
        scene, points = Balls(torch.tensor([0.4, 0.75]), bounding_radius=0.8), points_in_ball(2000).float()
        lattice, count = value_lattice(volume_of(scene, 1.0), 2, resolution, like=points, chunk=100)
        assert count == scene.num_calls < 2 * resolution**3 and scene.farthest <= 0.8 + 1e-6
        assert lattice.shape == (2, resolution, resolution, resolution)
        error = (read_lattice(lattice, points) - (0.8 * points.norm(dim=-1) - scene.radius[:, None])).abs()
        cell = 1.6 / (resolution - 1)
        assert error.max() < cell and error.median() < 0.1 * cell


def test_chunks_change_nothing():
    points = points_in_ball(1)
    single, _ = value_lattice(volume_of(Planes(), 1.0), 2, 7, like=points, chunk=10**6)
    chunked, _ = value_lattice(volume_of(Planes(), 1.0), 2, 7, like=points, chunk=1)
    assert torch.equal(single, chunked)


@pytest.mark.parametrize("bounding_radius", [0.8, 1.0, 2.5])
@pytest.mark.parametrize("shape", [Balls, Cubes])
@pytest.mark.parametrize("radii", [[0.3], [0.1, 0.45], [0.2, 0.5, 0.9]])
def test_the_radius_holds_all_objects_closely(bounding_radius, shape, radii):
    scene = shape(torch.tensor(radii), bounding_radius=bounding_radius)
    exact = max(radii) * (3**0.5 if shape is Cubes else 1)
    found = radius_of(scene, torch.device("cpu"))
    cell = 3**0.5 * 2 * bounding_radius / 47
    assert min(exact, bounding_radius) - 1e-6 <= found <= min(exact + cell, bounding_radius) + 1e-6
    assert scene.farthest <= bounding_radius + 1e-6


def test_the_radius_of_nothing_is_that_of_the_bounding_ball():
    assert radius_of(Balls(torch.tensor([-1.0]), bounding_radius=0.7), torch.device("cpu")) == 0.7


@pytest.mark.parametrize("radius", [0.2, 0.5, 0.99])
def test_the_radius_of_splats_holds_them(radius: float):
    splats, device = filled_ball(radius, (0.5, 0.5, 0.5)), torch.device("cpu")
    assert radius_of(splats, device) == splats.bounding_radius  # none has an opacity of 0.5
    opaque = replace(splats, logits=splats.logits + 3)
    assert min(radius, 1.0) <= radius_of(opaque, device) <= min(radius + 0.07, 1.0)
