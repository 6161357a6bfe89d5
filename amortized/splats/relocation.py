"""Density control with a fixed budget: splats that show nothing move to splats that show much.

"3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al. 2024). The total is capped, and no
threshold depends on the scale of the gradients, which differs between guidance methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amortized.config import check
from amortized.splats.changes import Change, rows, then, unchanged
from amortized.splats.parameters import MAX_SPLATS, Parameters, rotation_matrices
from amortized.splats.starts import neighbor_distances
from amortized.transfer import to_device

MAX_COPIES = 51  # that share one splat's place in the formula
# Share of all splats that move in one change. If a threshold exceeds most opacities, an object of many faint
# splats would lose them all at once.
MAX_MOVED = 0.25
MAX_OPACITY = 1 - 1e-6  # of a copy: its logit must be finite


@dataclass(frozen=True, kw_only=True)
class RelocationConfig:
    """When and how far splats are moved and added; times are shares of the training."""

    name: Literal["relocation"] = "relocation"
    cap: int = 20_000  # splats at most
    every: int = 100  # steps between two changes
    start: float = 0.0  # changes begin
    stop: float = 0.8  # and end
    growth: float = 0.05  # share of the splats that are added in a change, up to the cap
    min_opacity: float = 0.005  # splats with less are moved
    noise: float = 5e5  # strength of the positions' noise, times their learning rate; 0: none

    def __post_init__(self) -> None:
        check(self, "cap", at_least=1, limit=MAX_SPLATS)
        check(self, "every", at_least=1, limit=10**9)
        check(self, "start", "stop", "growth", at_least=0, at_most=1)
        check(self, "min_opacity", above=0, below=1)
        check(self, "noise", at_least=0, limit=1e9)

    def changes_at(self, step: int, progress: float) -> bool:
        """Whether splats are moved and added after `step`, counted from 1, at `progress` in [0, 1]."""
        return self.start <= progress <= self.stop and step % self.every == 0


def relocate_and_grow(
    parameters: Parameters, config: RelocationConfig, bounding_radius: float, rng: torch.Generator
) -> Change:
    """Return one change: move splats that are nearly transparent or stray, then add `growth`.

    `rng` is a CPU generator; the change is a pure function of its state and the parameters. No splat is
    copied if none is alive. Splats beyond the cap, of a start or another run, stay.
    """
    moved = relocate(parameters, _dead(parameters, config.min_opacity, bounding_radius), rng)
    count = len(parameters["means"])
    added = min(math.ceil(count * (1 + config.growth)), max(config.cap, count)) - count
    return then(moved, grow(moved.parameters, added, config.min_opacity, rng))


def _dead(parameters: Parameters, min_opacity: float, bounding_radius: float) -> Tensor:
    """Return which splats to move, bool [N]: strays and transparent ones, but only a part at once, or all."""
    opacities = opacities_of(parameters)
    stray = strays(parameters, bounding_radius)
    dead = stray | (opacities <= min_opacity)
    most = max(1, int(MAX_MOVED * len(dead)))
    if most < int(dead.sum()) < len(dead):
        order = torch.where(stray, -1.0, opacities).argsort(stable=True)
        dead[order[most:]] = False
    return dead


def relocate(parameters: Parameters, dead: Tensor, rng: torch.Generator) -> Change:
    """Move the dead splats (bool [N]) onto others, drawn in proportion to opacity; see `share_place`.

    Nothing changes if all are dead.
    """
    places = _draw(opacities_of(parameters) * ~dead, int(dead.sum()), rng)
    if not len(places):
        return unchanged(parameters)
    source = torch.arange(len(dead), device=dead.device)
    source[dead] = places
    return share_place(parameters, source)


def grow(parameters: Parameters, number: int, min_opacity: float, rng: torch.Generator) -> Change:
    """Add `number` copies of splats above `min_opacity`, drawn by opacity; see `share_place`."""
    opacities = opacities_of(parameters)
    places = _draw(opacities * (opacities > min_opacity), number, rng)
    source = torch.arange(len(opacities), device=opacities.device)
    return share_place(parameters, torch.cat([source, places]))


def share_place(parameters: Parameters, source: Tensor) -> Change:
    """Return the splats at the old rows `source` [M], such that copies of a splat look like the one it was.

    K copies in one place get the opacity 1 - (1 - o)^(1 / K), so that together they cover o in the center,
    and a smaller scale, so that their coverage along a line has the same integral: equation 9 of the paper.
    A plain clone would look larger and more opaque.
    """
    copies = torch.bincount(source, minlength=len(parameters["means"]))[source]  # [M]
    change = rows(parameters, source, copies > 1)
    shared = copies > 1
    if not shared.any():
        return change
    opacities = torch.sigmoid(change.parameters["logits"][shared].double()).clamp(max=MAX_OPACITY)
    opacity, shrinkage = shared_opacity_and_scale(opacities, copies[shared])
    logits, log_scales = change.parameters["logits"], change.parameters["log_scales"]
    logits[shared] = torch.logit(opacity).to(logits)
    log_scales[shared] += shrinkage.log().to(log_scales)[:, None]
    return change


def shared_opacity_and_scale(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return the opacity [M] of each of `copies` [M] splats in place of one, and the factor of its scale [M].

    With o' = 1 - (1 - o)^(1 / K), the factor is o divided by
    sum over i = 1..K, k = 0..i - 1 of C(i - 1, k) (-1)^k o'^(k + 1) / sqrt(k + 1).
    """
    copies = copies.clamp(max=MAX_COPIES).to(opacities.dtype)
    opacity = 1 - (1 - opacities) ** (1 / copies)
    # Sum over i first: sum of C(i - 1, k) over i = k + 1..K is C(K, k + 1).
    k = torch.arange(1, MAX_COPIES + 1, device=opacities.device, dtype=opacities.dtype)
    binomials = torch.exp(
        torch.lgamma(copies[:, None] + 1.0) - torch.lgamma(k + 1) - torch.lgamma(copies[:, None] - k + 1.0)
    )
    terms = binomials * (-1) ** (k - 1) * opacity[:, None] ** k / k.sqrt()
    integral = torch.where(k <= copies[:, None], terms, 0.0).sum(-1)
    return opacity, opacities / integral


