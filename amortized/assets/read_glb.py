"""Read the shape and colors of a GLB that others made: glTF 2.0 in one file, without compression.

Only what shows is read: triangles, and the base color of their materials. No other file is followed.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amortized.untrusted import MiB, read_bytes, short

LIMIT = 1024 * MiB
MAX_SIDE = 16_384  # px, of a texture
MAX_VERTICES = 50_000_000
SUPPORTED = {"KHR_materials_unlit", "KHR_mesh_quantization"}  # if a file requires others, it cannot be read
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
TRIANGLES = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class PaintedPart:
    """Triangles of one material, in the scene's axes. The base color is the product of its three sources."""

    vertices: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [F, 3] int64, counter-clockwise as viewed from outside
    factor: np.ndarray  # [3] float64, linear light
    colors: np.ndarray | None = None  # [V, 3] float64, linear light
    uv: np.ndarray | None = None  # [V, 2] float64, with v down: (0, 0) is the corner of the texture's row 0
    texture: np.ndarray | None = None  # [H, W, 3] uint8, sRGB, which repeats; not None if there is `uv`
    both_sides: bool = False  # the inner side shows too


def read_glb(path: str | Path) -> list[PaintedPart]:
    """The parts of a GLB file. Raises ValueError if it is missing or damaged, or shows nothing."""
    return parse_glb(read_bytes(path, LIMIT), short(path))


def parse_glb(data: bytes, where: str) -> list[PaintedPart]:
    """The parts in the bytes of a GLB file; `where` names it in messages. See `read_glb`."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are refused
            parts = _bounded(_parts(_File(data)))
    except _Refused as error:
        raise ValueError(f"{where} cannot be shown: {error}") from None
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
        RecursionError,
    ) as error:
        raise ValueError(f"{where} is not a valid GLB file") from error
    if not sum(len(part.faces) for part in parts):
        raise ValueError(f"{where} cannot be shown: it has no triangles")
    return parts


def _bounded(parts: Iterator[PaintedPart]) -> list[PaintedPart]:
    """The parts; a few bytes can place one mesh many times."""
    read, vertices = [], 0
    for part in parts:
        read.append(part)
        vertices += len(part.vertices)
        if vertices > MAX_VERTICES:
            raise _Refused(f"it has more than {MAX_VERTICES:,} vertices")
    return read


class _Refused(Exception):
    """A valid file that is not read, with the reason."""


class _File:
    """The JSON of a GLB, and its binary chunk."""

    def __init__(self, data: bytes) -> None:
        magic, version, _, size, kind = struct.unpack_from("<4sIII4s", data)
        if (magic, version, kind) != (b"glTF", 2, b"JSON"):
            raise ValueError("not a GLB of glTF 2")
        self.tree: dict[str, Any] = json.loads(data[20 : 20 + size].decode("utf-8-sig"))
        self.binary = b""
        self.textures: dict[int, np.ndarray] = {}
        if len(data) >= 28 + size:
            length, kind = struct.unpack_from("<I4s", data, 20 + size)
            self.binary = data[28 + size : 28 + size + length] if kind == b"BIN\0" else b""
        if others := sorted({*self.tree.get("extensionsRequired", [])} - SUPPORTED):
            name = short(str(others[0]))
            raise _Refused(f"it requires the extension {name}: export it without compression")

    def entry(self, kind: str, index: Any) -> dict[str, Any]:
        """An entry of one of the lists; Python's negative indices are errors here."""
        if type(index) is not int or index < 0:
            raise ValueError(f"{kind} has no entry {index}")
        return self.tree[kind][index]

    def view(self, index: Any) -> tuple[bytes, int]:
        """The bytes of a view, and the distance of its elements, 0 if they are dense."""
        view = self.entry("bufferViews", index)
        buffer = self.entry("buffers", view["buffer"])
        if view["buffer"] != 0 or "uri" in buffer:
            raise _Refused("its data are in another file: export a GLB with everything inside")
        start, length = _whole(view.get("byteOffset", 0)), _whole(view["byteLength"])
        if start + length > len(self.binary):
            raise ValueError("a view ends after the data")
        return self.binary[start : start + length], _whole(view.get("byteStride", 0))

    def array(self, index: Any) -> np.ndarray:
        """The values [N, K] of an accessor; normalized integers as float64."""
        accessor = self.entry("accessors", index)
        if "sparse" in accessor or "bufferView" not in accessor:
            raise _Refused("it has sparse data: export it without them")
        data, stride = self.view(accessor["bufferView"])
        kind, width = np.dtype(TYPES[accessor["componentType"]]), WIDTH[accessor["type"]]
        count, start = _whole(accessor["count"]), _whole(accessor.get("byteOffset", 0))
        size = kind.itemsize * width
        stride = stride or size
        if stride < size or (count and start + (count - 1) * stride + size > len(data)):
            raise ValueError("an accessor ends after its view")
        strides = (stride, kind.itemsize)
        values = np.ndarray((count, width), kind, data, offset=start, strides=strides)
        if accessor.get("normalized"):
            values = np.maximum(values / np.iinfo(kind).max, -1.0)
        return values.copy()

    def texture(self, index: Any) -> np.ndarray:
        """The pixels [H, W, 3] uint8 of a texture."""
        if index not in self.textures:
            self.textures[index] = self._pixels(index)
        return self.textures[index]

    def _pixels(self, index: Any) -> np.ndarray:
        image = self.entry("images", self.entry("textures", index)["source"])
        if "bufferView" not in image:
            raise _Refused("a texture is in another file: export a GLB with everything inside")
        data = io.BytesIO(self.view(image["bufferView"])[0])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about large pictures, whose size is checked here
                picture = Image.open(data, formats=("PNG", "JPEG"))
                if max(picture.size) > MAX_SIDE:
                    raise _Refused(f"a texture has more than {MAX_SIDE:,} pixels on a side")
                return np.array(picture.convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise _Refused("a texture is neither a valid PNG nor a valid JPEG") from error


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value} is not a size")
    return value


