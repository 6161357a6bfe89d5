"""Measure forward and backward passes of splat images, and the memory that they hold in between.

Baseline: the same pairs composited by plain PyTorch operations and differentiated by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from amortized.cameras import orbit
from amortized.rendering import render_splats, splat_engine_on
from amortized.rendering.splats.pairs import ALPHA_MAX, Pairs, boxes_of, pairs_in
from amortized.rendering.splats.projection import project, values_of
from amortized.splats import NAMES
from amortized.transfer import to_device
from amortized.types import Cameras, Render, SplatScene
from benchmarks.steps import graph_bytes
from benchmarks.timing import seconds

COUNTS, SIZES = (500, 2000, 10_000), (64, 128)
Row = dict[str, str | float]


def shell(num_prompts: int, count: int, device: torch.device) -> SplatScene:
    """Return splats as large as their spacing on a sphere of radius 0.5, with mean opacity 0.7."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(num_prompts, count, *shape, generator=rng)

    scale = math.log(0.7 * 0.5 * math.sqrt(4 * math.pi / count))
    tensors = (
        0.5 * torch.nn.functional.normalize(normal(3), dim=-1),
        normal(4),
        scale + 0.2 * normal(3),
        math.log(0.7 / 0.3) + 0.5 * normal(),
        normal(3),
    )
    parameters = (tensor.to(device).requires_grad_() for tensor in tensors)
    return SplatScene(**dict(zip(NAMES, parameters, strict=True)), bounding_radius=1.0)


def measure(device: torch.device) -> list[Row]:
    """Return a row for each number of splats and image size."""
    return list(rows(device))


def rows(device: torch.device, sizes: tuple[int, ...] = SIZES, repeats: int = 7) -> Iterator[Row]:
    """Yield the rows of `measure` as they are measured: one prompt, one view."""
    for count in COUNTS:
        scene = shell(1, count, device)
        parameters = [getattr(scene, name) for name in NAMES]
        for size in sizes:
            cameras = to_device(orbit(1, 1, elevation_deg=20, distance=2.6, fovy_deg=40), device)
            background = torch.zeros(1, 1, 3, device=device)

            render = partial(render_splats, scene, cameras, size, size, background=background, training=True)
            ours, twin = partial(_rgb, render), partial(by_autograd, scene, cameras, size)
            fastest = seconds(partial(_differentiate, ours, parameters), repeats)
            baseline = seconds(partial(_differentiate, twin, parameters), repeats)
            yield {
                "splats": count,
                "pixels": f"{size} x {size}",
                "engine": splat_engine_on(device),
                "pairs": render().num_evaluations,
                "forward, ms": round(1e3 * seconds(render, repeats), 1),
                "forward and backward, ms": round(1e3 * fastest, 1),
                "autograd / this": round(baseline / fastest, 2),
                "graph, MB": round(graph_bytes(ours, parameters) / 1e6, 1),
                "autograd's graph, MB": round(graph_bytes(twin, parameters) / 1e6, 1),
            }


def by_autograd(scene: SplatScene, cameras: Cameras, size: int) -> Tensor:
    """Return sums [P * V * H * W, 5] of the values and 1 over the same pairs, all by autograd."""
    projection = project(scene, cameras, size, size, antialias=True)
    values = values_of(scene, cameras, want_normal=False).flatten(0, 2)
    num_rows = math.prod(projection.depths.shape[:2]) * size
    pairs = pairs_in((0, num_rows), boxes_of(projection, size, size), projection, size)
    splats, pixels = pairs.splats.long(), pairs.pixels.long()
    means, conics = projection.means.reshape(-1, 2)[splats], projection.conics.reshape(-1, 3)[splats]
    dx, dy = means[:, 0] - pixels % size - 0.5, means[:, 1] - pixels // size % size - 0.5
    power = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alphas = (projection.opacities.reshape(-1)[splats] * torch.exp(-power)).clamp(max=ALPHA_MAX)
    weights = alphas * _transmittances(alphas, pairs)
    sums = values.new_zeros(num_rows * size, values.shape[1] + 1)
    terms = torch.cat([weights[:, None] * values[splats], weights[:, None]], dim=1)
    return sums.index_add(0, pixels, terms)


def _transmittances(alphas: Tensor, pairs: Pairs) -> Tensor:
    logs = torch.log1p(-alphas.double())
    before = torch.cat([logs.new_zeros(1), logs.cumsum(0)])
    return (before[:-1] - before[pairs.starts][pairs.pixels.long()]).exp().to(alphas.dtype)


def _rgb(render: Callable[[], Render]) -> Tensor:
    return render().rgb


def _differentiate(image: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    torch.autograd.grad(image()[..., :3].square().sum(), parameters)
