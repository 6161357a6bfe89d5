"""Scores and their uncertainty: pure functions, each a few lines of arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over n prompts with its confidence interval; NaN in, NaN out."""

    mean: float
    low: float
    high: float
    n: int


def recall_at_1(similarity: Tensor, own: Tensor) -> Tensor:
    """Whether each image's own text is strictly its best match: bool [N].

    similarity [N, G] of N images with a gallery of G texts; own [N] long, the own text's column.
    A tie counts as wrong, and so does a NaN, so an image that says nothing never scores by chance.
    """
    own = own[:, None]
    rivals = similarity.scatter(1, own, -math.inf)
    return (similarity.gather(1, own) > rivals).all(dim=1)


def chance_recall(num_gallery: int) -> float:
    """Expected recall@1 of a random guess among `num_gallery` distinct texts."""
    if num_gallery < 1:
        raise ValueError(f"chance_recall: the gallery must hold at least one text, got {num_gallery}")
    return 1.0 / num_gallery


def iou(sdf_a: Tensor, sdf_b: Tensor) -> Tensor:
    """Intersection over union [...] of the insides (sdf < 0) of two fields sampled at N points [..., N].

    Points must be of equal volume. Two empty fields give 0: nothing was asked for, nothing found.
    """
    inside_a, inside_b = sdf_a < 0, sdf_b < 0
    both = (inside_a & inside_b).sum(-1)
    either = (inside_a | inside_b).sum(-1)
    return both / either.clamp(min=1)


def best_sphere_iou(sdf: Tensor, points: Tensor) -> float:
    """The best IoU that a plain ball reaches with the field sdf [N] at points [N, 3].

    Exact over all radii, for balls around the origin and around the field's center of mass; the
    larger counts. This is the score of having learned size and place but no shape.
    """
    inside = sdf < 0
    if not inside.any():
        return 0.0
    centers = torch.stack([torch.zeros_like(points[0]), points[inside].mean(0)])
    return max(_best_radius_iou(inside, (points - center).norm(dim=-1)) for center in centers)


def _best_radius_iou(inside: Tensor, radius: Tensor) -> float:
    """Best IoU over all balls {radius <= r}: sorted by radius, each prefix of points is one ball."""
    radius, order = radius.sort()
    covered = inside[order].cumsum(0)
    size = torch.arange(1, len(radius) + 1, device=radius.device)
    ious = covered / (inside.sum() + size - covered)
    whole_shell = torch.ones_like(inside)
    whole_shell[:-1] = radius[1:] > radius[:-1]  # a ball takes all points of one radius, or none
    return float(ious[whole_shell].max())


def color_error(rgb: Tensor, rgb_true: Tensor) -> Tensor:
    """Mean absolute difference [...] of colors [..., N, 3] in [0, 1], over points and channels."""
    return (rgb - rgb_true).abs().mean(dim=(-2, -1))


def bootstrap_interval(
    values: Sequence[float], *, seed: int, level: float = 0.95, num_resamples: int = 2000
) -> Interval:
    """Mean of `values` with a percentile bootstrap interval; the same seed gives the same interval.

    Resamples whole prompts, so the interval speaks of other prompts of the same kind, not of other
    training runs. One value gives an interval of width zero; none is an error.
    """
    if not len(values):
        raise ValueError("bootstrap_interval needs at least one value, got none")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap_interval: level must lie in (0, 1), got {level}")
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if not math.isfinite(mean):
        return Interval(mean=math.nan, low=math.nan, high=math.nan, n=len(sample))
    rng = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // len(sample))  # resamples drawn at once: bounds the memory
    means = np.concatenate(
        [
            sample[rng.integers(len(sample), size=(min(rows, num_resamples - done), len(sample)))].mean(1)
            for done in range(0, num_resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=mean, low=float(low), high=float(high), n=len(sample))
