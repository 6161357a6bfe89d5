"""Metrics and their confidence intervals, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over n prompts with its confidence interval. All NaN if any value is NaN.

    One prompt has no interval: its bounds are NaN.
    """

    mean: float
    low: float
    high: float
    n: int


def recall_at_1(similarity: Tensor, column: Tensor) -> Tensor:
    """Whether each image matches its own text strictly best: bool [N].

    Ties and NaN count as misses, so an uninformative image cannot score by chance.

    Args:
        similarity: [N, G], of N images with a gallery of G texts.
        column: [N] int64, the column of each image's own text.
    """
    column = column[:, None]
    rivals = similarity.scatter(1, column, -math.inf)
    return (similarity.gather(1, column) > rivals).all(dim=1)


def text_scores(images: Tensor, gallery: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine with the prompt's text and recall@1, means over its views, both [P].

    Args:
        images: [P * V, D], unit embeddings, prompt-major.
        gallery: [G, D], unit embeddings of G texts.
        column: [P] int64, the column of each prompt's text.
    """
    num_views = len(images) // len(column)
    column = column.repeat_interleave(num_views)  # [P * V]
    similarity = images @ gallery.T  # [P * V, G]
    cosine = similarity.gather(1, column[:, None]).squeeze(1)
    is_best = recall_at_1(similarity, column).float()
    return cosine.reshape(-1, num_views).mean(1), is_best.reshape(-1, num_views).mean(1)


def chance_recall(num_gallery: int) -> float:
    """Expected recall@1 of a random guess among `num_gallery` distinct texts. Raises ValueError below 1."""
    if num_gallery < 1:
        raise ValueError(f"chance_recall: the gallery must hold at least one text, got {num_gallery}")
    return 1.0 / num_gallery


def iou(sdf_a: Tensor, sdf_b: Tensor) -> Tensor:
    """Intersection over union [...] of the interiors (sdf < 0) of two fields sampled at N points [..., N].

    Every point must stand for the same volume. Two empty fields give 0.
    """
    inside_a, inside_b = sdf_a < 0, sdf_b < 0
    both = (inside_a & inside_b).sum(-1)
    either = (inside_a | inside_b).sum(-1)
    return both / either.clamp(min=1)


def best_sphere_iou(sdf: Tensor, points: Tensor) -> float:
    """Best IoU of any ball with the field sdf [N] sampled at points [N, 3].

    Exact over all radii, for balls around the origin and around the field's center of mass, whichever
    is better. A generator that learned size and position but no shape scores this much.
    """
    inside = sdf < 0
    if not inside.any():
        return 0.0
    centers = torch.stack([torch.zeros_like(points[0]), points[inside].mean(0)])
    return max(_best_radius_iou(inside, (points - center).norm(dim=-1)) for center in centers)


def _best_radius_iou(inside: Tensor, radius: Tensor) -> float:
    """Best IoU over the balls {radius <= r} for all r: with points sorted by radius, a ball is a prefix."""
    radius, order = radius.sort()
    covered = inside[order].cumsum(0)
    size = torch.arange(1, len(radius) + 1, device=radius.device)
    ious = covered / (inside.sum() + size - covered)
    ends_shell = torch.ones_like(inside)
    ends_shell[:-1] = radius[1:] > radius[:-1]  # points of equal radius enter a ball together
    return float(ious[ends_shell].max())


def color_error(rgb: Tensor, rgb_true: Tensor) -> Tensor:
    """Mean absolute difference [...] of colors [..., N, 3] in [0, 1] over points and channels."""
    return (rgb - rgb_true).abs().mean(dim=(-2, -1))


def bootstrap_interval(
    values: Sequence[float], *, seed: int, level: float = 0.95, num_resamples: int = 2000
) -> Interval:
    """Mean of `values` with a percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Prompts are resampled, so the interval covers the choice of prompts, not of the training run. The
    same seed gives the same interval. A single value has no interval: its bounds are NaN.

    Raises:
        ValueError: there are no values, or `level` is outside (0, 1).
    """
    if not len(values):
        raise ValueError("bootstrap_interval needs at least one value, got none")
    if not 0 < level < 1:
        raise ValueError(f"bootstrap_interval: level must lie in (0, 1), got {level}")
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if not math.isfinite(mean):
        return Interval(mean=math.nan, low=math.nan, high=math.nan, n=len(sample))
    if len(sample) == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan, n=1)
    rng = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // len(sample))  # resamples drawn at once: at most 32 MB of indices
    means = np.concatenate(
        [
            sample[rng.integers(len(sample), size=(min(chunk, num_resamples - done), len(sample)))].mean(1)
            for done in range(0, num_resamples, chunk)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=mean, low=float(low), high=float(high), n=len(sample))
