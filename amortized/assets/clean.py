"""Clean and simplify a mesh: remove floaters, reduce the number of triangles."""

from __future__ import annotations

from typing import Literal

import numpy as np

from amortized.assets.mesh import AssetError

Keep = Literal["main", "all", "largest"]
MIN_VOLUME_SHARE = 0.01  # of the largest body: less is a floater


def volume_of(vertices: np.ndarray, faces: np.ndarray) -> float:
    """The signed volume that closed triangles enclose: positive if they face outward."""
    return float(_tetrahedra(vertices, faces).sum())


def bodies_of(faces: np.ndarray, num_vertices: int) -> tuple[int, np.ndarray]:
    """The number of connected bodies, and the body [F] of each face."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges), bool), edges.T), shape=(num_vertices, num_vertices))
    _, labels = connected_components(graph, directed=False)
    found, body = np.unique(labels[faces[:, 0]], return_inverse=True)
    return len(found), body


def keep_bodies(vertices: np.ndarray, faces: np.ndarray, keep: Keep) -> tuple[np.ndarray, np.ndarray, int]:
    """The vertices and faces of the bodies that are kept, and how many were dropped.

    main     those with at least 1 % of the volume of the largest; a cavity is a body of negative volume
    all      all of them
    largest  the largest alone, without cavities
    """
    count, body = bodies_of(faces, len(vertices))
    volumes = np.bincount(body, _tetrahedra(vertices, faces), minlength=count)
    if not (volumes > 0).any():
        raise AssetError("the object has no solid body")
    if keep == "all":
        return vertices, faces, 0
    kept = np.abs(volumes) >= MIN_VOLUME_SHARE * volumes.max()
    if keep == "largest":
        kept = np.arange(count) == volumes.argmax()
    return *without_unused(vertices, faces[kept[body]]), int(count - kept.sum())


def without_unused(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices that a face uses, and the faces by their new numbers."""
    used, numbers = np.unique(faces, return_inverse=True)
    return vertices[used], numbers.reshape(faces.shape)


def simplify(vertices: np.ndarray, faces: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce to about `target` faces by quadric edge collapse; a mesh with no more stays as it is."""
    from fast_simplification import simplify

    if len(faces) <= target:
        return vertices, faces
    fewer = simplify(vertices, faces.astype(np.int32), target_count=target, agg=5.0)
    return without_unused(fewer[0].astype(np.float64), fewer[1].astype(np.int64))


def _tetrahedra(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The signed volumes [F] between the origin and each face."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.einsum("fi,fi->f", a, np.cross(b, c)) / 6
