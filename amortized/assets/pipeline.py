"""From the scene of a prompt to an asset: extract, clean, simplify, color, texture, measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from amortized.assets.checks import check_mesh
from amortized.assets.clean import Keep, keep_bodies, simplify
from amortized.assets.config import AssetConfig
from amortized.assets.conventions import library
from amortized.assets.extraction import extract
from amortized.assets.field import Field
from amortized.assets.mesh import Asset, Mesh, Source, TexturedMesh
from amortized.assets.printable import printable_field
from amortized.assets.texture import bake
from amortized.types import AnyScene

SAMPLES = 20_000  # points on the finished surface at which it is compared with the field


class _Meter:
    """Seconds and field evaluations by stage."""

    def __init__(self, field: Field, on_stage: Callable[[str], None] = lambda stage: None) -> None:
        self.field, self.on_stage = field, on_stage
        self.seconds: dict[str, float] = {}
        self.evaluations: dict[str, int] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.on_stage(stage)
        start, before = time.perf_counter(), self.field.evaluations
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)
        self.evaluations[stage] = self.field.evaluations - before


def surface(
    scene: AnyScene, *, resolution: int = 256, exact: bool = False, device: torch.device | str = "cpu"
) -> list[Mesh]:
    """The surfaces of P scenes on `device`: closed meshes without floaters, their vertices on the field.

    Those of densities and splats are the surfaces of their solids; see `scenes.level_of`, `SplatSolid`.
    Raises AssetError for an empty scene, and one that touches its bounding ball.
    """
    config = AssetConfig(resolution=resolution, exact=exact, faces=0, texture=0)
    fields = (Field(scene.select(i), torch.device(device)) for i in range(scene.num_prompts))
    return [_surface_of(field, config, config.keep, _Meter(field))[0] for field in fields]


def make_asset(
    scene: AnyScene,
    config: AssetConfig,
    source: Source,
    device: torch.device,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Asset:
    """The asset of a scene of one prompt, on `device`. Raises AssetError if it has no surface to export.

    `on_stage` receives the name of each stage as it begins: extract, simplify, colors, texture, printable,
    measure.
    """
    check_libraries(config)
    field = Field(scene, device)
    meter = _Meter(field, on_stage)
    step = config.max_step(field.radius)
    # 1. The closed surface, with colors at its vertices.
    mesh, dropped = _surface_of(field, config, config.keep, meter)
    with meter("colors"):
        mesh = replace(mesh, colors=field.albedo(mesh.vertices))
    # 2. The same surface with a texture.
    textured, covered = None, 0.0
    if config.texture:
        with meter("texture"):
            textured, covered = bake(field, mesh, config.texture, max_step=step)
    # 3. The solid for printers.
    printable = None
    if config.printable:
        with meter("printable"):
            solid = printable_field(field, mesh, config)
            printable = _surface_of(solid, config, "largest", _Meter(solid))[0]
    # 4. How far all that is from the field.
    with meter("measure"):
        report = measure(field, mesh, textured, step)
    report |= {
        "prompt": source.prompt,
        "seconds": meter.seconds,
        "evaluations": meter.evaluations,
        "bodies_dropped": dropped,
        "texture_covered": covered,
    }
    return Asset(mesh=mesh, textured=textured, printable=printable, source=source, report=report)


def check_libraries(config: AssetConfig, formats: Sequence[str] = ()) -> None:
    """Raise AssetError, with the command that installs it, if a library is missing that these need."""
    packages = ["scikit-image", "fast-simplification", "manifold3d", *(["xatlas"] if config.texture else [])]
    for package in packages:
        module = "skimage" if package == "scikit-image" else package.replace("-", "_")
        library(module, package, "assets", "a mesh")
    if "usdz" in formats:
        library("pxr", "usd-core", "usdz", "USDZ")


def _surface_of(field: Field, config: AssetConfig, keep: Keep, meter: _Meter) -> tuple[Mesh, int]:
    """The simplified surface of a field, and how many bodies were dropped."""
    step = config.max_step(field.radius)
    with meter("extract"):
        vertices, faces = extract(field, config.resolution, exact=config.exact)
        vertices, faces, dropped = keep_bodies(vertices, faces, keep)
        vertices = field.project(vertices, max_step=step, epsilon=step / 2)
    with meter("simplify"):
        if config.faces:
            vertices, faces = simplify(vertices, faces, config.faces, flat=step / 10)
        normals = field.normals(vertices, epsilon=step)
    return Mesh(vertices=vertices, faces=faces, normals=normals), dropped


# ---- measures -------------------------------------------------------------------------------------


def measure(field: Field, mesh: Mesh, textured: TexturedMesh | None, step: float) -> dict[str, Any]:
    """Compare a finished mesh with its field, at random points of its surface; JSON.

    `step` is the longest one towards the surface of a field that is not a distance.
    """
    points, faces, weights = sample(mesh, SAMPLES)
    distances = field.distance(points, max_step=step)
    report: dict[str, Any] = {
        **check_mesh(mesh, field.radius),
        "surface_error": {"mean": float(distances.mean()), "max": float(distances.max())},
    }
    if textured is not None:
        points, faces, weights = sample(textured.mesh, SAMPLES)
        uv = np.einsum("nk,nki->ni", weights, textured.uv[textured.mesh.faces[faces]])
        errors = np.abs(look_up(textured.texture, uv) - field.albedo(points)).mean(1)
        report["texture_size"] = [textured.texture.shape[1], textured.texture.shape[0]]
        report["texture_error"] = {
            "mean": float(errors.mean()),
            "p99": float(np.quantile(errors, 0.99)),
            "max": float(errors.max()),
        }
    return report


def sample(mesh: Mesh, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random points [N, 3] of a surface by area, with their faces [N] and barycentric weights [N, 3]."""
    random = np.random.default_rng(2)
    corners = mesh.vertices[mesh.faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    faces = random.choice(len(areas), size=number, p=areas / areas.sum())
    r, s = np.sqrt(random.random(number)), random.random(number)
    weights = np.stack([1 - r, r * (1 - s), r * s], 1)
    return np.einsum("nk,nki->ni", weights, corners[faces]), faces, weights


def look_up(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Colors [N, 3] in [0, 1] of a texture [H, W, 3] at uv [N, 2], bilinear, as viewers sample it."""
    from scipy.ndimage import map_coordinates

    height, width = texture.shape[:2]
    where = [(1 - uv[:, 1]) * height - 0.5, uv[:, 0] * width - 0.5]
    channels = (texture[..., k].astype(np.float32) for k in range(3))
    return np.stack([map_coordinates(one, where, order=1, mode="nearest") for one in channels], 1) / 255
