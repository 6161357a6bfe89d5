"""Pictures of a ball: every row against its closed form, strips against videos."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from amortized.cameras import camera_rays
from amortized.conditioning import TextBank
from amortized.generation import SceneConfig, TextTo3D, pictures
from amortized.generation.pictures import Look, object_pictures, pictures_between
from amortized.media import CAPTION_HEIGHT
from amortized.rendering import RendererConfig
from amortized.types import TextCondition
from generators.environment import SHEnvironmentConfig, WithEnvironment
from generators.field import FeatureField, PerPrompt
from tests.training.toy import ColorEncoder

RADIUS, DISTANCE = 0.5, 2.5
ALL = ("rgb", "normal", "depth", "opacity")
SIZE = 9  # odd: a pixel in the center


class ColoredBalls(torch.nn.Module):
    """A ball whose color is the first three numbers of the text's embedding."""

    def forward(self, text: TextCondition, z: torch.Tensor | None = None) -> FeatureField:
        colors = torch.logit(0.05 + 0.9 * text.pooled[:, None, :3])
        return FeatureField(
            features=lambda points: points,
            head_sdf=lambda features: torch.zeros_like(features[..., :1]),
            head_rgb=PerPrompt(lambda features, rows: rows.expand_as(features), [colors]),
            num_prompts=len(text.pooled),
            sphere_radius=RADIUS,
            bounding_radius=1.0,
        )


@pytest.fixture
def model() -> TextTo3D:
    config = SceneConfig(renderer=RendererConfig(num_coarse=48, num_fine=48), sharpness=400.0)
    return TextTo3D(ColoredBalls(), TextBank(ColorEncoder()), config)


def look(**changes) -> Look:
    return replace(Look(distance=DISTANCE, fovy_deg=40.0, size=SIZE, show=ALL), **changes)


