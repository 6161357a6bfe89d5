"""Differentiable rendering of Gaussian splats."""

from amortized.rendering.splats.engines import SplatEngine, splat_engine_on
from amortized.rendering.splats.renderer import render_splats

__all__ = ["SplatEngine", "render_splats", "splat_engine_on"]
