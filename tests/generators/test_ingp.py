"""One object: the field against NumPy, published sizes and starts, levels, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amortized.cameras import camera_rays, orbit
from amortized.commands.compose import RunConfig, build_untrained, check_size
from amortized.config import ConfigError, load_config
from amortized.encodings import HashGridConfig
from amortized.rendering import RendererConfig
from amortized.types import DensityScene, HasBackground, Scene
from generators.environment import SHEnvironmentConfig, WithEnvironment
from generators.ingp import INGP, INGPConfig, trunc_exp
from tests.encodings.test_hash_grid import reference
from tests.generators.helpers import TEXT_DIM, in_double, perturb, texts
from tests.rendering.scenes import front_camera, render_on_black
from tests.rendering.scenes import in_double as cameras_in_double

GRID = HashGridConfig(num_levels=3, log2_table_size=9, base_resolution=4, growth=1.6)
CONFIGS = {
    "sdf": INGPConfig(grid=GRID, hidden=(8,)),
    "sdf, biases, positions": INGPConfig(
        grid=GRID, hidden=(8, 6), bias=True, include_position=True, bounding_radius=0.8
    ),
    "density": INGPConfig(grid=GRID, hidden=(8,), geometry="density", bounding_radius=2.0),
    "density, exp": INGPConfig(
        grid=GRID,
        hidden=(8,),
        geometry="density",
        shared_width=5,
        activation="trunc-exp",
        blob="dreamfusion",
        blob_scale=5.0,
        blob_radius=0.2,
    ),
}


def perturbed(name: str) -> INGP:
    torch.manual_seed(0)
    return perturb(CONFIGS[name].build(TEXT_DIM), by=0.3).double()


def values_of(scene: Scene | DensityScene, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances or densities [1, N], and albedo [1, N, 3]."""
    if isinstance(scene, DensityScene):
        return scene.density_and_albedo(points)
    return scene.sdf_and_albedo(points)


