"""Perp-Neg (arXiv 2304.04968): interpolate the text between views, and push away from the wrong views."""

from __future__ import annotations

import torch
from torch import Tensor

from amortized.conditioning.rows import expand_row, mix_rows, take_rows
from amortized.conditioning.views import BACK, FRONT, NUM_VIEWS, OVERHEAD, SIDE, ViewText, ViewTextConfig
from amortized.types import Cameras, TextCondition


def perp_neg_text(
    texts_by_view: TextCondition, unconditional: TextCondition, cameras: Cameras, config: ViewTextConfig
) -> ViewText:
    """Return the text of B = P * V images, interpolated between views, with two weighted negatives each.

    `texts_by_view` has P * 4 rows, row p * 4 + v being prompt p in view v of VIEW_NAMES;
    `unconditional` has one row. Raises ValueError if `texts_by_view` has another number of rows.
    """
    num_prompts, num_views = cameras.azimuth_deg.shape
    if texts_by_view.pooled.shape[0] != num_prompts * NUM_VIEWS:
        raise ValueError(
            f"texts_by_view must have {NUM_VIEWS} rows for each of {num_prompts} prompts, "
            f"got {texts_by_view.pooled.shape[0]} rows"
        )
    device = texts_by_view.pooled.device
    first_row = NUM_VIEWS * torch.arange(num_prompts, device=device)[:, None]  # [P, 1]

    def pick(view: Tensor) -> TextCondition:  # view [P, V], indices into VIEW_NAMES
        return take_rows(texts_by_view, (first_row + view.to(device)).flatten())

    first, second, share, negatives, weights = _interpolation(cameras, config)
    null = expand_row(unconditional, num_prompts * num_views)
    return ViewText(
        positive=mix_rows(pick(first), pick(second), share.flatten().to(device)),
        unconditional=null,
        empty=null,
        negatives=tuple(pick(view) for view in negatives),
        negative_weights=weights.flatten(1).to(texts_by_view.pooled),
    )


def _interpolation(
    cameras: Cameras, config: ViewTextConfig
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """Return (first, second, share, negatives, weights) for P * V cameras.

    The positive text is share * first + (1 - share) * second; first, second and share are [P, V]. The two
    negatives are views [P, V], their weights [2, P, V].

    The interpolation and the constants follow ScaleDreamer's implementation of Perp-Neg. In the front half,
    r = 1 - |azimuth| / 90 is the share of the front view, and the negatives are front and side. In the back
    half, r = 2 - |azimuth| / 90 is the share of the side view, and the negatives are side and front. Overhead
    images get the plain overhead text and zero weights.
    """
    azimuth = cameras.azimuth_deg.abs()
    in_front = azimuth < 90
    share = torch.where(in_front, 1 - azimuth / 90, 2 - azimuth / 90)

    def constant(view: int) -> Tensor:
        return torch.full_like(azimuth, view, dtype=torch.long)

    front, side, back = constant(FRONT), constant(SIDE), constant(BACK)
    first, second = torch.where(in_front, front, side), torch.where(in_front, side, back)
    negatives = (torch.where(in_front, front, side), torch.where(in_front, side, front))
    weights = torch.stack(
        [
            torch.where(in_front, _decay(4.0, -2.426, share), _decay(1.0, -0.606, share)),
            torch.where(in_front, _decay(4.0, -2.426, 1 - share), _decay(1.0, 0.967, share)),
        ]
    )
    overhead = cameras.elevation_deg > config.overhead_deg
    first = torch.where(overhead, constant(OVERHEAD), first)
    share = torch.where(overhead, 1.0, share)
    weights = torch.where(overhead, 0.0, config.perp_neg_weight * weights)
    return first, second, share, negatives, weights


def _decay(scale: float, shift: float, x: Tensor) -> Tensor:
    """scale * exp(-x / 2) + shift: the form of all of Perp-Neg's weights."""
    return scale * torch.exp(-0.5 * x) + shift
