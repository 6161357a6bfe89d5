"""USDZ: the stage that was meant, and no complaint of USD's validators."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pxr", reason="usd-core is not installed")
from pxr import Tf, Usd, UsdGeom, UsdShade, UsdValidation

from amortized.assets import Asset, save_asset
from tests.assets.meshes import COLORS, HALF, SIDES, plain_asset, textured_asset, torus
from tests.assets.readers import side_colors, to_srgb


@pytest.mark.parametrize("make", [textured_asset, plain_asset])
def test_usd_validators_find_nothing(make: Callable[[], Asset], tmp_path: Path) -> None:
    stage = Usd.Stage.Open(str(save_asset(make(), tmp_path / "a", "usdz")))
    try:
        validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    except Tf.ErrorException:
        pytest.skip("this wheel of usd-core lacks the libraries of its validators, as 25.5 does")
    assert len(validators) > 20
    problems = UsdValidation.ValidationContext(validators).Validate(stage)
    assert [problem.GetMessage() for problem in problems] == []


def test_members_are_stored_at_multiples_of_64_bytes(tmp_path: Path) -> None:
    data = save_asset(textured_asset(), tmp_path / "a", "usdz").read_bytes()
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    for member in archive.infolist():
        start = data.index(archive.read(member))
        assert member.compress_type == zipfile.ZIP_STORED and start % 64 == 0


def test_textured_stage(tmp_path: Path) -> None:
    path = save_asset(textured_asset(), tmp_path / "a", "usdz", size_m=0.7)
    stage = Usd.Stage.Open(str(path))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    extras = stage.GetRootLayer().customLayerData
    assert extras["prompt"] == "a red cube" and extras["seed"] == "7" and "Amortized3D" in extras["generator"]
    (prim,) = [prim for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh)]
    mesh = UsdGeom.Mesh(prim)
    points, faces = np.array(mesh.GetPointsAttr().Get()), np.array(mesh.GetFaceVertexIndicesAttr().Get())
    assert np.allclose(np.ptp(points, axis=0), 2 * HALF[[1, 2, 0]] * 0.5)
    assert np.allclose(mesh.GetExtentAttr().Get(), [points.min(axis=0), points.max(axis=0)])
    uv = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").Get())

    material, _ = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()
    surface = material.ComputeSurfaceSource()[0]
    texture = UsdShade.Shader(surface.GetInput("diffuseColor").GetConnectedSource()[0].GetPrim())
    assert texture.GetInput("sourceColorSpace").Get() == "sRGB"
    assert surface.GetInput("roughness").Get() == pytest.approx(0.8)
    with zipfile.ZipFile(path) as archive:
        inside = texture.GetInput("file").Get().resolvedPath.partition("[")[2].rstrip("]")
        image = np.asarray(Image.open(io.BytesIO(archive.read(inside))))
    turned = {
        tuple(side[[1, 2, 0]].tolist()): tuple(color.tolist())
        for side, color in zip(SIDES, COLORS, strict=True)
    }
    assert side_colors(points, faces.reshape(-1, 3), uv, image) == turned


def test_vertex_colors_are_linear(tmp_path: Path) -> None:
    mesh = torus()
    stage = Usd.Stage.Open(str(save_asset(plain_asset(mesh), tmp_path / "a", "usdz")))
    shape = UsdGeom.Mesh(stage.GetPrimAtPath("/asset/mesh"))
    colors = np.array(shape.GetDisplayColorAttr().Get())
    assert mesh.colors is not None and np.abs(to_srgb(colors) - mesh.colors * 255).max() < 0.01
    assert shape.GetDisplayColorPrimvar().GetInterpolation() == "vertex"
