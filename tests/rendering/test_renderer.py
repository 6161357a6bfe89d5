"""The renderer against closed forms and a pixel-by-pixel ray marcher."""

from __future__ import annotations

import math

import pytest
import torch

from amortized.cameras import camera_rays, orbit
from amortized.rendering import RendererConfig, ShadingConfig
from amortized.rendering.quadrature import sphere_bounds
from amortized.types import Cameras, Scene
from tests.rendering.scenes import (
    DENSE,
    SCHEMES,
    Balls,
    Cubes,
    front_camera,
    in_double,
    render_on_black,
    varied_cameras,
)


@pytest.mark.parametrize("sharpness", [3.0, 8.0])
def test_opacity_through_ball_center_equals_closed_form(sharpness: float):
    """The optical depth of the central ray is twice the integral of the Laplace density."""
    radius, k = 0.5, sharpness
    inside = k * radius - 0.5 * (1 - math.exp(-k * radius))
    outside = 0.5 * (1 - math.exp(-k * (1 - radius)))
    result = render_on_black(Balls(torch.tensor([radius]).double()), front_camera(), 1, DENSE, sharpness=k)
    assert result.opacity.item() == pytest.approx(1 - math.exp(-2 * (inside + outside)), abs=2e-5)


def march(scene: Scene, cameras: Cameras, size: int, *, sharpness: float, steps: int = 6000) -> dict:
    """Render color, opacity and depth of one image pixel by pixel, by dense marching in float64."""
    origin = cameras.c2w[0, 0, :3, 3]
    right, up, backward = cameras.c2w[0, 0, :3, :3].unbind(dim=1)
    tangent = math.tan(math.radians(cameras.fovy_deg.item()) / 2)
    rgb, opacity, depth = (torch.zeros(size, size, n, dtype=torch.float64) for n in (3, 1, 1))
    for row in range(size):
        for column in range(size):
            x, y = ((2 * column + 1) / size - 1) * tangent, (1 - (2 * row + 1) / size) * tangent
            direction = x * right + y * up - backward
            direction = direction / direction.norm()
            step = 2 * scene.bounding_radius / steps
            t = origin.norm() - scene.bounding_radius + (torch.arange(steps).double() + 0.5) * step
            points = origin + t[:, None] * direction
            is_inside = points.norm(dim=-1) <= scene.bounding_radius
            sdf, albedo = scene.sdf_and_albedo(points[None])
            tail = 0.5 * torch.exp(-sdf[0].abs() * sharpness)
            density = sharpness * torch.where(sdf[0] < 0, 1 - tail, tail) * is_inside
            transmittance = torch.exp(-step * torch.cat([torch.zeros(1).double(), density.cumsum(0)]))
            weight = transmittance[:-1] - transmittance[1:]
            rgb[row, column] = (weight[:, None] * albedo[0]).sum(dim=0)
            opacity[row, column], depth[row, column] = weight.sum(), (weight * t).sum()
    return {"rgb": rgb, "opacity": opacity[..., 0], "depth": depth[..., 0]}


@pytest.mark.parametrize("kind", [Balls, Cubes])
@pytest.mark.parametrize("sharpness", [8.0, 60.0])
def test_equals_dense_marching(kind: type, sharpness: float):
    scene = kind(torch.tensor([0.4], dtype=torch.float64))
    cameras = in_double(varied_cameras(1, 1, seed=3))
    result = render_on_black(scene, cameras, 9, DENSE, sharpness=sharpness)
    for name, expected in march(scene, cameras, 9, sharpness=sharpness).items():
        torch.testing.assert_close(getattr(result, name)[0, 0], expected, rtol=0, atol=3e-3, msg=name)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_budget_is_accurate(scheme: str):
    """24 evaluations per ray, as in training: the mean error is small at low and high sharpness."""
    cameras = in_double(varied_cameras(1, 1, seed=3))
    scene = Cubes(torch.tensor([0.4], dtype=torch.float64), bounding_radius=0.85)
    config = RendererConfig(**{**vars(SCHEMES[scheme]), "shading": ShadingConfig()})
    bounds = {20.0: 0.006, 80.0: 0.03 if scheme == "one pass" else 0.01}
    for sharpness, bound in bounds.items():
        expected = march(scene, cameras, 12, sharpness=sharpness, steps=2000)
        result = render_on_black(scene, cameras, 12, config, sharpness=sharpness)
        assert (result.opacity[0, 0] - expected["opacity"]).abs().mean() < bound
        assert (result.rgb[0, 0] - expected["rgb"]).abs().mean() < bound


