"""STL and 3MF: millimeters, and one solid body or a sentence that says why not."""

from __future__ import annotations

import io
import struct
import xml.etree.ElementTree as ElementTree
import zipfile

import manifold3d
import numpy as np
import pytest
import trimesh

from amortized.assets import FORMATS, Asset, AssetError, Mesh, Source
from amortized.assets.conventions import FileOptions
from amortized.assets.printing import weld
from tests.assets.meshes import (
    SOURCE,
    box,
    icosphere,
    joined,
    moved,
    plain_asset,
    textured_asset,
    torus,
    with_faces,
)

CORE = "{http://schemas.microsoft.com/3dmanufacturing/core/2015/02}"
SPHERE, TORUS = icosphere(2), torus()
CAVITY = moved(SPHERE, scale=0.5)
CAVITY = with_faces(CAVITY, CAVITY.faces[:, ::-1])
FLIPPED = TORUS.faces.copy()
FLIPPED[7] = FLIPPED[7, ::-1]


def read_stl(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Normals [F, 3] and corners [F, 3, 3] of a binary STL file."""
    (count,) = struct.unpack_from("<I", data, 80)
    assert len(data) == 84 + 50 * count and not data.startswith(b"solid")
    rows = np.frombuffer(data, [("values", "<f4", (4, 3)), ("extra", "<u2")], offset=84)
    assert not rows["extra"].any()
    return rows["values"][:, 0], rows["values"][:, 1:]


def read_3mf(data: bytes) -> tuple[dict[str, str], np.ndarray, np.ndarray]:
    """Metadata, vertices and triangles of a 3MF file with one object."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    assert archive.namelist() == ["[Content_Types].xml", "_rels/.rels", "3D/3dmodel.model"]
    for name in archive.namelist():
        ElementTree.fromstring(archive.read(name))
    model = ElementTree.fromstring(archive.read("3D/3dmodel.model"))
    assert model.get("unit") == "millimeter"
    assert [item.get("objectid") for item in model.iter(f"{CORE}item")] == ["1"]
    named = {entry.get("name", ""): entry.text or "" for entry in model.iter(f"{CORE}metadata")}
    vertices = [[float(v.get(axis, "")) for axis in "xyz"] for v in model.iter(f"{CORE}vertex")]
    faces = [[int(t.get(f"v{i}", "")) for i in (1, 2, 3)] for t in model.iter(f"{CORE}triangle")]
    return named, np.array(vertices), np.array(faces)


def in_mm(mesh: Mesh, height_mm: float) -> np.ndarray:
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    return (mesh.vertices - low) / (high - low)[2] * height_mm


@pytest.mark.parametrize("height_mm", [0.5, 60.0, 250.0])
@pytest.mark.parametrize("mesh", [box(), SPHERE, TORUS], ids=["box", "sphere", "torus"])
def test_both_keep_every_triangle_in_millimeters(mesh: Mesh, height_mm: float) -> None:
    options, expected = FileOptions(height_mm=height_mm), in_mm(mesh, height_mm)
    normals, corners = read_stl(FORMATS["stl"](plain_asset(mesh), options))
    assert np.allclose(corners, expected[mesh.faces], rtol=1e-6, atol=1e-6 * height_mm)
    assert corners[..., 2].min() == 0 and corners[..., 2].max() == pytest.approx(height_mm)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).astype(float)
    assert np.allclose(normals, across / np.linalg.norm(across, axis=1, keepdims=True), atol=1e-3)

    _, vertices, faces = read_3mf(FORMATS["3mf"](plain_asset(mesh), options))
    assert np.array_equal(faces, mesh.faces)
    assert np.allclose(vertices, expected, rtol=1e-6, atol=1e-6 * height_mm)


@pytest.mark.parametrize("format", ["stl", "3mf"])
def test_other_libraries_read_the_same_solid(format: str) -> None:
    data = FORMATS[format](plain_asset(TORUS))
    loaded = trimesh.load(io.BytesIO(data), file_type=format)
    other = loaded.to_mesh() if isinstance(loaded, trimesh.Scene) else loaded
    assert other.is_watertight and other.is_winding_consistent and other.euler_number == 0
    expected = trimesh.Trimesh(in_mm(TORUS, 60.0), TORUS.faces, process=False)
    assert other.volume == pytest.approx(expected.volume, rel=1e-5)
    assert np.ptp(other.vertices, axis=0)[2] == pytest.approx(60.0)


