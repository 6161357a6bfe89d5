"""Textures: colors stay on their sides, no texel is empty, atlases need not be square."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from amortized.assets import texture
from amortized.assets.clean import simplify
from amortized.assets.config import AssetConfig
from amortized.assets.extraction import extract
from amortized.assets.field import Field
from amortized.assets.mesh import Mesh
from amortized.assets.pipeline import look_up, sample
from amortized.assets.texture import bake, unwrap
from tests.assets.shapes import CPU, HALF, Shape, box, field, side_colors, sphere, torus


def mesh_of(function, faces: int = 1500, resolution: int = 64, **changes: object) -> tuple[Field, Mesh]:
    one = field(function, **changes)
    vertices, corners = simplify(*extract(one, resolution), faces, flat=1e-3)
    return one, Mesh(vertices=vertices, faces=corners, normals=one.normals(vertices, 0.01))


def test_six_colors_stay_on_their_sides():
    one, mesh = mesh_of(box)
    textured, covered = bake(one, mesh, 256, max_step=0.01)
    assert 0.3 < covered < 1
    points, faces, weights = sample(textured.mesh, 5000)
    uv = np.einsum("nk,nki->ni", weights, textured.uv[textured.mesh.faces[faces]])
    found = look_up(textured.texture, uv)
    expected = side_colors(torch.from_numpy(points)).numpy()
    inner = np.sort(np.abs(points), axis=1)[:, 1] < HALF - 0.04  # away from the edges, where sides blend
    assert inner.mean() > 0.7
    assert np.abs(found - expected)[inner].max() < 2 / 255


def test_smooth_colors_are_within_a_step_of_8_bits():
    one, mesh = mesh_of(torus, faces=3000, colors=lambda p: (0.5 + 0.5 * torch.sin(3 * p)).clamp(0, 1))
    textured, _ = bake(one, mesh, 512, max_step=0.01)
    points, faces, weights = sample(textured.mesh, 5000)
    uv = np.einsum("nk,nki->ni", weights, textured.uv[textured.mesh.faces[faces]])
    error = np.abs(look_up(textured.texture, uv) - one.albedo(points))
    assert error.mean() < 1 / 255 and error.max() < 8 / 255


def test_no_texel_is_empty():
    one, mesh = mesh_of(sphere, faces=500, colors=lambda p: torch.full_like(p, 0.8))
    textured, covered = bake(one, mesh, 128, max_step=0.01)
    assert covered < 1 and (textured.texture == round(0.8 * 255)).all()


def test_texels_are_square_whatever_the_atlas():
    """Charts are similar to their triangles: a texture that is not square does not stretch them."""
    _, mesh = mesh_of(torus)
    cut, texels, (width, height) = unwrap(mesh, 300)
    assert max(width, height) == 300
    assert (texels >= 0).all() and (texels <= (width + 1, height + 1)).all()
    in_space, in_plane = cut.vertices[cut.faces], texels[cut.faces]
    lengths = [
        np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2) for corners in (in_space, in_plane)
    ]
    scale = np.median(lengths[1] / lengths[0])
    areas = [0.5 * np.abs(_area(corners)) for corners in (in_space, in_plane)]
    assert np.median(areas[1] / areas[0]) == pytest.approx(scale**2, rel=0.1)
    # The cut mesh is the same surface: its vertices are those of the mesh.
    assert set(map(tuple, cut.vertices)) == set(map(tuple, mesh.vertices)) and len(cut.faces) == len(
        mesh.faces
    )


def _area(corners: np.ndarray) -> np.ndarray:
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return (
        np.linalg.norm(np.cross(a, b), axis=1)
        if corners.shape[2] == 3
        else a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    )


def test_rasterizing_in_parts_changes_nothing(monkeypatch):
    one, mesh = mesh_of(box)
    whole, _ = bake(one, mesh, 128, max_step=0.01)
    monkeypatch.setattr(texture, "MAX_CANDIDATES", 500)
    parts, _ = bake(one, mesh, 128, max_step=0.01)
    assert np.array_equal(whole.texture, parts.texture)


def test_rasterized_texels_are_those_whose_centers_a_triangle_contains():
    """Against a test of every texel and every triangle by the signs of three edges."""
    random = np.random.default_rng(0)
    vertices, texels = random.normal(size=(30, 3)), random.random((30, 2)) * 40
    faces = random.permutation(30).reshape(10, 3)
    mesh = Mesh(vertices=vertices, faces=faces, normals=vertices)
    found = {
        (x, y)
        for xs, ys, _ in texture._rasterized(texels, mesh, (40, 40))
        for x, y in zip(xs, ys, strict=True)
    }
    expected = set()
    for y in range(40):
        for x in range(40):
            for a, b, c in texels[faces]:
                p = np.array([x + 0.5, y + 0.5])
                signs = [_area(np.array([[u, v, p]]))[0] for u, v in ((a, b), (b, c), (c, a))]
                if min(signs) >= 0 or max(signs) <= 0:
                    expected.add((x, y))
    assert found == expected


def test_settings_have_limits():
    for name, value in (("faces", -1), ("texture", 20_000), ("resolution", 4), ("wall_mm", 0), ("base", 0.9)):
        with pytest.raises(ValueError, match=name):
            replace(AssetConfig(), **{name: value})


def test_a_field_has_one_prompt():
    with pytest.raises(ValueError, match="one prompt, got 2"):
        Field(Shape(sphere, num_prompts=2), CPU)
