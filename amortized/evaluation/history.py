"""The training curves of a run, read from its log.jsonl: bounded in size, whatever the file holds."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amortized.untrusted import MiB, open_regular, short

LOG_LIMIT = 2048 * MiB  # some two million steps
LINE_LIMIT = MiB
POINTS = 240  # of a curve: more than a page shows pixels for
CURVES = ("loss", "opacity")


@dataclass(frozen=True, kw_only=True)
class History:
    """The course of a training. Empty if it is not known; `note` then says why."""

    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # name to (step, mean value)
    seconds: float | None = None  # in steps, without checkpoints, previews and pauses
    note: str = ""


def load_history(path: Path, last: int | None = None) -> History:
    """The history in a log.jsonl up to the step `last`; an empty one with a note if it cannot be read."""
    try:
        return read_history(path, last)
    except ValueError as error:
        return History(note=str(error))


def read_history(path: Path, last: int | None = None) -> History:
    """The history in a log.jsonl, up to the step `last`. Raises ValueError for a file of another shape."""
    points = {name: (array("d"), array("d")) for name in CURVES}
    seconds, timed = 0.0, False
    for number, record in _records(path):
        step = _number(record.get("step"))
        if step is None:
            raise ValueError(f"{short(path)}, line {number}: it has no step")
        if last is not None and step > last:
            continue
        for name, (steps, values) in points.items():
            if (value := _number(record.get(name))) is not None:
                steps.append(step)
                values.append(value)
        times = [_number(value) for name, value in record.items() if name.startswith("time/")]
        timed |= bool(times)
        seconds += sum(value for value in times if value is not None)
    curves = {name: _thin(*columns) for name, columns in points.items() if len(columns[0]) > 1}
    return History(curves=curves, seconds=seconds if timed and math.isfinite(seconds) else None)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines as objects, with their numbers; a last line that a kill cut off is skipped."""
    with open_regular(path, LOG_LIMIT) as file:
        number = 0
        while line := file.readline(LINE_LIMIT):
            number += 1
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                if not line.endswith(b"\n") and len(line) < LINE_LIMIT:
                    return
                raise ValueError(f"{short(path)}, line {number}: not valid JSON") from None
            if not isinstance(record, dict):
                raise ValueError(f"{short(path)}, line {number}: not a JSON object")
            yield number, record


def _number(value: Any) -> float | None:
    """The value if it is a finite number of a plausible size, else None."""
    plausible = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    return float(value) if plausible else None


def _thin(steps: array[float], values: array[float]) -> list[tuple[float, float]]:
    """At most POINTS points: means over equal numbers of neighbors."""
    parts = min(POINTS, len(steps))
    bounds = [len(steps) * i // parts for i in range(parts + 1)]
    return [
        (sum(steps[a:b]) / (b - a), sum(values[a:b]) / (b - a))
        for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
