"""Scenes of densities against closed forms: uniform balls and Gaussian blobs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from amortized.cameras import camera_rays
from amortized.rendering import RendererConfig, radius_of
from amortized.scenes import level_of, surface_densities
from amortized.types import DensityScene
from tests.rendering.scenes import (
    DENSE,
    SCHEMES,
    in_double,
    render_on_black,
    select_prompt,
    varied_cameras,
)


@dataclass
class Blobs:
    """P Gaussian densities: amplitude * exp(-|x|^2 / (2 width^2)), with a different color each."""

    amplitude: Tensor  # [P]
    width: Tensor  # [P]
    bounding_radius: float = 1.0
    num_calls: int = 0

    @property
    def num_prompts(self) -> int:
        return len(self.width)

    def density(self, points: Tensor) -> Tensor:
        self.num_calls += points.shape[0] * points.shape[1]
        squared = points.square().sum(dim=-1)
        return self.amplitude[:, None] * torch.exp(-squared / (2 * self.width[:, None] ** 2))

    def density_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(points), torch.sigmoid(3 * points + self.width[:, None, None])

    def select(self, index: int) -> Blobs:
        row = slice(index, index + 1)
        return replace(self, amplitude=self.amplitude[row], width=self.width[row])

    def optical_depths(self, closest: Tensor) -> Tensor:
        """[P, R] of rays at distances [P, R] from the center, clipped to the bounding ball."""
        half = (self.bounding_radius**2 - closest**2).clamp(min=0).sqrt()
        width = self.width[:, None]
        along = (2 * torch.pi) ** 0.5 * width * torch.erf(half / (2**0.5 * width))
        return self.amplitude[:, None] * torch.exp(-(closest**2) / (2 * width**2)) * along


@dataclass
class UniformBalls(Blobs):
    """P balls of radius `width` and density `amplitude`."""

    def density(self, points: Tensor) -> Tensor:
        self.num_calls += points.shape[0] * points.shape[1]
        return self.amplitude[:, None] * (points.norm(dim=-1) < self.width[:, None])

    def optical_depths(self, closest: Tensor) -> Tensor:
        half = (self.width[:, None] ** 2 - closest**2).clamp(min=0).sqrt()
        return 2 * half * self.amplitude[:, None]


def blobs(num_prompts: int, kind: type[Blobs] = Blobs, **settings) -> Blobs:
    amplitude = torch.tensor([2.0, 5.0, 30.0], dtype=torch.float64)[:num_prompts]
    width = torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64)[:num_prompts]
    return kind(amplitude=amplitude, width=width, **settings)


@pytest.mark.parametrize("kind", [Blobs, UniformBalls])
@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_opacity_equals_the_closed_form(kind: type[Blobs], num_prompts: int, num_views: int):
    scene, cameras = blobs(num_prompts, kind), in_double(varied_cameras(num_prompts, num_views))
    assert isinstance(scene, DensityScene)
    result = render_on_black(scene, cameras, 9, DENSE)
    rays = camera_rays(cameras, 9, 9)
    closest = torch.linalg.cross(rays.origins, rays.directions).norm(dim=-1)  # [P, V * H * W]
    expected = -torch.expm1(-scene.optical_depths(closest)).view(num_prompts, num_views, 9, 9)
    # The edge of a uniform ball falls inside an interval.
    atol = 4e-4 if kind is Blobs else 0.02
    torch.testing.assert_close(result.opacity, expected, rtol=0, atol=atol)
    assert expected.max() > 0.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_training_budget_is_accurate(scheme: str):
    scene, cameras = blobs(3), in_double(varied_cameras(3, 2))
    config = replace(SCHEMES[scheme], shading=DENSE.shading)
    expected = render_on_black(scene, cameras, 12, DENSE)
    result = render_on_black(scene, cameras, 12, config)
    for name in ("rgb", "opacity", "depth"):
        error = (getattr(result, name) - getattr(expected, name)).abs()
        assert error.mean() < 0.01 and error.max() < 0.2, name


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("num_prompts", "num_views"), [(1, 1), (2, 4), (3, 1)])
def test_a_batch_equals_its_prompts_with_gradients(scheme: str, num_prompts: int, num_views: int):
    cameras = in_double(varied_cameras(num_prompts, num_views))
    u = torch.rand(num_prompts, num_views * 64, SCHEMES[scheme].num_samples).double()
    seed = torch.randn(num_prompts, num_views, 8, 8, 3).double()

    def run(scene: Blobs, cameras, u: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        amplitude = scene.amplitude.clone().requires_grad_()
        result = render_on_black(
            replace(scene, amplitude=amplitude), cameras, 8, SCHEMES[scheme], u=u, training=True
        )
        assert result.samples is not None and result.samples.sdf is None
        (gradient,) = torch.autograd.grad((result.rgb * seed).sum(), amplitude)
        return result.rgb.detach(), gradient

    whole, gradient = run(blobs(num_prompts), cameras, u, seed)
    for p in range(num_prompts):
        row = slice(p, p + 1)
        alone, gradient_alone = run(
            blobs(num_prompts).select(p), select_prompt(cameras, p), u[row], seed[row]
        )
        torch.testing.assert_close(whole[row], alone, rtol=0, atol=1e-9)
        torch.testing.assert_close(gradient[row], gradient_alone, rtol=1e-6, atol=1e-9)


def test_normals_point_outward():
    """Of a blob, all normals are radial: away from the center at the expected depth."""
    scene, cameras = blobs(3), in_double(varied_cameras(3, 2))
    result = render_on_black(scene, cameras, 9, DENSE, want_normal=True)
    rays = camera_rays(cameras, 9, 9)
    seen = result.opacity.flatten(1) > 0.2
    depth = result.depth.flatten(1) / result.opacity.flatten(1).clamp(min=1e-9)
    points = rays.origins + depth[..., None] * rays.directions
    # At the center itself the density is flat.
    seen &= points.norm(dim=-1) > 0.05
    normal = result.normal.flatten(1, 3)
    cosine = (normal * torch.nn.functional.normalize(points, dim=-1)).sum(dim=-1)
    assert seen.sum() > 50 and cosine[seen].min() > 0.99


def test_sharpness_has_no_effect_and_evaluations_are_counted():
    images = []
    for sharpness in (5.0, 500.0):
        scene, cameras = blobs(2), in_double(varied_cameras(2, 2))
        result = render_on_black(scene, cameras, 8, SCHEMES["lattice"], sharpness=sharpness)
        assert result.num_evaluations == scene.num_calls > 0
        images.append(result.rgb)
    assert torch.equal(*images)


def test_an_empty_scene_is_background_with_a_finite_gradient():
    amplitude = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    scene = Blobs(amplitude=amplitude, width=torch.tensor([0.3]).double())
    config = RendererConfig(num_coarse=12, num_fine=12, lattice=8)
    result = render_on_black(scene, in_double(varied_cameras(1, 2)), 8, config, training=True)
    assert result.opacity.max() == 0
    result.opacity.sum().backward()
    assert amplitude.grad.isfinite().all() and amplitude.grad.item() > 0


def test_the_inside_of_a_solid_begins_at_half_its_density():
    """Uniform balls of any density; a blob at half of its weighted mean, a / 2^1.5; fog is not solid."""
    balls = blobs(3, UniformBalls)
    torch.testing.assert_close(surface_densities(balls, "cpu"), balls.amplitude / 2)
    scene = blobs(3, bounding_radius=2.0)
    torch.testing.assert_close(surface_densities(scene, "cpu"), scene.amplitude / 2**2.5, rtol=0.01, atol=0)
    fog = UniformBalls(
        amplitude=torch.tensor([0.1, 0.5]), width=torch.tensor([0.5, 0.5]), bounding_radius=2.0
    )
    assert surface_densities(fog, "cpu").tolist() == pytest.approx([math.log(2) / 4, 0.25])
    points = torch.zeros(2, 1, 3)
    assert (level_of(fog, "cpu")(points) < 0).flatten().tolist() == [False, True]


@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_the_radius_of_a_density_is_that_of_its_inside(num_prompts: int):
    balls = blobs(num_prompts, UniformBalls)
    radius, cell = balls.width.max().item(), 3**0.5 * 2 / 47
    assert radius - cell <= radius_of(balls, torch.device("cpu")) <= radius + cell
