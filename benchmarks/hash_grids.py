"""Measure points per second through the published hash grid, engine by engine.

Baseline: the same lookup by plain indexing, differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from amortized.encodings import HashGrid, HashGridConfig
from amortized.encodings.engines import PACKAGES, installed
from benchmarks.timing import seconds

POINTS = {"cpu": 2**16, "cuda": 2**20}


def measure(device: torch.device) -> list[dict[str, str | float]]:
    """Return a row per engine that runs on the device."""
    return list(rows(device, POINTS[device.type]))


def rows(device: torch.device, num_points: int) -> Iterator[dict[str, str | float]]:
    """Yield the rows of `measure` as they are measured."""
    points = torch.rand(num_points, 3, device=device)
    config = HashGridConfig()
    engines = ["torch", *(name for name in PACKAGES if device.type == "cuda" and installed(name))]
    actions = {"plain indexing": (HashGrid(config).to(device), points.clone().requires_grad_())}
    for name in engines:
        engine = name if device.type == "cuda" else "auto"
        actions[name] = (HashGrid(replace(config, engine=engine)).to(device), points)
    baseline = None
    for name, (grid, positions) in actions.items():

        def forward(grid: HashGrid = grid, positions: torch.Tensor = positions) -> torch.Tensor:
            return grid(positions)

        def both(grid: HashGrid = grid, positions: torch.Tensor = positions) -> None:
            torch.autograd.grad(grid(positions).sum(), grid.table)

        with torch.no_grad():
            once = seconds(forward, 3)
        twice = seconds(both, 3)
        baseline = baseline or twice
        yield {
            "engine": name,
            "million points/s, forward": round(len(points) / once / 1e6, 2),
            "forward and backward": round(len(points) / twice / 1e6, 2),
            "plain indexing / this": round(baseline / twice, 1),
        }
