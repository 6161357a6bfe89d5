"""Training curves as inline SVG: one chart for one curve, or for the same curve of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amortized.pages.history import History
from amortized.pages.markup import short_number, text

LABELS = {
    "loss": "Loss",
    "opacity": "Mean opacity of the renders",
    "gradient_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "preview/clip_similarity": "CLIP similarity of the previews",
    "preview/recall_at_1": "Recall@1 among the previews",
}
FEW = 40  # points of a line, which are marked
STYLES = 12  # of lines, in base.css: six colors, solid and dashed


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of a chart."""

    points: Sequence[tuple[float, float]]  # (step, value), at least one
    name: str = ""
    style: int = 0  # modulo STYLES


def curves(history: History) -> str:
    """A chart for each curve of a run; a note if there are none."""
    if not history.curves:
        reason = history.note or "the run has no log of its training"
        return f'<p class="note">Left out: {text(reason)}.</p>'
    return charts({name: [Line(points=points)] for name, points in history.curves.items()})


def charts(lines: dict[str, list[Line]]) -> str:
    """A chart for each name, in a grid; names without lines are left out."""
    figures = [figure(LABELS.get(name, name), some) for name, some in lines.items() if some]
    return f'<div class="curves">{"".join(figures)}</div>'


def figure(label: str, lines: Sequence[Line]) -> str:
    """A chart of one line or more, with common axes; with several lines it has a legend."""
    label, points = text(label), [point for line in lines for point in line.points]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    span, width = (high - low) or 1.0, (last - first) or 1.0

    def drawn(line: Line) -> str:
        path = " ".join(
            f"{1000 * (x - first) / width:.1f},{300 * (high - y) / span:.1f}" for x, y in line.points
        )
        style = f"line-{line.style % STYLES}"
        # A line of length 0 with round ends is a dot, which stretching the drawing does not distort.
        marks = path.split() if len(line.points) <= FEW else ()
        dots = "".join(f'<polyline class="dot {style}" points="{point} {point}"/>' for point in marks)
        return f'<polyline class="{style}" points="{path}"/>{dots}'

    ends = [short_number(line.points[-1][1]) for line in lines]
    courses = "; ".join(
        f"{text(line.name, 80) + ' ' if line.name else ''}from {short_number(line.points[0][1])} to {end}"
        for line, end in zip(lines, ends, strict=True)
    )
    summary = f"{label}: {courses}, between {short_number(low)} and {short_number(high)}"
    single = f" <b>{ends[0]}</b>" if len(lines) == 1 and not lines[0].name else ""
    # The drawing is stretched to the page, its labels are not: they are text beside it.
    return (
        f'<figure><figcaption>{label}{single}</figcaption><div class="plot">'
        f'<span class="high">{short_number(high)}</span><span class="low">{short_number(low)}</span>'
        f'<svg viewBox="0 -6 1000 312" preserveAspectRatio="none" role="img" aria-label="{summary}">'
        f"{''.join(map(drawn, lines))}</svg></div>"
        f'<p class="steps"><span>step {first:,.0f}</span><span>step {last:,.0f}</span></p>'
        f"{'' if single else _legend(lines, ends)}</figure>"
    )


def key(style: int) -> str:
    """A sample of a line, for a legend."""
    return (
        '<svg class="key" viewBox="0 0 26 6" width="26" height="6" aria-hidden="true">'
        f'<polyline class="line-{style % STYLES}" points="0,3 26,3"/></svg>'
    )


def _legend(lines: Sequence[Line], ends: Sequence[str]) -> str:
    items = "".join(
        f"<li>{key(line.style)}<bdi>{text(line.name, 80)}</bdi> <b>{end}</b></li>"
        for line, end in zip(lines, ends, strict=True)
    )
    return f'<ul class="legend">{items}</ul>'
