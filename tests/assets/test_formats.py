"""Every format reads back: the arrays, axes, unit, colors and metadata that were written."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from amortized.assets import FORMATS, SUFFIXES, Asset, AssetError, Mesh, TexturedMesh, save_asset
from amortized.assets.conventions import FileOptions, to_linear
from tests.assets.meshes import (
    COLORS,
    HALF,
    SIDES,
    SOURCE,
    icosphere,
    mesh_of,
    plain_asset,
    textured_asset,
    torus,
)
from tests.assets.readers import read_glb, side_colors, to_srgb

EXPECTED = {tuple(side.tolist()): tuple(color.tolist()) for side, color in zip(SIDES, COLORS, strict=True)}


def gltf_axes(vectors: np.ndarray) -> np.ndarray:
    """The documented turn, as a matrix: our +x (front) to +z, +y (left) to +x, +z (up) to +y."""
    turn = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert np.linalg.det(turn) == pytest.approx(1)
    return vectors @ turn.T


TURNED = {tuple(int(v) for v in gltf_axes(np.array(side))): color for side, color in EXPECTED.items()}


def load(data: bytes, kind: str) -> trimesh.Trimesh:
    loaded = trimesh.load(io.BytesIO(data), file_type=kind, process=False)
    if isinstance(loaded, trimesh.Scene):
        (loaded,) = loaded.geometry.values()
    return loaded


def unpacked(data: bytes) -> dict[str, bytes]:
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    return {name: archive.read(name) for name in archive.namelist()}


def load_obj(data: bytes, folder: Path) -> trimesh.Trimesh:
    for name, content in unpacked(data).items():
        (folder / name).write_bytes(content)
    (path,) = folder.glob("*.obj")
    return trimesh.load(path, process=False, maintain_order=True)


# ---- textures ----------------------------------------------------------------------------------


def test_glb_keeps_arrays_and_the_colors_of_the_sides() -> None:
    asset, data = textured_asset(), FORMATS["glb"](textured_asset())
    mesh = asset.textured.mesh
    tree, arrays = read_glb(data)
    assert np.array_equal(arrays["POSITION"], gltf_axes(mesh.vertices).astype(np.float32))
    assert np.array_equal(arrays["NORMAL"], gltf_axes(mesh.normals).astype(np.float32))
    assert np.array_equal(arrays["indices"], mesh.faces)
    assert np.array_equal(arrays["image"], asset.textured.texture)
    uv = arrays["TEXCOORD_0"] * [1, -1] + [0, 1]
    assert side_colors(arrays["POSITION"], arrays["indices"], uv, arrays["image"]) == TURNED
    assert TURNED[(0, 0, 1)] == EXPECTED[(1, 0, 0)]  # the front faces +z

    other = load(data, "glb")
    assert np.allclose(other.vertices, gltf_axes(mesh.vertices)) and np.array_equal(other.faces, mesh.faces)
    assert np.allclose(other.vertex_normals, gltf_axes(mesh.normals))
    material = other.visual.material
    assert (material.metallicFactor, material.roughnessFactor) == (0.0, 0.8)
    image = np.asarray(material.baseColorTexture.convert("RGB"))
    assert side_colors(other.vertices, other.faces, other.visual.uv, image) == TURNED


def test_obj_keeps_the_colors_of_the_sides_and_names_its_files(tmp_path: Path) -> None:
    asset = textured_asset()
    data = FORMATS["obj"](asset)
    names = sorted(unpacked(data))
    assert [Path(name).suffix for name in names] == [".mtl", ".obj", ".png"]
    assert len({Path(name).stem for name in names}) == 1
    mesh = load_obj(data, tmp_path)
    assert len(mesh.vertices) == 24
    image = np.asarray(mesh.visual.material.image.convert("RGB"))
    assert side_colors(mesh.vertices, mesh.faces, mesh.visual.uv, image) == TURNED
    assert np.allclose(np.ptp(mesh.vertices, axis=0), 2 * HALF[[1, 2, 0]])
    assert np.allclose(mesh.vertex_normals, gltf_axes(asset.textured.mesh.normals))


def test_archives_of_different_objects_unpack_into_one_folder() -> None:
    one = set(unpacked(FORMATS["obj"](textured_asset())))
    other = set(unpacked(FORMATS["obj"](plain_asset())))
    assert not one & other


# ---- colors of vertices ------------------------------------------------------------------------


def test_glb_vertex_colors_are_linear_and_exact() -> None:
    mesh = torus()
    _, arrays = read_glb(FORMATS["glb"](plain_asset(mesh)))
    assert mesh.colors is not None and {*np.round(mesh.colors[:, 0] * 255)} == {*range(256)}
    assert np.abs(to_srgb(arrays["COLOR_0"]) - mesh.colors * 255).max() < 0.01
    assert "image" not in arrays and "TEXCOORD_0" not in arrays


def test_to_linear_has_the_values_of_the_standard() -> None:
    """IEC 61966-2-1: the ends, both sides of the linear part's end, middle gray."""
    values = to_linear(np.array([0, 1, 0.04045, 0.5, -0.1, 1.2]))
    assert values == pytest.approx([0, 1, 0.0031308, 0.2140411, 0, 1], abs=1e-6)


