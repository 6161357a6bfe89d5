"""The renderer against closed forms, a ray marcher of its own, and itself one prompt at a time."""

import math

import pytest
import torch

from amortized.cameras import camera_rays, cameras_at, orbit
from amortized.encodings import HashGridConfig
from amortized.rendering import RendererConfig, ShadingConfig, render
from amortized.rendering.quadrature import sphere_bounds
from amortized.types import Cameras, Render, Scene, TextCondition
from generators.hyper_ingp import HyperINGP, HyperINGPConfig
from tests.rendering.scenes import Balls, Cubes, in_double, pick, views

LIT = ShadingConfig(kind="lambert", light=(1.0, 2.0, 3.0), ambient=0.4, diffuse=0.6, wrap=True)
SCHEMES = {
    "one pass": RendererConfig(num_coarse=24, num_fine=0, shading=LIT),
    "fine": RendererConfig(num_coarse=12, num_fine=12, lattice=0, shading=LIT),
    "by lattice": RendererConfig(num_coarse=12, num_fine=12, lattice=12, shading=LIT),
}
EXACT = RendererConfig(num_coarse=96, num_fine=192, min_optical_depth=0.0)


def look(scene: Scene, cameras: Cameras, size: int, config: RendererConfig, **settings) -> Render:
    """A render over black, with sharpness 40 unless told otherwise."""
    background = torch.zeros(*cameras.fovy_deg.shape, 3, dtype=cameras.c2w.dtype)
    settings = {"background": background, "sharpness": 40.0, "training": False, **settings}
    return render(scene, cameras, size, size, config=config, **settings)


def straight_ahead(distance: float = 3.0) -> Cameras:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    return cameras_at(azimuth_deg=zero, elevation_deg=zero, distance=zero + distance, fovy_deg=zero + 40.0)


@pytest.mark.parametrize("sharpness", [3.0, 8.0])
def test_opacity_through_the_centre_of_a_ball_is_the_closed_form(sharpness: float):
    """The optical depth of the central ray is twice the integral of the Laplace density."""
    radius, k = 0.5, sharpness
    inside = k * radius - 0.5 * (1 - math.exp(-k * radius))
    outside = 0.5 * (1 - math.exp(-k * (1 - radius)))
    result = look(Balls(torch.tensor([radius]).double()), straight_ahead(), 1, EXACT, sharpness=k)
    assert result.opacity.item() == pytest.approx(1 - math.exp(-2 * (inside + outside)), abs=2e-5)


def marched(scene: Scene, cameras: Cameras, size: int, *, sharpness: float, steps: int = 6000) -> dict:
    """Colour, opacity and depth of one image by plain marching in float64, pixel by pixel."""
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
            keep = points.norm(dim=-1) <= scene.bounding_radius
            sdf, albedo = scene.sdf_and_albedo(points[None])
            tail = 0.5 * torch.exp(-sdf[0].abs() * sharpness)
            density = sharpness * torch.where(sdf[0] < 0, 1 - tail, tail) * keep
            passed = torch.exp(-step * torch.cat([torch.zeros(1).double(), density.cumsum(0)]))
            weight = passed[:-1] - passed[1:]
            rgb[row, column] = (weight[:, None] * albedo[0]).sum(dim=0)
            opacity[row, column], depth[row, column] = weight.sum(), (weight * t).sum()
    return {"rgb": rgb, "opacity": opacity[..., 0], "depth": depth[..., 0]}


@pytest.mark.parametrize("kind", [Balls, Cubes])
@pytest.mark.parametrize("sharpness", [8.0, 60.0])
def test_equals_plain_marching(kind: type, sharpness: float):
    scene = kind(torch.tensor([0.4], dtype=torch.float64))
    cameras = in_double(views(1, 1, seed=3))
    result = look(scene, cameras, 9, EXACT, sharpness=sharpness)
    for name, expected in marched(scene, cameras, 9, sharpness=sharpness).items():
        torch.testing.assert_close(getattr(result, name)[0, 0], expected, rtol=0, atol=3e-3, msg=name)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_budgets_come_close(scheme: str):
    """Two dozen evaluations a ray, as in training: the mean error stays small at both ends of k."""
    cameras = in_double(views(1, 1, seed=3))
    scene = Cubes(torch.tensor([0.4], dtype=torch.float64), bounding_radius=0.85)
    config = RendererConfig(**{**vars(SCHEMES[scheme]), "shading": ShadingConfig()})
    bounds = {20.0: 0.006, 80.0: 0.03 if scheme == "one pass" else 0.01}
    for sharpness, bound in bounds.items():
        expected = marched(scene, cameras, 12, sharpness=sharpness, steps=2000)
        result = look(scene, cameras, 12, config, sharpness=sharpness)
        assert (result.opacity[0, 0] - expected["opacity"]).abs().mean() < bound
        assert (result.rgb[0, 0] - expected["rgb"]).abs().mean() < bound


