"""Points spread evenly over a sphere: an icosahedron whose triangles are divided into four, repeatedly."""

from __future__ import annotations

import math

import numpy as np


def icosphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] of unit length, float64, and faces [F, 3], int64; V = 10 * 4 ** subdivisions + 2.

    Up to their order, the vertices are those of `trimesh.creation.icosphere`.
    """
    golden = (1 + math.sqrt(5)) / 2
    corners = [(a, b * golden, 0.0) for a in (-1, 1) for b in (-1, 1)]
    vertices = np.array([(p[-k], p[1 - k], p[2 - k]) for k in range(3) for p in corners])
    vertices /= np.linalg.norm(vertices[0])
    apart = np.linalg.norm(vertices[:, None] - vertices, axis=-1)
    near = apart < 1.1  # an edge has the length 1.05
    faces = np.array(
        [
            (i, j, k)
            for i in range(12)
            for j in range(i + 1, 12)
            for k in range(j + 1, 12)
            if near[i, j] and near[j, k] and near[i, k]
        ]
    )
    for _ in range(subdivisions):
        vertices, faces = _divided(vertices, faces)
    return vertices, faces


def _divided(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each face in four, its new vertices on the sphere."""
    sides = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]], axis=-1)  # [F, 3, 2]
    edges, index = np.unique(sides.reshape(-1, 2), axis=0, return_inverse=True)
    middles = vertices[edges].sum(1)
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    ab, bc, ca = (index.reshape(-1, 3) + len(vertices)).T
    a, b, c = faces.T
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([vertices, middles]), np.concatenate([np.stack(part, 1) for part in parts])


def averaging(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The matrix [V, V] that replaces a value at each vertex by the mean over it and its neighbors."""
    adjacent = np.eye(len(vertices))
    for a, b in ((0, 1), (1, 2), (2, 0)):
        adjacent[faces[:, a], faces[:, b]] = adjacent[faces[:, b], faces[:, a]] = 1.0
    return adjacent / adjacent.sum(1, keepdims=True)
