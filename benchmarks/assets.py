"""Make an asset of every prompt of a run, and measure how close it is to its field and how long it takes.

  python -m benchmarks.assets outputs/quickstart [--output FOLDER] [--limit N]

Baseline of the extraction: marching cubes over all vertices of the same grid. Writes the GLBs, and
assets.json with all figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from amortized.arguments import path, whole
from amortized.assets import Asset, AssetConfig, Source, make_asset, save_asset
from amortized.assets.field import Field
from amortized.cli import parser_for, run_command
from amortized.commands.compose import load_corpus, load_run_config
from amortized.files import atomic_write_text
from amortized.generation import TextTo3D
from amortized.names import slug
from amortized.wording import count
from benchmarks.timing import markdown, now

COLUMNS, ROWS = 32, 128  # of the grid of points at which mesh and field are compared


def inside(vertices: np.ndarray, faces: np.ndarray, x: float, y: float, z: np.ndarray) -> np.ndarray:
    """Whether points (x, y, z[i]) lie in a closed mesh, by the crossings of a vertical line below each."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))

    def side(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return (q[:, 0] - p[:, 0]) * (y - p[:, 1]) - (q[:, 1] - p[:, 1]) * (x - p[:, 0])

    areas = np.stack([side(b, c), side(c, a), side(a, b)])
    hit = (areas > 0).all(0) | (areas < 0).all(0)
    weights = areas[:, hit] / areas[:, hit].sum(0)
    heights = weights[0] * a[hit, 2] + weights[1] * b[hit, 2] + weights[2] * c[hit, 2]
    return (heights[None] < z[:, None]).sum(1) % 2 == 1


def iou(
    vertices: np.ndarray, faces: np.ndarray, field: Field, *, columns: int = COLUMNS, rows: int = ROWS
) -> float:
    """Intersection over union of a closed mesh with the inside of a field, on a grid of points."""
    across, up = (np.linspace(-1, 1, n) * field.radius * 0.98 + 1e-4 for n in (columns, rows))
    meshed, filled = [], []
    for x in across:
        for y in across:
            meshed.append(inside(vertices, faces, x, y, up))
            filled.append(field.value(np.stack([np.full(rows, x), np.full(rows, y), up], 1)) < 0)
    one, other = np.concatenate(meshed), np.concatenate(filled)
    return float((one & other).sum() / (one | other).sum())


def row_of(prompt: str, asset: Asset, field: Field, config: AssetConfig, glb_seconds: float) -> dict:
    """The figures of one asset."""
    report, seconds = asset.report, asset.report["seconds"]
    dense = (config.resolution + 1) ** 3
    return {
        "prompt": prompt,
        "iou": round(iou(asset.mesh.vertices, asset.mesh.faces, field), 4),
        "surface error": round(report["surface_error"]["mean"], 6),
        "largest": round(report["surface_error"]["max"], 5),
        "texture error": round(report["texture_error"]["mean"], 5),
        "watertight": report["watertight"],
        "faces": report["faces"],
        "evaluations / dense": round(report["evaluations"]["extract"] / dense, 3),
        "extract s": seconds["extract"],
        "simplify s": seconds["simplify"],
        "texture s": seconds["texture"],
        "GLB s": round(glb_seconds, 2),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path)
    parser.add_argument("--output", type=path, default=Path("outputs/benchmarks/assets"))
    parser.add_argument("--limit", type=whole(1, 10**6), default=10**6, help="at most so many prompts")


def run(args: argparse.Namespace) -> int:
    """Make and measure the assets, print and write their table; returns the exit status."""
    model, config = TextTo3D.from_run(args.run), AssetConfig()
    corpus = load_corpus(load_run_config(args.run / "config.yaml", []))
    rows = []
    for i in range(min(args.limit, len(corpus))):
        text = corpus[i].text
        scene = model.scenes([corpus[i]])
        asset = make_asset(scene, config, Source(prompt=text), model.device)
        start = now()
        save_asset(asset, args.output / slug(text), "glb")
        rows.append(row_of(text, asset, Field(scene, model.device), config, now() - start))
        print(json.dumps(rows[-1]), flush=True)
    numbers = [key for key, value in rows[0].items() if isinstance(value, (int, float))]
    means = {key: round(float(np.mean([row[key] for row in rows])), 5) for key in numbers}
    rows.append({"prompt": "mean", **means})
    print(f"\n{count(len(rows) - 1, 'asset')} in {args.output}\n\n{markdown(rows)}")
    atomic_write_text(args.output / "assets.json", json.dumps(rows, indent=1) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = parser_for("python -m benchmarks.assets", __doc__)
    add_arguments(parser)
    return run_command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
