"""GLB: glTF 2.0 in one file, with the texture inside.

Not written by trimesh, which rounds vertex colors to 8 bits of linear light (an error of up to 6 of 255 in
dark sRGB colors), and lets the normals of a unit sphere share the buffer view of its positions, which is
invalid.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from amortized.assets.checks import check_asset
from amortized.assets.conventions import (
    DEFAULTS,
    GENERATOR,
    ROUGHNESS,
    FileOptions,
    metadata,
    png,
    scale_of,
    to_linear,
    unit,
    visible_mesh,
    y_up,
)
from amortized.assets.mesh import Asset

MAGIC, JSON_CHUNK, BINARY_CHUNK = b"glTF", b"JSON", b"BIN\0"
FLOAT, UNSIGNED_INT = 5126, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
SAMPLER = {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}  # trilinear, clamped


def write_glb(asset: Asset, options: FileOptions = DEFAULTS) -> bytes:
    """Return the asset as GLB: y up, front +z, meters; with its texture, or linear vertex colors."""
    check_asset(asset)
    mesh, textured = visible_mesh(asset), asset.textured
    attributes = {
        "POSITION": y_up(mesh.vertices) * scale_of(mesh, options),
        "NORMAL": y_up(unit(mesh.normals)),
    }
    if textured:
        attributes["TEXCOORD_0"] = textured.uv * [1, -1] + [0, 1]  # glTF's v points down
    elif mesh.colors is not None:
        attributes["COLOR_0"] = to_linear(mesh.colors)
    arrays = {name: np.ascontiguousarray(array, "<f4") for name, array in attributes.items()}

    parts = [array.tobytes() for array in arrays.values()]
    targets: list[int | None] = [ARRAY_BUFFER] * len(parts)
    accessors = [accessor(index, array) for index, array in enumerate(arrays.values())]
    position = arrays["POSITION"]
    accessors[0] |= {"min": position.min(0).tolist(), "max": position.max(0).tolist()}

    parts.append(mesh.faces.astype("<u4").tobytes())
    targets.append(ELEMENT_ARRAY_BUFFER)
    indices = {"bufferView": len(accessors), "componentType": UNSIGNED_INT, "type": "SCALAR"}
    accessors.append(indices | {"count": mesh.faces.size})

    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": ROUGHNESS}
    material: dict[str, Any] = {"name": "asset", "pbrMetallicRoughness": surface}
    primitive = {"attributes": {name: index for index, name in enumerate(arrays)}, "material": 0}
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": GENERATOR, "extras": metadata(asset.source)},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "asset"}],
        "meshes": [{"name": "asset", "primitives": [primitive | {"indices": len(accessors) - 1}]}],
        "materials": [material],
        "accessors": accessors,
    }
    if textured:
        surface["baseColorTexture"] = {"index": 0}
        tree["textures"] = [{"source": 0, "sampler": 0}]
        tree["samplers"] = [SAMPLER]
        tree["images"] = [{"bufferView": len(parts), "mimeType": "image/png", "name": "texture"}]
        parts.append(png(textured.texture))
        targets.append(None)
    if options.unlit:
        material["extensions"] = {"KHR_materials_unlit": {}}
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
    return container(tree, parts, targets)


def accessor(view: int, array: np.ndarray) -> dict[str, Any]:
    """Describe an array [N, 2] or [N, 3] of float32 that fills a buffer view."""
    return {
        "bufferView": view,
        "componentType": FLOAT,
        "type": f"VEC{array.shape[1]}",
        "count": len(array),
    }


def container(tree: dict[str, Any], parts: list[bytes], targets: list[int | None]) -> bytes:
    """Return the file: a header, the tree as JSON, and the parts as one buffer with a view for each."""
    views, buffer = [], bytearray()
    for part, target in zip(parts, targets, strict=True):
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(buffer), "byteLength": len(part)}
        views.append(view | ({"target": target} if target else {}))
        buffer += part + bytes(-len(part) % 4)
    tree = tree | {"buffers": [{"byteLength": len(buffer)}], "bufferViews": views}
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), JSON_CHUNK) + text
    chunks += struct.pack("<I4s", len(buffer), BINARY_CHUNK) + buffer
    return struct.pack("<4sII", MAGIC, 2, 12 + len(chunks)) + chunks
