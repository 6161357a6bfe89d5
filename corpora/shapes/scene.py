"""Ground truth of a description: exact geometry and color."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corpora.shapes.geometry import FRONT_X, SOLIDS, SPANS
from corpora.shapes.grammar import COLORS, SIZES, WHITE, Description, Item

PAIR_SCALE = 0.5  # of both items of a pair, so that it takes the space of one item
GAP = 0.02  # half the distance between items side by side
MARK_RADIUS = 0.16  # of the white dot on the front


@dataclass(frozen=True)
class PlacedSolid:
    """One solid, scaled and translated into the world."""

    shape: str
    albedo: tuple[float, float, float]
    scale: float
    center: tuple[float, float, float]

    def sdf(self, points: Tensor) -> Tensor:
        """Exact signed distance [...] at points [..., 3]."""
        center = torch.tensor(self.center, dtype=points.dtype, device=points.device)
        return SOLIDS[self.shape]((points - center) / self.scale) * self.scale


@dataclass(frozen=True)
class ShapesTruth:
    """Exact signed distance and albedo of one fully specified sentence."""

    solids: tuple[PlacedSolid, ...]
    kind: str
    front_mark: tuple[float, float, float] | None = None

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distance [...] at points [..., 3]; exact outside, and inside unless solids touch."""
        return torch.stack([solid.sdf(points) for solid in self.solids]).amin(0)

    def color(self, points: Tensor) -> Tensor:
        """Albedo [..., 3] of the nearest solid, white inside the front mark."""
        distances = torch.stack([solid.sdf(points) for solid in self.solids])
        palette = torch.tensor([s.albedo for s in self.solids], dtype=points.dtype, device=points.device)
        albedo = palette[distances.argmin(0)]
        if self.front_mark is None:
            return albedo
        center = torch.tensor(self.front_mark, dtype=points.dtype, device=points.device)
        in_mark = (points - center).norm(dim=-1, keepdim=True) < MARK_RADIUS
        return torch.where(in_mark, torch.tensor(WHITE, dtype=points.dtype, device=points.device), albedo)


def truth_of(description: Description) -> ShapesTruth:
    """Build the ground truth of a description. Raises ValueError if a word is open."""
    if not description.determined:
        raise ValueError(f"{description} leaves a word open: fill it with grammar.fill first")
    solids = _place_solids(description)
    mark = (FRONT_X[solids[0].shape] * solids[0].scale, 0.0, 0.0) if description.marked else None
    kind = "pair" if len(solids) == 2 else solids[0].shape
    return ShapesTruth(solids=solids, kind=kind, front_mark=mark)


def _place_solids(description: Description) -> tuple[PlacedSolid, ...]:
    words = [_shape_and_color(item) for item in description.items]
    common_scale = PAIR_SCALE if len(words) == 2 else 1.0
    scales = [SIZES[item.size] * common_scale for item in description.items]
    centers = [(0.0, 0.0, 0.0)] * len(words)
    if len(words) == 2:
        (wide_a, high_a), (wide_b, high_b) = (
            tuple(scale * span for span in SPANS[shape])
            for (shape, _), scale in zip(words, scales, strict=True)
        )
        # Along the axis of the relation the items touch (side by side: up to twice GAP), and the middle of
        # their common extent is the origin.
        half = (high_a + high_b) if description.relation == "on top of" else (wide_a + wide_b + GAP)
        size_a = high_a if description.relation == "on top of" else wide_a
        size_b = high_b if description.relation == "on top of" else wide_b
        a, b = half - size_a, size_b - half
        # Side by side they stand on the same ground, with the origin halfway between the heights of their
        # centers.
        ground = min(high_a, high_b)
        rise_a, rise_b = high_a - ground, high_b - ground
        sink = max(rise_a, rise_b) / 2
        match description.relation:
            case "on top of":
                centers = [(0.0, 0.0, a), (0.0, 0.0, b)]
            case "next to":  # the first on the left, viewed from the front
                centers = [(0.0, -a, rise_a - sink), (0.0, -b, rise_b - sink)]
            case "in front of":
                centers = [(a, 0.0, rise_a - sink), (b, 0.0, rise_b - sink)]
    return tuple(
        PlacedSolid(shape=shape, albedo=COLORS[color], scale=scale, center=center)
        for (shape, color), scale, center in zip(words, scales, centers, strict=True)
    )


def _shape_and_color(item: Item) -> tuple[str, str]:
    """Shape and color of a fully specified item."""
    assert item.shape is not None and item.color is not None, "truth_of rejects open words"
    return item.shape, item.color
