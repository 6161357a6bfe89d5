"""The surface of exact fields: closed, correct, and equal to marching cubes over everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.measure import marching_cubes

from amortized.assets import clean, extraction
from amortized.assets.clean import bodies_of, keep_bodies, simplify
from amortized.assets.extraction import BLOCK, extract, grid_of, weld
from amortized.assets.mesh import AssetError
from tests.assets.shapes import (
    HALF,
    TURN,
    VOLUMES,
    euler_number,
    field,
    is_closed,
    sphere,
    torus,
    turned_box,
    volume_of,
    waves,
)

EULER = {sphere: 2, torus: 0, turned_box: 2}


@pytest.mark.parametrize("shape", VOLUMES, ids=lambda shape: shape.__name__)
def test_exact_shapes(shape):
    vertices, faces = extract(field(shape), 256)
    assert is_closed(faces) and euler_number(vertices, faces) == EULER[shape]
    assert volume_of(vertices, faces) == pytest.approx(VOLUMES[shape], rel=1e-3)
    assert bodies_of(faces, len(vertices))[0] == 1
    distance = shape(torch.from_numpy(vertices)).abs().numpy()
    assert distance.mean() < 2e-4  # a cell is 8e-3


@pytest.mark.parametrize(("resolution", "error"), [(64, 0.026), (128, 0.014), (256, 0.007)])
def test_corners_of_a_turned_cube_are_cut_by_less_than_a_cell(resolution, error):
    vertices, _ = extract(field(turned_box), resolution)
    signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
    corners = HALF * signs @ TURN.numpy().T
    nearest = np.linalg.norm(corners[:, None] - vertices, axis=2).min(1)
    assert nearest.max() < error < grid_of(1.0, resolution).cell


@pytest.mark.parametrize("resolution", [64, 128])
@pytest.mark.parametrize("shape", [*VOLUMES, waves(0), waves(1, 12)])
def test_chosen_blocks_give_what_all_blocks_and_a_dense_grid_give(shape, resolution):
    few, all_ = field(shape), field(shape)
    vertices, faces = extract(few, resolution)
    expected = extract(all_, resolution, exact=True)
    assert np.array_equal(vertices, expected[0]) and np.array_equal(faces, expected[1])
    # One call of the library over the whole grid, in one piece: the same up to the rounding of its float32.
    grid = grid_of(1.0, resolution)
    points = np.stack(np.meshgrid(*[grid.axis] * 3, indexing="ij"), -1)
    values = all_.value(points.reshape(-1, 3)).reshape(points.shape[:-1])
    least = np.float32(extraction.CLEARANCE * grid.cell)
    values = np.where(np.abs(values) < least, np.where(values > 0, least, -least), values)
    dense, dense_faces, _, _ = marching_cubes(values, 0.0)
    assert len(dense) == len(vertices) and len(dense_faces) == len(faces)
    dense = grid.origin + dense.astype(np.float64) * grid.cell
    key = np.round(dense / grid.cell, 3)
    own = np.round(vertices / grid.cell, 3)
    gap = np.abs(own[np.lexsort(own.T)] - key[np.lexsort(key.T)])
    assert np.median(gap) < 1e-3 and volume_of(dense, dense_faces) == pytest.approx(
        volume_of(vertices, faces), rel=1e-6
    )


def test_few_evaluations():
    dense = (8 * 32 + 1) ** 3
    for shape in VOLUMES:
        one = field(shape)
        extract(one, 256)
        assert one.evaluations < 0.2 * dense


@pytest.mark.parametrize("shape", [*VOLUMES, waves(2), waves(3, 12)])
def test_a_wrong_bound_tears_nothing(shape, monkeypatch):
    """The surface is followed from block to block, and random points find the blocks to start from."""
    expected = extract(field(shape), 96, exact=True)
    monkeypatch.setattr(extraction, "lipschitz_bound", lambda field: 0.2)
    vertices, faces = extract(field(shape), 96)
    assert is_closed(faces)
    assert np.array_equal(vertices, expected[0]) and np.array_equal(faces, expected[1])


@pytest.mark.parametrize("seed", range(6))
def test_any_field_gives_a_closed_surface_also_after_simplification(seed):
    vertices, faces = extract(field(waves(seed, frequency=4 + 2 * seed)), 96)
    assert is_closed(faces)
    volume = volume_of(vertices, faces)
    for target, error in ((len(faces) // 4, 0.01), (2000, 0.1)):
        fewer = simplify(vertices, faces, target, flat=1e-3)
        assert is_closed(fewer[1]) and len(fewer[1]) <= target
        assert volume_of(*fewer) == pytest.approx(volume, rel=error)


@pytest.mark.parametrize("target", [4000, 500])
def test_flat_parts_do_not_stop_the_simplification(target):
    vertices, faces = simplify(*extract(field(turned_box), 128), target, flat=1e-3)
    assert is_closed(faces) and len(faces) <= 1.05 * target
    assert volume_of(vertices, faces) == pytest.approx(VOLUMES[turned_box], rel=1e-2)


def test_sheets_that_share_an_edge_are_separated():
    """Two tetrahedra with a common edge are no closed surface until each has its own copy of it."""
    corners = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0.5], [-1, 0, 0], [-1, -1, 0.5]], float)
    one = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    other = np.array([[0, 1, 4], [0, 4, 5], [0, 5, 1], [1, 5, 4]])
    faces = np.concatenate(
        [tetra if volume_of(corners, tetra) > 0 else tetra[:, ::-1] for tetra in (one, other)]
    )
    assert not is_closed(faces)
    vertices, separated = clean._manifold(corners, faces)
    assert is_closed(separated) and len(vertices) == 8
    assert volume_of(vertices, separated) == pytest.approx(volume_of(corners, faces))


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.25, 1e-9])
def test_a_plane_through_grid_vertices_joins_nothing(offset):
    """If the field is exactly 0 at vertices of the grid, coinciding vertices must not be welded."""
    grid = grid_of(1.0, 96)
    level = float(grid.axis[30] + offset * grid.cell)
    cut = field(lambda p: torch.maximum(sphere(p), level - p[..., 2]))
    vertices, faces = extract(cut, 96)
    assert is_closed(faces) and euler_number(vertices, faces) == 2
    assert vertices[:, 2].min() == pytest.approx(level, abs=2e-3 * grid.cell)


# ---- bodies -----------------------------------------------------------------------------------


def two_balls(p, radius=0.1):
    return torch.minimum((p - p.new_tensor([0.4, 0, 0])).norm(dim=-1) - 0.3, (p + 0.4).norm(dim=-1) - radius)


def shell(p):
    return torch.maximum(sphere(p), 0.3 - p.norm(dim=-1))


def test_floaters_are_dropped_and_cavities_are_not():
    vertices, faces = extract(field(two_balls), 128)
    assert bodies_of(faces, len(vertices))[0] == 2
    all_, main, largest = (keep_bodies(vertices, faces, keep) for keep in ("all", "main", "largest"))
    assert [len(one[1]) < len(faces) for one in (all_, main, largest)] == [False, False, True]  # 3.7 %
    vertices, faces = extract(field(lambda p: two_balls(p, 0.05)), 128)  # 0.5 % of the volume
    large, large_faces, dropped = keep_bodies(vertices, faces, "main")
    assert dropped == 1 and large[:, 0].min() > 0 and is_closed(large_faces)

    vertices, faces = extract(field(shell), 128)
    volume = 4 / 3 * np.pi * (0.6**3 - 0.3**3)
    main, largest = (keep_bodies(vertices, faces, keep) for keep in ("main", "largest"))
    assert volume_of(*main[:2]) == pytest.approx(volume, rel=5e-3) and main[2] == 0
    assert volume_of(*largest[:2]) == pytest.approx(VOLUMES[sphere], rel=5e-3) and largest[2] == 1


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        (lambda p: p.norm(dim=-1) + 0.1, "is empty"),
        (lambda p: -torch.ones_like(p[..., 0]), "cut off by the bounding ball of radius 1: 100% of"),
        (lambda p: p[..., 0] - 0.3, "cut off by the bounding ball"),
        (lambda p: torch.full_like(p[..., 0], torch.nan), "not finite"),
    ],
    ids=["empty", "full", "half", "nan"],
)
def test_what_has_no_surface_is_one_sentence(shape, sentence):
    with pytest.raises(AssetError, match=sentence):
        extract(field(shape), 64)


@pytest.mark.parametrize("resolution", [15, 2049])
def test_resolutions_have_limits(resolution):
    with pytest.raises(ValueError, match="resolution must lie between 16 and 2048"):
        extract(field(sphere), resolution)


@pytest.mark.parametrize("resolution", [16, 17, 31, 33, 100])
def test_any_resolution_covers_the_ball(resolution):
    ball = field(lambda p: p.norm(dim=-1) - 0.95)
    vertices, faces = extract(ball, resolution)
    assert is_closed(faces)
    assert volume_of(vertices, faces) == pytest.approx(4 / 3 * np.pi * 0.95**3, rel=30 / resolution**2)
    grid = grid_of(1.0, resolution)
    assert len(grid.axis) == grid.blocks * BLOCK + 1 and grid.axis[0] < -1 < 1 < grid.axis[resolution]


def test_welding_merges_equal_vertices_only():
    corners = np.array(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [-0.0, 0, 0], [0, 0, 0.0]]
    )
    vertices, faces = weld(corners, np.array([[0, 1, 2], [3, 5, 4], [6, 0, 7]]))
    assert len(vertices) == 4 and len(faces) == 2
    assert {tuple(map(tuple, vertices[face])) for face in faces} == {
        ((0, 0, 0), (1, 0, 0), (0, 1, 0)),
        ((1, 0, 0), (1, 1, 0), (0, 1, 0)),
    }
