"""GLB files that others made: those of trimesh and our own writer read back, damaged ones are refused."""

from __future__ import annotations

import io
import json
import random
import struct

import numpy as np
import pytest
import trimesh
from PIL import Image

from amortized.assets.conventions import FileOptions, to_linear
from amortized.assets.glb import write_glb
from amortized.assets.read_glb import parse_glb, read_glb
from tests.assets.meshes import plain_asset, textured_asset


def chunks(data: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def glb(tree: dict, binary: bytes) -> bytes:
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    parts = (
        struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    )
    return struct.pack("<4sII", b"glTF", 2, 12 + len(parts)) + parts


def test_our_own_files_read_back() -> None:
    plain = plain_asset()
    (part,) = parse_glb(write_glb(plain, FileOptions()), "it")
    assert np.allclose(part.vertices, plain.mesh.vertices, atol=1e-6) and part.texture is None
    assert np.array_equal(part.faces, plain.mesh.faces)
    assert np.allclose(part.colors, to_linear(plain.mesh.colors), atol=1e-6)
    textured = textured_asset()
    (part,) = parse_glb(write_glb(textured, FileOptions()), "it")
    assert np.array_equal(part.texture, textured.textured.texture)
    assert np.allclose(part.uv, textured.textured.uv * [1, -1] + [0, 1], atol=1e-6)
    assert np.allclose(part.factor, 1) and not part.both_sides


@pytest.mark.parametrize("seed", range(4))
def test_scenes_of_trimesh_have_their_triangles_in_place(seed, tmp_path) -> None:
    rng = np.random.default_rng(seed)
    scene = trimesh.Scene()
    parent = None
    for number in range(3):
        mesh = trimesh.creation.box(rng.random(3) + 0.1)
        place = trimesh.transformations.random_rotation_matrix(rng.random(3))
        place[:3, :3] *= rng.random() + 0.5
        place[:3, 3] = rng.normal(size=3)
        if number == 2:
            place[:3, 0] *= -1  # a mirror image
        scene.add_geometry(mesh, node_name=f"n{number}", parent_node_name=parent, transform=place)
        parent = f"n{number}"
    path = tmp_path / "scene.glb"
    scene.export(path)
    parts = read_glb(path)
    expected = scene.to_mesh().triangles[..., [2, 0, 1]].mean(1)
    found = np.concatenate([part.vertices[part.faces].mean(1) for part in parts])
    apart = np.linalg.norm(found[:, None] - expected, axis=-1)
    assert len(found) == len(expected) == 36 and apart.min(0).max() < 1e-5 > apart.min(1).max()
    for part in parts:  # outward: the volume is positive
        corners = part.vertices[part.faces] - part.vertices.mean(0)
        assert np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) > 0


def test_a_material_of_trimesh_reads_back(tmp_path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    mesh = trimesh.creation.box()
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=picture, baseColorFactor=[128, 255, 0, 255], doubleSided=True
    )
    mesh.visual = trimesh.visual.TextureVisuals(uv=np.random.default_rng(1).random((8, 2)), material=material)
    mesh.export(tmp_path / "box.glb")
    (part,) = read_glb(tmp_path / "box.glb")
    assert np.array_equal(part.texture, np.asarray(picture)) and part.both_sides
    assert np.allclose(part.factor, [128 / 255, 1, 0], atol=1e-6) and part.uv.shape == (8, 2)


def changed(change) -> bytes:
    tree, binary = chunks(write_glb(textured_asset(), FileOptions()))
    change(tree)
    return glb(tree, binary)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.update(extensionsRequired=["KHR_draco_mesh_compression"]), "the extension KHR_draco"),
        (lambda t: t["buffers"][0].update(uri="../../etc/passwd"), "its data are in another file"),
        (lambda t: t["images"][0].pop("bufferView"), "a texture is in another file"),
        (lambda t: t["images"][0].update(bufferView=0), "neither a valid PNG nor a valid JPEG"),
        (lambda t: t["accessors"][0].update(sparse={}), "sparse data"),
        (lambda t: t["meshes"][0]["primitives"][0].update(mode=1), "has no triangles"),
        (lambda t: t.update(scenes=[{}]), "has no triangles"),
        (lambda t: t["nodes"][0].update(children=[0]), "not a valid GLB"),
        (lambda t: t["nodes"][0].update(mesh=-1), "not a valid GLB"),
        (lambda t: t["nodes"][0].update(translation=[1e999, 0, 0]), "not a valid GLB"),
        (lambda t: t["accessors"][0].update(count=10**12), "not a valid GLB"),
        (lambda t: t["accessors"][0].update(byteOffset=-4), "not a valid GLB"),
        (lambda t: t["accessors"][0].update(count=3), "not a valid GLB"),
        (lambda t: t["bufferViews"][0].update(byteStride=1), "not a valid GLB"),
        (lambda t: t.update(nodes=7), "not a valid GLB"),
        (lambda t: t["materials"][0]["pbrMetallicRoughness"].update(baseColorFactor=[1]), "not a valid GLB"),
    ],
)
def test_other_files_are_one_sentence(change, sentence) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        parse_glb(changed(change), "there.glb")
    assert str(error.value).startswith("there.glb ") and "\n" not in str(error.value)


def test_damaged_files_are_read_or_refused_in_one_sentence() -> None:
    data, rng = write_glb(textured_asset(), FileOptions()), random.Random(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.randrange(1, 4)):
            if broken:
                broken[rng.randrange(min(len(broken), 1600))] = rng.randrange(256)
        try:
            parse_glb(bytes(broken), "there.glb")
        except ValueError as error:
            refused += 1
            assert str(error).startswith("there.glb ")
    assert refused > 100


def test_a_huge_picture_is_refused() -> None:
    tree, binary = chunks(write_glb(textured_asset(), FileOptions()))
    file = io.BytesIO()
    Image.new("1", (20_000, 8)).save(file, "PNG")
    tree["bufferViews"].append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(file.getvalue())})
    tree["images"][0]["bufferView"] = len(tree["bufferViews"]) - 1
    with pytest.raises(ValueError, match="a texture has more than 16,384 pixels on a side"):
        parse_glb(glb(tree, binary + file.getvalue()), "there.glb")