def test_a_sharp_ball_is_a_disc_with_the_right_depth_and_normals():
    radius, size = 0.5, 33
    cameras = straight_ahead()
    result = look(
        Balls(torch.tensor([radius]).double()), cameras, size, EXACT, sharpness=2000.0, want_normal=True
    )
    pixel = (2 * torch.arange(size).double() + 1) / size - 1
    y, x = torch.meshgrid(-pixel, pixel, indexing="ij")
    tangent = math.tan(math.radians(20))
    directions = torch.stack([-torch.ones_like(x), x * tangent, y * tangent], dim=-1)
    directions = directions / directions.norm(dim=-1, keepdim=True)  # camera on +x: right is +y
    origin = torch.tensor([3.0, 0, 0]).double()
    along = -(directions @ origin)
    miss = (9 - along**2).sqrt()
    covered, clear = miss < radius - 0.02, miss > radius + 0.02
    assert covered.sum() > 150 and clear.sum() > 500
    assert result.opacity[0, 0][covered].min() > 0.999 and result.opacity[0, 0][clear].max() < 1e-3
    depth = along - (radius**2 - miss**2).clamp(min=0).sqrt()
    torch.testing.assert_close(result.depth[0, 0][covered], depth[covered], rtol=0, atol=5e-3)
    normal = (origin + depth[..., None] * directions) / radius
    torch.testing.assert_close(result.normal[0, 0][covered], normal[covered], rtol=0, atol=3e-2)
    length = result.normal[0, 0][covered].norm(dim=-1)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_background_shows_where_the_object_is_not():
    cameras = views(2, 3)
    background = torch.rand(2, 3, 3)
    scene = Balls(torch.tensor([0.3, 0.5]), bounding_radius=0.7)
    black = look(scene, cameras, 16, EXACT)
    coloured = look(scene, cameras, 16, EXACT, background=background)
    expected = black.rgb + (1 - black.opacity[..., None]) * background[:, :, None, None]
    torch.testing.assert_close(coloured.rgb, expected)
    assert torch.equal(coloured.rgb[:, :, 0, 0], background)
    assert coloured.rgb.min() >= 0 and coloured.rgb.max() <= 1


def test_shading_is_brightness_at_the_normal():
    cameras, scene = views(1, 2), Balls(torch.tensor([0.5]))
    unlit = RendererConfig(**{**vars(SCHEMES["by lattice"]), "shading": ShadingConfig()})
    plain = look(scene, cameras, 12, unlit, want_normal=True)
    lit = look(scene, cameras, 12, SCHEMES["by lattice"])
    light = torch.tensor([1.0, 2.0, 3.0]) / math.sqrt(14)
    factor = 0.4 + 0.6 * (0.5 + 0.5 * plain.normal @ light)
    torch.testing.assert_close(lit.rgb, plain.rgb * factor[..., None], rtol=0, atol=1e-6)
    assert lit.normal is None


