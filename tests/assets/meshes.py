"""Test assets by NumPy: a box with six colors, an icosphere, a torus; and hostile texts."""

from __future__ import annotations

import numpy as np

from amortized.assets import Asset, Mesh, Source, TexturedMesh

HALF = np.array([0.3, 0.5, 0.7])  # all different, so that swapped axes show
SIDES = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])  # front first
# sRGB of the sides, with dark values, for which linear light in 8 bits would be too coarse.
COLORS = np.array(
    [[255, 0, 0], [0, 200, 10], [13, 8, 240], [250, 240, 3], [128, 64, 200], [5, 20, 40]], np.uint8
)
CELL = 16  # px of the atlas; 3 x 2 cells
SOURCE = Source(prompt="a red cube", seed=7, checkpoint="quickstart@1a2b", license="CC-BY-4.0")
HOSTILE = {
    "script": "<script>alert(1)</script>]]>&amp;\"'",
    "path": "../../../etc/passwd",
    "nul": "a\0b\x1b[31m\x7f\x85",
    "newlines": "x\nend_header\r\nf 1 2 3\rv 0 0 0\u2028y\\",
    "rtl": "\u202eevil\u202d \u2066x\u2069",
    "surrogates": "\ud800 a \udfff \ud83d\ude00",
    "noncharacters": "\ufffe\uffff\U0001fffe",
    "long": "x" * 10_000,
    "emoji": "\U0001f600" * 2_500,
    "quotes": '"' * 5_000,
    "percent": "%s %d {0} {} ${a}",
    "empty": "",
}


def mesh_of(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray | None = None) -> Mesh:
    """A mesh with normals weighted by area."""
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], across)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return Mesh(vertices=vertices, faces=faces, normals=normals / lengths, colors=colors)


def some_colors(count: int) -> np.ndarray:
    """Colors [count, 3] that contain every value of 8 bits, if there are enough of them."""
    return ((np.arange(count)[:, None] * [1, 7, 31]) % 256 / 255).astype(np.float32)


def box() -> Mesh:
    """A closed box with half sides HALF: 8 vertices, 12 faces."""
    vertices = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * HALF
    faces = []
    for axis in range(3):
        for sign in (-1, 1):
            side = [index for index in range(8) if np.sign(vertices[index, axis]) == sign]
            a, b, c, d = side[0], side[1], side[3], side[2]
            for triangle in ([a, b, c], [a, c, d]):
                p, q, r = vertices[triangle]
                outward = np.cross(q - p, r - p)[axis] * sign > 0
                faces.append(triangle if outward else triangle[::-1])
    return mesh_of(vertices, np.array(faces), some_colors(8))


def textured_box() -> TexturedMesh:
    """The box cut into its six sides, each in a cell of the atlas with one color."""
    vertices, normals, faces, uv = [], [], [], []
    for number, side in enumerate(SIDES):
        axis = int(np.abs(side).argmax())
        across, up = np.eye(3)[[(axis + 1) % 3, (axis + 2) % 3]] * HALF[:, None].T
        column, row = number % 3, number // 3
        for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)):
            vertices.append(side * HALF + (2 * u - 1) * across + (2 * v - 1) * up)
            normals.append(side.astype(float))
            uv.append([(column + 0.1 + 0.8 * u) / 3, 1 - (row + 0.9 - 0.8 * v) / 2])
        corners = 4 * number + np.array([[0, 1, 2], [0, 2, 3]])
        faces.extend(corners if side[axis] > 0 else corners[:, ::-1])
    texture = COLORS.reshape(2, 3, 3).repeat(CELL, 0).repeat(CELL, 1)
    mesh = Mesh(vertices=np.array(vertices), faces=np.array(faces), normals=np.array(normals))
    return TexturedMesh(mesh=mesh, uv=np.array(uv), texture=texture)


def icosphere(level: int = 2, radius: float = 0.8) -> Mesh:
    """A sphere of 20 * 4^level faces."""
    golden = (1 + 5**0.5) / 2
    corners = [(a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    vertices = [p for a, b in corners for p in ([0, a, b], [a, b, 0], [b, 0, a])]
    points = np.array(vertices, float)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    near = np.abs(distance - 2) < 1e-9
    faces = np.array(
        [
            (i, j, k) if np.linalg.det(points[[i, j, k]]) > 0 else (i, k, j)
            for i in range(12)
            for j in range(i + 1, 12)
            for k in range(j + 1, 12)
            if near[i, j] and near[j, k] and near[i, k]
        ]
    )
    for _ in range(level):
        edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        unique, inverse = np.unique(edges, axis=0, return_inverse=True)
        middle = len(points) + inverse.reshape(-1, 3)
        points = np.vstack([points, points[unique].mean(axis=1)])
        a, b, c = faces.T
        ab, bc, ca = middle.T
        faces = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=1).reshape(-1, 3)
    points *= radius / np.linalg.norm(points, axis=1, keepdims=True)
    return mesh_of(points, faces, some_colors(len(points)))


def torus(around: int = 48, across: int = 24, radius: float = 0.5, tube: float = 0.2) -> Mesh:
    """A torus around z of 2 * around * across faces."""
    u, v = (np.arange(n) * 2 * np.pi / n for n in (around, across))
    u, v = (grid.reshape(-1) for grid in np.meshgrid(u, v, indexing="ij"))
    ring = radius + tube * np.cos(v)
    vertices = np.stack([ring * np.cos(u), ring * np.sin(u), tube * np.sin(v)], axis=1)
    i, j = (grid.reshape(-1) for grid in np.meshgrid(np.arange(around), np.arange(across), indexing="ij"))
    corner = [((i + a) % around) * across + (j + b) % across for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
    faces = np.concatenate(
        [np.stack([corner[0], corner[1], corner[2]], 1), np.stack([corner[0], *corner[2:]], 1)]
    )
    return mesh_of(vertices, faces, some_colors(len(vertices)))


def joined(*meshes: Mesh) -> Mesh:
    """Several meshes as one."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    return Mesh(
        vertices=np.vstack([mesh.vertices for mesh in meshes]),
        faces=np.vstack([mesh.faces + start for mesh, start in zip(meshes, starts[:-1], strict=True)]),
        normals=np.vstack([mesh.normals for mesh in meshes]),
    )


def moved(mesh: Mesh, offset: tuple[float, float, float] = (0, 0, 0), scale: float = 1.0) -> Mesh:
    return Mesh(
        vertices=mesh.vertices * scale + np.array(offset),
        faces=mesh.faces,
        normals=mesh.normals,
        colors=mesh.colors,
    )


def with_faces(mesh: Mesh, faces: np.ndarray) -> Mesh:
    return Mesh(vertices=mesh.vertices, faces=faces, normals=mesh.normals, colors=mesh.colors)


def textured_asset(source: Source = SOURCE) -> Asset:
    return Asset(mesh=box(), textured=textured_box(), source=source)


def plain_asset(mesh: Mesh | None = None, source: Source = SOURCE) -> Asset:
    return Asset(mesh=mesh or torus(), textured=None, source=source)
