"""Other programs accept the files: Khronos' glTF validator and Blender. Slow; skipped if they are missing.

AMORTIZED_BLENDER_PYTHON names a Python that has `bpy` (pip install bpy==5.0.1, Python 3.11, 967 MB).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amortized.assets import Source, save_asset
from tests.assets.meshes import (
    COLORS,
    HALF,
    HOSTILE,
    SIDES,
    icosphere,
    plain_asset,
    textured_asset,
    torus,
)
from tests.assets.readers import to_srgb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
VALIDATE = """
const fs = require("fs"), validator = require("gltf-validator");
Promise.all(process.argv.slice(2).map(f => validator.validateBytes(new Uint8Array(fs.readFileSync(f)))))
  .then(reports => console.log(JSON.stringify(reports.map(report => report.issues))));
"""


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Khronos' validator and a script for it."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("validator")
    command = ["npm", "install", "--no-audit", "--no-fund", "gltf-validator@2.0.0-dev.3.10"]
    (folder / "package.json").write_text("{}")
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if installed.returncode:
        pytest.skip(f"npm cannot install gltf-validator: {installed.stderr.strip()[-200:]}")
    (folder / "validate.cjs").write_text(VALIDATE)
    return folder


def issues_of(validator: Path, *paths: Path) -> list[dict[str, Any]]:
    command = ["node", "validate.cjs", *map(str, paths)]
    done = subprocess.run(command, cwd=validator, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


def test_khronos_validator_finds_nothing(validator: Path, tmp_path: Path) -> None:
    """Textured or not, lit or not, with any prompt, and a sphere whose normals equal its positions."""
    paths = []
    for unlit, (name, text) in itertools.product((False, True), {"plain": "a cube", **HOSTILE}.items()):
        source = Source(prompt=text, checkpoint=text, license=text)
        for kind, asset in {
            "textured": textured_asset(source),
            "torus": plain_asset(torus(), source),
            "sphere": plain_asset(icosphere(radius=1.0), source),
        }.items():
            paths.append(save_asset(asset, tmp_path / f"{kind}-{name}-{unlit}", "glb", unlit=unlit))
    for path, issues in zip(paths, issues_of(validator, *paths), strict=True):
        # Any texture size is allowed; the validator mentions those that are not powers of 2.
        notes = [message for message in issues["messages"] if message["code"] != "IMAGE_NPOT_DIMENSIONS"]
        assert notes == [], path.name


def test_khronos_validator_would_find_something(validator: Path, tmp_path: Path) -> None:
    path = save_asset(textured_asset(), tmp_path / "a", "glb")
    path.write_bytes(path.read_bytes().replace(b'"target":34963', b'"target":34962'))
    (issues,) = issues_of(validator, path)
    assert issues["numErrors"] > 0


# ---- Blender -----------------------------------------------------------------------------------

NAMES = ("glb", "unlit.glb", "obj", "ply", "stl", "usdz", "plain.glb", "plain.ply")


@pytest.fixture(scope="module")
def blender(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How Blender holds the textured box in each format, and a torus with vertex colors (`plain`)."""
    python = os.environ.get("AMORTIZED_BLENDER_PYTHON")
    if not python:
        pytest.skip("AMORTIZED_BLENDER_PYTHON names no Python with bpy")
    probe = subprocess.run([python, "-c", "import bpy"], capture_output=True, text=True, timeout=120)
    if probe.returncode:
        pytest.skip(f"bpy cannot be imported by {python}: {probe.stderr.strip()[-200:]}")
    folder = tmp_path_factory.mktemp("blender")
    paths = []
    for name in NAMES:
        plain, unlit, format = "plain" in name, "unlit" in name, name.rpartition(".")[2]
        asset = plain_asset() if plain else textured_asset()
        path = save_asset(asset, folder / f"box-{plain}-{unlit}", format, unlit=unlit)
        if format == "obj":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
            (path,) = folder.glob("*.obj")
        paths.append(str(path))
    script = Path(__file__).with_name("blender_check.py")
    done = subprocess.run([python, str(script), *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return dict(zip(NAMES, json.loads(line.removeprefix("RESULT ")), strict=True))


def in_blender(side: np.ndarray) -> np.ndarray:
    """Our axes as Blender shows a glTF file: front (+x) at -y, left (+y) at +x, up (+z) at +z."""
    return np.array([side[1], -side[0], side[2]])


@pytest.mark.parametrize("name", ["glb", "unlit.glb", "obj", "usdz"])
def test_in_blender_the_front_faces_minus_y_with_its_color(
    name: str, blender: dict[str, dict[str, Any]]
) -> None:
    result = blender[name]
    half = np.abs(in_blender(HALF))
    assert np.allclose(result["low"], -half, atol=1e-5) and np.allclose(result["high"], half, atol=1e-5)
    assert result["material"]["colorspace"] == "sRGB"
    sides = {tuple(map(int, axis.split())): color for axis, color in result["sides"].items()}
    assert len(sides) == 6 and np.abs(np.array(sides[(0, -1, 0)]) - COLORS[0]).max() <= 2
    for side, color in zip(SIDES, COLORS, strict=True):
        assert np.abs(np.array(sides[tuple(in_blender(side))]) - color).max() <= 2


@pytest.mark.parametrize("name", ["glb", "usdz"])
def test_in_blender_the_material_is_matte(name: str, blender: dict[str, dict[str, Any]]) -> None:
    material = blender[name]["material"]
    assert material["linked"] and material["metallic"] == 0
    assert material["roughness"] == pytest.approx(0.8)


def test_in_blender_unlit_is_no_lit_surface(blender: dict[str, dict[str, Any]]) -> None:
    assert "BSDF_PRINCIPLED" in blender["glb"]["material"]["shaders"]
    assert "BSDF_PRINCIPLED" not in blender["unlit.glb"]["material"]["shaders"]


@pytest.mark.parametrize(("name", "size"), [("ply", 2 * HALF), ("stl", 2 * HALF * 60 / (2 * HALF[2]))])
def test_in_blender_ply_and_stl_have_our_axes(
    name: str, size: np.ndarray, blender: dict[str, dict[str, Any]]
) -> None:
    result = blender[name]
    assert np.allclose(np.array(result["high"]) - result["low"], size, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain.glb", "plain.ply"])
def test_in_blender_vertex_colors_have_their_values(name: str, blender: dict[str, dict[str, Any]]) -> None:
    result, mesh = blender[name], torus()
    points, colors = np.array(result["points"]), to_srgb(np.array(result["colors"]))
    if result["domain"] == "CORNER":
        points = points[result["corners"]]
    ours = np.apply_along_axis(in_blender, 1, mesh.vertices) if name == "plain.glb" else mesh.vertices
    nearest = np.array([np.linalg.norm(ours - point, axis=1).argmin() for point in points])
    assert mesh.colors is not None and len(set(nearest)) == len(ours)
    assert np.abs(colors - mesh.colors[nearest] * 255).max() <= 2
