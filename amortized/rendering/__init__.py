"""Differentiable rendering of scenes: SDFs by volume rendering, and Gaussian splats."""

from amortized.rendering.backgrounds import BackgroundConfig, background_from_uniform
from amortized.rendering.lattice import radius_of
from amortized.rendering.point_light import (
    NUM_LIGHT_DRAWS,
    PointLightConfig,
    PointLights,
    point_lights,
)
from amortized.rendering.quadrature import laplace_density
from amortized.rendering.renderer import RendererConfig, render
from amortized.rendering.shading import ShadingConfig, field_gradient
from amortized.rendering.splats import render_splats, splat_engine_on

__all__ = [
    "NUM_LIGHT_DRAWS",
    "BackgroundConfig",
    "PointLightConfig",
    "PointLights",
    "RendererConfig",
    "ShadingConfig",
    "background_from_uniform",
    "field_gradient",
    "laplace_density",
    "point_lights",
    "radius_of",
    "render",
    "render_splats",
    "splat_engine_on",
]
