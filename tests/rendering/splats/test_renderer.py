"""Splat images: a batch equals its items, all equals a dense twin, and nothing is lost without a trace."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from amortized.rendering import RendererConfig, render, splat_engine_on
from amortized.rendering.splats import renderer
from amortized.rendering.splats.engines import why_no_gsplat
from amortized.rendering.splats.pairs import boxes_of
from amortized.rendering.splats.projection import project
from amortized.types import Cameras, ScreenStatistics
from tests.rendering import scenes
from tests.rendering.splats import made


@pytest.mark.parametrize("num_views", [1, 4])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_a_batch_equals_its_items_one_by_one(num_prompts: int, num_views: int):
    scene, cameras = made.shell(num_prompts, 120), made.cameras_for(num_prompts, num_views)
    scene = made.needing_grad(scene)
    together = made.stacked(made.images(scene, cameras, (20, 24), want_normal=True))
    seed = torch.randn_like(together)
    grads = torch.autograd.grad(together, made.tensors_of(scene), seed)
    for p in range(num_prompts):
        one = made.needing_grad(scene.select(p))
        alone = [
            made.stacked(
                made.images(
                    one, scenes.select_prompt(cameras, p, slice(v, v + 1)), (20, 24), want_normal=True
                )
            )
            for v in range(num_views)
        ]
        alone = torch.cat(alone, dim=1)
        torch.testing.assert_close(alone[0], together[p], rtol=0, atol=1e-10)
        for a, b in zip(
            torch.autograd.grad(alone, made.tensors_of(one), seed[p : p + 1]), grads, strict=True
        ):
            torch.testing.assert_close(a[0], b[p], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("num_splats", [3, 60])
def test_without_cut_offs_the_pairs_equal_the_dense_twin(num_splats: int, antialias: bool):
    scene, cameras = made.shell(2, num_splats), made.cameras_for(2, 2)
    image = made.stacked(made.images(scene, cameras, 14, antialias=antialias, exact=True))
    twin = made.dense(scene, cameras, 14, antialias=antialias)
    torch.testing.assert_close(image, twin, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_splats", [30, 300])
def test_cut_offs_change_little(num_splats: int):
    """What they drop covers less than 1/255 of a pixel each, and all that is behind T = 1e-4."""
    scene, cameras = made.shell(1, num_splats), made.cameras_for(1, 2)
    with_cuts, exact = (made.images(scene, cameras, 24, exact=exact) for exact in (False, True))
    change = (with_cuts.rgb - exact.rgb).abs()
    assert 0 < change.max() < 0.06 and change.mean() < 0.004
    assert with_cuts.num_evaluations < exact.num_evaluations == 2 * num_splats * 24 * 24


def test_the_order_of_splats_does_not_matter():
    scene, cameras = made.shell(2, 200), made.cameras_for(2, 2)
    image = made.stacked(made.images(scene, cameras, 24, want_normal=True))
    order = torch.randperm(200)
    shuffled = made.with_tensors(scene, *(tensor[:, order] for tensor in made.tensors_of(scene)))
    torch.testing.assert_close(made.stacked(made.images(shuffled, cameras, 24, want_normal=True)), image)


def test_the_nearer_splat_hides_the_other():
    scene = made.shell(1, 2)
    colors = torch.tensor([[[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]]).double()
    for near, shown in ((0.3, 0), (-0.3, 2)):
        means = torch.tensor([[[near, 0.0, 0.0], [0.0, 0.0, 0.0]]]).double()
        flat = replace(
            scene, means=means, colors=colors, logits=torch.full((1, 2), 9.0).double(),
            log_scales=torch.full((1, 2, 3), -1.5).double(),
        )  # fmt: skip
        rgb = made.images(flat, scenes.front_camera(), 9, antialias=False).rgb[0, 0, 4, 4]
        assert rgb.argmax() == shown and rgb[shown] > 0.75 and rgb[2 - shown] < 0.26


@pytest.mark.parametrize("max_pairs", [1, 700, 5000])
def test_images_do_not_depend_on_how_they_are_split(max_pairs: int):
    scene, cameras = made.needing_grad(made.shell(2, 100)), made.cameras_for(2, 3)
    whole = made.images(scene, cameras, (16, 20), max_pairs=10**9)
    parts = made.images(scene, cameras, (16, 20), max_pairs=max_pairs)
    torch.testing.assert_close(made.stacked(parts), made.stacked(whole), rtol=0, atol=1e-10)
    assert parts.num_evaluations == whole.num_evaluations
    seed = torch.randn_like(whole.rgb)
    for a, b in zip(
        torch.autograd.grad(parts.rgb, made.tensors_of(scene), seed),
        torch.autograd.grad(whole.rgb, made.tensors_of(scene), seed),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_padding_is_invisible_and_has_no_gradient():
    scene, cameras = made.shell(1, 50), made.cameras_for(1, 2)
    padded = [
        torch.cat([tensor, torch.full_like(tensor[:, :7], 0.1)], 1) for tensor in made.tensors_of(scene)
    ]
    padded[3][:, 50:] = -torch.inf
    with_padding = made.needing_grad(made.with_tensors(scene, *padded))
    image = made.images(with_padding, cameras, 20)
    assert torch.equal(image.rgb, made.images(scene, cameras, 20).rgb)
    image.rgb.square().sum().backward()
    for tensor in made.tensors_of(with_padding):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and not tensor.grad[:, 50:].any()


BROKEN = [(index, value) for index in range(5) for value in (torch.nan, torch.inf)]
BROKEN.remove((3, torch.inf))  # a logit of inf is an opaque splat


@pytest.mark.parametrize(("index", "value"), BROKEN)
def test_a_broken_parameter_breaks_the_images_of_its_prompt_only(index: int, value: float):
    scene, cameras = made.shell(2, 40), made.cameras_for(2, 2)
    broken = [tensor.clone() for tensor in made.tensors_of(scene)]
    broken[index][1, 3] = value
    image = made.images(made.with_tensors(scene, *broken), cameras, 12)
    assert torch.equal(image.rgb[0], made.images(scene, cameras, 12).rgb[0])
    for part in (image.rgb, image.opacity, image.depth):
        assert part[0].isfinite().all() and part[1].isnan().all()


def test_opacity_and_depth_are_those_of_a_wall():
    """An opaque wall at x = 0: the distance along the ray is that of the plane."""
    spots = torch.cartesian_prod(*[torch.linspace(-0.9, 0.9, 25).double()] * 2)[None]
    means = torch.cat([torch.zeros_like(spots[..., :1]), spots], dim=-1)
    scene = replace(
        made.shell(1, 625),
        means=means,
        quaternions=torch.tensor([1.0, 0, 0, 0]).double().expand(1, 625, 4),
        log_scales=torch.tensor([0.002, 0.06, 0.06]).double().log().expand(1, 625, 3),
        logits=torch.full((1, 625), 6.0).double(),
    )
    size, camera = 33, scenes.front_camera(2.0)
    image = made.images(scene, camera, size, want_normal=True)
    offset = (torch.arange(size) + 0.5 - size / 2) / (size / 2) * torch.tan(torch.deg2rad(torch.tensor(20.0)))
    expected = 2 * (1 + offset[:, None] ** 2 + offset**2).sqrt().double()
    inside = slice(3, -3)
    torch.testing.assert_close(
        (image.depth / image.opacity)[0, 0, inside, inside], expected[inside, inside], rtol=2e-3, atol=0
    )
    assert image.opacity[0, 0, inside, inside].min() > 0.99
    assert image.normal is not None
    facing = torch.tensor([1.0, 0.0, 0.0]).double().expand(*image.normal[0, 0, inside, inside].shape)
    torch.testing.assert_close(image.normal[0, 0, inside, inside], facing, rtol=0, atol=1e-3)


def test_colors_in_range_give_images_in_range():
    scene, cameras = made.shell(1, 200), made.cameras_for(1, 3)
    bright = replace(scene, colors=torch.full_like(scene.colors, 0.5 / 0.28209479177387814))
    assert made.images(bright, cameras, 16).rgb.amax() <= 1 + 1e-9
    brighter = replace(scene, colors=torch.full_like(scene.colors, 4.0))
    assert made.images(brighter, cameras, 16).rgb.amax() > 1.2


def test_antialiasing_preserves_the_mass_of_small_splats():
    """Splats far below a pixel, at two resolutions: the mean opacity stays the same."""

    def mean_opacity(size: int, antialias: bool) -> Tensor:
        scene = made.shell(1, 400)
        tiny = replace(scene, log_scales=torch.full_like(scene.log_scales, -4.6))  # 0.01: 0.3 px at 64 px
        return made.images(tiny, made.cameras_for(1, 4), size, antialias=antialias).opacity.mean()

    fine = mean_opacity(256, True)
    assert abs(mean_opacity(64, True) / fine - 1) < 0.1
    assert mean_opacity(64, False) / fine > 2


def test_render_dispatches_scenes_of_splats():
    scene, cameras = made.shell(2, 60), made.cameras_for(2, 2)
    background = torch.full((2, 2, 3), 0.25).double()
    settings = {"config": RendererConfig(), "sharpness": 10.0, "background": background}
    image = render(scene, cameras, 12, 12, training=True, want_normal=True, u=torch.zeros(1), **settings)
    assert image.samples is None and image.num_evaluations > 0
    expected = made.stacked(made.images(scene, cameras, 12, want_normal=True))
    assert torch.equal(made.stacked(image), expected)
    graph = render(made.needing_grad(scene), cameras, 12, 12, training=False, **settings)
    assert not graph.rgb.requires_grad and torch.equal(graph.rgb, image.rgb)
    for wrong, message in (
        ((scene.select(0), cameras, 12, 12), "the scene has 1 prompts, but the cameras 2"),
        ((scene, cameras, 0, 12), "must each be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            render(*wrong, training=False, **settings)
    with pytest.raises(ValueError, match="background must be one color per image"):
        render(scene, cameras, 12, 12, training=False, **{**settings, "background": background[:, :1]})


def test_a_learned_background_shows_behind_the_splats():
    scene, cameras = made.shell(2, 60), made.cameras_for(2, 2)
    tint = torch.rand(2, 1, 3).double()
    scene = replace(scene, background=lambda directions: (0.5 + 0.5 * directions) * tint)
    shown = torch.tensor([[True, False], [False, True]])
    image = made.images(scene, cameras, 12, show_environment=shown)
    plain = made.images(scene, cameras, 12)
    for p, v in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
        assert torch.equal(image.rgb[p, v], plain.rgb[p, v]) != shown[p, v]
    for p in range(2):
        one = scenes.select_prompt(cameras, p)
        alone = made.images(scene.select(p), one, 12, show_environment=shown[p : p + 1])
        torch.testing.assert_close(alone.rgb[0], image.rgb[p], rtol=0, atol=1e-10)


def test_screen_statistics_are_those_of_each_image():
    num_splats = 50
    scene, cameras = made.needing_grad(made.shell(1, num_splats)), made.cameras_for(1, 3)
    height, width = 16, 20

    def measured(views: slice) -> ScreenStatistics:
        zeros = [torch.zeros(1, num_splats).double() for _ in range(3)]
        statistics = ScreenStatistics(gradient=zeros[0], visits=zeros[1], radius=zeros[2])
        image = made.images(
            replace(scene, statistics=statistics), scenes.select_prompt(cameras, 0, views), (height, width)
        )
        image.rgb.square().sum().backward()
        return statistics

    together, alone = measured(slice(None)), [measured(slice(v, v + 1)) for v in range(3)]
    torch.testing.assert_close(together.gradient, sum(one.gradient for one in alone))
    torch.testing.assert_close(together.visits, sum(one.visits for one in alone))
    torch.testing.assert_close(together.radius, torch.stack([one.radius for one in alone]).amax(0))
    assert together.gradient.min() > 0 and 0 < together.visits.min() <= together.visits.max() == 3
    assert 0.05 < together.radius.mean() < 0.6


def test_the_engine_is_torch_unless_gsplat_can_run():
    cpu = torch.device("cpu")
    assert splat_engine_on(cpu) == splat_engine_on(cpu, "torch") == "torch"
    with pytest.raises(ValueError, match="gsplat cannot run: it needs float32 on a CUDA device"):
        splat_engine_on(cpu, "gsplat")
    assert splat_engine_on(torch.device("cuda"), "auto", torch.float64) == "torch"
    if why_no_gsplat():
        assert splat_engine_on(torch.device("cuda")) == "torch"
        with pytest.raises(ValueError, match="gsplat cannot run: gsplat (is not installed|cannot|has no)"):
            splat_engine_on(torch.device("cuda"), "gsplat")


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("num_prompts", "num_views"), [(1, 1), (2, 3)])
def test_gsplat_is_called_by_its_conventions(
    num_prompts: int, num_views: int, antialias: bool, monkeypatch: pytest.MonkeyPatch
):
    """A stand-in with gsplat's signature and conventions, whose images must equal PyTorch's."""

    def rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height, *, near_plane, eps2d, packed,
        rasterize_mode,
    ):  # fmt: skip
        assert (near_plane, eps2d, packed) == (0.01, 0.3, False)
        assert colors.shape == (*viewmats.shape[:2], *means.shape[1:2], 7) and quats.norm(dim=-1).allclose(
            torch.ones_like(opacities)
        )
        assert torch.equal(Ks[..., 0, 2], torch.full_like(Ks[..., 0, 2], width / 2))
        fovy = 2 * torch.rad2deg(torch.atan(height / 2 / Ks[..., 1, 1]))
        c2w = torch.linalg.inv(viewmats) @ torch.diag(viewmats.new_tensor([1.0, -1, -1, 1]))
        zero = torch.zeros_like(fovy)
        cameras = Cameras(c2w=c2w, fovy_deg=fovy, azimuth_deg=zero, elevation_deg=zero, distance=zero)
        scene = made.with_tensors(scenes_here, means, quats, scales.log(), opacities.logit(), means)
        projection = project(scene, cameras, height, width, antialias=rasterize_mode == "antialiased")
        sums, opacity, _ = renderer._composite_all(
            projection,
            boxes_of(projection, height, width),
            colors,
            height,
            width,
            exact=False,
            max_pairs=10**9,
        )
        return sums, opacity[..., None], {"means2d": projection.means}

    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=rasterization))
    scenes_here, cameras = made.shell(num_prompts, 80), made.cameras_for(num_prompts, num_views)
    results = []
    for engine in ("torch", "gsplat"):
        monkeypatch.setattr(renderer, "splat_engine_on", lambda *_, engine=engine: engine)
        zeros = [torch.zeros(num_prompts, 80).double() for _ in range(3)]
        statistics = ScreenStatistics(gradient=zeros[0], visits=zeros[1], radius=zeros[2])
        scene = made.needing_grad(replace(scenes_here, statistics=statistics))
        image = made.stacked(made.images(scene, cameras, (16, 20), antialias=antialias, want_normal=True))
        image[..., :3].square().sum().backward()
        grads = [tensor.grad for tensor in made.tensors_of(scene)]
        results.append([image.detach(), *grads, *vars(statistics).values()])
    for ours, theirs in zip(*results, strict=True):
        # The inverse of a camera that was made in float32 is not quite its transpose.
        assert (theirs - ours).norm() <= 1e-5 * ours.norm()
