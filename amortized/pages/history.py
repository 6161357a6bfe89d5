"""The training curves of a run, read from its log.jsonl: bounded in size, whatever the file holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amortized.pages.thinning import Thinned
from amortized.untrusted import MiB, open_regular, short

LOG_LIMIT = 2048 * MiB  # some two million steps
LINE_LIMIT = MiB
POINTS = 240  # of a curve: more than a page shows pixels for
PREVIEW_SCORES = ("preview/clip_similarity", "preview/recall_at_1")  # scores, on lines for themselves
CURVES = ("loss", "opacity", PREVIEW_SCORES[0])


@dataclass(frozen=True, kw_only=True)
class History:
    """The course of a training. Empty if it is not known; `note` then says why."""

    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # name to (step, mean value)
    seconds: float | None = None  # in steps, without checkpoints, previews and pauses
    note: str = ""


def load_history(path: Path, last: int | None = None, names: Sequence[str] = CURVES) -> History:
    """As `read_history`; if the log cannot be read, an empty history with a note."""
    try:
        return read_history(path, last, names)
    except ValueError as error:
        return History(note=str(error))


def read_history(path: Path, last: int | None = None, names: Sequence[str] = CURVES) -> History:
    """The curves `names` of a log.jsonl up to the step `last`. Raises ValueError for another file."""
    curves = {name: Thinned() for name in names}
    seconds, timed = 0.0, False
    for number, record in _records(path):
        step = finite(record.get("step"))
        if step is None:
            raise ValueError(f"{short(path)}, line {number}: it has no step")
        if last is not None and step > last:
            continue
        for name, curve in curves.items():
            if (value := finite(record.get(name))) is not None:
                curve.add(step, value)
        times = [finite(value) for name, value in record.items() if name.startswith("time/")]
        timed |= bool(times)
        seconds += sum(value for value in times if value is not None)
    drawn = {name: curve.points(POINTS) for name, curve in curves.items() if len(curve) > 1}
    return History(curves=drawn, seconds=seconds if timed and math.isfinite(seconds) else None)


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


def finite(value: Any) -> float | None:
    """The value if it is a finite number of a plausible size, else None."""
    plausible = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    return float(value) if plausible else None
