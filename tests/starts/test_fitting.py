"""Fields fitted to balls and cubes, against their closed forms; and what cannot be fitted."""

from __future__ import annotations

import pytest
import torch

from amortized.encodings import HashGridConfig
from amortized.scenes import albedo_of, level_of
from amortized.starts import check_inside, fit_field, fitting
from amortized.types import Scene
from generators.ingp import INGP, INGPConfig
from tests.generators.helpers import TEXT_DIM, texts
from tests.rendering.scenes import Balls, Cubes

GRID = HashGridConfig(num_levels=3, features_per_level=4, log2_table_size=12, base_resolution=6, growth=1.7)


class Torus(Balls):
    """A torus around the z axis, whose ring of radius 0.5 is twice `radius` thick."""

    def sdf(self, points):
        ring = points[..., :2].norm(dim=-1) - 0.5
        return torch.stack([ring, points[..., 2]], dim=-1).norm(dim=-1) - self.radius[:, None]


SHAPES = {
    "ball": Balls(torch.tensor([0.35])),
    "cube": Cubes(torch.tensor([0.4])),
    "torus": Torus(torch.tensor([0.2])),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer points: a second."""
    for name, value in {"STEPS": 250, "BATCH": 2**11, "SURFACE": 2**12, "IN_BALL": 2**14}.items():
        monkeypatch.setattr(fitting, name, value)


def untrained(geometry: str = "sdf", **changes) -> INGP:
    torch.manual_seed(0)
    config = INGPConfig(grid=GRID, hidden=(32,), include_position=True, geometry=geometry, **changes)
    return config.build(TEXT_DIM)


def fitted(target: INGP, source: Scene, seed: int = 0) -> fitting.Fit:
    rng = torch.Generator().manual_seed(seed)
    return fit_field(target, lambda: target(texts(1)), source, rng=rng, prepare=target.enlarge_outputs)


def distance_of(name: str, points: torch.Tensor) -> torch.Tensor:
    if name == "ball":
        return points.norm(dim=-1) - 0.35
    if name == "torus":
        return ((points[..., :2].norm(dim=-1) - 0.5) ** 2 + points[..., 2] ** 2).sqrt() - 0.2
    beyond = points.abs() - 0.4
    return beyond.clamp(min=0).norm(dim=-1) + beyond.amax(-1).clamp(max=0)


@torch.no_grad()
@pytest.mark.parametrize("geometry", ["sdf", "density"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_fitted_field_is_the_shape_and_has_its_colors(name: str, geometry: str):
    target = untrained(geometry, blob_scale=20.0)
    with torch.enable_grad():
        fit = fitted(target, SHAPES[name])
    scene = target(texts(1))
    random = torch.Generator().manual_seed(9)
    points = fitting.in_ball(20_000, 1.0, random)
    true = distance_of(name, points)
    level = level_of(scene, "cpu")(points[None])[0]
    inside = level < 0
    iou = float((inside & (true < 0)).sum() / (inside | (true < 0)).sum())
    assert iou > {"sdf": 0.93, "density": 0.8}[geometry] and iou > fit.before.iou + 0.1
    assert abs(iou - fit.after.iou) < 0.05  # of 500 points inside the ball
    near = true.abs() < 0.03
    colors = torch.sigmoid(3 * points + SHAPES[name].radius)
    error = (albedo_of(scene, points[None])[0] - colors)[near].abs().mean()
    assert error < 0.03 and abs(error - fit.after.color_error) < 0.02 < fit.before.color_error
    center = 0.05 * torch.randn(1, 500, 3, generator=random)
    if name == "torus":  # the blob that a density starts as leaves the hole
        assert (level_of(scene, "cpu")(center) > 0).all()
        assert geometry == "sdf" or scene.density(center).mean() < 0.5
    if geometry == "sdf":
        assert (level - true)[true.abs() < 0.1].abs().mean() < 0.01
        assert (level - true).abs().mean() < 0.03
    assert fit.seconds > 0 and all(parameter.grad is None for parameter in target.parameters())


@torch.no_grad()
def test_a_field_is_continued_beyond_the_ball_of_its_source():
    target = untrained(bounding_radius=1.5)
    with torch.enable_grad():
        fitted(target, Balls(torch.tensor([0.35]), bounding_radius=0.5))
    points = fitting.in_ball(5000, 1.5, torch.Generator().manual_seed(9))
    error = target(texts(1)).sdf(points[None])[0] - distance_of("ball", points)
    assert error.abs().mean() < 0.05


def test_a_fit_is_a_function_of_the_seed(monkeypatch):
    monkeypatch.setattr(fitting, "STEPS", 10)
    one, again, other = untrained(), untrained(), untrained()
    for target, seed in ((one, 0), (again, 0), (other, 1)):
        torch.manual_seed(seed + 5)  # draws from no global generator
        fitted(target, SHAPES["cube"], seed)
    for a, b in zip(one.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.grid.table, other.grid.table)


class Broken(Balls):
    """A ball with a color that is not finite."""

    def sdf_and_albedo(self, points):
        sdf, albedo = super().sdf_and_albedo(points)
        return sdf, albedo / (points[..., :1] > 0)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            Balls(torch.tensor([0.9])),
            r"100% of its surface is outside the ball of generator.bounding_radius=0",
        ),
        (Balls(torch.tensor([torch.nan])), "not finite"),
        (Broken(torch.tensor([0.5])), "its scene is not finite: the weights are damaged"),
    ],
)
def test_what_cannot_be_fitted(source: Balls, sentence: str):
    target = untrained(bounding_radius=0.8)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=sentence):
        fitted(target, source)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("outside", [0, 5, 20])
def test_a_few_points_may_be_outside(outside: int):
    points = torch.zeros(1000, 3)
    points[:outside, 0] = 1.234
    if outside <= 10:
        assert int((~check_inside(points, 1.0, "splats")).sum()) == outside
        return
    with pytest.raises(ValueError, match=r"2% of its splats is .* up to 1.24 from .*bounding_radius=1.24$"):
        check_inside(points, 1.0, "splats")
