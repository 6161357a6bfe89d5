"""The stored parameters of splats and the quantities that they stand for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amortized.types import SplatScene

SH0 = 0.28209479177387814  # the spherical harmonic of degree 0
MAX_SPLATS = 1_000_000  # of one object

# Names of the parameters of one object, in the order of `SplatScene`: a dict of them, without the axis P, is
# what an optimizer trains and density control edits.
NAMES = ("means", "quaternions", "log_scales", "logits", "colors")
Parameters = dict[
    str, Tensor
]  # means [N, 3], quaternions [N, 4], log_scales [N, 3], logits [N], colors [N, 3]


def colors_of(coefficients: Tensor) -> Tensor:
    """Return rgb [..., 3], at least 0, of coefficients of degree 0 [..., 3]. Above 1 it is not clamped."""
    return (coefficients * SH0 + 0.5).clamp(min=0)


def coefficients_of(rgb: Tensor) -> Tensor:
    """Return the coefficients of degree 0 [..., 3] of rgb [..., 3]."""
    return (rgb - 0.5) / SH0


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Return matrices [..., 3, 3] from local to world axes, of quaternions wxyz [..., 4] of any length."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    entries = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    ]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def quaternions_from_z(normals: Tensor) -> Tensor:
    """Return unit quaternions [..., 4] that turn the z axis onto unit normals [..., 3], the shortest way."""
    x, y, z = normals.unbind(-1)
    turned = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=-1)
    half_turn = turned.new_tensor([0.0, 1.0, 0.0, 0.0])  # for -z, to which all ways are equally long
    return torch.nn.functional.normalize(torch.where(z[..., None] < -1 + 1e-6, half_turn, turned), dim=-1)


def parameters_of(scene: SplatScene) -> Parameters:
    """Return the parameters of a scene of one prompt, without padding. Raises ValueError for other P."""
    if scene.num_prompts != 1:
        raise ValueError(f"these are the splats of {scene.num_prompts} prompts: select one")
    visible = scene.logits[0] > -torch.inf  # NaN counts as padding here
    visible |= scene.logits[0].isnan()
    return {name: getattr(scene, name)[0][visible] for name in NAMES}


def check_points(points: Tensor, rgb: Tensor | None = None) -> None:
    """Raise ValueError unless there are 1 to a million finite points [N, 3] and as many finite colors."""
    if not 1 <= len(points) <= MAX_SPLATS:
        raise ValueError(f"splats need 1 to {MAX_SPLATS:,} points to start from, got {len(points):,}")
    for name, values in (("points", points), ("colors", rgb)):
        if values is not None and not values.isfinite().all():
            broken = int((~values.isfinite()).any(1).sum())
            raise ValueError(
                f"the {name} to start splats from are not finite in {broken:,} rows: remove them"
            )


def scene_of(parameters: Parameters, bounding_radius: float) -> SplatScene:
    """Return the parameters of one object as a scene with P = 1."""
    return SplatScene(
        means=parameters["means"][None],
        quaternions=parameters["quaternions"][None],
        log_scales=parameters["log_scales"][None],
        logits=parameters["logits"][None],
        colors=parameters["colors"][None],
        bounding_radius=bounding_radius,
    )


@torch.no_grad()
def bound(parameters: Parameters, *, max_scale: float, max_anisotropy: float) -> None:
    """Clamp parameters in place, as after each optimizer step.

    Standard deviations are at most `max_scale`, and those of one splat differ at most by the factor
    `max_anisotropy`: needles, which a gradient along the line of sight cannot shorten, are widened. Colors
    stay in [0, 1]: a color below 0 would render as black and have no gradient.
    """
    scales = parameters["log_scales"]
    scales.clamp_(max=math.log(max_scale))
    torch.maximum(scales, scales.amax(-1, keepdim=True) - math.log(max_anisotropy), out=scales)
    limit = 0.5 / SH0 * (1 - 1e-6)  # rounding must not leave a color at the limit without gradient
    parameters["colors"].clamp_(-limit, limit)
