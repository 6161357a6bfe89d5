"""Each signed distance against the nearest of many surface samples, in float64."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from corpora.shapes.geometry import FRONT_X, SOLIDS, SPANS
from tests.corpora.solids import inside, surface

SPACING = 0.01
every_solid = pytest.mark.parametrize("shape", SOLIDS)


def random_points(count: int, seed: int, half: float = 1.2) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-half, half, (count, 3))


def sdf(shape: str, points: np.ndarray) -> np.ndarray:
    return SOLIDS[shape](torch.from_numpy(points)).numpy()


@every_solid
def test_distance_equals_the_distance_to_the_nearest_surface_sample(shape: str):
    points = random_points(6000, 0)
    nearest, _ = cKDTree(surface(shape, SPACING)).query(points)
    # No sample is nearer than the surface, and some sample is within SPACING of the nearest point.
    excess = nearest - abs(sdf(shape, points))
    assert excess.min() > -1e-9
    assert excess.max() < SPACING
    # Near the foot of the perpendicular the excess is of second order in the distance to it.
    assert np.median(excess) < SPACING**2


@every_solid
def test_surface_has_distance_zero(shape: str):
    assert abs(sdf(shape, surface(shape, SPACING))).max() < 1e-9


@every_solid
def test_negative_inside_only(shape: str):
    close = surface(shape, 0.05)
    points = np.concatenate([random_points(40_000, 1, half=0.8), 0.995 * close, 1.005 * close])
    distance, is_inside = sdf(shape, points), inside(shape, points)
    clear = abs(distance) > 1e-9
    assert 0.05 < is_inside.mean() < 0.95
    np.testing.assert_array_equal(distance[clear] < 0, is_inside[clear])


@every_solid
def test_distance_is_1_lipschitz(shape: str):
    start = random_points(20_000, 2)
    step = random_points(20_000, 3) * 10 ** np.random.default_rng(4).uniform(-5, 0, (20_000, 1))
    change = abs(sdf(shape, start + step) - sdf(shape, start))
    moved = np.linalg.norm(step, axis=-1)
    assert (change <= moved + 1e-12).all()
    assert (change > 0.99 * moved).any()  # and the bound is attained


@every_solid
def test_float32_and_any_leading_axes(shape: str):
    points = random_points(3000, 5)
    single = SOLIDS[shape](torch.from_numpy(points).float().view(3, 10, 100, 3))
    assert single.shape == (3, 10, 100) and single.dtype == torch.float32
    np.testing.assert_allclose(single.flatten().numpy(), sdf(shape, points), atol=1e-6)


@every_solid
def test_special_points_are_finite(shape: str):
    """On the axis, edges and at the origin, formulas may divide by zero."""
    corners = np.array([(0, 0, 0), (0, 0, 1), (0, 0, -1), (1, 0, 0), (0, 1, 0), (1, 1, 1)], dtype=np.float64)
    assert np.isfinite(sdf(shape, corners)).all()


@every_solid
def test_spans_are_the_extents(shape: str):
    points = surface(shape, SPACING)
    across, upright = SPANS[shape]
    np.testing.assert_allclose(points.max(0), [across, across, upright], atol=1e-9)
    np.testing.assert_allclose(points.min(0), [-across, -across, -upright], atol=1e-9)


@every_solid
def test_front_x_is_the_first_hit_of_a_ray_from_the_front(shape: str):
    x = FRONT_X[shape]
    ray = np.linspace(1.0, x, 200)[:, None] * np.array([1.0, 0.0, 0.0])
    assert (sdf(shape, ray[:-1]) > 0).all()
    assert abs(sdf(shape, ray[-1:])).max() < 1e-9


@every_solid
def test_solids_fit_the_ball(shape: str):
    assert np.linalg.norm(surface(shape, SPACING), axis=-1).max() < 0.82
