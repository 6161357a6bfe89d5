"""Checks of meshes, by counting: no mesh library is involved."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from amortized.assets.mesh import Asset, AssetError, Mesh

SMALLEST_AREA = 1e-12  # of a face, in the scene's units
UNIT_TOLERANCE = 1e-3  # of a normal's length


def check_mesh(mesh: Mesh, bounding_radius: float | None = None) -> dict[str, Any]:
    """A JSON report of a mesh: is it closed, does it face outward, of how many bodies is it?

    An open edge has one face, a shared edge more than two. A body is a set of faces connected through edges;
    a cavity counts as one. `volume` is negative if the faces point inward. Numbers that depend on positions
    are None if a position is not finite; `inside_ball` is None without a radius.
    Raises AssetError for arrays that are not a mesh.
    """
    check_arrays(mesh)
    return check_surface(mesh.vertices, mesh.faces, bounding_radius)


def check_surface(
    vertices: np.ndarray, faces: np.ndarray, bounding_radius: float | None = None
) -> dict[str, Any]:
    """The report of `check_mesh` for vertices [V, 3] and valid faces [F, 3]."""
    faces = faces.astype(np.int64)
    finite = bool(np.isfinite(vertices).all())
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    directions = np.where(edges[:, 0] < edges[:, 1], 1, -1)
    # One integer an edge: np.unique of rows is ten times slower.
    keys = edges.min(axis=1) * len(vertices) + edges.max(axis=1)
    _, inverse, uses = np.unique(keys, return_inverse=True, return_counts=True)
    balance = np.bincount(inverse, directions, len(uses))
    report = {
        "vertices": len(vertices),
        "faces": len(faces),
        "finite": finite,
        "watertight": bool(len(faces) and (uses == 2).all()),
        "open_edges": int((uses == 1).sum()),
        "shared_edges": int((uses > 2).sum()),
        "winding_consistent": bool((balance[uses == 2] == 0).all()),
        "bodies": count_bodies(inverse, len(faces)),
        "euler_number": len(np.unique(faces)) - len(uses) + len(faces),
        "degenerate_faces": None,
        "area": None,
        "volume": None,
        "max_radius": None,
        "inside_ball": None,
    }
    if finite and len(faces):
        corners = vertices.astype(np.float64)[faces]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        areas = np.linalg.norm(across, axis=1) / 2
        report["degenerate_faces"] = int((areas <= SMALLEST_AREA).sum())
        report["area"] = float(areas.sum())
        # Divergence theorem, from a point near the mesh so that a distant one is not lost in rounding.
        near = corners - corners.mean(axis=(0, 1))
        report["volume"] = float(np.einsum("fi,fi", near[:, 0], np.cross(near[:, 1], near[:, 2])) / 6)
        report["max_radius"] = float(np.linalg.norm(vertices, axis=1).max())
        if bounding_radius is not None:
            report["inside_ball"] = report["max_radius"] <= bounding_radius
    return report


def count_bodies(edge_of_corner: np.ndarray, num_faces: int) -> int:
    """Count the sets of faces that edges connect; `edge_of_corner` [3 F] numbers each face's edges."""
    if not num_faces:
        return 0
    order = np.argsort(edge_of_corner, kind="stable")
    edge, face = edge_of_corner[order], order // 3
    same = edge[1:] == edge[:-1]
    first, second = face[:-1][same], face[1:][same]
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(num_faces, num_faces))
    return int(connected_components(graph, directed=False)[0])


def check_asset(asset: Asset) -> None:
    """Raise AssetError for an asset that no file format can hold: damaged arrays, or no faces."""
    meshes = {"mesh": asset.mesh}
    if asset.printable:
        meshes["printable mesh"] = asset.printable
    if asset.textured:
        meshes["textured mesh"] = asset.textured.mesh
        uv, texture = asset.textured.uv, asset.textured.texture
        matches = uv.shape == (len(asset.textured.mesh.vertices), 2)
        require(matches, "uv", f"must be [V, 2], not {list(uv.shape)}")
        require(bool(np.isfinite(uv).all()), "uv", "must be finite")
        is_image = texture.ndim == 3 and texture.shape[2] == 3 and texture.size > 0
        problem = f"must be [H, W, 3] uint8, not {list(texture.shape)} {texture.dtype}"
        require(is_image and texture.dtype == np.uint8, "texture", problem)
    for name, mesh in meshes.items():
        check_arrays(mesh, name)
        require(len(mesh.faces) > 0, name, "has no faces: the surface is empty, so there is nothing to write")
        require(bool(np.isfinite(mesh.vertices).all()), name, "has a vertex that is not finite")
        require(float(np.ptp(mesh.vertices, axis=0).max()) > 0, name, "has no extent: all vertices coincide")
        lengths = np.linalg.norm(mesh.normals, axis=1)
        wrong = int((~(np.abs(lengths - 1) <= UNIT_TOLERANCE)).sum())
        require(not wrong, name, f"has {wrong:,} normals of a length other than 1: normalize them")
        if mesh.colors is not None:
            require(bool(np.isfinite(mesh.colors).all()), name, "has a color that is not finite")


def check_arrays(mesh: Mesh, name: str = "mesh") -> None:
    """Raise AssetError if shapes do not match or a face names a vertex that does not exist."""
    num_vertices = len(mesh.vertices)
    named = {"vertices": mesh.vertices, "normals": mesh.normals}
    if mesh.colors is not None:
        named["colors"] = mesh.colors
    for key, array in named.items():
        expected = f"{key} must be [{num_vertices}, 3], not {list(array.shape)}"
        require(array.shape == (num_vertices, 3), name, expected)
    faces = mesh.faces
    is_index = faces.ndim == 2 and faces.shape[1] == 3 and np.issubdtype(faces.dtype, np.integer)
    require(is_index, name, f"faces must be integers [F, 3], not {list(faces.shape)} {faces.dtype}")
    in_range = not len(faces) or (int(faces.min()) >= 0 and int(faces.max()) < num_vertices)
    require(in_range, name, f"has a face with a vertex outside 0 to {num_vertices - 1}")


def require(condition: bool, name: str, problem: str) -> None:
    """Raise AssetError: the name, then the problem, unless the condition holds."""
    if not condition:
        raise AssetError(f"{name} {problem}")