def noisy_means(parameters: Parameters, strength: float, rng: torch.Generator) -> Tensor:
    """Return the means [N, 3] with noise of covariance `strength`^2 times the splat's, squared.

    Only nearly transparent splats move: the noise fades out around an opacity of 0.005. strength: that of the
    config times the positions' learning rate.
    """
    means, scales = parameters["means"].detach(), parameters["log_scales"].detach().exp()
    axes = rotation_matrices(parameters["quaternions"].detach()) * scales[:, None]
    noise = to_device(torch.randn(means.shape, generator=rng), means.device).to(means.dtype)
    noise = noise * (strength * torch.sigmoid(-100 * (opacities_of(parameters) - 0.005)))[:, None]
    return means + (axes @ (axes.mT @ noise[..., None])).squeeze(-1)


def strays(parameters: Parameters, bounding_radius: float) -> Tensor:
    """Return which splats [N] are outside the bounding ball, or far from all others.

    Far: the mean distance to the 3 nearest is more than 5 times the median. Such floaters hide in front of
    one background color and show in front of another.
    """
    means = parameters["means"].detach()
    distances = neighbor_distances(means.nan_to_num(), 3).mean(1).to(means.device)
    far = distances > 5 * distances.median().clamp(min=1e-9)
    return far | ~(means.norm(dim=-1) <= bounding_radius)


def opacities_of(parameters: Parameters) -> Tensor:
    """Return opacities [N]."""
    return torch.sigmoid(parameters["logits"].detach())


def _draw(weights: Tensor, number: int, rng: torch.Generator) -> Tensor:
    """Return `number` rows drawn with these weights, on the weights' device; none if all weights are 0."""
    host = weights.cpu().double()
    if number < 1 or not host.sum() > 0:
        return torch.zeros(0, dtype=torch.int64, device=weights.device)
    return torch.multinomial(host, number, replacement=True, generator=rng).to(weights.device)