def test_ply_keeps_arrays_axes_and_colors() -> None:
    mesh = torus()
    other = load(FORMATS["ply"](plain_asset(mesh)), "ply")
    assert np.array_equal(other.vertices, mesh.vertices.astype(np.float32))
    assert np.array_equal(other.faces, mesh.faces)
    assert np.allclose(other.vertex_normals, mesh.normals, atol=1e-6)
    assert np.array_equal(other.visual.vertex_colors[:, :3], np.round(mesh.colors * 255))
    assert other.is_watertight


def test_obj_without_a_texture_has_vertex_colors(tmp_path: Path) -> None:
    mesh = torus()
    other = load_obj(FORMATS["obj"](plain_asset(mesh)), tmp_path)
    assert np.allclose(other.vertices, gltf_axes(mesh.vertices), atol=1e-7)
    assert np.abs(other.visual.vertex_colors[:, :3] - mesh.colors * 255).max() <= 1


@pytest.mark.parametrize("format", FORMATS)
def test_colors_are_optional(format: str) -> None:
    mesh = torus()
    plain = Mesh(vertices=mesh.vertices, faces=mesh.faces, normals=mesh.normals)
    assert len(FORMATS[format](plain_asset(plain))) > 1000


def test_normals_equal_to_positions_have_their_own_buffer_view() -> None:
    """One view for two attributes of one mesh is invalid without a stride."""
    sphere = icosphere(radius=1.0)
    same = Mesh(vertices=sphere.vertices, faces=sphere.faces, normals=sphere.vertices)
    tree, arrays = read_glb(FORMATS["glb"](plain_asset(same)))
    assert np.array_equal(arrays["POSITION"], arrays["NORMAL"])
    views = [accessor["bufferView"] for accessor in tree["accessors"]]
    assert len(views) == len(set(views))


# ---- units and options -------------------------------------------------------------------------


@pytest.mark.parametrize("size_m", [None, 0.25, 3.0])
@pytest.mark.parametrize("format", ["glb", "obj"])
def test_size_in_meters_is_the_longest_side(format: str, size_m: float | None, tmp_path: Path) -> None:
    data = FORMATS[format](textured_asset(), FileOptions(size_m=size_m))
    mesh = load(data, "glb") if format == "glb" else load_obj(data, tmp_path)
    expected = 2 * HALF[[1, 2, 0]] * (1 if size_m is None else size_m / (2 * HALF.max()))
    assert np.allclose(np.ptp(mesh.vertices, axis=0), expected, rtol=1e-6)


