"""Clean and simplify a mesh: remove floaters, reduce the number of triangles."""

from __future__ import annotations

from typing import Literal

import numpy as np

from amortized.assets.checks import check_surface
from amortized.assets.mesh import AssetError

Keep = Literal["main", "all", "largest"]
STALLED = 1.05  # times the requested faces
MIN_VOLUME_SHARE = 0.01  # of the largest body: less is a floater


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
    """The vertices and faces of the chosen bodies, and how many others there were.

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
    chosen = np.abs(volumes) >= MIN_VOLUME_SHARE * volumes.max()
    if keep == "largest":
        chosen = np.arange(count) == volumes.argmax()
    return *without_unused(vertices, faces[chosen[body]]), int(count - chosen.sum())


def without_unused(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices that a face uses, and the faces by their new numbers."""
    used, numbers = np.unique(faces, return_inverse=True)
    return vertices[used], numbers.reshape(faces.shape)


def simplify(
    vertices: np.ndarray, faces: np.ndarray, target: int, *, flat: float
) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a closed mesh to about `target` faces by quadric edge collapse (Garland, Heckbert 1997).

    The result is closed. Its vertices lie off the surface, so that its faces are close to it on average: do
    not project them. `flat` is the distance below which a surface counts as flat; the narrow triangles that
    marching cubes leaves in flat parts can stop the collapse, and are removed first in that case.
    """
    if len(faces) <= target:
        return vertices, faces
    fewer = _collapse(vertices, faces, target)
    if len(fewer[1]) > STALLED * target:
        fewer = _collapse(*_manifold(vertices, faces, flat), target)
    report = check_surface(*fewer)
    return fewer if report["watertight"] and report["winding_consistent"] else _manifold(*fewer)


def _collapse(vertices: np.ndarray, faces: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    from fast_simplification import simplify

    if len(faces) <= target:
        return vertices, faces
    found = simplify(vertices, faces.astype(np.int32), target_count=target, agg=5.0)
    return without_unused(found[0], found[1].astype(np.int64))


def _manifold(vertices: np.ndarray, faces: np.ndarray, flat: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Separate sheets that share an edge, so that each lies in two faces; simplify parts flat to `flat`."""
    from manifold3d import Manifold, Mesh64

    solid = Manifold(Mesh64(vert_properties=vertices, tri_verts=faces.astype(np.uint64)))
    mesh = (solid.simplify(flat) if flat else solid).to_mesh64()
    found = np.array(mesh.vert_properties, order="C"), np.array(mesh.tri_verts, dtype=np.int64, order="C")
    return found if len(found[1]) else (vertices, faces)  # an open mesh is refused as it is


def _tetrahedra(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The signed volumes [F] between the origin and each face."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.einsum("fi,fi->f", a, np.cross(b, c)) / 6
