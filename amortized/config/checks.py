"""Range checks for the `__post_init__` of a config.

A message names the field alone ("stride must lie in (0, 1], got 2"): a config does not know which section
it is. The reader puts the section in front, so that the user sees `guidance.inversion.stride`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any


def check(
    config: Any,
    *names: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    limit: float | None = None,
) -> None:
    """Raise ValueError unless each named field lies in the range; None passes, a tuple counts by its items.

    `limit` is a further upper bound, far beyond sensible values, that keeps memory and time finite: a message
    mentions it only if it is exceeded. Infinity and NaN are never in the range.

    >>> check(self, "steps", "patience", at_least=1, limit=10**9)
    >>> check(self, "stride", above=0, at_most=1)
    """
    rules = ((at_least, operator.ge), (above, operator.gt), (at_most, operator.le), (below, operator.lt))
    nullable = {field.name for field in dataclasses.fields(config) if "None" in str(field.type)}
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        items = value if isinstance(value, tuple) else (value,)
        shown = str(list(value) if isinstance(value, tuple) else value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        if not all(holds(item, end) for item in items for end, holds in rules if end is not None):
            null = " or be null" if name in nullable else ""
            raise ValueError(f"{name} must {_range(at_least, above, at_most, below)}{null}, got {shown}")
        if not all(isinstance(item, int) or math.isfinite(item) for item in items):
            raise ValueError(f"{name} must be finite, got {shown}")
        if limit is not None and not all(abs(item) <= limit for item in items):
            raise ValueError(f"{name} must be at most {limit:,}, got {shown}")


def _range(at_least: float | None, above: float | None, at_most: float | None, below: float | None) -> str:
    """The range in words, to follow "must"."""
    low, high = (at_least if above is None else above), (at_most if below is None else below)
    if low is not None and high is not None:
        return f"lie in {'[' if above is None else '('}{low:g}, {high:g}{']' if below is None else ')'}"
    if low is not None:
        return f"be at least {low:g}" if above is None else "be positive" if low == 0 else f"be above {low:g}"
    assert high is not None, "only a limit"
    return f"be at most {high:g}" if below is None else f"be below {high:g}"
