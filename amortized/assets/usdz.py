"""USDZ, for Apple's viewers, by usd-core (the extra `usdz`)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from amortized.assets.checks import check_asset
from amortized.assets.conventions import (
    DEFAULTS,
    GENERATOR,
    ROUGHNESS,
    FileOptions,
    library,
    metadata,
    png,
    scale_of,
    to_linear,
    unit,
    visible_mesh,
    y_up,
)
from amortized.assets.mesh import Asset, AssetError

DATE = 946_728_000  # of the package's members, seconds since 1970: equal assets give equal bytes


def write_usdz(asset: Asset, options: FileOptions = DEFAULTS) -> bytes:
    """Return the asset as USDZ: y up, front +z, meters; with its texture, or linear vertex colors."""
    check_asset(asset)
    usd = load_usd()
    with tempfile.TemporaryDirectory() as folder:
        scene, package = Path(folder) / "asset.usdc", Path(folder) / "asset.usdz"
        if asset.textured:
            (Path(folder) / "texture.png").write_bytes(png(asset.textured.texture))
        stage = build_stage(usd, asset, options)
        stage.GetRootLayer().Export(str(scene))
        for file in Path(folder).iterdir():
            os.utime(file, (DATE, DATE))
        if not usd.UsdUtils.CreateNewUsdzPackage(usd.Sdf.AssetPath(str(scene)), str(package)):
            raise AssetError("cannot write USDZ: usd-core could not make the package")
        return package.read_bytes()


def build_stage(usd: Any, asset: Asset, options: FileOptions) -> Any:
    """Return a stage with one mesh and its material; the texture is `texture.png` beside the file."""
    stage = usd.Usd.Stage.CreateInMemory()
    usd.UsdGeom.SetStageUpAxis(stage, usd.UsdGeom.Tokens.y)
    usd.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.GetRootLayer().customLayerData = {"generator": GENERATOR, **metadata(asset.source)}
    root = usd.UsdGeom.Xform.Define(stage, "/asset").GetPrim()
    stage.SetDefaultPrim(root)
    usd.Usd.ModelAPI(root).SetKind(usd.Kind.Tokens.component)
    shape = add_mesh(usd, stage, asset, scale_of(visible_mesh(asset), options))
    material = add_material(usd, stage, asset)
    usd.UsdShade.MaterialBindingAPI.Apply(shape).Bind(material)
    return stage


def add_mesh(usd: Any, stage: Any, asset: Asset, scale: float) -> Any:
    """Add the mesh with normals, and texture coordinates or colors; returns its prim."""
    UsdGeom, Vt, mesh = usd.UsdGeom, usd.Vt, visible_mesh(asset)
    points = (y_up(mesh.vertices) * scale).astype(np.float32)
    shape = UsdGeom.Mesh.Define(stage, "/asset/mesh")
    shape.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
    shape.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, np.int32)))
    shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.astype(np.int32).ravel()))
    shape.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(y_up(unit(mesh.normals)).astype(np.float32)))
    shape.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    shape.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([points.min(0), points.max(0)])))
    if asset.textured:
        coordinates = usd.Sdf.ValueTypeNames.TexCoord2fArray
        uv = UsdGeom.PrimvarsAPI(shape).CreatePrimvar("st", coordinates, UsdGeom.Tokens.vertex)
        uv.Set(Vt.Vec2fArray.FromNumpy(asset.textured.uv.astype(np.float32)))
    elif mesh.colors is not None:
        colors = Vt.Vec3fArray.FromNumpy(to_linear(mesh.colors).astype(np.float32))
        shape.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex).Set(colors)
    return shape.GetPrim()


def add_material(usd: Any, stage: Any, asset: Asset) -> Any:
    """Add a UsdPreviewSurface colored by the texture, or by displayColor; returns the material."""
    values, Shader = usd.Sdf.ValueTypeNames, usd.UsdShade.Shader
    material = usd.UsdShade.Material.Define(stage, "/asset/material")
    surface = Shader.Define(stage, "/asset/material/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    surface.CreateInput("roughness", values.Float).Set(ROUGHNESS)
    surface.CreateInput("metallic", values.Float).Set(0.0)
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    diffuse = surface.CreateInput("diffuseColor", values.Color3f)
    if asset.textured:
        texture = Shader.Define(stage, "/asset/material/texture")
        texture.CreateIdAttr("UsdUVTexture")
        texture.CreateInput("file", values.Asset).Set("./texture.png")
        texture.CreateInput("sourceColorSpace", values.Token).Set("sRGB")
        for axis in ("wrapS", "wrapT"):
            texture.CreateInput(axis, values.Token).Set("clamp")
        reader = primvar_reader(usd, stage, "st", values.Float2)
        texture.CreateInput("st", values.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
        texture.CreateOutput("rgb", values.Float3)
        diffuse.ConnectToSource(texture.ConnectableAPI(), "rgb")
    elif asset.mesh.colors is not None:
        reader = primvar_reader(usd, stage, "displayColor", values.Float3)
        diffuse.ConnectToSource(reader.ConnectableAPI(), "result")
    return material


def primvar_reader(usd: Any, stage: Any, name: str, kind: Any) -> Any:
    """Add a shader node that returns a value of the mesh's vertices, of the given type."""
    reader = usd.UsdShade.Shader.Define(stage, "/asset/material/reader")
    reader.CreateIdAttr(f"UsdPrimvarReader_{kind}")
    reader.CreateInput("varname", usd.Sdf.ValueTypeNames.String).Set(name)
    reader.CreateOutput("result", kind)
    return reader


def load_usd() -> SimpleNamespace:
    """The modules of usd-core, which has no type stubs. Raises AssetError if it is missing."""
    names = ("Gf", "Kind", "Sdf", "Usd", "UsdGeom", "UsdShade", "UsdUtils", "Vt")
    return SimpleNamespace(**{name: library(f"pxr.{name}", "usd-core", "usdz", "USDZ") for name in names})
