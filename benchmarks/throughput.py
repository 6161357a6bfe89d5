"""Measure hash grids and the renderers separately: points, field evaluations and images per second.

    python -m benchmarks.throughput [--device cuda] [--output FILE.json]

The field is that of an untrained Hyper-iNGP of the published size, the sampling RendererConfig's default.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from amortized.cameras import orbit
from amortized.parallel import join_world
from amortized.rendering import RendererConfig, render
from amortized.transfer import to_device
from amortized.types import Render, TextCondition
from benchmarks import ceilings, hash_grids, splats
from benchmarks.timing import ResultsFile, seconds
from generators.hyper_ingp import HyperINGPConfig

POINTS = {"cuda": 2**20, "cpu": 2**13}  # per lookup
VIEWS = {"cuda": 8, "cpu": 1}  # images per call
SIZES = {"cuda": (64, 128, 256), "cpu": (32, 64)}  # px


def rendering(device: torch.device) -> Iterator[dict[str, object]]:
    """Yield a row per image size, rendered as in evaluation and, with a gradient, as in training."""
    generator = HyperINGPConfig().build(1024).to(device)
    pooled = torch.randn(1, 1024, device=device)
    mask = torch.ones(1, 1, dtype=torch.bool, device=device)
    text = TextCondition(pooled=pooled, tokens=pooled[:, None], mask=mask)
    views = VIEWS[device.type]
    cameras = orbit(1, views, elevation_deg=20.0, distance=2.6, fovy_deg=42.0)
    cameras, background = to_device(cameras, device), torch.full((1, views, 3), 0.5, device=device)
    for size in SIZES[device.type]:

        def render_views(training: bool, size: int = size) -> Render:
            return render(
                generator(text),
                cameras,
                size,
                size,
                config=RendererConfig(),
                background=background,
                sharpness=30.0,
                training=training,
                want_normal=True,
            )

        def backward(size: int = size) -> None:
            render_views(True, size).rgb.sum().backward()

        with torch.no_grad():
            evaluations, duration = (
                render_views(False).num_evaluations,
                seconds(lambda: render_views(False), 3),
            )
        row: dict[str, object] = {
            "pixels": f"{views} x {size} x {size}",
            "images/s": round(views / duration, 2),
            "million evaluations/s": round(evaluations / duration / 1e6, 2),
        }
        yield row | {"images/s with gradient": round(views / seconds(backward, 3), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check/throughput.json"))
    args = parser.parse_args()
    with join_world(args.device) as world:
        results_file = ResultsFile(args.output, ceilings.about(world.device))
        for row in hash_grids.rows(world.device, POINTS[world.device.type]):
            results_file.add({"component": "hash grid"} | row)
        for row in rendering(world.device):
            results_file.add({"component": "renderer"} | row)
        for row in splats.rows(world.device, SIZES[world.device.type], repeats=3):
            results_file.add({"component": "splats"} | row)
    results_file.summarize("hash grids, the volume renderer and the splat renderer")


if __name__ == "__main__":
    main()
