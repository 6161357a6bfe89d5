"""Regularizers of geometry: plain functions, unweighted, one value per prompt [P].

`opacity` is a render's [P, V, H, W] in [0, 1]; `samples` are a training render's. The first five are
ScaleDreamer's (arXiv 2407.02040); the last three prevent collapse: an empty scene, or one that fills the
image, gets no guidance gradient to recover by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.types import RaySamples


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
    """mean (|g| - 1)^2 of the SDF's gradient, over rays: zero for a true distance field."""
    _distances(samples)  # refuses scenes without
    error = (torch.linalg.vector_norm(_gradient(samples), dim=-1) - 1).square()
    return _mean(error, samples.valid)


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
