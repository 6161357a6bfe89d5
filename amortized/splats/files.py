"""Splat files that viewers read: the PLY of 3D Gaussian Splatting, and `.splat`. And point clouds.

Files name no axes, but viewers expect y up; here z is up and +x in front. So a file's (x, y, z) is our
(y, z, x). The same permutation of the local axes makes the rotation of a splat a permutation too: of the
vector part of its quaternion and of its scales. So no bit of a number changes on the way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amortized.files import atomic_write_bytes
from amortized.splats.parameters import MAX_SPLATS, SH0, Parameters, check_points, parameters_of, scene_of
from amortized.splats.ply_reader import columns, read_vertices
from amortized.types import SplatScene
from amortized.untrusted import read_bytes, short

TO_VIEWER = [1, 2, 0]  # the file's x, y, z are these of our axes
FROM_VIEWER = [2, 0, 1]
POSITION, NORMAL, COLOR = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
CHANNELS = ("red", "green", "blue")  # of point clouds
SCALE, ROTATION = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
PROPERTIES = (*POSITION, *NORMAL, *COLOR, "opacity", *SCALE, *ROTATION)
SPLAT = np.dtype(
    [("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)]
)  # 32 bytes


def write_splat_ply(path: str | Path, scene: SplatScene) -> None:
    """Write a scene of one prompt as 3D Gaussian Splatting's PLY, y up, in 68 bytes a splat.

    Colors are coefficients of degree 0, opacities logits, scales logarithms, normals zero. Padding is left
    out. Raises ValueError for a scene of several prompts or one that is not finite.
    """
    parameters = _checked(scene)
    table = np.zeros((len(parameters["means"]), len(PROPERTIES)), "<f4")
    table[:, 0:3] = parameters["means"][:, TO_VIEWER]
    table[:, 6:9] = parameters["colors"]
    table[:, 9] = parameters["logits"]
    table[:, 10:13] = parameters["log_scales"][:, TO_VIEWER]
    table[:, 13:17] = _unit(parameters["quaternions"])[:, [0, 2, 3, 1]]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(table)}",
        *(f"property float {name}" for name in PROPERTIES),
        "end_header",
    ]
    atomic_write_bytes(path, ("\n".join(header) + "\n").encode("ascii") + table.tobytes())


def read_splat_ply(path: str | Path, bounding_radius: float | None = None) -> SplatScene:
    """Return the splats of 3D Gaussian Splatting's PLY, of y up, as a scene of one prompt.

    Coefficients above degree 0 are ignored, and normals may be missing. bounding_radius: None: the distance
    of the farthest center. Raises ValueError; see `read_vertices`.
    """
    vertices = read_vertices(path, (*POSITION, *COLOR, "opacity", *SCALE, *ROTATION))
    tensors = {
        "means": columns(vertices, POSITION, path)[:, FROM_VIEWER],
        "quaternions": columns(vertices, ROTATION, path)[:, [0, 3, 1, 2]],
        "log_scales": columns(vertices, SCALE, path)[:, FROM_VIEWER],
        "logits": columns(vertices, ("opacity",), path)[:, 0],
        "colors": columns(vertices, COLOR, path),
    }
    return _scene(tensors, bounding_radius)


def read_points_ply(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Return the points [N, 3] of a PLY file, in its own axes, and their colors [N, 3] in [0, 1] or None.

    Colors are red, green and blue, bytes or floats, or f_dc_0 to f_dc_2. Raises ValueError; see
    `read_vertices`.
    """
    vertices = read_vertices(path, POSITION)
    names = vertices.dtype.names or ()
    rgb = None
    if all(channel in names for channel in CHANNELS):
        scale = 255 if vertices.dtype["red"].kind in "iu" else 1
        rgb = torch.from_numpy(columns(vertices, CHANNELS, path) / scale).clamp(0, 1)
    elif all(channel in names for channel in COLOR):
        rgb = torch.from_numpy(columns(vertices, COLOR, path) * SH0 + 0.5).clamp(0, 1)
    return torch.from_numpy(columns(vertices, POSITION, path)), rgb


def write_points_ply(path: str | Path, points: Tensor, rgb: Tensor | None = None) -> None:
    """Write points [N, 3] with colors [N, 3] in [0, 1], or without, as a PLY file: z up and +x in front.

    Such a file starts splats (`start=FILE`). Raises ValueError as `from_points`.
    """
    check_points(points, rgb)
    fields: list = [(name, "<f4") for name in POSITION]
    if rgb is not None:
        fields += [(name, "u1") for name in CHANNELS]
    table = np.empty(len(points), fields)
    for axis, name in enumerate(POSITION):
        table[name] = points[:, axis].detach().cpu().numpy()
    for axis, name in enumerate(CHANNELS if rgb is not None else ()):
        table[name] = (255 * rgb[:, axis].detach().clamp(0, 1)).round().cpu().numpy()  # type: ignore[index]
    kinds = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    header += [*(f"property {kinds[kind]} {name}" for name, kind in fields), "end_header"]
    atomic_write_bytes(path, ("\n".join(header) + "\n").encode("ascii") + table.tobytes())


