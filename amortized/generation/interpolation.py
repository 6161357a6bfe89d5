"""Text conditions between those of two prompts.

    lerp    x(s) = (1 - s) a + s b
    slerp   direction on the great circle from a to b, norm between |a| and |b| (Shoemake 1985)

`pooled` and each token are a row. Where only one prompt has a token, its embedding is used throughout, and
its attention weight grows or falls with s: both ends are exactly those of the prompts, without a jump.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from amortized.types import TextCondition

Method = Literal["lerp", "slerp"]
METHODS: tuple[Method, ...] = ("lerp", "slerp")


def between(ends: TextCondition, positions: Tensor, method: Method = "lerp") -> TextCondition:
    """Conditions [N] at positions [N] in [0, 1] on the way from row 0 to row 1 of `ends`.

    `mask` is bool if both texts have the same length, else the tokens' weights [N, L] in [0, 1].
    """
    mix = slerp if method == "slerp" else torch.lerp
    tokens, mask = ends.tokens, ends.mask
    only_first, only_second = mask[0] & ~mask[1], mask[1] & ~mask[0]  # [L]
    first = torch.where(only_second[:, None], tokens[1], tokens[0])
    second = torch.where(only_first[:, None], tokens[0], tokens[1])
    s = positions.to(tokens.device, torch.float64)

    def along(a: Tensor, b: Tensor) -> Tensor:
        """Rows [N, ..., D] from a to b, [..., D]; computed in float64, exact at both ends."""
        weight = s.view(-1, *(1 for _ in a.shape))
        return mix(a.double()[None], b.double()[None], weight).to(a.dtype)

    weights = torch.lerp(mask[:1].double(), mask[1:].double(), s[:, None])  # [N, L]
    is_same = not bool((only_first | only_second).any())
    return TextCondition(
        pooled=along(ends.pooled[0], ends.pooled[1]),
        tokens=along(first, second),
        mask=mask[:1].expand(len(s), -1) if is_same else weights.to(tokens.dtype),
    )


def slerp(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """Spherical interpolation from a to b, [..., D], at s in [0, 1], broadcast; norms change linearly.

    Rows that have no direction, or opposite ones, between which no great circle is the shortest, are
    interpolated linearly.
    """
    norm_a, norm_b = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (a, b))
    unit_a, unit_b = a / norm_a.clamp(min=1e-300), b / norm_b.clamp(min=1e-300)
    # The angle from the chord and its complement: acos of the cosine is inaccurate for small angles.
    chord, complement = (
        torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (unit_a - unit_b, unit_a + unit_b)
    )
    angle = 2 * torch.atan2(chord, complement)
    sine = torch.sin(angle)
    has_circle = (norm_a > 0) & (norm_b > 0) & (complement > 1e-6)
    is_small = chord < 1e-6
    safe = torch.where(is_small, 1.0, sine)
    weight_a = torch.where(is_small, 1 - s, torch.sin((1 - s) * angle) / safe)
    weight_b = torch.where(is_small, s, torch.sin(s * angle) / safe)
    on_circle = (weight_a * unit_a + weight_b * unit_b) * torch.lerp(norm_a, norm_b, s)
    return torch.where(has_circle, on_circle, torch.lerp(a, b, s))
