"""The one-object splat generator: its parameters, bounds, changes and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import mse_loss

from amortized.cameras import orbit
from amortized.density_control import fit_rows
from amortized.rendering import render, render_splats
from amortized.rendering.renderer import RendererConfig
from amortized.splats import NAMES, RelocationConfig, coefficients_of, relocate_and_grow, scene_of
from amortized.types import Render, SplatScene
from generators.environment import SHEnvironmentConfig, WithEnvironment
from generators.splats import Splats, SplatsConfig
from tests.generators.helpers import TEXT_DIM, texts

SIZE = 32


def small(count: int = 500) -> Splats:
    torch.manual_seed(0)
    return SplatsConfig(count=count).build(TEXT_DIM)


def views(number: int):
    return orbit(1, number, elevation_deg=20, distance=2.6, fovy_deg=40)


def look(scene: SplatScene, cameras, background: float = 0.5) -> Render:
    behind = torch.full((1, cameras.fovy_deg.shape[1], 3), background)
    return render_splats(scene, cameras, SIZE, SIZE, background=behind, training=torch.is_grad_enabled())


def cube() -> SplatScene:
    """A cube of side 0.7 whose faces have six colors."""
    colors = torch.tensor(
        [[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.9], [0.9, 0.9, 0.1], [0.9, 0.4, 0.1], [0.9, 0.9, 0.9]]
    )
    axis = torch.linspace(-0.34, 0.34, 24)
    flat = torch.cat([torch.full((24 * 24, 1), 0.35), torch.cartesian_prod(axis, axis)], dim=1)
    means = torch.cat([sign * flat.roll(shift, 1) for shift in range(3) for sign in (1, -1)])
    count = len(means)
    parameters = {
        "means": means,
        "quaternions": torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        "log_scales": torch.full((count, 3), 0.018).log(),
        "logits": torch.full((count,), 4.0),
        "colors": coefficients_of(colors.repeat_interleave(24 * 24, 0)),
    }
    return scene_of(parameters, 1.0)


def test_text_and_z_are_ignored_and_several_prompts_are_refused():
    generator, text = small(), texts(1)
    scene = generator(text, torch.randn(1, 3))
    assert isinstance(scene, SplatScene) and scene.num_prompts == 1 and scene.means.shape == (1, 500, 3)
    assert torch.equal(scene.means, generator(texts(1, seed=9)).means)
    with pytest.raises(ValueError, match="is one object, but the batch has 3 prompts: pass one"):
        generator(texts(3))


def test_a_fit_to_a_cube_of_six_colors_raises_psnr():
    """With bounds and relocation, whose changes go through the optimizer."""
    generator, text, cameras, target = small(), texts(1), views(12), cube()
    with torch.no_grad():
        true = [look(target, cameras, background).rgb for background in (0.2, 0.8)]
    rates = dict(zip(NAMES, (4e-3, 2e-3, 1e-2, 5e-2, 3e-2), strict=True))
    groups = [{"params": [value], "lr": rates[name]} for name, value in generator.splats.items()]
    optimizer, rng = torch.optim.Adam(groups, eps=1e-15), torch.Generator().manual_seed(0)

    def psnr() -> float:
        with torch.no_grad():
            return float(-10 * mse_loss(look(generator(text), cameras, 0.2).rgb, true[0]).log10())

    before = psnr()
    for step in range(100):
        chosen = torch.randint(12, (2,), generator=rng)
        few = type(cameras)(**{name: value[:, chosen] for name, value in vars(cameras).items()})
        image = look(generator(text), few, 0.2 + 0.6 * (step % 2)).rgb
        optimizer.zero_grad()
        mse_loss(image, true[step % 2][:, chosen]).backward()
        optimizer.step()
        generator.bound()
        if step in (40, 70):
            config = RelocationConfig(cap=600)
            generator.change(relocate_and_grow(generator.splats, config, 1.0, rng), optimizer)
    assert psnr() > before + 7 and generator.count == 552
    scales = generator.log_scales.exp()
    assert scales.max() <= 0.1001 and (scales.amax(1) / scales.amin(1)).max() < 10.001


def test_renders_in_training_fill_the_statistics():
    generator, text = small(100), texts(1)
    image = look(generator(text), views(3), 0.2)
    image.rgb.square().sum().backward()
    state = generator.state_dict()
    assert set(state) == {*NAMES, "screen_gradient", "screen_visits", "screen_radius"}
    assert (state["screen_visits"] == 3).all() and (state["screen_gradient"] > 0).all()
    assert generator.eval()(text).statistics is None


def test_a_checkpoint_with_another_number_of_splats_loads(tmp_path: Path):
    one, other, text = small(120), small(40), texts(1)
    look(one(text), views(2)).rgb.sum().backward()
    save_file(one.state_dict(), tmp_path / "a.safetensors")
    stored = load_file(tmp_path / "a.safetensors")
    fit_rows(other, {name: value.shape for name, value in stored.items()})
    other.load_state_dict(stored)
    assert other.count == 120
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    wrapped = WithEnvironment(small(40), SHEnvironmentConfig().build(TEXT_DIM))
    stored = WithEnvironment(one, SHEnvironmentConfig().build(TEXT_DIM)).state_dict()
    fit_rows(wrapped, {name: value.shape for name, value in stored.items()})
    wrapped.load_state_dict(stored)
    assert torch.equal(wrapped.generator.means, one.means)


def test_a_start_replaces_the_ball():
    generator = small(10)
    generator.load(cube())
    assert generator.count == 6 * 576 and torch.equal(generator(texts(1)).means, cube().means)
    assert generator.screen_visits.shape == (6 * 576,)


def test_sizes_are_known_without_numbers():
    with torch.device("meta"):
        generator = SplatsConfig(count=10**6).build(TEXT_DIM)
    assert generator.count == 10**6 and sum(p.numel() for p in generator.parameters()) == 14 * 10**6


def test_an_environment_shows_behind_the_splats():
    generator = WithEnvironment(small(50), SHEnvironmentConfig().build(TEXT_DIM))
    scene, cameras = generator(texts(1)), views(2)
    shown = torch.tensor([[True, False]])
    image = render(
        scene,
        cameras,
        SIZE,
        SIZE,
        config=RendererConfig(),
        background=torch.zeros(1, 2, 3),
        sharpness=1.0,
        training=False,
        show_environment=shown,
    )
    corner = image.rgb[0, :, 0, 0]
    torch.testing.assert_close(corner[0], torch.full((3,), 0.5), rtol=0, atol=0.2)
    assert not corner[1].any()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"count": 1_000_001}, "count must be at most 1,000,000"),
        ({"ball_radius": 1.5}, "ball_radius must be positive and at most bounding_radius 1.0, got 1.5"),
        ({"max_anisotropy": 0.5}, "max_anisotropy must be at least 1"),
        ({"max_scale": 2.0}, "max_scale must lie in"),
    ],
)
def test_wrong_settings_are_refused(setting: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SplatsConfig(**setting)
