"""Measure field evaluations per image, and how close images are to dense marching.

Baseline: the public renderer of amortized ASD, 128 coarse intervals and 193 rendered ones with a
finite-difference normal (4 evaluations) on every ray: 900 evaluations per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from amortized.cameras import orbit
from amortized.rendering import RendererConfig, ShadingConfig, render
from amortized.types import GroundTruth, Render, Scene, TextCondition
from benchmarks.timing import seconds
from corpora import open_corpus
from generators.hyper_ingp import HyperINGPConfig

PUBLIC_PER_RAY = 128 + 193 * 4
DENSE = 768  # intervals of the reference, on every ray
SHARPNESS = 30.0  # as published
LIT = ShadingConfig(kind="lambert")


@dataclass(frozen=True)
class TrueScene:
    """The ground-truth objects of P prompts; implements `Scene`."""

    truths: Sequence[GroundTruth]
    bounding_radius: float = 1.0

    @property
    def num_prompts(self) -> int:
        """P."""
        return len(self.truths)

    def sdf(self, points: Tensor) -> Tensor:
        """Return signed distances [P, N] at points [P, N, 3]."""
        return torch.stack([truth.sdf(rows) for truth, rows in zip(self.truths, points, strict=True)])

    def sdf_and_albedo(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return signed distances [P, N] and albedo [P, N, 3] at points [P, N, 3]."""
        rows = zip(self.truths, points, strict=True)
        return self.sdf(points), torch.stack([truth.color(row) for truth, row in rows])

    def select(self, index: int) -> TrueScene:
        """Return the scene of object `index` alone."""
        return TrueScene([self.truths[index]], self.bounding_radius)


def untrained(config: HyperINGPConfig) -> Scene:
    """Return one prompt's scene of an untrained generator: a ball."""
    pooled = torch.randn(1, 1024)
    mask = torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        return config.build(1024)(TextCondition(pooled=pooled, tokens=pooled[:, None], mask=mask))


def measure(configured: RendererConfig) -> list[dict[str, str | float]]:
    """Return a row per resolution and sampling: the defaults, with and without lattice, and `configured`.
    Evaluations and PSNR are for 16 ground-truth objects, times for the ball of an untrained, full-size
    Hyper-iNGP.
    """
    corpus = open_corpus("shapes16")
    truths = [corpus.truth(corpus[index]) for index in range(len(corpus))]
    scene = TrueScene([truth for truth in truths if truth is not None])
    num = len(scene.truths)
    published = untrained(HyperINGPConfig())
    samplings = {
        "default": RendererConfig(shading=LIT),
        "default without lattice": RendererConfig(shading=LIT, lattice=0),
        "this config": replace(configured, shading=LIT),
    }
    rows = []
    for size in (32, 64, 128):

        def render_views(config: RendererConfig, scene: Scene, num: int, size: int = size) -> Render:
            cameras = orbit(num, 1, elevation_deg=20.0, distance=2.6, fovy_deg=42.0, start_azimuth_deg=25.0)
            return render(
                scene,
                cameras,
                size,
                size,
                config=config,
                background=torch.full((num, 1, 3), 0.5),
                sharpness=SHARPNESS,
                training=False,
            )

        reference = render_views(RendererConfig(num_coarse=DENSE, num_fine=0, shading=LIT), scene, num).rgb
        for name, config in samplings.items():
            image = render_views(config, scene, num)
            evaluations = image.num_evaluations / num
            error = (image.rgb - reference).square().mean().clamp(min=1e-12)
            rows.append(
                {
                    "pixels": f"{size} x {size}",
                    "sampling": name,
                    "evaluations": round(evaluations),
                    "public code's / ours": round(PUBLIC_PER_RAY * size**2 / evaluations, 1),
                    "PSNR against dense, dB": round(-10 * error.log10().item(), 1),
                    "ms of Hyper-iNGP": round(
                        1000 * seconds(partial(render_views, config, published, 1), 3), 1
                    ),
                }
            )
    return rows
