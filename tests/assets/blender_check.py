"""Run by Blender's Python: import files and print, as JSON, how Blender holds them. Not a test module.

python blender_check.py FILE...
"""

from __future__ import annotations

import json
import sys

import bpy  # pyright: ignore[reportMissingImports]
import numpy as np

IMPORTERS = {
    "glb": lambda path: bpy.ops.import_scene.gltf(filepath=path),
    "obj": lambda path: bpy.ops.wm.obj_import(filepath=path),
    "ply": lambda path: bpy.ops.wm.ply_import(filepath=path),
    "stl": lambda path: bpy.ops.wm.stl_import(filepath=path),
    "usdz": lambda path: bpy.ops.wm.usd_import(filepath=path),
}


def texture_of(item: object) -> tuple[object, dict[str, object]]:
    """The image that colors an object, if any, and what its material says."""
    if not item.data.materials or item.data.materials[0] is None:
        return None, {}
    nodes = item.data.materials[0].node_tree.nodes
    images = [node.image for node in nodes if node.type == "TEX_IMAGE"]
    shaders = {node.type: node for node in nodes}
    described = {"shaders": sorted(shaders), "images": len(images)}
    if "BSDF_PRINCIPLED" in shaders:
        inputs = shaders["BSDF_PRINCIPLED"].inputs
        described["roughness"], described["metallic"] = (
            inputs[name].default_value for name in ("Roughness", "Metallic")
        )
        described["linked"] = inputs["Base Color"].is_linked
    if images:
        described["colorspace"] = images[0].colorspace_settings.name
    return (images[0] if images else None), described


def sides_of(item: object, image: object) -> dict[str, list[int]]:
    """The texel under the center of each face, by the face's normal in the world."""
    width, height = image.size
    pixels = np.array(image.pixels[:]).reshape(height, width, -1)  # row 0 at the bottom, as stored: sRGB
    uv = item.data.uv_layers[0].data
    turn = item.matrix_world.to_3x3()
    sides = {}
    for polygon in item.data.polygons:
        normal = " ".join(str(round(value)) for value in turn @ polygon.normal)
        u, v = np.mean([uv[index].uv[:] for index in polygon.loop_indices], axis=0)
        sides[normal] = np.round(pixels[int(v * height), int(u * width), :3] * 255).astype(int).tolist()
    return sides


def describe(path: str) -> dict[str, object]:
    """Import a file into an empty scene and describe its mesh."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    IMPORTERS[path.rsplit(".", 1)[1]](path)
    (item,) = [item for item in bpy.context.scene.objects if item.type == "MESH"]
    points = np.array([item.matrix_world @ vertex.co for vertex in item.data.vertices])
    image, described = texture_of(item)
    result = {"low": points.min(0).tolist(), "high": points.max(0).tolist(), "material": described}
    if image is not None:
        result["sides"] = sides_of(item, image)
    for layer in item.data.color_attributes:
        # `color` is linear for every storage type.
        result["colors"] = [list(value.color)[:3] for value in layer.data]
        result["domain"] = layer.domain
        result["corners"] = [loop.vertex_index for loop in item.data.loops]
        result["points"] = points.tolist()
    return result


print("RESULT " + json.dumps([describe(path) for path in sys.argv[1:]]))
