"""Small readers of the formats, independent of the writers."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
from PIL import Image

WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}
KIND = {5125: "<u4", 5126: "<f4"}


def read_glb(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON of a GLB file and its arrays by name: attributes, `indices`, `image` [H, W, 3]."""
    magic, version, length, json_length, json_type = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, json_type) == (b"glTF", 2, len(data), b"JSON")
    assert length % 4 == json_length % 4 == 0
    tree = json.loads(data[20 : 20 + json_length])
    start = 20 + json_length
    size, kind = struct.unpack_from("<I4s", data, start)
    buffer = data[start + 8 :]
    assert kind == b"BIN\0" and size == len(buffer) == tree["buffers"][0]["byteLength"]

    def view(index: int) -> bytes:
        described = tree["bufferViews"][index]
        assert described["byteOffset"] % 4 == 0
        return buffer[described["byteOffset"] :][: described["byteLength"]]

    def array(index: int) -> np.ndarray:
        accessor = tree["accessors"][index]
        values = np.frombuffer(view(accessor["bufferView"]), KIND[accessor["componentType"]])
        assert len(values) == accessor["count"] * WIDTH[accessor["type"]]
        return values.reshape(accessor["count"], -1)

    primitive = tree["meshes"][0]["primitives"][0]
    arrays = {name: array(index) for name, index in primitive["attributes"].items()}
    arrays["indices"] = array(primitive["indices"]).reshape(-1, 3)
    if "images" in tree:
        encoded = view(tree["images"][0]["bufferView"])
        arrays["image"] = np.asarray(Image.open(io.BytesIO(encoded)))
    return tree, arrays


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """sRGB in [0, 255] of linear light in [0, 1]."""
    low, high = linear * 12.92, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, low, high) * 255


def side_colors(
    vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, image: np.ndarray
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The color of each side of a box by its outward axis, e.g. (0, 0, 1): texels under the faces' centers.

    `uv` has v up; row 0 of `image` is the top. The outward axis is that of the faces' winding.
    """
    colors: dict[tuple[int, ...], tuple[int, ...]] = {}
    for face in faces:
        a, b, c = vertices[face]
        across = np.cross(b - a, c - a)
        axis = tuple(int(value) for value in np.round(across / np.abs(across).max()))
        u, v = uv[face].mean(axis=0)
        height, width = image.shape[:2]
        texel = tuple(int(value) for value in image[int((1 - v) * height), int(u * width)])
        assert colors.setdefault(axis, texel) == texel
        assert np.dot(across, (a + b + c)) > 0  # outward
    return colors