def _parts(file: _File) -> Iterator[PaintedPart]:
    """The parts of the file's scene, each with the place of its node."""
    scene = file.entry("scenes", file.tree.get("scene", 0))
    pending = [(node, np.eye(4)) for node in scene.get("nodes", [])]
    visited: set[int] = set()
    while pending:
        index, above = pending.pop()
        node = file.entry("nodes", index)
        if index in visited:
            raise ValueError("a node has two parents")
        visited.add(index)
        place = above @ _matrix(node)
        pending += [(child, place) for child in node.get("children", [])]
        if "mesh" in node:
            for primitive in file.entry("meshes", node["mesh"])["primitives"]:
                if primitive.get("mode", TRIANGLES) == TRIANGLES and "POSITION" in primitive["attributes"]:
                    yield _part(file, primitive, place)


def _matrix(node: Mapping[str, Any]) -> np.ndarray:
    """A node's transformation [4, 4]."""
    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), float)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.array(node.get("scale", (1, 1, 1)), float)
    matrix[:3, 3] = np.array(node.get("translation", (0, 0, 0)), float)
    return matrix


def _part(file: _File, primitive: Mapping[str, Any], place: np.ndarray) -> PaintedPart:
    attributes = primitive["attributes"]
    own = file.array(attributes["POSITION"]).astype(float)
    placed = own @ place[:3, :3].T + place[:3, 3]
    vertices = placed[:, [2, 0, 1]]  # from glTF's axes (y up, front +z) to the scene's (z up, front +x)
    if not np.isfinite(vertices).all():
        raise ValueError("a vertex is not finite")
    if "indices" in primitive:
        faces = file.array(primitive["indices"]).astype(np.int64).reshape(-1, 3)
    else:
        faces = np.arange(len(vertices)).reshape(-1, 3)
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError("a face has a vertex that does not exist")
    if np.linalg.det(place[:3, :3]) < 0:
        faces = faces[:, ::-1]  # a mirror image shows its other side
    material = file.entry("materials", primitive["material"]) if "material" in primitive else {}
    surface = material.get("pbrMetallicRoughness", {})
    colors = file.array(attributes["COLOR_0"])[:, :3].astype(float) if "COLOR_0" in attributes else None
    uv = texture = None
    if "baseColorTexture" in surface:
        described = surface["baseColorTexture"]
        name = f"TEXCOORD_{_whole(described.get('texCoord', 0))}"
        uv, texture = file.array(attributes[name]).astype(float), file.texture(described["index"])
    for values in (colors, uv):
        if values is not None and (len(values) != len(vertices) or not np.isfinite(values).all()):
            raise ValueError("an attribute does not fit its vertices")
    factor = np.array(surface.get("baseColorFactor", (1, 1, 1, 1)), float)[:3]
    if factor.shape != (3,) or not np.isfinite(factor).all():
        raise ValueError("a color is not one")
    return PaintedPart(
        vertices=vertices,
        faces=faces,
        factor=factor,
        colors=colors,
        uv=uv,
        texture=texture,
        both_sides=bool(material.get("doubleSided", False)),
    )
