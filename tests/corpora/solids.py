"""A second implementation of the eight solids, as NumPy surface samples and inside tests.

Written from the constants alone, without any distance formula, to test the signed distances against.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from corpora.shapes import geometry as g

Points = NDArray[np.float64]  # [N, 3]


@cache
def surface(shape: str, spacing: float) -> Points:
    """Sample points [N, 3] on the surface; every surface point is within `spacing` of one of them."""
    match shape:
        case "cube":
            s = g.CUBE_HALF
            corners = [(-s, -s, -s), (s, -s, -s), (-s, s, -s), (-s, -s, s)]
            half = _faces([(0, 1, 2), (0, 1, 3), (0, 2, 3)], corners, spacing, parallelogram=True)
            return np.concatenate([half, -half])
        case "sphere":
            return _revolve(_arc(0.0, 0.0, g.SPHERE_RADIUS, -90, 90, spacing), spacing)
        case "cylinder":
            r, h = g.CYLINDER_RADIUS, g.CYLINDER_HALF
            return _revolve(_polyline([(0, -h), (r, -h), (r, h), (0, h)], spacing), spacing)
        case "cone":
            r, h = g.CONE_RADIUS, g.CONE_HALF
            return _revolve(_polyline([(0, -h), (r, -h), (0, h)], spacing), spacing)
        case "torus":
            return _revolve(_arc(g.TORUS_MAJOR, 0.0, g.TORUS_MINOR, 0, 360, spacing), spacing)
        case "pyramid":
            s, h = g.PYRAMID_HALF, g.PYRAMID_HALF_HEIGHT
            corners = [(-s, -s, -h), (s, -s, -h), (s, s, -h), (-s, s, -h), (0, 0, h)]
            base = [(0, 1, 2), (0, 2, 3)]
            return _faces([*base, (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)], corners, spacing)
        case "capsule":
            r, h = g.CAPSULE_RADIUS, g.CAPSULE_HALF
            bottom, top = _arc(0.0, -h, r, -90, 0, spacing), _arc(0.0, h, r, 0, 90, spacing)
            return _revolve(np.concatenate([bottom, _polyline([(r, -h), (r, h)], spacing), top]), spacing)
        case "octahedron":
            r = g.OCTAHEDRON_RADIUS
            corners = [(r, 0, 0), (0, r, 0), (-r, 0, 0), (0, -r, 0), (0, 0, r), (0, 0, -r)]
            return _faces([(i, (i + 1) % 4, pole) for i in range(4) for pole in (4, 5)], corners, spacing)
    raise AssertionError(shape)


def inside(shape: str, points: Points) -> NDArray[np.bool_]:
    """Whether points [N, 3] lie inside the solid, from half-spaces and circles about the axis: bool [N]."""
    x, y, z = points.T
    around = x**2 + y**2
    match shape:
        case "cube":
            return (abs(x) < g.CUBE_HALF) & (abs(y) < g.CUBE_HALF) & (abs(z) < g.CUBE_HALF)
        case "sphere":
            return around + z**2 < g.SPHERE_RADIUS**2
        case "cylinder":
            return (around < g.CYLINDER_RADIUS**2) & (abs(z) < g.CYLINDER_HALF)
        case "cone":
            width = g.CONE_RADIUS * (0.5 - z / (2 * g.CONE_HALF))
            return (z > -g.CONE_HALF) & (z < g.CONE_HALF) & (around < width**2)
        case "torus":
            return (np.sqrt(around) - g.TORUS_MAJOR) ** 2 + z**2 < g.TORUS_MINOR**2
        case "pyramid":
            width = g.PYRAMID_HALF * (0.5 - z / (2 * g.PYRAMID_HALF_HEIGHT))
            return (z > -g.PYRAMID_HALF_HEIGHT) & (abs(x) < width) & (abs(y) < width)
        case "capsule":
            r, h = g.CAPSULE_RADIUS, g.CAPSULE_HALF
            ends = (around + (z - h) ** 2 < r**2) | (around + (z + h) ** 2 < r**2)
            return ends | ((around < r**2) & (abs(z) < h))
        case "octahedron":
            signs = [(i, j, k) for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]
            return np.all([points @ np.array(sign) < g.OCTAHEDRON_RADIUS for sign in signs], axis=0)
    raise AssertionError(shape)


def _polyline(corners: list[tuple[float, float]], spacing: float) -> Points:
    """Sample points [N, 2] (radius, z) along a polyline, including its corners."""
    pieces = []
    for start, end in zip(np.array(corners), np.array(corners)[1:], strict=False):
        t = np.linspace(0, 1, 2 + int(np.linalg.norm(end - start) / spacing))
        pieces.append(start + t[:, None] * (end - start))
    return np.concatenate(pieces)


def _arc(r: float, z: float, radius: float, start_deg: float, end_deg: float, spacing: float) -> Points:
    """Sample points [N, 2] (radius, z) along an arc about (r, z), including its quarter points."""
    length = radius * np.radians(end_deg - start_deg)
    angle = np.radians(np.linspace(start_deg, end_deg, 5 + 4 * int(length / spacing / 4)))
    return np.stack([r + radius * np.cos(angle), z + radius * np.sin(angle)], axis=-1)


def _revolve(profile: Points, spacing: float) -> Points:
    """Revolve a profile [N, 2] (radius, z) about the z axis: points [M, 3]."""
    quarter = 1 + int(np.pi / 2 * profile[:, 0].max() / spacing)
    angle = np.pi / 2 * np.arange(4 * quarter) / quarter
    r, z = profile[:, :1], profile[:, 1:]
    return np.stack([r * np.cos(angle), r * np.sin(angle), z + 0 * angle], axis=-1).reshape(-1, 3)


def _faces(
    faces: list[tuple[int, int, int]],
    corners: list[tuple[float, float, float]],
    spacing: float,
    *,
    parallelogram: bool = False,
) -> Points:
    """Sample triangles, or the parallelograms that they are halves of: points [N, 3]."""
    pieces = []
    for face in faces:
        a, b, c = np.array(corners, dtype=np.float64)[list(face)]
        longest = max(np.linalg.norm(b - a), np.linalg.norm(c - a), np.linalg.norm(c - b))
        t = np.linspace(0, 1, 2 + int(longest / spacing))
        u, v = (w.ravel() for w in np.meshgrid(t, t))
        keep = (u + v < 1 + 1e-9) | parallelogram
        pieces.append(a + u[keep, None] * (b - a) + v[keep, None] * (c - a))
    return np.concatenate(pieces)
