"""Batches, chunks and skipped rays: images must not depend on how they are computed."""

from dataclasses import dataclass

import pytest
import torch

from amortized.cameras import orbit
from amortized.encodings import HashGridConfig
from amortized.rendering import RendererConfig, ShadingConfig, render
from amortized.training.regularizers import eikonal
from amortized.types import Cameras, RaySamples, TextCondition
from generators.hyper_ingp import HyperINGP, HyperINGPConfig
from tests.rendering.scenes import (
    DENSE,
    SCHEMES,
    Balls,
    in_double,
    render_on_black,
    select_prompt,
    varied_cameras,
)


def generator_scene(num_prompts: int) -> tuple[HyperINGP, torch.Tensor]:
    torch.manual_seed(0)
    grid = HashGridConfig(
        num_levels=2, features_per_level=4, log2_table_size=10, base_resolution=4, growth=2.0
    )
    generator = HyperINGP(HyperINGPConfig(grid=grid, include_position=True, hidden=(8,)), 6).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return generator, torch.randn(num_prompts, 6, dtype=torch.float64)


def text_of(pooled: torch.Tensor) -> TextCondition:
    return TextCondition(pooled=pooled, tokens=pooled[:, None], mask=torch.ones(len(pooled), 1).bool())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("num_prompts", "num_views"), [(1, 4), (2, 1), (3, 4)])