def write_splat_file(path: str | Path, scene: SplatScene) -> None:
    """Write a scene of one prompt as `.splat`, y up, in 32 bytes a splat: colors and rotations as bytes.

    The largest and most opaque splats come first, so that a part of the file shows the object too. Padding is
    left out. Raises ValueError for a scene of several prompts or one that is not finite.
    """
    parameters = _checked(scene)
    opacity = 1 / (1 + np.exp(-parameters["logits"].astype(np.float64)))
    volume = np.exp(parameters["log_scales"].astype(np.float64).sum(1))
    order = np.argsort(-volume * opacity, kind="stable")
    rgba = np.concatenate([parameters["colors"] * SH0 + 0.5, opacity[:, None]], axis=1)
    table = np.empty(len(order), SPLAT)
    table["position"] = parameters["means"][:, TO_VIEWER]
    table["scale"] = np.exp(parameters["log_scales"][:, TO_VIEWER])
    table["rgba"] = (rgba * 255).round().clip(0, 255)
    rotation = _unit(parameters["quaternions"])[:, [0, 2, 3, 1]]
    table["rotation"] = (rotation * 128 + 128).round().clip(0, 255)
    atomic_write_bytes(path, table[order].tobytes())


def read_splat_file(path: str | Path, bounding_radius: float | None = None) -> SplatScene:
    """Return the splats of a `.splat` file, of y up, as a scene of one prompt, in the file's order.

    bounding_radius: None: the distance of the farthest center. Raises ValueError for a file that is not a
    whole number of splats, 1 to a million, or has a number that is not finite or a scale that is not
    positive.
    """
    data = read_bytes(path, MAX_SPLATS * SPLAT.itemsize)
    if not data or len(data) % SPLAT.itemsize:
        raise ValueError(f"{short(path)} is not a .splat file: it has {len(data):,} bytes, not 32 a splat")
    table = np.frombuffer(data, SPLAT)
    usable = np.isfinite(table["position"]).all(1) & np.isfinite(table["scale"]).all(1)
    usable &= (table["scale"] > 0).all(1)
    if not usable.all():
        row = int((~usable).argmax())
        raise ValueError(f"{short(path)}: splat {row:,} has a position or scale that is not usable")
    rgba = table["rgba"].astype(np.float32) / 255
    opacity = rgba[:, 3].clip(1 / 1024, 1 - 1 / 1024)  # of 0 and 255, finite logits
    tensors = {
        "means": table["position"][:, FROM_VIEWER],
        "quaternions": ((table["rotation"].astype(np.float32) - 128) / 128)[:, [0, 3, 1, 2]],
        "log_scales": np.log(table["scale"][:, FROM_VIEWER]),
        "logits": np.log(opacity / (1 - opacity)),
        "colors": (rgba[:, :3] - 0.5) / SH0,
    }
    return _scene(tensors, bounding_radius)


def _checked(scene: SplatScene) -> dict[str, np.ndarray]:
    """Return the parameters of a scene of one prompt as float32 arrays. Raises ValueError."""
    parameters: Parameters = parameters_of(scene)
    if not len(parameters["means"]):
        raise ValueError("cannot write splats: there are none")
    arrays = {name: value.detach().cpu().float().numpy() for name, value in parameters.items()}
    if broken := [name for name, values in arrays.items() if not np.isfinite(values).all()]:
        raise ValueError(f"cannot write splats: {' and '.join(broken)} are not finite")
    return arrays


def _unit(quaternions: np.ndarray) -> np.ndarray:
    """Return quaternions [N, 4] of unit length. Those that have it within rounding stay, bit by bit."""
    length = np.linalg.norm(quaternions.astype(np.float64), axis=1, keepdims=True)
    identity = np.array([[1.0, 0.0, 0.0, 0.0]])
    unit = np.where(length > 0, quaternions / np.maximum(length, 1e-30), identity).astype(np.float32)
    return np.where(np.abs(length - 1) < 1e-6, quaternions, unit)


def _scene(arrays: dict[str, np.ndarray], bounding_radius: float | None) -> SplatScene:
    tensors = {
        name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in arrays.items()
    }
    farthest = float(tensors["means"].norm(dim=-1).max())
    return scene_of(tensors, farthest if bounding_radius is None else bounding_radius)