@pytest.mark.parametrize("camera", ["turntable", "orbit", "fixed"])
@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (20.0, 35.0), (-100.0, -60.0)])
def test_the_rows_show_normals_depth_and_opacity(model, camera, azimuth, elevation):
    chosen = look(camera=camera, azimuth_deg=azimuth, elevation_deg=elevation)
    made = object_pictures(model, "red", 0, chosen, num_views=3, num_frames=5)
    near, far = made.depth_range
    assert near + far == pytest.approx(2 * DISTANCE)
    assert DISTANCE - RADIUS - 0.08 < near <= DISTANCE - RADIUS
    cameras = chosen.cameras(5)
    frames = list(made.video())
    assert len(frames) == 5 and all(frame.shape == (4 * SIZE, SIZE, 3) for frame in frames)
    for view, frame in enumerate(frames):
        rgb, normal, depth, opacity = frame.unflatten(0, (4, SIZE))[:, SIZE // 2, SIZE // 2]
        a, e = (math.radians(x[0, view].item()) for x in (cameras.azimuth_deg, cameras.elevation_deg))
        facing = (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))  # world axes
        assert [2 * x - 1 for x in normal.tolist()] == pytest.approx(facing, abs=0.03)
        assert opacity.tolist() == pytest.approx([1, 1, 1], abs=0.01)
        # The middle of the stated range is the distance of the center.
        distance = [far - x * (far - near) for x in depth.tolist()]
        assert distance == pytest.approx([DISTANCE - RADIUS] * 3, abs=0.02)
        assert rgb[0] > rgb[1] + 0.5
        corner = frame.unflatten(0, (4, SIZE))[:, 0, 0]
        assert corner.tolist() == [[0.5] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("at_once", [1, 3 * SIZE**2, 10**6])
def test_a_strip_is_its_frames_however_many_are_rendered_together(model, monkeypatch, at_once):
    monkeypatch.setattr(pictures, "PIXELS_PER_RENDER", at_once)
    made = object_pictures(model, "blue", 0, look(camera="orbit"), num_views=5, num_frames=5)
    frames = list(made.video())
    assert torch.equal(made.strip(), torch.cat(frames, dim=1))
    monkeypatch.undo()
    for one, other in zip(frames, made.video(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("background", [0.0, 0.25, 1.0, (1.0, 0.5, 0.0)])
def test_the_background_is_behind_the_first_row(model, background):
    made = object_pictures(model, "red", 0, look(background=background), num_views=1, num_frames=1)
    expected = torch.zeros(3) + torch.tensor(background)
    torch.testing.assert_close(made.strip()[0, 0], expected)


def test_the_environment_is_a_background_if_the_generator_has_one(model):
    assert not model.has_environment
    sky = SHEnvironmentConfig().build(3)
    with torch.no_grad():
        sky.head[-1].weight += 0.5 * torch.randn_like(sky.head[-1].weight)
    outside = TextTo3D(WithEnvironment(ColoredBalls(), sky), model.texts, model.config)
    assert outside.has_environment
    plain, shown = (
        object_pictures(outside, "red", 0, look(background=behind), num_views=1, num_frames=1).strip()
        for behind in (0.5, None)
    )
    rgb = slice(0, SIZE)
    assert (plain[0] == 0.5).all() and (shown[0] != 0.5).any()
    torch.testing.assert_close(plain[SIZE:], shown[SIZE:])  # the other rows are the object's
    rays = camera_rays(look().cameras(1), SIZE, SIZE)
    expected = sky(outside.texts.generator_text(["red"]))(rays.directions).detach()
    torch.testing.assert_close(shown[rgb][0], expected.view(SIZE, SIZE, 3)[0])


@pytest.mark.parametrize("method", ["lerp", "slerp"])
@pytest.mark.parametrize("loop", [False, True])
def test_a_video_between_two_prompts_starts_and_ends_with_theirs(model, method, loop):
    chosen = look(camera="fixed", show=("rgb", "depth"))
    ends = [object_pictures(model, text, 0, chosen, num_views=1, num_frames=1) for text in ("red", "blue")]
    made = pictures_between(
        model, ("red", "blue"), 0, chosen, method=method, loop=loop, num_views=4, num_frames=6
    )
    frames = list(made.video())
    assert len(frames) == (10 if loop else 6)
    for number, end in ((0, 0), (5, 1)):
        torch.testing.assert_close(frames[number], ends[end].strip(), rtol=0, atol=1e-5)
    if loop:  # the way back shows the same frames, and the next one would be the first
        for there, back in zip(frames[1:5], frames[:5:-1], strict=True):
            assert torch.equal(there, back)
    redness = torch.stack([frame[SIZE // 2, SIZE // 2, 0] for frame in frames[:6]])
    assert (redness.diff() < 0).all()


def test_the_grid_between_two_prompts_has_a_caption_above_every_step(model):
    chosen = look(size=40, show=("rgb", "opacity"), camera="turntable")
    made = pictures_between(
        model, ("red", "blue"), 0, chosen, method="lerp", loop=False, num_views=3, num_frames=2
    )
    grid = made.strip()
    assert grid.shape == (CAPTION_HEIGHT + 2 * 40, 3 * 40, 3)
    captions = grid[:CAPTION_HEIGHT].unflatten(1, (3, 40))
    assert (captions.amin(dim=(0, 2, 3)) < 0.5).all() and captions[0, :, 0].min() == 1.0
    columns = grid[CAPTION_HEIGHT:].unflatten(1, (3, 40))
    red = object_pictures(model, "red", 0, chosen, num_views=1, num_frames=1).strip()
    torch.testing.assert_close(columns[:, 0], red, rtol=0, atol=1e-5)


def test_frames_are_rendered_when_they_are_read(model, monkeypatch):
    """So that memory does not grow with their number."""
    monkeypatch.setattr(pictures, "PIXELS_PER_RENDER", 2 * SIZE**2)
    rendered, images = [], model.images
    monkeypatch.setattr(model, "images", lambda *a, **b: rendered.append(1) or images(*a, **b))
    frames = iter(object_pictures(model, "red", 0, look(), num_views=1, num_frames=10**5).video())
    for number in range(1, 6):
        next(frames)
        assert len(rendered) == (number + 1) // 2