def test_batch_equals_prompts_one_by_one(scheme: str, num_prompts: int, num_views: int):
    """Images and gradients, with cameras near and far, so that prompts have different numbers of rays."""
    config = RendererConfig(**{**vars(SCHEMES[scheme]), "min_optical_depth": 0.05})
    generator, pooled = generator_scene(num_prompts)
    cameras = in_double(varied_cameras(num_prompts, num_views, distance=1.8))
    cameras.c2w[0, :, :3, 3] *= 1.8
    background = torch.rand(num_prompts, num_views, 3, dtype=torch.float64)
    u = torch.rand(num_prompts, num_views * 64, config.num_samples, dtype=torch.float64)
    seed = torch.randn(num_prompts, num_views, 8, 8, 6, dtype=torch.float64)

    def run(p: slice, cameras: Cameras) -> torch.Tensor:
        result = render_on_black(
            generator(text_of(pooled[p])),
            cameras,
            8,
            config,
            background=background[p],
            u=u[p],
            training=True,
            want_normal=True,
            sharpness=10.0,
        )
        images = torch.cat(
            [result.rgb, result.opacity[..., None], result.depth[..., None], result.normal[..., :1]], dim=-1
        )
        (images * seed[p]).sum().backward()
        return images.detach()

    batched = run(slice(None), cameras)
    gradients = [parameter.grad.clone() for parameter in generator.parameters()]
    generator.zero_grad()
    single = torch.cat([run(slice(p, p + 1), select_prompt(cameras, p)) for p in range(num_prompts)])
    torch.testing.assert_close(batched, single, rtol=0, atol=1e-9)
    for gradient, parameter in zip(gradients, generator.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_evaluation_in_chunks_equals_training(scheme: str):
    generator, pooled = generator_scene(2)
    scene, cameras = generator(text_of(pooled)), in_double(varied_cameras(2, 2))
    settings = {**vars(SCHEMES[scheme]), "min_optical_depth": 0.0}
    u = torch.rand(2, 2 * 81, SCHEMES[scheme].num_samples, dtype=torch.float64)
    expected = render_on_black(
        scene, cameras, 9, RendererConfig(**settings), u=u, training=True, want_normal=True
    )
    assert expected.rgb.requires_grad and expected.samples is not None
    for chunk in (1, 999, 10**6):
        result = render_on_black(
            scene, cameras, 9, RendererConfig(**{**settings, "chunk": chunk}), u=u, want_normal=True
        )
        assert result.samples is None and not result.rgb.requires_grad
        for name in ("rgb", "opacity", "depth", "normal"):
            torch.testing.assert_close(getattr(result, name), getattr(expected, name), msg=f"{name} {chunk}")


def test_evaluations_are_counted_and_inside_ball():
    for config in (*SCHEMES.values(), RendererConfig(num_coarse=5, num_fine=0)):
        for training in (True, False):
            scene = Balls(torch.tensor([0.3, 0.5]), bounding_radius=0.8)
            result = render_on_black(scene, varied_cameras(2, 2), 10, config, training=training)
            assert result.num_evaluations == scene.num_calls > 0
            assert scene.farthest <= 0.8 + 1e-5


def test_views_and_chunks_share_one_lattice():
    config = RendererConfig(num_coarse=8, num_fine=1, lattice=16, chunk=5000)
    counts = []
    for num_views in (1, 4):
        scene = Balls(torch.tensor([0.2]))
        cameras = orbit(1, num_views, elevation_deg=0.0, distance=2.6, fovy_deg=50.0)
        rendered = render_on_black(scene, cameras, 20, config, training=True).samples.sdf.numel()
        scene.num_calls = 0
        render_on_black(scene, cameras, 20, config)
        counts.append(scene.num_calls - rendered)
    assert counts[0] > 0 and abs(counts[0] - counts[1]) < 600  # training renders some empty rays as well


def test_normals_are_computed_on_request_only():
    config = RendererConfig(num_coarse=8, num_fine=0)
    scene = Balls(torch.tensor([0.5]))
    result = render_on_black(scene, varied_cameras(1, 1), 10, config, training=True)
    assert result.normal is None and result.samples.gradient is None
    assert result.num_evaluations == result.samples.sdf.numel()
    with_normal = render_on_black(scene, varied_cameras(1, 1), 10, config, training=True, want_normal=True)
    assert with_normal.normal.shape == (1, 1, 10, 10, 3)
    assert with_normal.num_evaluations == result.num_evaluations + 4 * with_normal.samples.gradient.shape[1]


@dataclass
class Stretched(Balls):
    """Balls whose "distances" grow `radius` times as fast as they should: gradients of that length."""

    def sdf(self, points: torch.Tensor) -> torch.Tensor:
        return self.radius[:, None] * super().sdf(points)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_are_those_of_the_field_at_every_sample(scheme: str):
    """Also with a prompt that is padded, and the eikonal term is their mean error over samples."""
    scene = Stretched(torch.tensor([0.3, 0.7], dtype=torch.float64))
    cameras = in_double(varied_cameras(2, 1, distance=1.5))
    settings = {"training": True, "u": torch.rand(2, 144, SCHEMES[scheme].num_samples).double()}
    plain = render_on_black(scene, cameras, 12, SCHEMES[scheme], **settings)
    result = render_on_black(scene, cameras, 12, SCHEMES[scheme], want_gradients=True, **settings)
    samples = result.samples
    assert plain.samples.gradients is None and torch.equal(plain.rgb, result.rgb)
    assert result.num_evaluations == plain.num_evaluations + 4 * samples.sdf.numel()
    at = cameras.c2w[:, :, None, :3, 3] + samples.t_positions[..., None] * samples.directions[:, :, None]
    expected = scene.radius[:, None, None, None] * at / at.norm(dim=-1, keepdim=True)
    inner = samples.valid[..., None] & (at.norm(dim=-1) > 0.1) & (at.norm(dim=-1) < 0.98)
    assert inner.sum() > 500
    torch.testing.assert_close(samples.gradients[inner], expected[inner], rtol=0, atol=0.02)
    smooth = RaySamples(**{**vars(samples), "gradients": expected})
    assert eikonal(smooth).tolist() == pytest.approx([0.7**2, 0.3**2])
    assert eikonal(samples).tolist() == pytest.approx([0.7**2, 0.3**2], abs=0.02)


def test_skipping_empty_rays_changes_little():
    cameras, scene = orbit(1, 2, elevation_deg=10.0, distance=2.6, fovy_deg=50.0), Balls(torch.tensor([0.25]))
    settings = {"num_coarse": 16, "num_fine": 16}
    skipping = render_on_black(scene, cameras, 24, RendererConfig(**settings), training=True)
    full = render_on_black(
        scene, cameras, 24, RendererConfig(**settings, min_optical_depth=0.0), training=True
    )
    torch.testing.assert_close(skipping.rgb, full.rgb, rtol=0, atol=2e-3)
    assert skipping.samples.weights.shape[1] < 0.5 * full.samples.weights.shape[1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_vanished_object_keeps_gradient(scheme: str):
    """The densest rays are rendered even if empty, so that samples reach the object's center."""
    radius = torch.tensor([-0.4], requires_grad=True)
    result = render_on_black(
        Balls(radius), varied_cameras(1, 1), 16, SCHEMES[scheme], sharpness=80.0, training=True
    )
    assert result.opacity.max() < 1e-6
    distance = result.samples.sdf.detach().min() - 0.4  # of the nearest sample from the center
    assert distance < 0.3
    result.samples.sdf.min().backward()
    assert radius.grad.item() == -1.0


def test_background_if_all_rays_miss():
    cameras = varied_cameras(2, 1)
    cameras.c2w[0, :, :3, 0] *= -1  # turn the first camera around
    cameras.c2w[0, :, :3, 2] *= -1
    background = torch.rand(2, 1, 3)
    for config in SCHEMES.values():
        for p in (slice(0, 1), slice(0, 2)):
            radius = torch.full((2,), 0.5)[p].requires_grad_()
            turned = select_prompt(cameras, 0) if p.stop == 1 else cameras
            result = render_on_black(
                Balls(radius), turned, 8, config, background=background[p], training=True
            )
            assert torch.equal(result.rgb[0], background[0, :, None, None].expand(1, 8, 8, 3))
            assert torch.all(result.samples.gradient.norm(dim=-1) > 0.9)
            result.rgb.sum().backward()
            assert radius.grad[0] == 0 and radius.grad.isfinite().all()


def test_bad_arguments_raise():
    scene, cameras = Balls(torch.tensor([0.5])), varied_cameras(1, 2)
    with pytest.raises(ValueError, match=r"background .*\[1, 2, 3\], got \[1, 3\]"):
        render_on_black(scene, cameras, 4, DENSE, background=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"num_samples\] = \[1, 32, 192\]"):
        render_on_black(scene, cameras, 4, DENSE, u=torch.rand(1, 32, 7))
    with pytest.raises(ValueError, match="sharpness"):
        render_on_black(scene, cameras, 4, DENSE, sharpness=0.0)
    with pytest.raises(ValueError, match="height"):
        render_on_black(scene, cameras, 0, DENSE)
    for settings in (
        {"num_coarse": 0},
        {"num_fine": -1},
        {"lattice": 1},
        {"lattice": -1},
        {"chunk": 0},
        {"normal_epsilon": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            RendererConfig(**settings)


@pytest.mark.parametrize(("num_prompts", "num_views"), [(1, 1), (2, 1), (3, 4)])
def test_marching_all_rays_renders_same(num_prompts, num_views, monkeypatch):
    """On a GPU, rays that miss are not dropped first, because the host would wait for their number."""
    cameras = orbit(num_prompts, num_views, elevation_deg=20.0, distance=4.0, fovy_deg=60.0)
    config = RendererConfig(lattice=16, num_coarse=16, num_fine=8, shading=ShadingConfig(kind="lambert"))
    radii = 0.3 + 0.1 * torch.arange(num_prompts)
    u = torch.rand(num_prompts, num_views * 24 * 24, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for blocks in (False, True):
        monkeypatch.setattr(
            "amortized.rendering.renderer._reading_blocks_host", lambda device, blocks=blocks: blocks
        )
        radius = radii.clone().requires_grad_()
        image = render(
            Balls(radius=radius),
            cameras,
            24,
            24,
            config=config,
            sharpness=20.0,
            training=True,
            u=u,
            background=torch.full((num_prompts, num_views, 3), 0.5),
            want_normal=True,
        )
        (gradient,) = torch.autograd.grad((image.rgb.square().sum() + image.depth.sum()), radius)
        outputs.append((image.rgb, image.opacity, image.depth, image.normal, gradient, image.num_evaluations))
    for dropped, all_rays in zip(*outputs, strict=True):
        assert torch.equal(torch.as_tensor(dropped), torch.as_tensor(all_rays))
    assert 0.01 < outputs[0][1].mean() < 0.5
