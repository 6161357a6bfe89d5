"""Learned backgrounds: gray at first, different for each prompt, and shown in the requested images only."""

import pytest
import torch

from amortized.cameras import camera_rays, orbit
from amortized.encodings import HashGridConfig
from amortized.rendering import RendererConfig, render
from amortized.types import Scene, SceneWithBackground
from generators.environment import (
    HashEnvironmentConfig,
    SharedHashEnvironmentConfig,
    SHEnvironmentConfig,
    WithEnvironment,
)
from generators.hyper_ingp import HyperINGPConfig
from tests.generators.helpers import TEXT_DIM, in_double, perturb, rows_of, texts
from tests.rendering import scenes

GRID = HashGridConfig(num_levels=3, log2_table_size=9, base_resolution=4, growth=1.6)
KINDS = {
    "hash": HashEnvironmentConfig(grid=GRID, hidden=8),
    "sh": SHEnvironmentConfig(),
    "shared-hash": SharedHashEnvironmentConfig(grid=GRID, hidden=(8,)),
}
RENDERER = RendererConfig(num_coarse=10, num_fine=8, lattice=10)


def perturbed(kind: str) -> WithEnvironment:
    torch.manual_seed(0)
    generator = HyperINGPConfig(grid=GRID, hidden=(8,), z_dim=3).build(TEXT_DIM)
    module = WithEnvironment(generator, KINDS[kind].build(TEXT_DIM))
    return perturb(module, by=0.3).double()


def render_rgb(scene: Scene, num_prompts: int, num_views: int, shown: torch.Tensor | None) -> torch.Tensor:
    """Return images [P, V, 8, 8, 3] over one color; shown: bool [P, V], the images with environment."""
    cameras = orbit(num_prompts, num_views, elevation_deg=20, distance=2.6, fovy_deg=60, start_azimuth_deg=10)
    cameras = scenes.in_double(cameras)
    colors = torch.tensor([0.2, 0.4, 0.6]).double().expand(num_prompts, num_views, 3)
    image = render(
        scene,
        cameras,
        8,
        8,
        config=RENDERER,
        background=colors,
        sharpness=20.0,
        training=True,
        show_environment=shown,
    )
    return image.rgb


@pytest.mark.parametrize("kind", KINDS)
def test_every_direction_starts_mid_gray(kind: str):
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2, 50, 3).double(), dim=-1)
    colors = KINDS[kind].build(TEXT_DIM).double()(in_double(texts(2)))(directions)
    torch.testing.assert_close(colors, torch.full((2, 50, 3), 0.5).double(), rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_batch_equals_prompts_one_by_one(kind: str, num_prompts: int, num_views: int):
    module, text = perturbed(kind), in_double(texts(num_prompts))
    z, seed = torch.randn(num_prompts, 3), torch.randn(num_prompts, num_views, 8, 8, 3).double()
    shown = torch.arange(num_prompts * num_views).view(num_prompts, num_views) % 2 == 0

    def run(rows: slice) -> torch.Tensor:
        rgb = render_rgb(module(rows_of(text, rows), z[rows]), len(z[rows]), num_views, shown[rows])
        (rgb * seed[rows]).sum().backward()
        return rgb.detach()

    batched = run(slice(None))
    gradients = [p.grad.clone() for p in module.parameters()]
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    module.zero_grad()
    single = torch.cat([run(slice(i, i + 1)) for i in range(num_prompts)])
    torch.testing.assert_close(batched, single, rtol=0, atol=1e-9)
    for gradient, parameter in zip(gradients, module.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_a_selected_scene_has_its_background(kind: str, num_prompts: int):
    scene = perturbed(kind)(in_double(texts(num_prompts)))
    points = torch.nn.functional.normalize(torch.randn(num_prompts, 50, 3).double(), dim=-1)
    for index in range(num_prompts):
        one, row = scene.select(index), points[index : index + 1]
        assert isinstance(one, SceneWithBackground) and one.num_prompts == 1
        for name in ("sdf", "background"):
            expected = getattr(scene, name)(points)[index : index + 1]
            torch.testing.assert_close(getattr(one, name)(row), expected, rtol=0, atol=1e-12)
    with pytest.raises(IndexError):
        scene.select(num_prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_image_corner_has_color_of_its_direction(kind: str):
    module = perturbed(kind)
    scene = module(in_double(texts(2)))
    assert isinstance(scene, SceneWithBackground) and isinstance(scene, Scene) and module.z_dim == 3
    plain = render_rgb(scene, 2, 2, None)
    assert torch.equal(plain[:, :, 0, 0], torch.tensor([0.2, 0.4, 0.6]).double().expand(2, 2, 3))
    mixed = render_rgb(scene, 2, 2, torch.tensor([[True, False], [False, True]]))
    cameras = orbit(2, 2, elevation_deg=20, distance=2.6, fovy_deg=60, start_azimuth_deg=10)
    cameras = scenes.in_double(cameras)
    rays = camera_rays(cameras, 8, 8).directions.unflatten(1, (2, 8, 8))[:, :, 0, 0]
    expected = scene.background(rays)
    assert torch.equal(mixed[0, 1, 0, 0], plain[0, 1, 0, 0]) and torch.equal(mixed[1, 0], plain[1, 0])
    torch.testing.assert_close(mixed[0, 0, 0, 0], expected[0, 0])
    torch.testing.assert_close(mixed[1, 1, 0, 0], expected[1, 1])
    assert mixed.requires_grad
    evaluated = render(
        scene,
        cameras,
        8,
        8,
        config=RENDERER,
        background=plain[:, :, 0, 0].detach(),
        sharpness=20.0,
        training=False,
        show_environment=torch.ones(2, 2, dtype=torch.bool),
    )
    assert not evaluated.rgb.requires_grad
    torch.testing.assert_close(evaluated.rgb[:, :, 0, 0], expected.detach())
    same_rays = scene.background(rays[:1].expand(2, -1, -1))
    is_shared = torch.allclose(same_rays[0], same_rays[1])
    assert is_shared == (kind != "hash")  # all prompts share the other two


def test_scene_without_environment_ignores_show_environment():
    scene = perturbed("sh").generator(in_double(texts(1)))
    shown = torch.ones(1, 1, dtype=torch.bool)
    assert torch.equal(render_rgb(scene, 1, 1, shown), render_rgb(scene, 1, 1, None))


def test_bad_sizes_raise():
    for config, name, value in (
        (HashEnvironmentConfig, "hidden", 0),
        (SHEnvironmentConfig, "num_bands", 5),
        (SHEnvironmentConfig, "hidden", (0,)),
    ):
        with pytest.raises(ValueError, match=name):
            config(**{name: value})