def points_in_ball(radius: float, num: int = 40) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(1, num, 3, generator=random).double(), dim=-1)
    return radius * directions * torch.rand(1, num, 1, generator=random).double()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_field_equals_its_formula_in_numpy(name: str):
    generator, config = perturbed(name), CONFIGS[name]
    points = points_in_ball(config.bounding_radius)
    scene = generator(in_double(texts(1)))
    assert isinstance(scene, DensityScene if config.geometry == "density" else Scene)
    value, albedo = (x[0].detach().numpy() for x in values_of(scene, points))

    unit = points[0] / config.bounding_radius
    x = reference(generator.grid, (unit + 1) / 2).numpy()
    if config.include_position:
        x = np.concatenate([x, unit.numpy()], axis=1)
    weights = {name: weight.detach().numpy() for name, weight in generator.named_parameters()}
    if config.shared_width:
        x = x @ weights["shared.weight"].T + weights["shared.bias"]

    def head(part: str) -> np.ndarray:
        y = x
        for layer in range(len(config.hidden) + 1):
            y = np.maximum(y, 0) if layer else y
            y = y @ weights[f"{part}.{2 * layer}.weight"].T
            if config.bias:
                y = y + weights[f"{part}.{2 * layer}.bias"]
        return y

    raw, distance = head("head_geometry")[:, 0], np.linalg.norm(points[0].numpy(), axis=1)
    expected = {
        "sdf": lambda: raw + distance - 0.5,
        "sdf, biases, positions": lambda: raw + distance - 0.5,
        "density": lambda: np.log1p(np.exp(raw + 10 * (1 - distance / 0.5))),
        "density, exp": lambda: np.exp(raw + 5 * np.exp(-(distance**2) / (2 * 0.2**2))),
    }[name]()
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(albedo, 1 / (1 + np.exp(-head("head_rgb"))), rtol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_finite_differences(name: str):
    generator = perturbed(name)
    points, seed = points_in_ball(CONFIGS[name].bounding_radius), torch.randn(1, 40, 4).double()

    def loss() -> torch.Tensor:
        value, albedo = values_of(generator(in_double(texts(1))), points)
        return (torch.cat([value[..., None], albedo], dim=-1) * seed).sum()

    loss().backward()
    for parameter in generator.parameters():
        direction, step = torch.randn_like(parameter), 1e-6
        with torch.no_grad():
            parameter += step * direction
            above = loss()
            parameter -= 2 * step * direction
            below = loss()
            parameter += step * direction
        difference = (above - below) / (2 * step)
        torch.testing.assert_close((parameter.grad * direction).sum(), difference, rtol=1e-5, atol=1e-5)


def test_trunc_exp_bounds_its_gradient_only():
    x = torch.tensor([-2.0, 14.0, 20.0], dtype=torch.float64, requires_grad=True)
    y = trunc_exp(x)
    y.sum().backward()
    torch.testing.assert_close(y, torch.exp(x))
    torch.testing.assert_close(x.grad, torch.exp(torch.tensor([-2.0, 14.0, 15.0]).double()))


@pytest.mark.parametrize("name", ["sdf", "sdf, biases, positions"])
def test_an_sdf_starts_as_a_mid_gray_ball(name: str):
    scene = CONFIGS[name].build(TEXT_DIM)(texts(1))
    points = points_in_ball(scene.bounding_radius).float()
    sdf, albedo = scene.sdf_and_albedo(points)
    torch.testing.assert_close(sdf, points.norm(dim=-1) - 0.5, rtol=0, atol=0.01)
    torch.testing.assert_close(albedo, torch.full_like(albedo, 0.5), rtol=0, atol=0.01)


PUBLISHED = {
    # threestudio's blob_magic3d and blob_dreamfusion: the raw density at a distance from the center.
    "magic3d": ({}, lambda r: np.log1p(np.exp(10 * (1 - r / 0.5)))),
    "dreamfusion": (
        {"blob": "dreamfusion", "activation": "trunc-exp", "blob_scale": 5.0, "blob_radius": 0.2},
        lambda r: np.exp(5 * np.exp(-(r**2) / 0.08)),
    ),
}


@pytest.mark.parametrize("blob", PUBLISHED)
@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_a_density_starts_with_the_published_opacity(blob: str, radius: float):
    """The central ray has twice the optical depth from the center to the ball, as wide as published boxes."""
    settings, density = PUBLISHED[blob]
    torch.manual_seed(0)
    grid = HashGridConfig(log2_table_size=10)  # 16 levels, as published
    generator = INGPConfig(geometry="density", grid=grid, bounding_radius=radius, **settings).build(TEXT_DIM)
    r = (np.arange(100_000) + 0.5) / 100_000 * radius
    expected = 1 - np.exp(-2 * density(r).mean() * radius)
    config = RendererConfig(num_coarse=200, num_fine=200, lattice=0)
    scene = generator.double()(in_double(texts(1)))
    result = render_on_black(scene, front_camera(3.5), 1, config)
    assert result.opacity.item() == pytest.approx(expected, abs=2e-4)
    assert expected > 0.8
    torch.testing.assert_close(
        result.rgb[0, 0, 0, 0], 0.5 * result.opacity[0, 0, 0].expand(3), atol=1e-3, rtol=0
    )


def test_published_sizes():
    """LODS, DSD, SDI and single-prompt ASD: 12.60 M in the grid, 4.4 k in the heads; SH background 16 x 2."""
    overrides = [
        "output=o",
        "corpus=shapes16",
        "prior=p",
        "generator.name=ingp",
        "generator.geometry=density",
    ]
    overrides += ["losses.eikonal=0", "environment.name=sh"]
    config = load_config(RunConfig, None, overrides)
    check_size(config, 1024)
    with torch.device("meta"):
        generator = WithEnvironment(config.generator.build(1024), config.environment.build(1024))
    sizes = {name: p.numel() for name, p in generator.generator.named_parameters()}
    assert sizes.pop("grid.table") == 12_599_920
    assert sum(sizes.values()) == (32 * 64 + 64) + (32 * 64 + 64 * 3) == 4352
    assert sum(p.numel() for p in generator.surroundings.parameters()) == 9 * 16 + 16 * 16 + 16 * 3
    hashed = load_config(RunConfig, None, [*overrides[:-1], "environment.name=shared-hash"]).environment
    with torch.device("meta"):
        environment = hashed.build(1024)
    assert sum(p.numel() for p in environment.head.parameters()) == 8 * 16 + 16 * 16 + 16 * 3
    # ScaleDreamer: resolutions 4, 16, 64, 256; the last two exceed 2^19 rows or not.
    assert [level.resolution for level in environment.grid.levels] == [4, 16, 64, 256]
    assert environment.grid.table.numel() == 2 * (4**3 + 16**3 + 64**3 + 2**19)


@pytest.mark.parametrize("num_prompts", [2, 3])
def test_several_prompts_are_refused(num_prompts: int):
    with pytest.raises(ValueError, match=f"is one object, but the batch has {num_prompts} prompts: pass one"):
        perturbed("sdf")(in_double(texts(num_prompts)))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_text_has_no_effect_and_row_0_is_the_scene(name: str):
    generator, points = perturbed(name), points_in_ball(0.7)
    scenes = [generator(in_double(texts(1, seed=seed))) for seed in (1, 2)]
    first, second = (values_of(scene, points)[0] for scene in scenes)
    assert torch.equal(first, second)
    assert torch.equal(values_of(scenes[0].select(0), points)[0], first)
    with pytest.raises(IndexError, match="has 1 prompts?, got index 1"):
        scenes[0].select(1)


@pytest.mark.parametrize("name", ["sdf", "density"])
def test_the_environment_shows_behind_both_geometries(name: str):
    generator = WithEnvironment(perturbed(name), perturb(SHEnvironmentConfig().build(TEXT_DIM)).double())
    scene = generator(in_double(texts(1))).select(0)
    assert isinstance(scene, HasBackground)
    cameras = cameras_in_double(orbit(1, 2, elevation_deg=20, distance=2.6, fovy_deg=80))
    settings = {"background": torch.full((1, 2, 3), 0.25).double(), "sharpness": 20.0}
    config = RendererConfig(num_coarse=16, num_fine=8)
    plain = render_on_black(scene, cameras, 4, config, **settings)
    shown = torch.tensor([[True, False]])
    result = render_on_black(scene, cameras, 4, config, show_environment=shown, **settings)
    environment = scene.background(camera_rays(cameras, 4, 4).directions).view(1, 2, 4, 4, 3)
    change = (1 - plain.opacity[..., None]) * (environment - 0.25) * shown[..., None, None, None]
    torch.testing.assert_close(result.rgb - plain.rgb, change.detach(), rtol=0, atol=1e-12)
    assert change.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("generator.geometry=mesh", "generator.geometry must be one of sdf, density"),
        ("generator.blob=ball", "generator.blob must be one of magic3d, dreamfusion"),
        ("generator.blob_radius=0", "generator.blob_radius must be"),
        ("generator.hidden=[0]", "generator.hidden must be"),
        ("generator.sphere_radius=2", "generator.sphere_radius must lie between"),
        ("generator.grid.open_levels=0", "generator.grid.open_levels must not go below 1"),
        ("generator.grid.open_levels=[1,2,3]", "generator.grid.open_levels: a schedule is"),
        ("trainer.prompts_per_process=4", "set trainer.prompts_per_process=1, and trainer.views_per_prompt"),
        ("losses.eikonal=[0.1,0]", "losses.eikonal need"),
        ("losses.inside=1", "losses.inside need"),
    ],
)
def test_bad_settings_are_one_sentence(override: str, sentence: str):
    overrides = ["output=o", "corpus=shapes16", "prior=p", "generator.name=ingp", override]
    if override.startswith("losses"):
        overrides.append("generator.geometry=density")
    with pytest.raises(ConfigError) as error:
        load_config(RunConfig, None, overrides)
    assert sentence in str(error.value)


def test_weights_follow_from_the_seed():
    overrides = ["output=o", "corpus=shapes16", "prior=p", "generator.name=ingp"]
    overrides.append("generator.grid.log2_table_size=10")
    config = load_config(RunConfig, None, overrides)
    first, again = (build_untrained(config, 8, torch.device("cpu")).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
