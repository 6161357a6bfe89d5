"""Properties of every generator: a batch equals its prompts one by one, bfloat16 is accurate."""

from dataclasses import replace

import pytest
import torch

import train
from amortized.cameras import orbit
from amortized.config import ConfigError, load_config
from amortized.encodings import HashGridConfig
from amortized.rendering import RendererConfig, ShadingConfig, render
from amortized.types import Scene
from generators import GENERATORS
from generators.conv3d import Conv3DConfig
from generators.hyper_ingp import HyperINGPConfig
from generators.triplane_transformer import TriplaneTransformerConfig
from tests.generators.helpers import TEXT_DIM, in_double, perturb, rows_of, texts
from tests.rendering import scenes

GRID = HashGridConfig(num_levels=3, log2_table_size=9, base_resolution=4, growth=1.6)
CONV = Conv3DConfig(
    resolution=8, base_channels=6, num_features=5, z_dim=3, style_dim=8, hidden=(7,), sphere_radius=0.6
)
TRIPLANE = TriplaneTransformerConfig(
    plane_tokens=3, width=12, num_layers=2, num_heads=3, plane_channels=4, hidden=(7,), sphere_radius=0.6
)
TINY = {
    "hyper-ingp": HyperINGPConfig(grid=GRID, hidden=(8,), include_position=True, sphere_radius=0.6),
    "hyper-ingp shared width": HyperINGPConfig(grid=GRID, hidden=(8, 8), shared_width=8, sphere_radius=0.6),
    "hyper-ingp extended": HyperINGPConfig(
        grid=GRID, hidden=(8,), text="tokens", z_dim=3, spectral_norm=True, sphere_radius=0.6
    ),
    "3dconv-net": CONV,
    "3dconv-net checkpointing": replace(CONV, checkpointing=True),
    "triplane-transformer": TRIPLANE,
    "triplane-transformer pooled": replace(TRIPLANE, text="pooled"),
    "triplane-transformer smooth": replace(TRIPLANE, smooth=True, checkpointing=True),
}
RENDERER = RendererConfig(num_coarse=10, num_fine=8, shading=ShadingConfig(kind="lambert"))