@pytest.mark.parametrize("format", ["stl", "3mf"])
def test_the_closed_mesh_is_printed_not_the_textured_one(format: str) -> None:
    data = FORMATS[format](textured_asset())
    loaded = trimesh.load(io.BytesIO(data), file_type=format)
    other = loaded.to_mesh() if isinstance(loaded, trimesh.Scene) else loaded
    assert other.is_watertight and len(other.vertices) == 8


@pytest.mark.parametrize("format", ["stl", "3mf"])
def test_the_printable_mesh_comes_first(format: str) -> None:
    asset = Asset(mesh=joined(SPHERE, CAVITY), textured=None, printable=TORUS, source=SOURCE)
    assert FORMATS[format](asset) == FORMATS[format](plain_asset(TORUS))


def test_3mf_metadata() -> None:
    named, _, _ = read_3mf(FORMATS["3mf"](plain_asset(TORUS)))
    assert named.pop("Application").startswith("Amortized3D ")
    assert named == {
        "Title": "a red cube",
        "Description": "seed 7, checkpoint quickstart@1a2b",
        "LicenseTerms": "CC-BY-4.0",
    }
    named, _, _ = read_3mf(FORMATS["3mf"](plain_asset(TORUS, Source(prompt=""))))
    assert set(named) == {"Description", "Application"}


REFUSED = {
    "hole": (with_faces(TORUS, TORUS.faces[1:]), "not closed (3 edges are not", "resolution"),
    "doubled face": (
        with_faces(TORUS, np.vstack([TORUS.faces, TORUS.faces[:1]])),
        "not closed",
        "resolution",
    ),
    "one face flipped": (with_faces(TORUS, FLIPPED), "opposite directions", "reverse"),
    "inward": (with_faces(TORUS, TORUS.faces[:, ::-1]), "inward", "reverse"),
    "two bodies": (joined(SPHERE, moved(SPHERE, (3, 0, 0))), "2 separate bodies", "printable=true"),
    "cavity": (joined(SPHERE, CAVITY), "2 separate bodies or cavities", "printable=true"),
    # Cubes that share the positions of one edge: a reader of STL merges them.
    "touching edges": (joined(box(), moved(box(), (0.6, 1.0, 0))), "not closed (1 edge is not", "resolution"),
}


@pytest.mark.parametrize("format", ["stl", "3mf"])
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_is_not_one_solid_body(name: str, format: str) -> None:
    mesh, reason, remedy = REFUSED[name]
    with pytest.raises(AssetError) as error:
        FORMATS[format](plain_asset(mesh))
    text = str(error.value)
    assert text.startswith(f"cannot write {format.upper()}: ") and reason in text and remedy in text
    assert text.endswith(", or write GLB or PLY") and "\n" not in text and len(text) < 250
    for other in ("glb", "ply", "obj"):
        assert FORMATS[other](plain_asset(mesh))


def test_manifold3d_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the counts say, its verdict is final, and its reason is in the message."""
    open_solid = manifold3d.Manifold(
        manifold3d.Mesh(*(np.float32(TORUS.vertices), np.uint32(TORUS.faces[1:])))
    )
    assert open_solid.status() == manifold3d.Error.NotManifold
    monkeypatch.setattr(manifold3d, "Manifold", lambda mesh: open_solid)
    with pytest.raises(AssetError, match=r"not a manifold \(NotManifold\)"):
        FORMATS["stl"](plain_asset(TORUS))


def test_weld_merges_equal_positions_and_drops_collapsed_faces() -> None:
    corners = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    vertices, faces = weld(corners, np.array([[0, 1, 2], [1, 2, 3], [0, 3, 1]]))
    assert len(vertices) == 3 and len(faces) == 2
    assert {tuple(map(tuple, vertices[face])) for face in faces} == {
        tuple(map(tuple, corners[face])) for face in ([0, 1, 2], [0, 3, 1])
    }
    same_vertices, same_faces = weld(np.float32(TORUS.vertices), TORUS.faces)
    assert np.array_equal(same_vertices, np.float32(TORUS.vertices)) and same_faces is TORUS.faces
