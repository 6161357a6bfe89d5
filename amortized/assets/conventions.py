"""What the file formats share: axes, unit, colors and metadata."""

from __future__ import annotations

import importlib
import io
import json
import unicodedata
import zipfile
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from amortized import __version__
from amortized.assets.mesh import Asset, AssetError, Mesh, Source
from amortized.config import check

GENERATOR = f"Amortized3D {__version__}"
ROUGHNESS = 0.8  # of the material in formats that have one; metallic is 0
LINE_LIMIT = 400  # bytes of a text in a header line: some PLY readers take lines of 1,024 bytes


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How an asset is written. Each format uses the options that name it."""

    unlit: bool = False  # GLB: viewers show the colors as they are, without light
    size_m: float | None = None  # GLB, OBJ, USDZ: longest side of the bounding box; None: 1 unit is 1 m
    height_mm: float = 60.0  # STL, 3MF: extent along z

    def __post_init__(self) -> None:
        check(self, "size_m", "height_mm", above=0, limit=1e6)


DEFAULTS = FileOptions()


def y_up(vectors: np.ndarray) -> np.ndarray:
    """Turn vectors [N, 3] from the scene's axes (z up, front +x) to glTF's (y up, front +z)."""
    return vectors[:, [1, 2, 0]]  # a rotation: outside remains outside


def scale_of(mesh: Mesh, options: FileOptions) -> float:
    """Meters per unit of the scene."""
    if options.size_m is None:
        return 1.0
    return options.size_m / float(np.ptp(mesh.vertices, axis=0).max())


def visible_mesh(asset: Asset) -> Mesh:
    """The mesh that formats with textures write: the textured one if there is one."""
    return asset.textured.mesh if asset.textured else asset.mesh


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors [N, 3] to length 1, in float64: validators allow little more than rounding."""
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Convert sRGB values in [0, 1] to linear light (IEC 61966-2-1)."""
    srgb = np.clip(srgb.astype(np.float64), 0, 1)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_bytes(colors: np.ndarray) -> np.ndarray:
    """Round colors in [0, 1] to uint8."""
    return np.round(np.clip(colors, 0, 1) * 255).astype(np.uint8)


def png(texture: np.ndarray) -> bytes:
    """A texture [H, W, 3] uint8 as a PNG file."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(texture)).save(data, "PNG")
    return data.getvalue()


def zip_file(files: dict[str, bytes]) -> bytes:
    """A ZIP archive; equal contents give equal bytes, as all members are dated 1980-01-01."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return data.getvalue()


# ---- metadata ----------------------------------------------------------------------------------


def metadata(source: Source) -> dict[str, str]:
    """The metadata of an asset as texts that every format can hold; empty values are left out.

    The values are data from outside: write them as quoted strings, never as names of files or nodes.
    """
    values = {
        "prompt": source.prompt,
        "seed": str(source.seed),
        "checkpoint": source.checkpoint,
        "license": source.license,
    }
    return {name: clean(value) for name, value in values.items() if value}


def clean(text: str) -> str:
    """Replace characters that XML cannot hold or UTF-8 cannot encode by U+FFFD; line ends become "\\n"."""
    text = text.replace("\r\n", "\n").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if (unicodedata.category(c) == "Cc" and c not in "\t\n") or c in "\ufffe\uffff"
        else c
        for c in text
    )


def header_lines(source: Source) -> list[str]:
    """Generator and metadata for comments, in printable ASCII, one a line: `prompt "a red cube"`."""
    pairs = metadata(source).items()
    return [GENERATOR, *(f"{name} {quoted(value)}" for name, value in pairs)]


def quoted(text: str) -> str:
    """A text as a JSON string in ASCII, of at most LINE_LIMIT bytes; a longer one ends with "..."."""
    line = json.dumps(text)
    if len(line) <= LINE_LIMIT:
        return line
    ends = accumulate(len(json.dumps(character)) - 2 for character in text[:LINE_LIMIT])
    return json.dumps(text[: sum(end <= LINE_LIMIT - 5 for end in ends)] + "...")


# ---- optional libraries ------------------------------------------------------------------------


def library(module: str, package: str, extra: str, purpose: str) -> Any:
    """Import an optional library. Raises AssetError with the command that installs it if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name == module.partition(".")[0]
        problem = "is not installed" if missing else f"cannot be imported ({error})"
        raise AssetError(
            f"{purpose} needs {package}, which {problem}: pip install {package} "
            f'(the extra "{extra}" of amortized3d has it)'
        ) from None
