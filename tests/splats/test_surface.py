"""Splats on an SDF's surface: even, flat along it, in its colors, and they cover its silhouette."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from amortized.cameras import orbit
from amortized.rendering import RendererConfig, render
from amortized.splats import colors_of, from_surface, rotation_matrices, scene_of
from amortized.types import Scene
from tests.rendering import scenes

SHAPES = {"ball": (scenes.Balls, 0.5, 4 * math.pi * 0.25), "cube": (scenes.Cubes, 0.4, 6 * 0.64)}


def started(name: str, count: int, seed: int = 0) -> tuple[Scene, dict[str, torch.Tensor]]:
    kind, size, _ = SHAPES[name]
    scene = kind(torch.tensor([size]))
    return scene, from_surface(scene, count, torch.Generator().manual_seed(seed))


def rendered(scene, cameras, **settings) -> torch.Tensor:
    background = torch.zeros(*cameras.fovy_deg.shape, 3)
    image = render(scene, cameras, 96, 96, background=background, training=False, **settings)
    return torch.cat([image.rgb, image.opacity[..., None]], dim=-1)[0]


@pytest.mark.parametrize("name", SHAPES)
def test_the_silhouette_is_covered_and_not_exceeded(name: str):
    scene, parameters = started(name, 2000)
    cameras = orbit(1, 4, elevation_deg=20, distance=2.6, fovy_deg=40)
    config = RendererConfig(num_coarse=128, num_fine=64)
    true = rendered(scene, cameras, config=config, sharpness=800.0)
    image = rendered(scene_of(parameters, 1.0), cameras, config=config, sharpness=1.0)
    solid = (true[..., 3] > 0.5).float()[:, None]  # [V, 1, H, W]
    inside = -F.max_pool2d(-solid, 3, 1, 1)[:, 0] > 0.5
    outside = F.max_pool2d(solid, 5, 1, 2)[:, 0] < 0.5
    opacity = image[..., 3]
    assert opacity[inside].mean() >= 0.99 and opacity[inside].quantile(0.01) > 0.95
    assert opacity[outside].mean() <= 0.01
    deep = -F.max_pool2d(-solid, 7, 1, 3)[:, 0] > 0.5
    assert (image - true)[deep][:, :3].abs().mean() < 0.02


@pytest.mark.parametrize("name", SHAPES)
def test_splats_are_even_flat_and_on_the_surface(name: str):
    count = 1000
    scene, parameters = started(name, count)
    points = parameters["means"]
    assert len(points) == count and scene.sdf(points[None]).abs().max() < 2e-3
    _, albedo = scene.sdf_and_albedo(points[None])
    torch.testing.assert_close(colors_of(parameters["colors"]), albedo[0])
    spacing = math.sqrt(SHAPES[name][2] / count)
    scales = parameters["log_scales"].exp()
    torch.testing.assert_close(scales[:, :2], torch.full((count, 2), 0.6 * spacing), rtol=0.03, atol=0)
    torch.testing.assert_close(scales[:, 2], 0.1 * scales[:, 0])
    nearest = torch.cdist(points, points).fill_diagonal_(9).amin(1)
    assert nearest.min() > 0.6 * spacing and nearest.max() < 1.3 * spacing
    normals = rotation_matrices(parameters["quaternions"])[..., 2]
    if name == "ball":
        torch.testing.assert_close(normals, F.normalize(points, dim=-1), rtol=0, atol=0.01)
    faces = torch.bincount(
        2 * points.abs().argmax(1) + (points.gather(1, points.abs().argmax(1)[:, None])[:, 0] > 0)
    )
    assert faces.min() > 0.85 * count / 6 and faces.max() < 1.15 * count / 6


@pytest.mark.parametrize("slope", [0.5, 2.0])
def test_a_field_that_is_no_exact_distance_gives_the_same_spacing(slope: float):
    class Sloped(scenes.Balls):
        def sdf(self, points: torch.Tensor) -> torch.Tensor:
            return slope * super().sdf(points)

    parameters = from_surface(Sloped(torch.tensor([0.5])), 500, torch.Generator().manual_seed(0))
    expected = 0.6 * math.sqrt(math.pi / 500)
    torch.testing.assert_close(parameters["log_scales"][0, 0].exp().item(), expected, rtol=0.05, atol=0)


def test_a_start_is_a_function_of_its_generator():
    (_, one), (_, same), (_, other) = (started("ball", 100, seed) for seed in (0, 0, 1))
    assert torch.equal(one["means"], same["means"]) and not torch.equal(one["means"], other["means"])


@pytest.mark.parametrize(
    ("radius", "count", "message"),
    [
        ([0.5, 0.5], 10, "start from the surface of one prompt, got 2: select one"),
        ([0.5], 0, "count must lie in"),
        ([0.5], 2_000_000, "count must lie in"),
        ([math.nan], 10, "is not finite: its generator's weights are damaged"),
        ([-1.0], 10, "has almost no surface in its bounding ball of radius 1 to start from"),
    ],
)
def test_scenes_without_a_usable_surface_are_refused(radius: list, count: int, message: str, monkeypatch):
    monkeypatch.setattr("amortized.splats.surface.MAX_ROUNDS", 3)
    with pytest.raises(ValueError, match=message):
        from_surface(scenes.Balls(torch.tensor(radius)), count, torch.Generator())


def test_a_scene_of_densities_is_refused():
    class Fog(scenes.Balls):
        density = scenes.Balls.sdf
        density_and_albedo = scenes.Balls.sdf_and_albedo

    with pytest.raises(ValueError, match="start from a surface, and this scene has densities"):
        from_surface(Fog(torch.tensor([0.5])), 10, torch.Generator())