@pytest.mark.parametrize("unlit", [False, True])
@pytest.mark.parametrize("make", [textured_asset, plain_asset])
def test_glb_describes_itself(make: Callable[[], Asset], unlit: bool) -> None:
    tree, _ = read_glb(FORMATS["glb"](make(), FileOptions(unlit=unlit)))
    assert tree["asset"]["generator"].startswith("Amortized3D ")
    expected = {"prompt": "a red cube", "seed": "7", "checkpoint": "quickstart@1a2b", "license": "CC-BY-4.0"}
    assert tree["asset"]["extras"] == expected
    assert ("KHR_materials_unlit" in tree["materials"][0].get("extensions", {})) == unlit
    assert tree.get("extensionsUsed", []) == ["KHR_materials_unlit"] * unlit
    targets = [view.get("target") for view in tree["bufferViews"]]
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    assert targets == [34962] * len(attributes) + [34963] + [None] * ("images" in tree)


@pytest.mark.parametrize("format", FORMATS)
def test_equal_assets_give_equal_bytes(format: str) -> None:
    data = FORMATS[format](textured_asset())
    assert FORMATS[format](textured_asset()) == data
    if data.startswith(b"PK"):
        members = zipfile.ZipFile(io.BytesIO(data)).infolist()
        assert {member.date_time[0] for member in members} <= {1980, 2000}  # not the time of writing


# ---- saving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_save_asset_adds_the_suffix_and_replaces(format: str, tmp_path: Path) -> None:
    path = save_asset(textured_asset(), tmp_path / "new" / "cube.v1", format)
    assert path == tmp_path / "new" / f"cube.v1{SUFFIXES[format]}"
    assert save_asset(textured_asset(), path, format) == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == FORMATS[format](textured_asset())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "cube.stl"
    path.write_text("old")
    mesh = torus()
    opened = Mesh(vertices=mesh.vertices, faces=mesh.faces[1:], normals=mesh.normals)
    with pytest.raises(AssetError, match="cube.stl: cannot write STL: the surface is not closed"):
        save_asset(plain_asset(opened), path, "stl")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_unknown_formats_and_wrong_options_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format='fbx' is unknown: use one of glb, ply, obj, stl, 3mf, usdz"):
        save_asset(textured_asset(), tmp_path / "a", "fbx")
    for name, value in [("size_m", 0.0), ("size_m", float("nan")), ("height_mm", -1.0)]:
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            save_asset(textured_asset(), tmp_path / "a", "glb", **{name: value})
    assert not list(tmp_path.iterdir())


def damaged() -> dict[str, tuple[Asset, str]]:
    good, mesh = textured_asset(), torus()
    textured = good.textured
    nan = mesh.vertices.copy()
    nan[3] = np.nan
    wrong = {
        "empty": (Mesh(vertices=mesh.vertices, faces=mesh.faces[:0], normals=mesh.normals), "has no faces"),
        "nan": (Mesh(vertices=nan, faces=mesh.faces, normals=mesh.normals), "not finite"),
        "point": (Mesh(vertices=mesh.vertices * 0, faces=mesh.faces, normals=mesh.normals), "no extent"),
        "normals": (Mesh(vertices=mesh.vertices, faces=mesh.faces, normals=mesh.normals * 0), "normals"),
    }
    assets = {name: (plain_asset(broken), words) for name, (broken, words) in wrong.items()}
    texture = TexturedMesh(mesh=textured.mesh, uv=textured.uv, texture=textured.texture[..., :1])
    assets["texture"] = (Asset(mesh=good.mesh, textured=texture, source=SOURCE), "texture must be")
    uv = TexturedMesh(mesh=textured.mesh, uv=textured.uv[1:], texture=textured.texture)
    assets["uv"] = (Asset(mesh=good.mesh, textured=uv, source=SOURCE), "uv must be")
    return assets


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", damaged())
def test_damaged_assets_raise_one_sentence(name: str, format: str) -> None:
    asset, words = damaged()[name]
    with pytest.raises(AssetError, match=words) as error:
        FORMATS[format](asset)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_flat_object_is_written_but_not_printed() -> None:
    flat = mesh_of(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]))
    assert json.loads(json.dumps(read_glb(FORMATS["glb"](plain_asset(flat)))[0]))
    with pytest.raises(AssetError, match="flat"):
        FORMATS["stl"](plain_asset(flat))
