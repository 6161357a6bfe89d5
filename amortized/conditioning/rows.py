"""Row-wise operations on a TextCondition: one row is one text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amortized.types import TextCondition


def take_rows(text: TextCondition, index: Tensor) -> TextCondition:
    """Copy the rows `index` [N] (long, repeats allowed)."""
    return TextCondition(pooled=text.pooled[index], tokens=text.tokens[index], mask=text.mask[index])


def without_tokens(text: TextCondition) -> TextCondition:
    """Return the pooled vectors with an empty token axis (L = 0)."""
    # Copies: a view would keep the memory of the tokens alive.
    return TextCondition(pooled=text.pooled, tokens=text.tokens[:, :0].clone(), mask=text.mask[:, :0].clone())


def expand_row(text: TextCondition, num_rows: int) -> TextCondition:
    """Expand a condition of one row to `num_rows` equal rows, without a copy."""
    assert text.pooled.shape[0] == 1, f"expected one row, got {text.pooled.shape[0]}"
    return TextCondition(
        pooled=text.pooled.expand(num_rows, -1),
        tokens=text.tokens.expand(num_rows, -1, -1),
        mask=text.mask.expand(num_rows, -1),
    )


def concatenate_rows(texts: Sequence[TextCondition]) -> TextCondition:
    """Concatenate the rows of several conditions of equal L and D."""
    return TextCondition(
        pooled=torch.cat([text.pooled for text in texts]),
        tokens=torch.cat([text.tokens for text in texts]),
        mask=torch.cat([text.mask for text in texts]),
    )


def mix_rows(first: TextCondition, second: TextCondition, share: Tensor) -> TextCondition:
    """Interpolate row by row: share * first + (1 - share) * second, with share [N] in [0, 1].

    The mask is the union of both masks. A share of exactly 0 or 1 returns that row exactly, mask included.
    """
    share = share.to(first.tokens)
    return TextCondition(
        pooled=share[:, None] * first.pooled + (1 - share[:, None]) * second.pooled,
        tokens=share[:, None, None] * first.tokens + (1 - share[:, None, None]) * second.tokens,
        mask=first.mask & (share > 0)[:, None] | second.mask & (share < 1)[:, None],
    )


def move_rows(text: TextCondition, device: torch.device | str) -> TextCondition:
    """Move a condition to `device`; tensors that are already there are not copied."""
    return TextCondition(
        pooled=text.pooled.to(device), tokens=text.tokens.to(device), mask=text.mask.to(device)
    )
