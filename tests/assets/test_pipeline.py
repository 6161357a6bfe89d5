"""From a scene to an asset: it fills the space that the field fills, and printable ones can be printed."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from amortized.assets import Source
from amortized.assets.clean import bodies_of
from amortized.assets.config import AssetConfig
from amortized.assets.extraction import extract
from amortized.assets.field import AssetError, Field
from amortized.assets.pipeline import make_asset, surface
from amortized.assets.printable import printable_field
from amortized.splats import SplatSolid, scene_of
from amortized.types import SplatScene
from benchmarks.assets import iou
from tests.assets.shapes import (
    CPU,
    Shape,
    euler_number,
    field,
    is_closed,
    sphere,
    torus,
    turned_box,
    volume_of,
    waves,
)
from tests.rendering.scenes import Balls
from tests.splats.made import cloud, filled_ball

SMALL = AssetConfig(resolution=96, faces=4000, texture=256)


@pytest.mark.parametrize("shape", [sphere, torus, turned_box, waves(3, level=-0.1)])
def test_an_asset_fills_the_space_of_its_field(shape):
    scene = Shape(shape)
    asset = make_asset(scene, SMALL, Source(prompt="a shape"), CPU)
    assert is_closed(asset.mesh.faces) and len(asset.mesh.faces) <= 4000
    assert iou(asset.mesh.vertices, asset.mesh.faces, Field(scene, CPU)) > 0.98
    report = json.loads(json.dumps(asset.report))
    assert report["faces"] == len(asset.mesh.faces)
    assert report["surface_error"]["mean"] < 2e-3 and report["texture_error"]["mean"] < 0.05
    assert set(report["seconds"]) == {"extract", "simplify", "colors", "texture", "measure"}
    assert set(report["evaluations"]) == set(report["seconds"]) and sum(report["evaluations"].values()) > 1e5
    assert 0.2 < report["texture_covered"] <= 1


def test_without_texture_and_with_all_faces():
    asset = make_asset(Shape(sphere), AssetConfig(resolution=64, faces=0, texture=0), Source(prompt=""), CPU)
    assert asset.textured is None and asset.printable is None and "texture_error" not in asset.report
    assert asset.report["surface_error"]["max"] < 2e-3
    distance = np.linalg.norm(asset.mesh.vertices, axis=1) - 0.6
    assert np.abs(distance).max() < 1e-5  # projected onto the field
    assert np.abs(asset.mesh.normals - asset.mesh.vertices / 0.6).max() < 1e-2


def test_the_stages_of_an_asset_are_announced_in_their_order():
    stages = []
    asset = make_asset(Shape(sphere), SMALL, Source(prompt=""), CPU, on_stage=stages.append)
    assert stages == list(asset.report["seconds"]) and stages[0] == "extract"


def test_the_surfaces_of_a_batch_are_those_of_its_scenes():
    radii = torch.tensor([0.3, 0.5, 0.7])
    meshes = surface(Balls(radius=radii), resolution=64)
    for radius, mesh in zip(radii.tolist(), meshes, strict=True):
        (alone,) = surface(Balls(radius=torch.tensor([radius])), resolution=64)
        assert np.array_equal(alone.vertices, mesh.vertices) and np.array_equal(alone.faces, mesh.faces)
        assert volume_of(mesh.vertices, mesh.faces) == pytest.approx(4 / 3 * np.pi * radius**3, rel=1e-2)


def test_an_empty_scene_of_a_batch_is_an_error():
    with pytest.raises(AssetError, match="empty"):
        surface(Balls(radius=torch.tensor([0.5, -0.5])), resolution=32)


# ---- printing ---------------------------------------------------------------------------------


def printed(shape, **changes):
    config = AssetConfig(resolution=96, faces=0, texture=0, printable=True, **changes)
    asset = make_asset(Shape(shape), config, Source(prompt=""), CPU)
    assert asset.printable is not None
    return asset.printable


@pytest.mark.parametrize("base", [0.01, 0.1])
def test_a_base_is_flat(base):
    mesh = printed(sphere, base=base)
    low = -0.6 + base * 1.2
    assert mesh.vertices[:, 2].min() == pytest.approx(low, abs=1e-3)
    flat = mesh.vertices[mesh.vertices[:, 2] < low + 1e-3]
    assert np.linalg.norm(flat[:, :2], axis=1).max() == pytest.approx(np.sqrt(0.36 - low**2), abs=0.02)
    height = 1.2 * base
    cap = np.pi * height**2 * (3 * 0.6 - height) / 3
    assert volume_of(mesh.vertices, mesh.faces) == pytest.approx(4 / 3 * np.pi * 0.6**3 - cap, rel=5e-3)
    assert is_closed(mesh.faces) and bodies_of(mesh.faces, len(mesh.vertices))[0] == 1


@pytest.mark.parametrize("wall_mm", [3.0, 6.0])
def test_a_hollow_has_walls_of_the_requested_thickness_and_a_drain(wall_mm):
    """The ball is 60 mm high, so its unit is 50 mm."""
    mesh = printed(sphere, wall_mm=wall_mm, base=0.02)
    assert is_closed(mesh.faces) and bodies_of(mesh.faces, len(mesh.vertices))[0] == 1
    assert euler_number(mesh.vertices, mesh.faces) == 2  # one opening: a bowl
    radius = np.linalg.norm(mesh.vertices, axis=1)
    inner = radius[(radius < 0.58) & (mesh.vertices[:, 2] > 0)]
    unit = 1.2 * 0.98 / 60
    assert np.abs((0.6 - inner) / unit - wall_mm).max() < 0.5  # mm; a lattice cell is 0.6


def test_a_torus_keeps_its_hole_and_gets_one_drain():
    mesh = printed(torus, wall_mm=8.0, base=0.05)
    assert is_closed(mesh.faces) and euler_number(mesh.vertices, mesh.faces) == -2


def test_a_wall_that_the_grid_cannot_hold_names_the_resolution_that_can():
    with pytest.raises(AssetError, match="wall of 1 mm is too thin for resolution 96: .* resolution 63[0-9]"):
        printed(torus, wall_mm=1.0)


def test_a_wall_thicker_than_the_object_is_one_sentence():
    with pytest.raises(AssetError, match="thicker than two walls of 30 mm"):
        printed(torus, wall_mm=30.0)


def test_only_the_largest_body_is_printed():
    def bodies(p):
        return torch.minimum(sphere(p), (p - p.new_tensor([0, 0, 0.8])).norm(dim=-1) - 0.1)

    config = AssetConfig(resolution=96, faces=0, texture=0)
    (whole,) = surface(Shape(bodies), resolution=96)
    vertices, _ = extract(printable_field(field(bodies), whole, config), 96)
    assert vertices[:, 2].min() == pytest.approx(-0.6 + 0.012, abs=2e-3)  # by the height of the largest body
    mesh = printed(bodies)
    assert mesh.vertices[:, 2].max() < 0.61


# ---- what is no distance ------------------------------------------------------------------------


@dataclass
class DensityBall:
    """A `DensityScene` of one ball, steep or soft, whose density falls to half at its radius."""

    softness: float
    peak: float
    num_prompts: int = 1
    bounding_radius: float = 1.0

    def density(self, points):
        return self.peak * torch.sigmoid((0.5 - points.norm(dim=-1)) / self.softness)

    def density_and_albedo(self, points):
        return self.density(points), points.new_tensor((0.5, 0.1, 0.4)).expand_as(points)

    def select(self, index):
        return self


@pytest.mark.parametrize("scene", [DensityBall(1e-3, 1000.0), DensityBall(0.02, 30.0)])
def test_a_mesh_of_densities_is_their_level(scene):
    asset = make_asset(scene, SMALL, Source(prompt="a ball"), CPU)
    assert is_closed(asset.mesh.faces) and euler_number(asset.mesh.vertices, asset.mesh.faces) == 2
    # The level is half of the mean density, which the soft shell lowers a little.
    assert np.abs(np.linalg.norm(asset.mesh.vertices, axis=1) - 0.5).max() < 0.02  # a cell
    assert np.abs(asset.mesh.colors - (0.5, 0.1, 0.4)).max() < 1e-6
    assert asset.report["surface_error"]["mean"] < 1e-2  # a length, not a density


def many_splats(seed: int) -> SplatScene:
    """Splats of random shape, with sheets, gaps and bodies that only a few of them make."""
    parameters = {name: value.float() for name, value in cloud(100, seed=seed).items()}
    parameters["logits"] += 1.5
    return scene_of(parameters, 1.5)


@pytest.mark.parametrize("seed", range(3))
def test_a_mesh_of_splats_is_closed_and_lies_on_their_density_of_a_half(seed):
    scene = many_splats(seed)
    field = Field(scene, CPU)
    vertices, faces = extract(field, 48)
    assert is_closed(faces) and not field.is_distance
    density = 0.5 - SplatSolid(scene).sdf(torch.from_numpy(vertices).float()[None])[0]
    assert (density - 0.5).abs().quantile(0.95) < 0.05
    assert iou(vertices, faces, field) > 0.97


def test_splats_fill_their_ball_and_print():
    config = AssetConfig(resolution=32, faces=1000, texture=32, printable=True)
    asset = make_asset(filled_ball(0.5, (0.9, 0.2, 0.1)), config, Source(prompt="a ball"), CPU)
    volume = volume_of(asset.mesh.vertices, asset.mesh.faces)
    assert volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.1) and is_closed(asset.mesh.faces)
    assert np.abs(asset.textured.texture.reshape(-1, 3) / 255 - (0.9, 0.2, 0.1)).max() < 0.01
    assert (
        is_closed(asset.printable.faces)
        and bodies_of(asset.printable.faces, len(asset.printable.vertices))[0] == 1
    )
