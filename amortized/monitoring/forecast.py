"""What a run will take, from two measured steps."""

from __future__ import annotations

from collections.abc import Sequence

from amortized.wording import duration


def forecast(seconds: Sequence[float], remaining: int) -> str | None:
    """A sentence about the `remaining` steps from the times of the first two; None if it would be empty.

    The first step prepares (compilation, memory, graphs): the second is the measure.
    """
    if len(seconds) != 2 or remaining < 1:
        return None
    first, second = seconds
    return (
        f"a step takes {duration(second)} (the first took {duration(first)}): about "
        f"{duration(remaining * second)} for the remaining {remaining:,} steps"
    )
