"""The ground-truth renderer against a slow ray marcher and closed forms."""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from amortized.cameras import cameras_at
from amortized.types import Cameras
from corpora.shapes.grammar import describe
from corpora.shapes.render import Light, render_truth
from corpora.shapes.scene import ShapesTruth, truth_of

SIZE, DISTANCE, FOVY_DEG = 24, 2.6, 38.0
GRAY = torch.tensor([0.4, 0.5, 0.6])
SCENES = {  # sentence: (azimuth, elevation) in degrees
    "a red cube": (35.0, 25.0),
    "a green cone with a white dot on the front": (-20.0, 10.0),
    "a yellow torus": (70.0, 50.0),
    "a small blue sphere next to a large orange pyramid": (10.0, 20.0),
}


@dataclass(frozen=True)
class Ball:
    """A white ball at the origin."""

    radius: float
    kind: str = "ball"
    front_mark: None = None

    def sdf(self, points: Tensor) -> Tensor:
        return points.norm(dim=-1) - self.radius

    def color(self, points: Tensor) -> Tensor:
        return torch.ones_like(points)


def truth_for(text: str) -> ShapesTruth:
    description = describe(text)
    assert description is not None
    return truth_of(description)


def cameras(*directions_deg: tuple[float, float]) -> Cameras:
    azimuth, elevation = torch.tensor(directions_deg).T[:, None]
    return cameras_at(
        azimuth_deg=azimuth,
        elevation_deg=elevation,
        distance=torch.full_like(azimuth, DISTANCE),
        fovy_deg=torch.full_like(azimuth, FOVY_DEG),
    )


def rendered(text: str, **settings) -> Tensor:
    return render_truth(truth_for(text), cameras(SCENES[text]), SIZE, background=GRAY[None], **settings)[0]


@cache
def marched(text: str, step: float = 0.01, grid: int = 8) -> Tensor:
    """The same image by small steps and bisection in float64, 8 x 8 rays per pixel, no distances used."""
    truth, (azimuth, elevation) = truth_for(text), map(math.radians, SCENES[text])
    outward = torch.tensor(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    ).double()
    right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]).double(), outward)
    right = right / right.norm()
    up = torch.linalg.cross(outward, right)
    fine = SIZE * grid
    across = ((torch.arange(fine).double() + 0.5) / fine * 2 - 1) * math.tan(math.radians(FOVY_DEG / 2))
    rays = (across[:, None, None] * -up + across[None, :, None] * right - outward).view(-1, 3)
    rays = rays / rays.norm(dim=-1, keepdim=True)

    def inside(which: Tensor, t: Tensor) -> Tensor:
        return truth.sdf(DISTANCE * outward + t[:, None] * rays[which]) < 0

    near, which = torch.full((len(rays),), torch.inf).double(), torch.arange(len(rays))
    for i in range(int(2 / step)):
        t = torch.full((len(which),), DISTANCE - 1 + i * step).double()
        hit = inside(which, t)
        near[which[hit]] = t[hit]
        which = which[~hit]
    hits = torch.nonzero(near.isfinite()).squeeze(-1)
    low, high = near[hits] - step, near[hits]
    for _ in range(30):
        middle = (low + high) / 2
        is_inside = inside(hits, middle)
        low, high = torch.where(is_inside, low, middle), torch.where(is_inside, middle, high)

    points = (DISTANCE * outward + high[:, None] * rays[hits]).requires_grad_()
    (gradient,) = torch.autograd.grad(truth.sdf(points).sum(), points)
    to_light = torch.tensor([0.45, -0.15, 0.88]).double()
    cosine = (gradient / gradient.norm(dim=-1, keepdim=True)) @ (to_light / to_light.norm())
    image = GRAY.double().repeat(len(rays), 1)
    image[hits] = truth.color(points.detach()) * (0.2 + 0.8 * (0.5 + 0.5 * cosine))[:, None]
    return image.view(SIZE, grid, SIZE, grid, 3).mean((1, 3)).float()


@pytest.mark.parametrize("text", SCENES)
def test_equals_the_slow_marcher(text: str):
    error = (rendered(text) - marched(text)).abs()
    assert error.mean() < 0.012
    # One ray samples one color of its pixel, so errors are large only where colors or faces meet.
    assert (error.amax(-1) > 0.1).float().mean() < 0.06


@pytest.mark.parametrize("text", SCENES)
def test_supersampling_converges_to_the_slow_marcher(text: str):
    images = [rendered(text, supersample=n) for n in (1, 2, 6)]
    coarse, fine, finest = ((image - marched(text)).abs().mean().item() for image in images)
    assert coarse > 1.5 * fine and fine > 1.8 * finest and finest < 0.0025