def test_normals_sit_at_the_expected_distance_even_in_fog():
    cameras, radius = in_double(views(1, 1)), torch.tensor([0.5], dtype=torch.float64)
    result = look(Balls(radius), cameras, 9, EXACT, sharpness=4.0, want_normal=True)
    rays = camera_rays(cameras, 9, 9)
    hit = sphere_bounds(rays.origins, rays.directions, 1.0)[2]
    distance = (result.depth / result.opacity).flatten(1)[hit]
    expected = rays.origins[hit] + distance[:, None] * rays.directions[hit]
    inner = expected.norm(dim=-1) > 0.2  # where the stencil is small against the curvature
    expected = torch.nn.functional.normalize(expected[inner], dim=-1)
    normal = result.normal.flatten(1, 3)[hit][inner]
    assert 0.1 < result.opacity.flatten(1)[hit][inner].mean() < 0.9
    torch.testing.assert_close(normal, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_uniform_numbers_place_the_samples_of_their_own_pixel(scheme: str):
    config, cameras = SCHEMES[scheme], in_double(views(2, 2))
    scene = Balls(torch.tensor([0.4, 0.6], dtype=torch.float64))
    middle = torch.full((2, 2 * 36, config.num_samples), 0.5, dtype=torch.float64)
    plain = look(scene, cameras, 6, config, sharpness=10.0).rgb
    torch.testing.assert_close(look(scene, cameras, 6, config, sharpness=10.0, u=middle).rgb, plain)
    middle[1, 36 + 2 * 6 + 3] = torch.rand(config.num_samples).double()  # prompt 1, view 1, row 2, column 3
    moved = (look(scene, cameras, 6, config, sharpness=10.0, u=middle).rgb != plain).any(dim=-1)
    assert moved.nonzero().tolist() == [[1, 1, 2, 3]]


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
def test_a_batch_equals_its_prompts_one_by_one(scheme: str, num_prompts: int, num_views: int):
    """Cameras near and far, so that prompts have different numbers of rays: forward and gradient."""
    config = RendererConfig(**{**vars(SCHEMES[scheme]), "min_optical_depth": 0.05})
    generator, pooled = generator_scene(num_prompts)
    cameras = in_double(views(num_prompts, num_views, distance=1.8))
    cameras.c2w[0, :, :3, 3] *= 1.8
    background = torch.rand(num_prompts, num_views, 3, dtype=torch.float64)
    u = torch.rand(num_prompts, num_views * 64, config.num_samples, dtype=torch.float64)
    seed = torch.randn(num_prompts, num_views, 8, 8, 6, dtype=torch.float64)

    def run(p: slice, cameras: Cameras) -> torch.Tensor:
        result = look(
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

    together = run(slice(None), cameras)
    gradients = [parameter.grad.clone() for parameter in generator.parameters()]
    generator.zero_grad()
    apart = torch.cat([run(slice(p, p + 1), pick(cameras, p)) for p in range(num_prompts)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-9)
    for got, parameter in zip(gradients, generator.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_evaluation_equals_training_in_chunks_of_any_size(scheme: str):
    generator, pooled = generator_scene(2)
    scene, cameras = generator(text_of(pooled)), in_double(views(2, 2))
    settings = {**vars(SCHEMES[scheme]), "min_optical_depth": 0.0}
    u = torch.rand(2, 2 * 81, SCHEMES[scheme].num_samples, dtype=torch.float64)
    expected = look(scene, cameras, 9, RendererConfig(**settings), u=u, training=True, want_normal=True)
    assert expected.rgb.requires_grad and expected.samples is not None
    for chunk in (1, 999, 10**6):
        result = look(
            scene, cameras, 9, RendererConfig(**{**settings, "chunk": chunk}), u=u, want_normal=True
        )
        assert result.samples is None and not result.rgb.requires_grad
        for name in ("rgb", "opacity", "depth", "normal"):
            torch.testing.assert_close(getattr(result, name), getattr(expected, name), msg=f"{name} {chunk}")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_image_gradient_equals_finite_differences(scheme: str):
    """In each ball's radius. Samples are dense, because the gradient takes their places as given."""
    cameras, seed = in_double(views(2, 1)), torch.randn(2, 1, 7, 7, 5, dtype=torch.float64)
    num_fine = 200 if SCHEMES[scheme].num_fine else 0
    lattice = SCHEMES[scheme].lattice
    config = RendererConfig(num_coarse=200, num_fine=num_fine, lattice=lattice, min_optical_depth=0.0)

    def value(radius: torch.Tensor) -> torch.Tensor:
        result = look(Balls(radius), cameras, 7, config, sharpness=10.0, training=True)
        images = torch.cat([result.rgb, result.opacity[..., None], result.depth[..., None]], dim=-1)
        return (images * seed).sum(dim=(1, 2, 3, 4))

    radius = torch.tensor([0.4, 0.55], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(radius).sum(), radius)
    with torch.no_grad():
        slope = (value(radius + 1e-4) - value(radius - 1e-4)) / 2e-4
    torch.testing.assert_close(gradient, slope, rtol=1e-2, atol=1e-2)


def test_gradient_flows_through_normals_alone():
    """With a constant albedo and full opacity, only brightness can depend on the shape."""
    tilt = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)

    class Wall:
        bounding_radius = 1.0

        def sdf(self, points: torch.Tensor) -> torch.Tensor:
            return points[..., 0] + tilt * points[..., 2]

        def sdf_and_albedo(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.sdf(points).detach(), torch.full_like(points, 0.5)

    result = look(Wall(), straight_ahead(), 1, SCHEMES["one pass"], sharpness=300.0, training=True)
    (gradient,) = torch.autograd.grad(result.rgb.sum(), tilt)
    # n = (1, 0, a) / sqrt(1 + a^2): d n / d a = (0, 0, 1); light z = 3 / sqrt(14); 3 channels of 0.5.
    expected = 3 * 0.5 * 0.6 * 0.5 * 3 / math.sqrt(14)
    assert gradient.item() == pytest.approx(expected, rel=1e-6)


def test_evaluations_are_counted_and_stay_in_the_ball():
    for config in (*SCHEMES.values(), RendererConfig(num_coarse=5, num_fine=0)):
        for training in (True, False):
            scene = Balls(torch.tensor([0.3, 0.5]), bounding_radius=0.8)
            result = look(scene, views(2, 2), 10, config, training=training)
            assert result.num_evaluations == scene.num_calls > 0
            assert scene.farthest <= 0.8 + 1e-5


def test_a_tenth_of_the_public_codes_evaluations_gives_the_picture_of_dense_marching():
    """128 coarse intervals and 193 with 4 evaluations each, on every ray, are 3.69 M for 64 x 64 pixels."""
    scene = Cubes(torch.tensor([0.3, 0.45]), bounding_radius=1.0)
    cameras = orbit(2, 1, elevation_deg=25.0, distance=2.6, fovy_deg=45.0, start_azimuth_deg=30.0)
    for sharpness in (20.0, 30.0, 100.0):
        dense = look(scene, cameras, 64, RendererConfig(num_coarse=768, num_fine=0), sharpness=sharpness)
        ours = look(scene, cameras, 64, RendererConfig(), sharpness=sharpness, want_normal=True)
        error = (ours.rgb - dense.rgb).square().mean()
        assert -10 * error.log10() > 45
        assert ours.num_evaluations / 2 < (128 + 193 * 4) * 64**2 / 10


def test_views_and_chunks_share_one_lattice():
    config = RendererConfig(num_coarse=8, num_fine=1, lattice=16, chunk=5000)
    counts = []
    for num_views in (1, 4):
        scene = Balls(torch.tensor([0.2]))
        cameras = orbit(1, num_views, elevation_deg=0.0, distance=2.6, fovy_deg=50.0)
        rendered = look(scene, cameras, 20, config, training=True).samples.sdf.numel()
        scene.num_calls = 0
        look(scene, cameras, 20, config)
        counts.append(scene.num_calls - rendered)
    assert counts[0] > 0 and abs(counts[0] - counts[1]) < 600  # training adds a share of empty rays


def test_no_normals_unless_asked():
    config = RendererConfig(num_coarse=8, num_fine=0)
    scene = Balls(torch.tensor([0.5]))
    result = look(scene, views(1, 1), 10, config, training=True)
    assert result.normal is None and result.samples.gradient is None
    assert result.num_evaluations == result.samples.sdf.numel()
    asked = look(scene, views(1, 1), 10, config, training=True, want_normal=True)
    assert asked.normal.shape == (1, 1, 10, 10, 3)
    assert asked.num_evaluations == result.num_evaluations + 4 * asked.samples.gradient.shape[1]


def test_empty_rays_cost_nothing_and_change_little():
    cameras, scene = orbit(1, 2, elevation_deg=10.0, distance=2.6, fovy_deg=50.0), Balls(torch.tensor([0.25]))
    settings = {"num_coarse": 16, "num_fine": 16}
    thrifty = look(scene, cameras, 24, RendererConfig(**settings), training=True)
    full = look(scene, cameras, 24, RendererConfig(**settings, min_optical_depth=0.0), training=True)
    torch.testing.assert_close(thrifty.rgb, full.rgb, rtol=0, atol=2e-3)
    assert thrifty.samples.weights.shape[1] < 0.5 * full.samples.weights.shape[1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_vanished_object_can_come_back(scheme: str):
    """Its most promising rays are still rendered, so that the samples reach its centre."""
    radius = torch.tensor([-0.4], requires_grad=True)
    result = look(Balls(radius), views(1, 1), 16, SCHEMES[scheme], sharpness=80.0, training=True)
    assert result.opacity.max() < 1e-6
    distance = result.samples.sdf.detach().min() - 0.4  # from the centre, of the nearest sample
    assert distance < 0.3
    result.samples.sdf.min().backward()
    assert radius.grad.item() == -1.0


def test_rays_that_all_miss_show_the_background():
    cameras = views(2, 1)
    cameras.c2w[0, :, :3, 0] *= -1  # turn the first camera round
    cameras.c2w[0, :, :3, 2] *= -1
    background = torch.rand(2, 1, 3)
    for config in SCHEMES.values():
        for p in (slice(0, 1), slice(0, 2)):
            radius = torch.full((2,), 0.5)[p].requires_grad_()
            turned = pick(cameras, 0) if p.stop == 1 else cameras
            result = look(Balls(radius), turned, 8, config, background=background[p], training=True)
            assert torch.equal(result.rgb[0], background[0, :, None, None].expand(1, 8, 8, 3))
            assert torch.all(result.samples.gradient.norm(dim=-1) > 0.9)
            result.rgb.sum().backward()
            assert radius.grad[0] == 0 and radius.grad.isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("training", [True, False])
def test_a_field_that_is_not_finite_does_not_look_empty(scheme: str, training: bool):
    """Else a run with a broken generator would go on over a clean background."""

    class Broken(Balls):
        def sdf(self, points: torch.Tensor) -> torch.Tensor:
            return torch.where(points[..., 0] > 0.6, torch.nan, super().sdf(points))

    result = look(Broken(torch.tensor([0.2])), straight_ahead(), 16, SCHEMES[scheme], training=training)
    assert result.rgb.isnan().any()


def test_sharpness_may_be_a_tensor_with_a_gradient():
    sharpness = torch.tensor(20.0, requires_grad=True)
    scene, cameras = Balls(torch.tensor([0.5])), views(1, 1)
    result = look(scene, cameras, 8, SCHEMES["by lattice"], sharpness=sharpness, training=True)
    torch.testing.assert_close(
        result.rgb, look(scene, cameras, 8, SCHEMES["by lattice"], sharpness=20.0, training=True).rgb
    )
    result.opacity.sum().backward()
    assert sharpness.grad.isfinite() and sharpness.grad != 0


def test_misuse_is_refused():
    scene, cameras = Balls(torch.tensor([0.5])), views(1, 2)
    with pytest.raises(ValueError, match=r"background .*\[1, 2, 3\], got \[1, 3\]"):
        look(scene, cameras, 4, EXACT, background=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"num_samples\] = \[1, 32, 192\]"):
        look(scene, cameras, 4, EXACT, u=torch.rand(1, 32, 7))
    with pytest.raises(ValueError, match="sharpness"):
        look(scene, cameras, 4, EXACT, sharpness=0.0)
    with pytest.raises(ValueError, match="height"):
        look(scene, cameras, 0, EXACT)
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
def test_a_gpu_that_looks_at_all_rays_renders_the_same(num_prompts, num_views, monkeypatch):
    """Without the cut to the rays that hit the ball, for whose number the host would wait."""
    cameras = orbit(num_prompts, num_views, elevation_deg=20.0, distance=4.0, fovy_deg=60.0)
    config = RendererConfig(lattice=16, num_coarse=16, num_fine=8, shading=ShadingConfig(kind="lambert"))
    radii = 0.3 + 0.1 * torch.arange(num_prompts)
    u = torch.rand(num_prompts, num_views * 24 * 24, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for waits in (False, True):
        monkeypatch.setattr("amortized.rendering.renderer._counting_waits", lambda device, waits=waits: waits)
        radius = radii.clone().requires_grad_()
        image = render(
            Balls(radius=radius), cameras, 24, 24, config=config, sharpness=20.0, training=True, u=u,
            background=torch.full((num_prompts, num_views, 3), 0.5), want_normal=True,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad((image.rgb.square().sum() + image.depth.sum()), radius)
        found.append((image.rgb, image.opacity, image.depth, image.normal, gradient, image.num_evaluations))
    for one, other in zip(*found, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert 0.01 < found[0][1].mean() < 0.5