def test_sharp_ball_is_disc_with_correct_depth_and_normals():
    radius, size = 0.5, 33
    cameras = front_camera()
    result = render_on_black(
        Balls(torch.tensor([radius]).double()), cameras, size, DENSE, sharpness=2000.0, want_normal=True
    )
    pixel = (2 * torch.arange(size).double() + 1) / size - 1
    y, x = torch.meshgrid(-pixel, pixel, indexing="ij")
    tangent = math.tan(math.radians(20))
    directions = torch.stack([-torch.ones_like(x), x * tangent, y * tangent], dim=-1)
    directions = directions / directions.norm(dim=-1, keepdim=True)  # camera on +x: right is +y
    origin = torch.tensor([3.0, 0, 0]).double()
    along = -(directions @ origin)
    closest = (9 - along**2).sqrt()
    covered, empty = closest < radius - 0.02, closest > radius + 0.02
    assert covered.sum() > 150 and empty.sum() > 500
    assert result.opacity[0, 0][covered].min() > 0.999 and result.opacity[0, 0][empty].max() < 1e-3
    depth = along - (radius**2 - closest**2).clamp(min=0).sqrt()
    torch.testing.assert_close(result.depth[0, 0][covered], depth[covered], rtol=0, atol=5e-3)
    normal = (origin + depth[..., None] * directions) / radius
    torch.testing.assert_close(result.normal[0, 0][covered], normal[covered], rtol=0, atol=3e-2)
    length = result.normal[0, 0][covered].norm(dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_background_is_composited_behind_object():
    cameras = varied_cameras(2, 3)
    background = torch.rand(2, 3, 3)
    scene = Balls(torch.tensor([0.3, 0.5]), bounding_radius=0.7)
    black = render_on_black(scene, cameras, 16, DENSE)
    colored = render_on_black(scene, cameras, 16, DENSE, background=background)
    expected = black.rgb + (1 - black.opacity[..., None]) * background[:, :, None, None]
    torch.testing.assert_close(colored.rgb, expected)
    assert torch.equal(colored.rgb[:, :, 0, 0], background)
    assert colored.rgb.min() >= 0 and colored.rgb.max() <= 1


def test_shading_multiplies_albedo_by_brightness():
    cameras, scene = varied_cameras(1, 2), Balls(torch.tensor([0.5]))
    unlit = RendererConfig(**{**vars(SCHEMES["lattice"]), "shading": ShadingConfig()})
    plain = render_on_black(scene, cameras, 12, unlit, want_normal=True)
    lit = render_on_black(scene, cameras, 12, SCHEMES["lattice"])
    light = torch.tensor([1.0, 2.0, 3.0]) / math.sqrt(14)
    factor = 0.4 + 0.6 * (0.5 + 0.5 * plain.normal @ light)
    torch.testing.assert_close(lit.rgb, plain.rgb * factor[..., None], rtol=0, atol=1e-6)
    assert lit.normal is None


def test_normals_are_taken_at_expected_depth_in_fog():
    cameras, radius = in_double(varied_cameras(1, 1)), torch.tensor([0.5], dtype=torch.float64)
    result = render_on_black(Balls(radius), cameras, 9, DENSE, sharpness=4.0, want_normal=True)
    rays = camera_rays(cameras, 9, 9)
    hit = sphere_bounds(rays.origins, rays.directions, 1.0)[2]
    distance = (result.depth / result.opacity).flatten(1)[hit]
    expected = rays.origins[hit] + distance[:, None] * rays.directions[hit]
    inner = expected.norm(dim=-1) > 0.2  # the stencil is small compared to the radius of curvature
    expected = torch.nn.functional.normalize(expected[inner], dim=-1)
    normal = result.normal.flatten(1, 3)[hit][inner]
    assert 0.1 < result.opacity.flatten(1)[hit][inner].mean() < 0.9
    torch.testing.assert_close(normal, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_uniform_numbers_move_samples_of_their_pixel_only(scheme: str):
    config, cameras = SCHEMES[scheme], in_double(varied_cameras(2, 2))
    scene = Balls(torch.tensor([0.4, 0.6], dtype=torch.float64))
    middle = torch.full((2, 2 * 36, config.num_samples), 0.5, dtype=torch.float64)
    plain = render_on_black(scene, cameras, 6, config, sharpness=10.0).rgb
    torch.testing.assert_close(
        render_on_black(scene, cameras, 6, config, sharpness=10.0, u=middle).rgb, plain
    )
    middle[1, 36 + 2 * 6 + 3] = torch.rand(config.num_samples).double()  # prompt 1, view 1, row 2, column 3
    moved = (render_on_black(scene, cameras, 6, config, sharpness=10.0, u=middle).rgb != plain).any(dim=-1)
    assert moved.nonzero().tolist() == [[1, 1, 2, 3]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_image_gradient_equals_finite_differences(scheme: str):
    """In each ball's radius. Samples are dense, because the gradient treats their positions as constants."""
    cameras, seed = in_double(varied_cameras(2, 1)), torch.randn(2, 1, 7, 7, 5, dtype=torch.float64)
    num_fine = 200 if SCHEMES[scheme].num_fine else 0
    lattice = SCHEMES[scheme].lattice
    config = RendererConfig(num_coarse=200, num_fine=num_fine, lattice=lattice, min_optical_depth=0.0)

    def value(radius: torch.Tensor) -> torch.Tensor:
        result = render_on_black(Balls(radius), cameras, 7, config, sharpness=10.0, training=True)
        images = torch.cat([result.rgb, result.opacity[..., None], result.depth[..., None]], dim=-1)
        return (images * seed).sum(dim=(1, 2, 3, 4))

    radius = torch.tensor([0.4, 0.55], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(radius).sum(), radius)
    with torch.no_grad():
        slope = (value(radius + 1e-4) - value(radius - 1e-4)) / 2e-4
    torch.testing.assert_close(gradient, slope, rtol=1e-2, atol=1e-2)


def test_gradient_flows_through_normals():
    """At constant albedo and full opacity, only brightness depends on the shape."""
    tilt = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)

    class Wall:
        num_prompts = 1
        bounding_radius = 1.0

        def sdf(self, points: torch.Tensor) -> torch.Tensor:
            return points[..., 0] + tilt * points[..., 2]

        def sdf_and_albedo(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.sdf(points).detach(), torch.full_like(points, 0.5)

        def select(self, index: int) -> Wall:
            return self

    result = render_on_black(Wall(), front_camera(), 1, SCHEMES["one pass"], sharpness=300.0, training=True)
    (gradient,) = torch.autograd.grad(result.rgb.sum(), tilt)
    # n = (1, 0, a) / sqrt(1 + a^2): d n / d a = (0, 0, 1); light z = 3 / sqrt(14); 3 channels of 0.5.
    expected = 3 * 0.5 * 0.6 * 0.5 * 3 / math.sqrt(14)
    assert gradient.item() == pytest.approx(expected, rel=1e-6)


def test_matches_dense_marching_with_tenth_of_public_evaluations():
    """The public code spends 128 coarse and 193 * 4 fine evaluations per ray: 3.69 M for 64 x 64 pixels."""
    scene = Cubes(torch.tensor([0.3, 0.45]), bounding_radius=1.0)
    cameras = orbit(2, 1, elevation_deg=25.0, distance=2.6, fovy_deg=45.0, start_azimuth_deg=30.0)
    for sharpness in (20.0, 30.0, 100.0):
        dense = render_on_black(
            scene, cameras, 64, RendererConfig(num_coarse=768, num_fine=0), sharpness=sharpness
        )
        ours = render_on_black(scene, cameras, 64, RendererConfig(), sharpness=sharpness, want_normal=True)
        error = (ours.rgb - dense.rgb).square().mean()
        assert -10 * error.log10() > 45
        assert ours.num_evaluations / 2 < (128 + 193 * 4) * 64**2 / 10


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("training", [True, False])
def test_nan_field_does_not_look_empty(scheme: str, training: bool):
    """Otherwise a run with a diverged generator would continue unnoticed, with plain background images."""

    class NanBalls(Balls):
        def sdf(self, points: torch.Tensor) -> torch.Tensor:
            return torch.where(points[..., 0] > 0.6, torch.nan, super().sdf(points))

    result = render_on_black(
        NanBalls(torch.tensor([0.2])), front_camera(), 16, SCHEMES[scheme], training=training
    )
    assert result.rgb.isnan().any()


def test_sharpness_tensor_gets_gradient():
    sharpness = torch.tensor(20.0, requires_grad=True)
    scene, cameras = Balls(torch.tensor([0.5])), varied_cameras(1, 1)
    result = render_on_black(scene, cameras, 8, SCHEMES["lattice"], sharpness=sharpness, training=True)
    torch.testing.assert_close(
        result.rgb, render_on_black(scene, cameras, 8, SCHEMES["lattice"], sharpness=20.0, training=True).rgb
    )
    result.opacity.sum().backward()
    assert sharpness.grad.isfinite() and sharpness.grad != 0
