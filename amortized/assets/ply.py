"""PLY: the closed mesh with vertex colors, in the scene's axes and unit."""

from __future__ import annotations

import numpy as np

from amortized.assets.checks import check_asset
from amortized.assets.conventions import DEFAULTS, FileOptions, header_lines, to_bytes, unit
from amortized.assets.mesh import Asset

TYPES = {"<f4": "float", "u1": "uchar"}


def write_ply(asset: Asset, options: FileOptions = DEFAULTS) -> bytes:
    """Return the asset as binary PLY: z up, front +x, normals, 8-bit sRGB colors if the mesh has colors."""
    check_asset(asset)
    mesh = asset.mesh
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    columns = [*mesh.vertices.T, *unit(mesh.normals).T]
    if mesh.colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
        columns += list(to_bytes(mesh.colors).T)
    vertices = np.empty(len(mesh.vertices), fields)
    for (name, _), column in zip(fields, columns, strict=True):
        vertices[name] = column
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("indices", "<i4", 3)])
    faces["count"], faces["indices"] = 3, mesh.faces
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {line}" for line in header_lines(asset.source)),
        "comment axes: z up, front +x",
        f"element vertex {len(vertices)}",
        *(f"property {TYPES[kind]} {name}" for name, kind in fields),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return ("\n".join(header) + "\n").encode("ascii") + vertices.tobytes() + faces.tobytes()
