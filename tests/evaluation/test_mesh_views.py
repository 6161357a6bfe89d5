"""Pictures of meshes against rays cast at every triangle, and colors of materials in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amortized.assets.read_glb import PaintedPart
from amortized.cameras import camera_rays, cameras_at
from amortized.evaluation import mesh_views
from amortized.evaluation.mesh_views import frame_of_parts, render_parts
from amortized.evaluation.protocols import PROTOCOLS
from amortized.types import Cameras

WHITE = np.ones(3)
SQUARE = np.array([[0.0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]])  # faces +x, the front
FACES = np.array([[0, 1, 2], [0, 2, 3]])


def front(fovy_deg: float = 90.0, distance: float = 1.0) -> Cameras:
    """A camera in front of the square, which fills its image at these values."""
    values = {"azimuth_deg": 0.0, "elevation_deg": 0.0, "distance": distance, "fovy_deg": fovy_deg}
    return cameras_at(**{name: torch.full((1, 1), value) for name, value in values.items()})


def linear(srgb):
    srgb = np.asarray(srgb, float)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def soup(seed: int, number: int, both_sides: bool) -> PaintedPart:
    """Random triangles near the origin, each of one color."""
    rng = np.random.default_rng(seed)
    vertices = (rng.normal(size=(number, 1, 3)) * 0.4 + rng.normal(size=(number, 3, 3)) * 0.3).reshape(-1, 3)
    colors = linear(rng.random((number, 3)).repeat(3, axis=0))
    faces = np.arange(3 * number).reshape(-1, 3)
    return PaintedPart(vertices=vertices, faces=faces, factor=WHITE, colors=colors, both_sides=both_sides)


def cast(parts: list[PaintedPart], cameras: Cameras, size: int, background: float) -> torch.Tensor:
    """Images by the intersection of the ray of each pixel with each triangle (Moeller and Trumbore)."""
    rays = camera_rays(cameras, size, size)
    origins, directions = rays.origins[0].double().numpy(), rays.directions[0].double().numpy()
    nearest = np.full(len(origins), np.inf)
    image = np.full((len(origins), 3), background)
    for part in parts:
        for face in part.faces:
            a, b, c = part.vertices[face]
            normal = np.cross(b - a, c - a)
            facing = -(directions @ normal)
            t = ((origins - a) @ normal) / facing
            points = origins + t[:, None] * directions
            inside = np.ones(len(t), bool)
            for start, end in ((a, b), (b, c), (c, a)):
                inside &= np.cross(end - start, points - start) @ normal >= 0
            hit = inside & (t > 0) & (t < nearest) & ((facing > 0) | part.both_sides)
            nearest[hit] = t[hit]
            light = part.factor * (part.colors[face[0]] if part.colors is not None else 1.0)
            image[hit] = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return torch.from_numpy(image).reshape(-1, size, size, 3)


@pytest.mark.parametrize("chunk", [2**22, 700])
@pytest.mark.parametrize("seed", range(3))
def test_pictures_equal_cast_rays(seed: int, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(mesh_views, "MAX_CANDIDATES", chunk)
    parts = [soup(seed, 20, False), soup(seed + 10, 10, True)]
    cameras = Cameras(
        **{name: value[:, 3:160:31] for name, value in vars(PROTOCOLS["t3bench-quality"].cameras()).items()}
    )
    found = render_parts(parts, cameras, 40, background=0.25)
    different = (found - cast(parts, cameras, 40, 0.25)).abs().amax(-1) > 1e-4
    assert found.shape == (6, 40, 40, 3) and (found != 0.25).any(-1).float().mean() > 0.2
    assert different.float().mean() < 1e-3  # pixels whose centers lie on an edge up to rounding


@pytest.mark.parametrize("height", [2, 3, 8])
def test_a_texture_is_shown_upright_and_in_its_colors(height: int) -> None:
    texture = np.random.default_rng(0).integers(0, 256, (height, 8, 3), dtype=np.uint8)
    uv = np.array([[0.0, 1], [1, 1], [1, 0], [0, 0]])  # v down, so that row 0 is at the top
    part = PaintedPart(vertices=SQUARE, faces=FACES, factor=WHITE, uv=uv, texture=texture)
    image = render_parts([part], front(), 24, background=0.0)
    picture = torch.from_numpy(texture).float().movedim(-1, 0)[None] / 255
    expected = torch.nn.functional.interpolate(picture, (24, 24), mode="bilinear")[0].movedim(0, -1)
    edge = 12 // height  # half a texel, in which the opposite side, as the texture repeats, mixes in
    inside = (slice(edge, 24 - edge), slice(2, 22))
    assert torch.allclose(image[0][inside], expected[inside], atol=1e-4) and (image > 0).any()


def test_color_is_the_product_of_factor_vertex_color_and_texture_in_linear_light() -> None:
    factor, colors = np.array([0.5, 1.0, 0.2]), np.tile([0.8, 0.3, 1.0], (4, 1))
    texture = np.full((2, 2, 3), (200, 100, 255), np.uint8)
    part = PaintedPart(
        vertices=SQUARE, faces=FACES, factor=factor, colors=colors, uv=np.zeros((4, 2)), texture=texture
    )
    image = render_parts([part], front(), 4, background=0.0)[0]
    light = linear(image.reshape(-1, 3).numpy())
    expected = factor * [0.8, 0.3, 1.0] * linear(np.array([200, 100, 255]) / 255)
    assert np.allclose(light, expected, atol=1e-5)


def test_vertex_colors_are_interpolated_in_perspective() -> None:
    """On a tilted square, the middle of the picture is not the middle of the square."""
    vertices = SQUARE + [[-1.5, 0, 0], [-1.5, 0, 0], [0, 0, 0], [0, 0, 0]]  # its lower edge is far away
    colors = np.repeat([[0.0], [0], [1], [1]], 3, axis=1)
    part = PaintedPart(vertices=vertices, faces=FACES, factor=WHITE, colors=colors, both_sides=True)
    cameras = front(distance=2.0, fovy_deg=60.0)
    image = render_parts([part], cameras, 41, background=0.0)[0]
    rays = camera_rays(cameras, 41, 41)
    origin, direction = rays.origins[0].reshape(41, 41, 3)[20, 20], rays.directions[0].reshape(41, 41, 3)
    normal = torch.tensor([2.0, 0, -1.5])  # of the plane through (-1.5, y, -1) and (0, y, 1)
    t = -((origin - torch.tensor([0.0, 0, 1])) @ normal) / (direction @ normal)
    height = (origin + t[..., None] * direction)[..., 2]
    shown = height.abs() < 1
    shown &= (origin + t[..., None] * direction)[..., 1].abs() < 1
    light = torch.from_numpy(linear(image.numpy()))[..., 0]
    assert torch.allclose(light[shown].float(), ((height + 1) / 2)[shown], atol=1e-3) and shown.sum() > 300


def test_the_back_of_a_part_shows_only_if_both_sides_do() -> None:
    for both_sides, mean in ((False, 0.0), (True, 1.0)):
        part = PaintedPart(vertices=SQUARE, faces=FACES[:, ::-1], factor=WHITE, both_sides=both_sides)
        assert float(render_parts([part], front(), 8, background=0.0).mean()) == mean


def test_the_frame_is_the_mean_of_the_vertices_of_all_parts() -> None:
    parts = [soup(1, 5, False), soup(2, 9, True)]
    vertices = np.concatenate([part.vertices for part in parts])
    center, half = frame_of_parts(parts)
    assert np.allclose(center, vertices.mean(0), atol=1e-6)
    assert half == pytest.approx(np.abs(vertices - vertices.mean(0)).max())
