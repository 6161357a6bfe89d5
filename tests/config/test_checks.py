"""Range checks of settings, and the sentence of each."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest

from amortized.config import check


@dataclass(frozen=True, kw_only=True)
class Ranges:
    count: int = 1
    share: float | None = 0.5
    betas: tuple[float, ...] = (0.9, 0.99)


@pytest.mark.parametrize(
    ("values", "limits", "message"),
    [
        ({"count": 0}, {"at_least": 1}, "count must be at least 1, got 0"),
        ({"count": 0}, {"above": 0}, "count must be positive, got 0"),
        ({"count": 2}, {"above": 2}, "count must be above 2, got 2"),
        ({"count": 3}, {"at_most": 2}, "count must be at most 2, got 3"),
        ({"count": 3}, {"below": 3}, "count must be below 3, got 3"),
        ({"share": 0.0}, {"above": 0, "at_most": 1}, "share must lie in (0, 1] or be null, got 0.0"),
        ({"share": 1.0}, {"at_least": 0, "below": 1}, "share must lie in [0, 1) or be null, got 1.0"),
        ({"betas": (0.5, 1.0)}, {"at_least": 0, "below": 1}, "betas must lie in [0, 1), got [0.5, 1.0]"),
        ({"share": math.nan}, {"above": 0}, "share must be positive or be null, got nan"),
    ],
)
def test_check(values: dict, limits: dict, message: str) -> None:
    name = next(iter(values))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(Ranges(**values), name, **limits)


def test_check_passes_null_and_values_in_range() -> None:
    check(Ranges(share=None), "share", above=0)
    check(Ranges(count=1, share=1.0), "count", "share", at_least=1)
