"""Intervals as text, and as a line from 0 to 1."""

from __future__ import annotations

import math

from amortized.evaluation.metrics import Interval
from amortized.pages import number, text


def interval_text(interval: Interval) -> str:
    """The interval; nothing for one prompt, which has none."""
    if not math.isfinite(interval.mean):
        return "undefined"
    return f"{number(interval.low)} – {number(interval.high)}" if interval.n > 1 else ""


def scale(interval: Interval, marks: list[tuple[str, float]]) -> str:
    """A line from 0 to 1 with the interval as a band, the mean as a dot and reference values as ticks."""
    if not math.isfinite(interval.mean):
        return ""
    ticks = "".join(
        f'<i class="tick" style="left:{_percent(value)}" title="{text(word)} {number(value, 4)}"></i>'
        for word, value in marks
        if math.isfinite(value)
    )
    band = ""
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        low, high = _clip(interval.low), _clip(interval.high)
        band = f'<i class="band" style="left:{_percent(low)};width:{_percent(high - low)}"></i>'
    return (
        f'<div class="scale" aria-hidden="true">{band}{ticks}'
        f'<i class="dot" style="left:{_percent(interval.mean)}"></i></div>'
    )


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _percent(value: float) -> str:
    return f"{100 * _clip(value):.2f}%"