def coverage(radius: float, size: int, tolerance: float = 1e-5) -> Tensor:
    """The fraction [size, size] of each pixel that a ball of that radius covers."""
    images = render_truth(
        Ball(radius),
        cameras((30.0, 40.0)),
        size,
        light=Light(ambient=1.0, diffuse=0.0),
        background=torch.zeros(1, 3),
        tolerance=tolerance,
    )
    return images[0, :, :, 0]


def disc_px(radius: float, size: int) -> float:
    """Radius in pixels of the image of a ball, whose angular radius is asin(r / d)."""
    return math.tan(math.asin(radius / DISTANCE)) / math.tan(math.radians(FOVY_DEG / 2)) * size / 2


@pytest.mark.parametrize("size", [24, 40, 64])
@pytest.mark.parametrize("radius", [0.3, 0.56, 0.8])
def test_a_ball_covers_the_area_of_its_disc(radius: float, size: int):
    disc = disc_px(radius, size)
    pixels = coverage(radius, size)
    # A rim that fades out over one pixel adds 1 / 12 to the squared radius.
    assert pixels.sum().item() == pytest.approx(math.pi * (disc**2 + 1 / 12), rel=0.01)
    row, column = torch.meshgrid(*[torch.arange(size) + 0.5 - size / 2] * 2, indexing="ij")
    distance = torch.hypot(row, column)
    expected = (0.5 + disc - distance).clamp(0, 1)
    torch.testing.assert_close(pixels, expected, atol=0.06, rtol=0)
    assert (pixels[distance < disc - 0.7] > 0.999).all() and (pixels[distance > disc + 0.7] == 0).all()


def test_background_shows_through_by_the_tolerance():
    """At most tolerance / pixel width in every covered pixel, which is why the default is so small."""
    pixels = coverage(0.56, 64, 1e-3)
    loss = 1 - pixels[pixels > 0.9]
    nearest_px = 2 * math.tan(math.radians(FOVY_DEG / 2)) / 64 * (DISTANCE - 0.56)
    assert 0.01 < loss.mean() < 0.03 and 0.03 < loss.max() < 1e-3 / nearest_px


def test_background_is_exact_outside_the_object():
    background = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    views = cameras((0.0, 0.0), (120.0, 30.0), (0.0, 85.0))
    images = render_truth(truth_for("a small red sphere"), views, SIZE, background=background)
    border = torch.ones(SIZE, SIZE, dtype=torch.bool)
    border[4:-4, 4:-4] = False
    for image, color in zip(images, background, strict=True):
        assert torch.equal(image[border], color.expand(int(border.sum()), 3))
        assert not torch.equal(image[SIZE // 2, SIZE // 2], color)


@pytest.mark.parametrize("supersample", [1, 2])
def test_a_batch_of_views_equals_one_by_one(supersample: int):
    truth = truth_for("a purple capsule in front of a cyan octahedron")
    directions = [(0.0, 0.0), (90.0, -40.0), (-150.0, 20.0), (10.0, 85.0)]
    background = torch.linspace(0, 1, 12).view(4, 3)
    batch = render_truth(truth, cameras(*directions), SIZE, background=background, supersample=supersample)
    assert batch.shape == (4, SIZE, SIZE, 3)
    for image, direction, color in zip(batch, directions, background, strict=True):
        (alone,) = render_truth(
            truth, cameras(direction), SIZE, background=color[None], supersample=supersample
        )
        torch.testing.assert_close(image, alone, atol=1e-5, rtol=0)


def test_different_fields_of_view_in_one_batch():
    """Pixel width depends on the view: half the tangent of the field of view doubles the width of a ball."""
    near = cameras((0.0, 0.0), (0.0, 0.0))
    half = math.tan(math.radians(FOVY_DEG / 2))
    mixed = Cameras(
        c2w=near.c2w,
        fovy_deg=torch.tensor([[FOVY_DEG, 2 * math.degrees(math.atan(half / 2))]]),
        azimuth_deg=near.azimuth_deg,
        elevation_deg=near.elevation_deg,
        distance=near.distance,
    )
    images = render_truth(
        Ball(0.4),
        mixed,
        SIZE,
        light=Light(ambient=1.0, diffuse=0.0),
        background=torch.zeros(2, 3),
    )
    assert images[1].sum().item() == pytest.approx(4 * images[0].sum().item(), rel=0.02)


def test_shade_of_the_six_directions():
    """Half-Lambert in closed form; all six differ, and none is negative or above 1."""
    normals = torch.cat([torch.eye(3), -torch.eye(3)])
    light = Light()
    x, y, z = (component / math.dist((0, 0, 0), light.direction) for component in light.direction)
    shades = light.shade(normals)
    expected = [0.2 + 0.4 * (1 + cosine) for cosine in (x, y, z, -x, -y, -z)]
    assert shades.tolist() == pytest.approx(expected, abs=1e-6)
    assert min(abs(a - b) for i, a in enumerate(expected) for b in expected[:i]) > 0.05
    assert 0 <= min(expected) and max(expected) <= 1
