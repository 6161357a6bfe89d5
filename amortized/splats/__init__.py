"""Gaussian splats as data: parameters, starts, density control, files."""

from amortized.splats.parameters import (
    MAX_SPLATS,
    NAMES,
    Parameters,
    bound,
    coefficients_of,
    colors_of,
    parameters_of,
    quaternions_from_z,
    rotation_matrices,
    scene_of,
)

__all__ = [
    "MAX_SPLATS",
    "NAMES",
    "Parameters",
    "bound",
    "coefficients_of",
    "colors_of",
    "parameters_of",
    "quaternions_from_z",
    "rotation_matrices",
    "scene_of",
]
