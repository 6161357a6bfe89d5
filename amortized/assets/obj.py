"""OBJ with its material and texture in one ZIP archive, as single files get separated."""

from __future__ import annotations

import hashlib

import numpy as np

from amortized.assets.checks import check_asset
from amortized.assets.conventions import (
    DEFAULTS,
    FileOptions,
    header_lines,
    png,
    scale_of,
    unit,
    visible_mesh,
    y_up,
    zip_file,
)
from amortized.assets.mesh import Asset

MATERIAL = "newmtl asset\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 1\n"


def write_obj(asset: Asset, options: FileOptions = DEFAULTS) -> bytes:
    """Return a ZIP archive of .obj, .mtl and .png: y up, front +z, meters. Equal assets give equal bytes.

    Without a texture, the .obj alone: vertex colors follow the positions, as sRGB in [0, 1].
    """
    check_asset(asset)
    mesh, textured = visible_mesh(asset), asset.textured
    vertices = y_up(mesh.vertices) * scale_of(mesh, options)
    if not textured and mesh.colors is not None:
        vertices = np.hstack([vertices, np.clip(mesh.colors, 0, 1)])
    body = lines("v", vertices)
    body += lines("vt", textured.uv) if textured else ""
    body += lines("vn", y_up(unit(mesh.normals)))
    body += "usemtl asset\n" if textured else ""
    corner = "{0}/{0}/{0}" if textured else "{0}//{0}"
    face = "f " + " ".join(corner.replace("0", str(index)) for index in range(3)) + "\n"
    body += "".join(face.format(*row) for row in (mesh.faces + 1).tolist())

    # The name differs for different assets, so that two archives can be unpacked into one folder.
    stem = f"asset-{hashlib.blake2b(body.encode(), digest_size=4).hexdigest()}"
    comments = [*header_lines(asset.source), "axes: y up, front +z; unit: meter"]
    head = "".join(f"# {line}\n" for line in comments)
    if not textured:
        return zip_file({f"{stem}.obj": (head + body).encode("ascii")})
    head += f"mtllib {stem}.mtl\n"
    return zip_file(
        {
            f"{stem}.obj": (head + body).encode("ascii"),
            f"{stem}.mtl": f"{MATERIAL}map_Kd {stem}.png\n".encode("ascii"),
            f"{stem}.png": png(textured.texture),
        }
    )


def lines(keyword: str, rows: np.ndarray) -> str:
    """One line per row [N, C]: the keyword and its numbers, which float32 reads back exactly."""
    row = keyword + " %.9g" * rows.shape[1] + "\n"
    return row * len(rows) % tuple(rows.astype(np.float32).ravel().tolist())
