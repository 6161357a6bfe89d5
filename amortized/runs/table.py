"""The runs as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from amortized.pages.markup import one_line, short_number
from amortized.runs.status import Run
from amortized.wording import count, duration

MAX_NAME, MAX_CONFIG, MAX_DETAIL = 48, 48, 160


def table(runs: Sequence[Run]) -> str:
    """A line per run, then a sentence for each that needs one."""
    if not runs:
        return "no runs"
    rows = [("STATUS", "STEP", "LEFT", "LOSS", "NAME", "CONFIG"), *map(_row, runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    notes = [
        f"{one_line(run.facts.name, MAX_NAME)}: {one_line(run.detail, MAX_DETAIL)}"
        for run in runs
        if run.detail
    ]
    return "\n".join([*lines, *([""] if notes else []), *notes, "", _summary(runs)])


def _row(run: Run) -> tuple[str, ...]:
    facts = run.facts
    return (
        run.status,
        progress(run),
        "" if run.left_s is None else duration(min(run.left_s, 1e10)),
        "" if facts.loss is None else short_number(facts.loss),
        one_line(facts.name, MAX_NAME),
        one_line(facts.config, MAX_CONFIG),
    )


def progress(run: Run) -> str:
    """ "300/1,000", as far as it is known."""
    step, steps = run.facts.step, run.facts.steps
    if step is None and steps is None:
        return ""
    return f"{step or 0:,}/{steps:,}" if steps is not None else f"{step:,}"


def _summary(runs: Sequence[Run]) -> str:
    statuses = [run.status for run in runs]
    parts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
    return f"{count(len(runs), 'run')}: {', '.join(parts)}"
