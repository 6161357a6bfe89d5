"""The lattice of distances: exact for what is linear, in place, in the ball, and each prompt's own."""

import torch

from amortized.rendering.lattice import distance_lattice, read_lattice
from tests.rendering.scenes import Balls


class Planes:
    """Linear fields, a slope and an offset a prompt."""

    bounding_radius = 0.7

    def __init__(self) -> None:
        self.slopes = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]]).double()

    def sdf(self, points: torch.Tensor) -> torch.Tensor:
        return (points * self.slopes[:, None]).sum(dim=-1) + torch.tensor([[0.1], [0.2]])


def inside(num: int) -> torch.Tensor:
    points = torch.randn(2, num, 3, dtype=torch.float64)
    return points / points.norm(dim=-1, keepdim=True) * torch.rand(2, num, 1).double() ** (1 / 3)


def test_linear_fields_are_read_exactly():
    """But next to the ball's surface, where vertices outside have no distance of their own."""
    scene, points = Planes(), inside(300)
    lattice, _ = distance_lattice(scene, 2, 9, like=points, chunk=10**6)
    points = 0.55 * points  # cells are a quarter wide
    expected = scene.sdf(points * scene.bounding_radius)
    torch.testing.assert_close(read_lattice(lattice, points), expected, rtol=0, atol=1e-9)


def test_distances_of_a_ball_come_close_and_only_the_ball_is_asked():
    for resolution in (8, 9, 33):
        scene, points = Balls(torch.tensor([0.4, 0.75]), bounding_radius=0.8), inside(2000).float()
        lattice, count = distance_lattice(scene, 2, resolution, like=points, chunk=100)
        assert count == scene.num_calls < 2 * resolution**3 and scene.farthest <= 0.8 + 1e-6
        assert lattice.shape == (2, resolution, resolution, resolution)
        error = (read_lattice(lattice, points) - (0.8 * points.norm(dim=-1) - scene.radius[:, None])).abs()
        cell = 1.6 / (resolution - 1)
        assert error.max() < cell and error.median() < 0.1 * cell


def test_chunks_do_not_matter():
    points = inside(1)
    whole, _ = distance_lattice(Planes(), 2, 7, like=points, chunk=10**6)
    parts, _ = distance_lattice(Planes(), 2, 7, like=points, chunk=1)
    assert torch.equal(whole, parts)
