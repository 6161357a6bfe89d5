"""Gaussian splats as data: parameters, starts, density control, files."""

from amortized.splats.changes import Change, replace_parameter, rows, unchanged
from amortized.splats.files import (
    read_points_ply,
    read_splat_file,
    read_splat_ply,
    write_points_ply,
    write_splat_file,
    write_splat_ply,
)
from amortized.splats.occupancy import SplatSolid, as_field
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
from amortized.splats.relocation import RelocationConfig, noisy_means, relocate, relocate_and_grow
from amortized.splats.splitting import (
    SplittingConfig,
    clone_split_prune,
    empty_statistics,
    reset_logits,
)
from amortized.splats.starts import ball, from_points, read_start
from amortized.splats.surface import from_surface, surface_points

__all__ = [
    "MAX_SPLATS",
    "NAMES",
    "Change",
    "Parameters",
    "RelocationConfig",
    "SplatSolid",
    "SplittingConfig",
    "as_field",
    "ball",
    "bound",
    "clone_split_prune",
    "coefficients_of",
    "colors_of",
    "empty_statistics",
    "from_points",
    "from_surface",
    "noisy_means",
    "parameters_of",
    "quaternions_from_z",
    "read_points_ply",
    "read_splat_file",
    "read_splat_ply",
    "read_start",
    "relocate",
    "relocate_and_grow",
    "replace_parameter",
    "reset_logits",
    "rotation_matrices",
    "rows",
    "scene_of",
    "surface_points",
    "unchanged",
    "write_points_ply",
    "write_splat_file",
    "write_splat_ply",
]
