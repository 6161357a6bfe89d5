"""Density control by gradients: clone, split and prune, as 3D Gaussian Splatting does it (Kerbl et al. 2023).

Splats whose image position has a large gradient are cloned if they are small and split if they are large.
Thresholds are in units of the gradient, so they fit the guidance, resolution and batch that they were
published for, and no other: `relocation` has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amortized.config import check
from amortized.splats.changes import Change, moved, rows, then
from amortized.splats.parameters import MAX_SPLATS, Parameters, rotation_matrices
from amortized.splats.relocation import opacities_of, strays
from amortized.types import ScreenStatistics

SHRINKAGE = 1.6  # of the two splats that replace a split one


@dataclass(frozen=True, kw_only=True)
class SplittingConfig:
    """Thresholds and steps; the defaults are those of 3D Gaussian Splatting."""

    name: Literal["splitting"] = "splitting"
    cap: int = 100_000  # splats at most
    gradient: float = 2e-4  # densify from this mean gradient norm per image, in half image sizes
    dense_share: float = 0.01  # splats above this share of `extent` are split, the others cloned
    extent: float = 1.0  # size of the scene
    start: int = 500  # steps: densify after this one
    stop: int = 15_000  # and before this one
    every: int = 100
    min_opacity: float = 0.005  # splats with less are pruned
    # Splats with a larger radius are pruned, as a share of the image's height; null: no limit. With one,
    # splats above a tenth of `extent` are pruned too.
    max_radius: float | None = None
    max_radius_from: int = 0  # step
    reset_every: int | None = 3000  # steps between two resets of opacity; null: never
    reset_opacity: float = 0.01  # upper limit; below about 0.05, few and wide splats lose all gradient

    def __post_init__(self) -> None:
        check(self, "cap", at_least=1, limit=MAX_SPLATS)
        check(self, "gradient", "dense_share", "extent", "max_radius", above=0, limit=1e6)
        check(self, "start", "stop", "max_radius_from", at_least=0, limit=10**9)
        check(self, "every", "reset_every", at_least=1, limit=10**9)
        check(self, "min_opacity", "reset_opacity", above=0, below=1)

    def densifies_at(self, step: int) -> bool:
        """Whether splats are cloned, split and pruned after `step`, which counts from 1."""
        return self.start < step < self.stop and step % self.every == 0

    def resets_at(self, step: int) -> bool:
        """Whether opacities are reset after `step`."""
        return self.reset_every is not None and step < self.stop and step % self.reset_every == 0


def empty_statistics(count: int, like: Tensor) -> ScreenStatistics:
    """Return the statistics of one object with `count` splats before any render, [1, N] each."""
    return ScreenStatistics(
        gradient=like.new_zeros(1, count), visits=like.new_zeros(1, count), radius=like.new_zeros(1, count)
    )


def clone_split_prune(
    parameters: Parameters,
    statistics: ScreenStatistics,
    config: SplittingConfig,
    step: int,
    bounding_radius: float,
    rng: torch.Generator,
) -> Change:
    """Return one change of one object: clone and split where gradients are large, then prune.

    statistics: since the last change, [1, N]; begin new ones afterwards. A clone equals its original. A split
    splat is replaced by two that are drawn from it. Pruned are transparent, too large and stray splats, but
    never the most opaque one. If the cap leaves no room for all, the largest gradients win.
    """
    scales = parameters["log_scales"].detach().exp().amax(-1)
    gradients = statistics.gradient[0] / statistics.visits[0].clamp(min=1)
    hot = gradients >= config.gradient
    room = max(config.cap - len(hot), 0)
    if int(hot.sum()) > room:
        ranks = torch.where(hot, gradients, -1.0).argsort(descending=True, stable=True)
        hot[ranks[room:]] = False
    large = scales > config.dense_share * config.extent
    clones, splits = hot & ~large, hot & large
    grown = _grow(parameters, clones, splits, rng)

    remove = opacities_of(grown.parameters) < config.min_opacity
    if config.max_radius is not None and step > config.max_radius_from:
        remove |= moved(statistics.radius[0], grown) > config.max_radius
        remove |= grown.parameters["log_scales"].exp().amax(-1) > 0.1 * config.extent
    remove |= strays(grown.parameters, bounding_radius)
    if remove.all():
        remove[opacities_of(grown.parameters).argmax()] = False
    remaining = (~remove).nonzero().squeeze(1)
    pruned = rows(grown.parameters, remaining, torch.zeros_like(remaining, dtype=torch.bool))
    return then(grown, pruned)


def _grow(parameters: Parameters, clones: Tensor, splits: Tensor, rng: torch.Generator) -> Change:
    """Return the splats that are not split, then the clones, then two for each split one."""
    stay, cloned, split = ((mask.nonzero().squeeze(1)) for mask in (~splits, clones, splits))
    children = split.repeat(2)
    fresh = torch.zeros(len(stay) + len(cloned) + len(children), dtype=torch.bool, device=stay.device)
    fresh[len(stay) :] = True
    change = rows(parameters, torch.cat([stay, cloned, children]), fresh)
    new = {name: value[len(fresh) - len(children) :] for name, value in change.parameters.items()}
    axes = rotation_matrices(new["quaternions"]) * new["log_scales"].exp()[:, None]
    offsets = torch.randn(len(children), 3, 1, generator=rng).to(axes)
    new["means"] += (axes @ offsets).squeeze(-1)  # views of the change's tensors
    new["log_scales"] -= math.log(SHRINKAGE)
    return change


def reset_logits(parameters: Parameters, opacity: float) -> Tensor:
    """Return logits [N] of which none exceeds that of `opacity`; their moments should start again."""
    return parameters["logits"].detach().clamp(max=math.log(opacity / (1 - opacity)))
