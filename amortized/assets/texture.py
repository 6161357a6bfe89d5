"""Unwrap a mesh, and bake the field's albedo into its texture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from amortized.assets.field import Field
from amortized.assets.mesh import Mesh, TexturedMesh

PADDING = 4  # texels between charts
MAX_CANDIDATES = 2**22  # texels in the boxes of the triangles that are rasterized at once
NEAR = 0.1  # distance from the surface in texels, below which a point serves as it is
EDGE = 1e-6  # in barycentric coordinates: a texel center on an edge belongs to both triangles


def unwrap(mesh: Mesh, texture: int) -> tuple[Mesh, np.ndarray, tuple[int, int]]:
    """Cut a mesh along seams and lay it out in a plane, by xatlas.

    Returns the cut mesh, the texel coordinates [V, 2] of its vertices, and the size (W, H) of the texture,
    the larger of which is `texture`. Texels are square: the atlas has whatever shape its charts need.
    """
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bilinear = texture, PADDING, True
    atlas.generate(charts, packing, False)
    source, faces, uv = atlas[0]
    scale = texture / max(atlas.width, atlas.height)
    size = (max(1, round(atlas.width * scale)), max(1, round(atlas.height * scale)))
    texels = uv.astype(np.float64) * (atlas.width * scale, atlas.height * scale)
    cut = Mesh(
        vertices=mesh.vertices[source],
        faces=faces.astype(np.int64),
        normals=mesh.normals[source],
        colors=None if mesh.colors is None else mesh.colors[source],
    )
    return cut, texels, size


def bake(field: Field, mesh: Mesh, texture: int, *, max_step: float) -> tuple[TexturedMesh, float]:
    """Texture a mesh with the field's albedo; returns it and the share of texels that a triangle covers.

    Each covered texel is the albedo at the nearest point of the field's surface, at most `max_step` away;
    points that are nearer to the surface than a tenth of a texel serve as they are, for a seventh of the
    evaluations. All other texels copy the nearest covered one, so that no filter or mip level mixes in a
    background.
    """
    from scipy.ndimage import distance_transform_edt

    cut, texels, (width, height) = unwrap(mesh, texture)
    near = NEAR * _texel_side(cut, texels)
    image = np.zeros((height, width, 3), np.uint8)
    covered = np.zeros((height, width), bool)
    for x, y, points in _rasterized(texels, cut, (width, height)):
        new = ~covered[y, x]
        x, y, points = x[new], y[new], points[new]
        values, albedo = field.value_and_albedo(points)
        far = np.abs(values) > near
        nearest = field.project(points[far], max_step=max_step, epsilon=max_step / 2, steps=1)
        albedo[far] = field.value_and_albedo(nearest)[1]
        image[y, x] = np.rint(albedo * 255)
        covered[y, x] = True
    share = float(covered.mean())
    if covered.any():
        nearest = distance_transform_edt(~covered, return_distances=False, return_indices=True)
        image = image[tuple(np.asarray(nearest))]
    uv = texels / (width, height)
    return TexturedMesh(mesh=cut, uv=uv, texture=image[::-1].copy()), share


def _texel_side(mesh: Mesh, texels: np.ndarray) -> float:
    """The side of a texel in the scene's unit, on average over the mesh."""
    solid, flat = mesh.vertices[mesh.faces], texels[mesh.faces]
    area = np.linalg.norm(np.cross(solid[:, 1] - solid[:, 0], solid[:, 2] - solid[:, 0]), axis=1).sum()
    covered = np.abs(_cross(flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0])).sum()
    return float(np.sqrt(area / max(covered, 1e-12)))


def _rasterized(
    texels: np.ndarray, mesh: Mesh, size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The texels (x, y) whose centers lie in a triangle, row 0 at v = 0, and their points [N, 3] on the mesh.

    In parts of bounded size; within a part a texel occurs once.
    """
    triangles = texels[mesh.faces]  # [F, 3, 2]
    low = np.floor(triangles.min(1) - 0.5).astype(np.int64).clip(0)
    high = np.minimum(np.ceil(triangles.max(1) - 0.5).astype(np.int64), np.array(size) - 1)
    extent = (high - low + 1).clip(0)
    counts = extent.prod(1)
    ends = np.searchsorted(np.cumsum(counts), np.arange(0, counts.sum(), MAX_CANDIDATES)[1:])
    for part in np.split(np.arange(len(counts)), ends):
        face = np.repeat(part, counts[part])
        number = np.arange(len(face)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
        x = low[face, 0] + number % extent[face, 0].clip(1)
        y = low[face, 1] + number // extent[face, 0].clip(1)
        weights = _barycentric(np.stack([x, y], 1) + 0.5, triangles[face])
        inside = np.flatnonzero((weights >= -EDGE).all(1))
        _, first = np.unique(y[inside] * size[0] + x[inside], return_index=True)
        chosen = inside[first]
        points = np.einsum("nk,nki->ni", weights[chosen], mesh.vertices[mesh.faces[face[chosen]]])
        yield x[chosen], y[chosen], points


def _barycentric(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Weights [N, 3] of the corners of triangles [N, 3, 2] at points [N, 2]; not finite without area."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        area = _cross(b - a, c - a)
        v, w = _cross(points - a, c - a) / area, _cross(b - a, points - a) / area
    return np.stack([1 - v - w, v, w], 1)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
