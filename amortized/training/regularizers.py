"""Regularizers of geometry: plain functions, unweighted, one value per prompt [P].

`opacity` is a render's [P, V, H, W] in [0, 1]; `samples` are a training render's. The first five are
ScaleDreamer's (arXiv 2407.02040); the next three prevent collapse: an empty scene, or one that fills the
image, gets no guidance gradient to recover by. `convex` follows SDI (arXiv 2405.15891), `tv` LucidDreamer
(arXiv 2311.11284).
"""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.types import Cameras, RaySamples, Render

CONVEX_SIZE = 8  # px, of the image of normals that `convex` compares


def sparsity(opacity: Tensor) -> Tensor:
    """mean sqrt(opacity^2 + 0.01), in [0.1, 1.005]: low if little of the image is covered."""
    return (opacity.square() + 0.01).sqrt().mean(dim=(1, 2, 3))


def opaque(opacity: Tensor) -> Tensor:
    """Mean binary entropy -a log a - (1 - a) log(1 - a) in nats, a clamped to [0.001, 0.999].

    Low if every pixel is either covered or empty. Pixels beyond the clamp get no gradient.
    """
    a = opacity.clamp(1e-3, 1 - 1e-3)
    return -(a * a.log() + (1 - a) * (-a).log1p()).mean(dim=(1, 2, 3))


def eikonal(samples: RaySamples) -> Tensor:
    """mean (|g| - 1)^2 of the SDF's gradient, over rays: zero for a true distance field.

    At all samples of a ray if their gradients were computed, else at its expected depth.
    """
    _distances(samples)  # refuses scenes without
    gradients = _gradient(samples)[:, :, None] if samples.gradients is None else samples.gradients
    error = (torch.linalg.vector_norm(gradients, dim=-1) - 1).square()  # [P, K, S or 1]
    return _mean(error.mean(dim=-1), samples.valid)


def orient(samples: RaySamples) -> Tensor:
    """mean opacity * max(n . d, 0)^2 over rays of direction d: surfaces face the camera (Ref-NeRF)."""
    normal = torch.nn.functional.normalize(_gradient(samples), dim=-1)
    away = (normal * samples.directions).sum(dim=-1).relu()
    return _mean(samples.weights.sum(dim=-1).detach() * away.square(), samples.valid)


def z_variance(samples: RaySamples) -> Tensor:
    """Mean variance of the samples' depth under their weights, over rays of opacity above 0.5.

    Low if each ray meets one thin surface (HiFA, arXiv 2305.18766).
    """
    opacity = samples.weights.sum(dim=-1)
    share = samples.weights / opacity.clamp(min=1e-6)[..., None]
    mean = (share * samples.t_positions).sum(dim=-1, keepdim=True)
    variance = (share * (samples.t_positions - mean).square()).sum(dim=-1)
    return _mean(variance, samples.valid & (opacity > 0.5))


def opacity_floor(opacity: Tensor, floor: float) -> Tensor:
    """relu(floor - covered share of the image), mean over views: revives an object that fades away.

    A floor of 0.08 is just below the coverage of a thin ring in side view.
    """
    return (floor - opacity.mean(dim=(2, 3))).relu().mean(dim=1)


def opacity_cap(opacity: Tensor, cap: float) -> Tensor:
    """relu(covered share of the image - cap), mean over views: shrinks an object that fills the image."""
    return (opacity.mean(dim=(2, 3)) - cap).relu().mean(dim=1)


def inside_hinge(samples: RaySamples, margin: float = 0.1) -> Tensor:
    """relu(min sdf + margin) over a prompt's samples: zero once some sample is inside.

    It has a gradient even for invisible objects, for which opacity has none.
    """
    return (_distances(samples).flatten(1).amin(dim=1) + margin).relu()


def convex(render: Render, cameras: Cameras) -> Tensor:
    """-(mean sine of the angle by which neighboring normals open), over views: low if the object is convex.

    Normals times opacity are reduced to 8 x 8 px. Of two neighbors in a row, the sine is the component of
    their cross product along the camera's up; of two in a column, along its right. The published code takes
    the world's z for both, and of the colors of the normals, (n + 1) / 2, for which the sign depends on the
    side of the object.
    """
    assert render.normal is not None, "the render has no normals: set want_normal"
    weighted = (render.normal * render.opacity[..., None]).flatten(0, 1).movedim(-1, 1)  # [B, 3, H, W]
    small = torch.nn.functional.interpolate(weighted, (CONVEX_SIZE, CONVEX_SIZE), mode="bilinear")
    normal = small.movedim(1, -1).unflatten(0, render.opacity.shape[:2])  # [P, V, 8, 8, 3]
    right, up = cameras.c2w[..., None, None, :3, 0], cameras.c2w[..., None, None, :3, 1]
    along_rows = torch.linalg.cross(normal[..., :-1, :], normal[..., 1:, :])  # left x right
    along_columns = torch.linalg.cross(normal[..., :-1, :, :], normal[..., 1:, :, :])  # upper x lower
    opening = (along_rows * up).sum(-1).mean((2, 3)) + (along_columns * right).sum(-1).mean((2, 3))
    return -opening.mean(dim=1)


def tv(rgb: Tensor) -> Tensor:
    """Twice the mean squared difference of vertical and of horizontal neighbors of rgb [P, V, H, W, 3]."""
    rows, columns = rgb.diff(dim=2).square(), rgb.diff(dim=3).square()
    return 2 * (rows.mean(dim=(1, 2, 3, 4)) + columns.mean(dim=(1, 2, 3, 4)))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean [P] of each prompt's values [P, K] over the rays in `mask` [P, K]; 0 if it is empty."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _distances(samples: RaySamples) -> Tensor:
    if samples.sdf is None:
        raise ValueError("eikonal and inside need signed distances, but this scene is given by densities")
    return samples.sdf


def _gradient(samples: RaySamples) -> Tensor:
    assert samples.gradient is not None, "the render has no normals: set want_normal"
    return samples.gradient
