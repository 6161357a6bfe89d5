"""Images under a point light against its formula, and the lights against their distribution."""

from __future__ import annotations

import math

import pytest
import torch

from amortized.cameras import camera_rays
from amortized.rendering import PointLightConfig, PointLights, RendererConfig, ShadingConfig, point_lights
from tests.rendering.scenes import Balls, in_double, render_on_black, select_prompt, varied_cameras

CONFIG = RendererConfig(num_coarse=48, num_fine=96, lattice=0)


def three_lights() -> PointLights:
    """Of 1 prompt in 3 views: no light, a lit albedo, a lit white object."""
    position = torch.tensor([[[9.0, 9, 9], [0.5, 1.0, 1.5], [-1.0, 0.4, 1.2]]], dtype=torch.float64)
    ambient = torch.tensor([[1.0, 0.1, 0.25]], dtype=torch.float64)
    return PointLights(position=position, ambient=ambient, white=torch.tensor([[False, False, True]]))


def test_each_image_is_shaded_by_its_own_light():
    """A sharp ball: the surface is at its first intersection, the normal is the point's direction."""
    ball, cameras, lights = (
        Balls(torch.tensor([0.5]).double()),
        in_double(varied_cameras(1, 3, seed=1)),
        three_lights(),
    )
    settings = {"sharpness": 400.0, "training": True}
    plain = render_on_black(ball, cameras, 24, CONFIG, **settings)
    lit = render_on_black(ball, cameras, 24, CONFIG, lights=lights, **settings)
    assert torch.equal(lit.rgb[:, 0], plain.rgb[:, 0]) and torch.equal(lit.opacity, plain.opacity)
    rays = camera_rays(cameras, 24, 24)
    along = -(rays.origins * rays.directions).sum(-1, keepdim=True)
    half = 0.25 - (rays.origins + along * rays.directions).square().sum(-1, keepdim=True)
    points = rays.origins + (along - half.clamp(min=0).sqrt()) * rays.directions
    points, inside = points.view(3, 24, 24, 3), (half > 0.04).view(3, 24, 24)  # away from the silhouette
    assert inside.sum() > 150
    for view, (ambient, white) in enumerate([(1.0, False), (0.1, False), (0.25, True)]):
        to_light = torch.nn.functional.normalize(lights.position[0, view] - points[view], dim=-1)
        lambert = (2 * points[view] * to_light).sum(-1, keepdim=True).clamp(min=0)
        albedo = torch.ones(3).double() if white else torch.sigmoid(3 * points[view] + 0.5)
        expected = albedo * (ambient + (1 - ambient) * lambert)
        error = (lit.rgb[0, view] - expected)[inside[view]]
        assert error.abs().max() < 0.03 and error.abs().mean() < 6e-3, view


@pytest.mark.parametrize("size", [5, 8])
def test_a_batch_equals_its_images_one_by_one(size: int):
    """With lattice, culled rays and padding: rays must find the light of their image."""
    config = RendererConfig(num_coarse=12, num_fine=12, lattice=12)
    balls, cameras = Balls(torch.tensor([0.2, 0.6])), varied_cameras(2, 3)
    u = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))
    lights = point_lights(PointLightConfig(start=0, share=0.7), cameras, u, u - 0.5, 0.0)
    batch = render_on_black(balls, cameras, size, config, training=True, lights=lights)
    for p in range(2):
        for v in range(3):
            one = PointLights(**{name: value[p : p + 1, v : v + 1] for name, value in vars(lights).items()})
            camera = select_prompt(cameras, p, slice(v, v + 1))
            single = render_on_black(balls[p : p + 1], camera, size, config, training=True, lights=one)
            torch.testing.assert_close(single.rgb[0, 0], batch.rgb[p, v], rtol=0, atol=2e-5)


def test_a_white_object_still_has_a_gradient_graph_to_its_albedo():
    """Otherwise DDP would wait for gradients of the albedo that never come."""
    weight = torch.ones(3, requires_grad=True)

    class Colored(Balls):
        def sdf_and_albedo(self, points):
            return self.sdf(points), weight * torch.sigmoid(points)

    lights = three_lights()
    lights = PointLights(**{**vars(lights), "white": torch.ones(1, 3, dtype=torch.bool)})
    lights = PointLights(**{k: v.float() if v.is_floating_point() else v for k, v in vars(lights).items()})
    cameras = varied_cameras(1, 3)
    ball = Colored(torch.tensor([0.5]))
    render_on_black(ball, cameras, 6, CONFIG, training=True, lights=lights).rgb.sum().backward()
    assert weight.grad is not None and torch.all(weight.grad == 0)


def test_lights_have_their_distribution():
    config = PointLightConfig(start=0.1, share=0.3, white_share=0.75, ambient=0.1, distance=(0.8, 1.5))
    cameras = varied_cameras(1, 20_000)
    generator = torch.Generator().manual_seed(1)
    u, noise = torch.rand(1, 20_000, 3, generator=generator), torch.randn(1, 20_000, 3, generator=generator)
    assert point_lights(config, cameras, u, noise, 0.0999) is None
    lights = point_lights(config, cameras, u, noise, 0.1)
    shaded = lights.ambient < 1
    assert shaded.float().mean() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(lights.ambient, torch.where(shaded, 0.1, 1.0))
    assert lights.white[shaded].float().mean() == pytest.approx(0.75, abs=0.02)
    assert not lights.white[~shaded].any()
    distance = lights.position.norm(dim=-1)
    assert (
        0.8 <= distance.min() and distance.max() <= 1.5 and distance.mean() == pytest.approx(1.15, abs=0.01)
    )
    direction = cameras.c2w[..., :3, 3] + noise
    cosine = torch.nn.functional.cosine_similarity(lights.position, direction, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert point_lights(config, cameras, 0.3 + 0.7 * u, noise, 0.5) is None  # none of the images is shaded


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.5}, "^share must lie in"),
        ({"distance": (2.0, 1.0)}, r"^distance must be \[low, high\]"),
        ({"distance": (0.0, 1.0)}, "^distance must be positive"),
        ({"spread": math.inf}, "^spread must be finite"),
    ],
)
def test_bad_lights_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PointLightConfig(**changes)


def test_images_are_not_shaded_twice():
    with pytest.raises(ValueError, match="point_light and shading.kind=lambert would shade images twice"):
        RendererConfig(point_light=PointLightConfig(), shading=ShadingConfig(kind="lambert"))
