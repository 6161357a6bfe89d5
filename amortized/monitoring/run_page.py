"""A run's own page, OUTPUT/index.html: written at its start, while it trains, and at its end.

It holds what it shows in bounded memory, so a write costs milliseconds however long the run is.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from amortized.files import atomic_write_text
from amortized.monitoring.run_html import CURVES, LATEST, Event, Facts, Snapshot, Status, run_html
from amortized.pages import PREVIEW_SCORES, find_picture, finite, is_page_of
from amortized.pages.thinning import Thinned
from amortized.untrusted import MiB, inside, open_regular

NAME, KIND = "index.html", "run"
EVERY_S = 30.0  # between two writes during training; a checkpoint or preview does not wait for it
POINTS = 500  # of a curve
EVENTS, EVENTS_READ = 200, MiB // 4  # shown, and bytes read from the end of events.jsonl
PREVIEWS, FILES_READ = 24, 100_000  # shown, and file names read
MAX_CURVES = 12
FILE_LIMIT = 2**34  # bytes
RECENT = 20  # steps, for the speed
_PREVIEW = re.compile(r"step_([0-9]{6,12})(-[a-z0-9-]{1,60})?\.png")


class RunPage:
    """Collects what the page of a run shows, and writes it. All methods may raise OSError or ValueError."""

    def __init__(self, folder: Path, facts: Facts, start: int) -> None:
        """`start` is the step after which this process trains."""
        self.folder, self.facts, self.step, self.start = folder, facts, start, start
        self.curves: dict[str, Thinned] = {}
        self.latest: dict[str, float] = {}
        self.times: deque[tuple[int, float]] = deque(maxlen=RECENT)  # (step, clock)
        self.seconds, self.lines = 0.0, 0  # in logged steps, earlier processes included
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self.previews: dict[int, str] = {}
        self.scores: dict[int, float] = {}  # CLIP similarity of previews, by step
        self.written_at = -math.inf

    def check(self) -> None:
        """Raise ValueError if there is a page that no run wrote, which would be replaced."""
        if (self.folder / NAME).is_file():
            with open_regular(inside(self.folder, NAME), FILE_LIMIT) as file:
                if not is_page_of(file.read(1024), KIND):
                    raise ValueError("this program did not write the file that is there")

    def read_earlier(self) -> None:
        """Take the events and previews of earlier processes, if there are any."""
        if (self.folder / "events.jsonl").exists():
            self._read_events()
        if (self.folder / "previews").exists():
            self._read_previews()

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Take a line of the log."""
        if finite(step) is None:
            return
        self.lines += "loss" in values  # a line of a preview has no times
        for name, value in values.items():
            if (number := finite(value)) is None:
                continue
            if name.startswith("time/"):
                self.seconds += number
            elif name in CURVES or name.startswith("learning_rate/"):
                if name in self.curves or len(self.curves) < MAX_CURVES:
                    self.curves.setdefault(name, Thinned()).add(step, number)
            if name in LATEST:
                self.latest[name] = number
            if name == PREVIEW_SCORES[0]:
                self.scores[step] = number

    def advance(self, step: int) -> bool:
        """Take the end of a step; returns whether it is time to write."""
        self.step = step
        self.times.append((step, time.monotonic()))
        return self.times[-1][1] - self.written_at >= EVERY_S

    def event(self, time: str, step: int, note: str) -> None:
        self.events.append(Event(time=time, step=step, note=note[:2000]))

    def preview(self, path: Path) -> None:
        """Take the picture of a preview, in the run's folder."""
        if match := _PREVIEW.fullmatch(path.name):
            self.previews[int(match[1])] = f"{path.parent.name}/{path.name}"

    def write(self, status: Status = "training", reason: str = "", needs_change: bool = False) -> None:
        """Write the page. `needs_change`: the same settings would fail again."""
        self.written_at = time.monotonic()
        steps = sorted(self.previews, reverse=True)
        shown = (
            [steps[len(steps) * i // PREVIEWS] for i in range(PREVIEWS)] if len(steps) > PREVIEWS else steps
        )
        pictures = {step: find_picture(self.folder, self.previews[step]) for step in shown}
        snapshot = Snapshot(
            status=status,
            reason=reason,
            needs_change=needs_change,
            step=self.step,
            time=datetime.now(UTC),
            step_s=self._step_s(),
            trained_s=self.seconds / self.lines * self.step if self.seconds else None,
            latest=self.latest,
            curves={name: curve.points(POINTS) for name, curve in self.curves.items() if len(curve) > 1},
            previews={step: picture for step, picture in pictures.items() if picture is not None},
            num_previews=len(steps),
            scores={step: self.scores[step] for step in shown if step in self.scores},
            events=tuple(reversed(self.events)),
            every_s=EVERY_S,
        )
        atomic_write_text(self.folder / NAME, run_html(self.facts, snapshot))

    def _step_s(self) -> float | None:
        """Seconds per step over the latest ones; None before the third: the first one prepares."""
        if len(self.times) < 3:
            return None
        times = list(self.times)[1:] if len(self.times) < RECENT else list(self.times)
        (first, start), (last, end) = times[0], times[-1]
        return (end - start) / (last - first) if last > first else None

    def _read_previews(self) -> None:
        with os.scandir(self.folder / "previews") as entries:
            for _, entry in zip(range(FILES_READ), entries, strict=False):
                match = _PREVIEW.fullmatch(entry.name)
                if match is None or int(match[1]) > self.start or not entry.is_file(follow_symlinks=False):
                    continue
                step, is_overview = int(match[1]), match[2] is None
                if is_overview or step not in self.previews:
                    self.previews[step] = f"previews/{entry.name}"

    def _read_events(self) -> None:
        with open_regular(inside(self.folder, "events.jsonl"), FILE_LIMIT) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - EVENTS_READ))
            lines = file.read(EVENTS_READ).splitlines()
        for line in lines:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):  # cut off
                continue
            if isinstance(event, dict) and isinstance(step := event.get("step"), int):
                self.event(str(event.get("time", "")), step, str(event.get("note", "")))
