"""HTML from untrusted values: text, numbers, scales.

Text passes through `text` and appears as element text or attribute values only, never inside a script.
"""

from __future__ import annotations

import math
import re
from html import escape
from urllib.parse import quote

from amortized.evaluation.metrics import Interval

TEXT_LIMIT = 400  # characters on the page; results.json has the whole text
# Control characters, half characters, and marks that reorder the text around them.
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def text(value: object, limit: int = TEXT_LIMIT) -> str:
    """A value as escaped text on one line, for an element or a quoted attribute."""
    plain = UNSAFE.sub("\ufffd", " ".join(str(value).split()))
    return escape(plain if len(plain) <= limit else f"{plain[: limit - 1]}…")


def link(path: str) -> str:
    """A relative path as an escaped URL, for a quoted attribute."""
    return escape(quote(path, errors="replace"))


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "–"


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
