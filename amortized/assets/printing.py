"""STL and 3MF, for printers: millimeters, z up, one solid body."""

from __future__ import annotations

from xml.sax.saxutils import escape

import numpy as np

from amortized.assets.checks import check_asset, check_surface
from amortized.assets.conventions import DEFAULTS, GENERATOR, FileOptions, library, metadata, zip_file
from amortized.assets.mesh import Asset, AssetError
from amortized.wording import count

CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
MODEL_TYPE = "application/vnd.ms-package.3dmanufacturing-3dmodel+xml"
RELATIONS_TYPE = "application/vnd.openxmlformats-package.relationships+xml"
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'


def write_stl(asset: Asset, options: FileOptions = DEFAULTS) -> bytes:
    """Return the asset as binary STL. Raises AssetError if it cannot be printed; see `printable`."""
    vertices, faces = printable(asset, options.height_mm, "STL")
    corners = vertices[faces]  # [F, 3, 3]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    triangles = np.zeros(len(faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("extra", "<u2")])
    triangles["normal"] = normals / np.where(lengths > 0, lengths, 1)
    triangles["corners"] = corners
    # Some readers take a header that starts with "solid" for a text file.
    header = f"{GENERATOR}, millimeters, z up".encode("ascii").ljust(80)
    return header + np.uint32(len(faces)).astype("<u4").tobytes() + triangles.tobytes()


def write_3mf(asset: Asset, options: FileOptions = DEFAULTS) -> bytes:
    """Return the asset as 3MF, with its prompt as the title.

    Raises AssetError if it cannot be printed; see `printable`.
    """
    vertices, faces = printable(asset, options.height_mm, "3MF")
    values = metadata(asset.source)
    details = [f"{name} {values[name]}" for name in ("seed", "checkpoint") if name in values]
    # Names without a namespace are restricted to a list, of which these are.
    named = {
        "Title": values.get("prompt", ""),
        "Description": ", ".join(details),
        "LicenseTerms": values.get("license", ""),
        "Application": GENERATOR,
    }
    entries = [f'<metadata name="{name}">{escape(text)}</metadata>' for name, text in named.items() if text]
    points = '<vertex x="%.9g" y="%.9g" z="%.9g"/>\n' * len(vertices) % tuple(vertices.ravel().tolist())
    corners = '<triangle v1="%d" v2="%d" v3="%d"/>\n' * len(faces) % tuple(faces.ravel().tolist())
    model = (
        f'{XML}<model unit="millimeter" xml:lang="en-US" xmlns="{CORE}">\n{"".join(entries)}\n'
        f'<resources><object id="1" type="model"><mesh>\n<vertices>\n{points}</vertices>\n'
        f"<triangles>\n{corners}</triangles>\n</mesh></object></resources>\n"
        '<build><item objectid="1"/></build>\n</model>\n'
    )
    types = "".join(
        f'<Default Extension="{extension}" ContentType="{kind}"/>'
        for extension, kind in (("rels", RELATIONS_TYPE), ("model", MODEL_TYPE))
    )
    relation = (
        '<Relationship Id="model" Target="/3D/3dmodel.model" '
        'Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/>'
    )
    parts = {
        "[Content_Types].xml": f'{XML}<Types xmlns="{PACKAGE}/content-types">{types}</Types>',
        "_rels/.rels": f'{XML}<Relationships xmlns="{PACKAGE}/relationships">{relation}</Relationships>',
        "3D/3dmodel.model": model,
    }
    return zip_file({name: text.encode() for name, text in parts.items()})


def printable(asset: Asset, height_mm: float, format: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [V, 3] float32 in mm and faces [F, 3] of an asset's printable mesh, else of its closed mesh.

    The lowest corner of the bounding box is at the origin. Vertices that coincide after rounding to float32
    are welded, as a reader of STL does. Raises AssetError if the surface is not closed, has several bodies
    (a cavity is one too), faces inward, or is not a manifold.
    """
    check_asset(asset)
    manifold3d = library("manifold3d", "manifold3d", "assets", f"{format} (a check of the solid)")
    mesh = asset.printable or asset.mesh
    extent = np.ptp(mesh.vertices, axis=0)
    if not extent[2] > 0:
        raise AssetError(f"cannot write {format}: the object is flat (height 0): write GLB or PLY")
    scaled = (mesh.vertices - mesh.vertices.min(0)) * (height_mm / extent[2])
    vertices, faces = weld(scaled.astype(np.float32), mesh.faces)
    if problem := solid_problem(vertices, faces):
        raise AssetError(f"cannot write {format}: {problem}, or write GLB or PLY")
    shape = manifold3d.Manifold(manifold3d.Mesh(vertices, faces.astype(np.uint32)))
    if shape.status() != manifold3d.Error.NoError:
        raise AssetError(
            f"cannot write {format}: the surface is not a manifold ({shape.status().name}); extract it with "
            "another resolution, or write GLB or PLY"
        )
    return vertices, faces


def solid_problem(vertices: np.ndarray, faces: np.ndarray) -> str:
    """Why triangles are not the surface of one solid body, with a remedy; empty if they are one."""
    report = check_surface(vertices, faces)
    if not report["watertight"]:
        edges = report["open_edges"] + report["shared_edges"]
        verb = "is" if edges == 1 else "are"
        return (
            f"the surface is not closed ({count(edges, 'edge')} {verb} not between exactly two faces); "
            "extract it with another resolution"
        )
    if not report["winding_consistent"]:
        return "neighboring faces have opposite directions; reverse the vertices of those that face inward"
    if report["bodies"] > 1:
        bodies = f"{report['bodies']:,} separate bodies or cavities"
        return f"the surface has {bodies}; extract it with printable=true"
    if not report["volume"] > 0:
        return "its faces point inward or enclose no volume; reverse the vertex order of all faces"
    return ""


def weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge equal vertices and drop the faces that collapse; without equal vertices, return the input."""
    unique, inverse = np.unique(vertices, axis=0, return_inverse=True)
    if len(unique) == len(vertices):
        return vertices, faces
    faces = inverse.reshape(-1)[faces]
    collapsed = (faces == np.roll(faces, 1, axis=1)).any(axis=1)
    return unique, faces[~collapsed]
