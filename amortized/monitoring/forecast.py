"""What a run will take, from two measured steps."""

from __future__ import annotations

from collections.abc import Sequence

UNITS = (("day", 86400), ("h", 3600), ("min", 60), ("s", 1))


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


def duration(seconds: float) -> str:
    """A time in its two largest units: "2 h 5 min", "3 days 4 h", "0.35 s"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{min(seconds, 59):.0f} s"
    for (name, size), (below, small) in zip(UNITS, UNITS[1:], strict=False):
        whole, rest = divmod(round(seconds / small), size // small)
        if whole:
            large = f"{whole:,} days" if name == "day" and whole > 1 else f"{whole} {name}"
            return f"{large} {rest} {below}" if rest else large
    raise AssertionError("a minute or more has a largest unit")