def perturbed(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return perturb(TINY[name].build(TEXT_DIM), by=0.1).double()


def images(scene: Scene, num_prompts: int, num_views: int) -> torch.Tensor:
    """Return images [P, V, 8, 8, 3] of a training render."""
    cameras = orbit(num_prompts, num_views, elevation_deg=20, distance=2.6, fovy_deg=45, start_azimuth_deg=10)
    cameras = scenes.in_double(cameras)
    background = torch.full((num_prompts, num_views, 3), 0.3).double()
    random = torch.Generator().manual_seed(1)
    u = torch.rand(1, num_views * 64, RENDERER.num_samples, generator=random).double()
    rendered = render(
        scene,
        cameras,
        8,
        8,
        config=RENDERER,
        background=background,
        sharpness=20.0,
        training=True,
        u=u.expand(num_prompts, -1, -1),
    )
    return rendered.rgb


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_batch_equals_prompts_one_by_one(name: str, num_prompts: int, num_views: int):
    generator, text = perturbed(name), in_double(texts(num_prompts))
    z = torch.randn(num_prompts, getattr(generator, "z_dim", 0)).double()
    seed = torch.randn(num_prompts, num_views, 8, 8, 3).double()

    def run(rows: slice) -> torch.Tensor:
        rgb = images(generator(rows_of(text, rows), z[rows]), len(z[rows]), num_views)
        (rgb * seed[rows]).sum().backward()
        return rgb.detach()

    batched = run(slice(None))
    gradients = [p.grad.clone() for p in generator.parameters()]
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    generator.zero_grad()
    single = torch.cat([run(slice(i, i + 1)) for i in range(num_prompts)])
    torch.testing.assert_close(batched, single, rtol=0, atol=1e-9)
    for gradient, parameter in zip(gradients, generator.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=1e-8)
    if num_prompts > 1:
        assert (batched[0] - batched[1]).abs().mean() > 1e-4


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_a_selected_scene_is_its_row_of_the_batch(name: str, num_prompts: int):
    generator, points = perturbed(name), torch.rand(num_prompts, 50, 3).double() - 0.5
    z = torch.randn(num_prompts, getattr(generator, "z_dim", 0)).double()
    scene = generator(in_double(texts(num_prompts)), z)
    batch = [scene.sdf(points), *scene.sdf_and_albedo(points)]
    for index in range(num_prompts):
        one, row = scene.select(index), points[index : index + 1]
        assert isinstance(one, Scene) and one.num_prompts == 1
        assert one.bounding_radius == scene.bounding_radius
        for alone, rows in zip([one.sdf(row), *one.sdf_and_albedo(row)], batch, strict=True):
            torch.testing.assert_close(alone, rows[index : index + 1], rtol=0, atol=1e-12)
        assert torch.equal(one.select(0).sdf(row), one.sdf(row))
    for index in (-1, num_prompts):
        with pytest.raises(IndexError, match=f"has {num_prompts} prompts, got index {index}"):
            scene.select(index)


@pytest.mark.parametrize("name", TINY)
def test_sdf_equals_sdf_with_albedo(name: str):
    scene = perturbed(name)(in_double(texts(2)))
    points = torch.rand(2, 50, 3).double() - 0.5
    torch.testing.assert_close(scene.sdf(points), scene.sdf_and_albedo(points)[0])


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_is_accurate_and_scenes_are_float32(name: str):
    generator, text = perturbed(name).float(), texts(2)
    z, points = torch.randn(2, getattr(generator, "z_dim", 0)), torch.rand(2, 200, 3) - 0.5
    exact = generator(text, z).sdf(points)
    with torch.autocast("cpu", torch.bfloat16):
        scene = generator(text, z)
    sdf, rgb = scene.sdf_and_albedo(points)
    assert sdf.dtype == rgb.dtype == torch.float32
    change = (exact - (points.norm(dim=-1) - 0.6)).square().mean().sqrt()
    assert 0 < (sdf - exact).square().mean().sqrt() < 0.1 * change
    (sdf.sum() + rgb.sum()).backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("name", TINY)
def test_state_dict_transfers_to_another_module(name: str):
    generator, other, text = perturbed(name), perturbed(name, seed=1), in_double(texts(2))
    points = torch.rand(2, 50, 3).double() - 0.5
    assert not torch.allclose(generator(text).sdf(points), other(text).sdf(points))
    other.load_state_dict(generator.state_dict())
    assert torch.equal(generator(text).sdf(points), other(text).sdf(points))


@pytest.mark.parametrize("name", ["3dconv-net", "triplane-transformer"])
def test_stages_and_layers_compile(name: str):
    """Each compiles to one graph without breaks, forward and backward, with the same results."""
    generator, text = perturbed(name), in_double(texts(2))
    z, points = torch.randn(2, getattr(generator, "z_dim", 0)).double(), torch.rand(2, 50, 3).double() - 0.5
    blocks = generator.stages if name == "3dconv-net" else generator.layers

    def run() -> list[torch.Tensor]:
        sdf = generator(text, z).sdf(points)
        return [sdf, *torch.autograd.grad(sdf.square().sum(), [*blocks.parameters()])]

    expected = run()
    for block in blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(run(), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_name_selects_settings():
    from amortized.commands.compose import RunConfig

    # Of one object, without a batch: test_ingp.py and test_splats.py.
    assert {name.split(" ")[0] for name in TINY} == set(GENERATORS) - {"ingp", "splats"}
    given = ["output=o", "corpus=shapes16", "prior=p"]
    for name, cls in GENERATORS.items():
        chosen = load_config(RunConfig, None, [*given, f"generator.name={name}"]).generator
        assert chosen == cls()
    assert load_config(RunConfig, None, given).generator == HyperINGPConfig()
    with pytest.raises(ConfigError, match="generator.name must be one of hyper-ingp, 3dconv-net"):
        load_config(RunConfig, None, [*given, "generator.name=nerf"])
    with pytest.raises(ConfigError, match="num_layers.* is a setting of generator.name=triplane"):
        load_config(RunConfig, None, [*given, "generator.num_layers=3"])


@pytest.mark.parametrize("generator", ["3dconv-net", "triplane-transformer"])
def test_dry_run_prints_selected_generator(generator: str, capsys):
    small = ["generator.resolution=8", "generator.base_channels=8"]
    small = small if generator == "3dconv-net" else ["generator.num_layers=1", "generator.width=48"]
    assert train.main(["configs/quickstart.yaml", "--dry-run", f"generator.name={generator}", *small]) == 0
    output = capsys.readouterr().out
    assert f"name: {generator}" in output and "generator:" in output
