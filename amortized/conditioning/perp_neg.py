"""Perp-Neg (arXiv 2304.04968): interpolate the text between views, and push away from the wrong views."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from amortized.conditioning.rows import mix_rows, take_rows
from amortized.conditioning.views import (
    BACK,
    FRONT,
    NUM_VIEWS,
    OVERHEAD,
    SIDE,
    ViewText,
    ViewTextConfig,
    plain_text,
)
from amortized.types import Cameras, TextCondition


def interpolated_text(
    texts_by_view: TextCondition, unconditional: TextCondition, cameras: Cameras, config: ViewTextConfig
) -> ViewText:
    """Return the text of B = P * V images, interpolated by azimuth between views, without negatives.

    `texts_by_view` has P * 4 rows, row p * 4 + v being prompt p in view v of VIEW_NAMES;
    `unconditional` has one row. Raises ValueError if `texts_by_view` has another number of rows.
    """
    _check_rows(texts_by_view, cameras)
    first, second, share = _neighbors(cameras, config)
    positive = mix_rows(
        _pick(texts_by_view, first),
        _pick(texts_by_view, second),
        share.flatten().to(texts_by_view.pooled.device),
    )
    return plain_text(positive, unconditional)


def perp_neg_text(
    texts_by_view: TextCondition, unconditional: TextCondition, cameras: Cameras, config: ViewTextConfig
) -> ViewText:
    """Return the text of B = P * V images, as `interpolated_text`, with two weighted negatives each."""
    text = interpolated_text(texts_by_view, unconditional, cameras, config)
    negatives, weights = _negatives(cameras, config)
    return replace(
        text,
        negatives=tuple(_pick(texts_by_view, view) for view in negatives),
        negative_weights=weights.flatten(1).to(texts_by_view.pooled),
    )


def _check_rows(texts_by_view: TextCondition, cameras: Cameras) -> None:
    num_prompts, num_rows = len(cameras.azimuth_deg), texts_by_view.pooled.shape[0]
    if num_rows != num_prompts * NUM_VIEWS:
        raise ValueError(
            f"texts_by_view must have {NUM_VIEWS} rows for each of {num_prompts} prompts, got {num_rows} rows"
        )


def _pick(texts_by_view: TextCondition, view: Tensor) -> TextCondition:
    """Return the text of each image, B rows, for views [P, V], indices into VIEW_NAMES."""
    device = texts_by_view.pooled.device
    first_row = NUM_VIEWS * torch.arange(len(view), device=device)[:, None]  # [P, 1]
    return take_rows(texts_by_view, (first_row + view.to(device)).flatten())


def _neighbors(cameras: Cameras, config: ViewTextConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return (first, second, share), each [P, V]: the text is share * first + (1 - share) * second.

    In the front half, share = 1 - |azimuth| / 90 is that of the front view, the other view is the side. In
    the back half, share = 2 - |azimuth| / 90 is that of the side view, the other view is the back. Overhead
    images get the plain overhead text.
    """
    azimuth = cameras.azimuth_deg.abs()
    in_front, overhead = azimuth < 90, cameras.elevation_deg > config.overhead_deg
    first = torch.where(in_front, FRONT, SIDE).where(~overhead, OVERHEAD)
    share = torch.where(in_front, 1 - azimuth / 90, 2 - azimuth / 90)
    return first, torch.where(in_front, SIDE, BACK), torch.where(overhead, 1.0, share)


def _negatives(cameras: Cameras, config: ViewTextConfig) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return two negative views [P, V] and their weights [2, P, V].

    The constants follow ScaleDreamer's implementation of Perp-Neg. With r the share of `_neighbors`, the
    negatives are front and side in the front half, side and front in the back half. Overhead images get zero
    weights.
    """
    azimuth = cameras.azimuth_deg.abs()
    in_front = azimuth < 90
    share = torch.where(in_front, 1 - azimuth / 90, 2 - azimuth / 90)
    negatives = (torch.where(in_front, FRONT, SIDE), torch.where(in_front, SIDE, FRONT))
    weights = torch.stack(
        [
            torch.where(in_front, _decay(4.0, -2.426, share), _decay(1.0, -0.606, share)),
            torch.where(in_front, _decay(4.0, -2.426, 1 - share), _decay(1.0, 0.967, share)),
        ]
    )
    overhead = cameras.elevation_deg > config.overhead_deg
    return negatives, torch.where(overhead, 0.0, config.perp_neg_weight * weights)


def _decay(scale: float, shift: float, x: Tensor) -> Tensor:
    """scale * exp(-x / 2) + shift: the form of all of Perp-Neg's weights."""
    return scale * torch.exp(-0.5 * x) + shift
