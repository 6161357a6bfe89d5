"""Training curves as inline SVG."""

from __future__ import annotations

import math

from amortized.evaluation.history import History
from amortized.evaluation.markup import text

LABELS = {"loss": "Loss", "opacity": "Mean opacity of the renders"}


def curves(history: History) -> str:
    """A figure for each curve; a note if there are none."""
    if not history.curves:
        reason = history.note or "the run has no log of its training"
        return f'<p class="note">Left out: {text(reason)}.</p>'
    return f'<div class="curves">{"".join(_figure(*item) for item in history.curves.items())}</div>'


def _figure(name: str, points: list[tuple[float, float]]) -> str:
    label = text(LABELS.get(name, name))
    (first, start), (last, end) = points[0], points[-1]
    values = [value for _, value in points]
    low, high = min(values), max(values)
    span, width = (high - low) or 1.0, (last - first) or 1.0
    path = " ".join(f"{1000 * (x - first) / width:.1f},{300 * (high - y) / span:.1f}" for x, y in points)
    summary = f"{label}: from {_short(start)} to {_short(end)}, between {_short(low)} and {_short(high)}"
    # The drawing is stretched to the page, its labels are not: they are text beside it.
    return (
        f'<figure><figcaption>{label} <b>{_short(end)}</b></figcaption><div class="plot">'
        f'<span class="high">{_short(high)}</span><span class="low">{_short(low)}</span>'
        f'<svg viewBox="0 -6 1000 312" preserveAspectRatio="none" role="img" aria-label="{summary}">'
        f'<polyline points="{path}"/></svg></div>'
        f'<p class="steps"><span>step {first:,.0f}</span><span>step {last:,.0f}</span></p></figure>'
    )


def _short(value: float) -> str:
    """Three significant digits."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"
