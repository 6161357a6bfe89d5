"""Runs under a folder, read from their folders alone: settings, last step, loss, time left, how they ended.

Everything in a run's folder may be a stranger's, damaged, or growing. For a run that cannot be read a
sentence says why, and the others are shown.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amortized.config.presets import flatten
from amortized.config.renamed import RENAMED_RUN_SETTINGS, rename_keys
from amortized.pages import finite
from amortized.submission.record import FILE as SUBMISSION
from amortized.submission.record import Submission, load_submission
from amortized.untrusted import inside, open_regular, read_text, read_yaml_object

CONFIG, LOG, EVENTS, LOCK, STOP = "config.yaml", "log.jsonl", "events.jsonl", ".lock", "stopped"
TRACES = ("run.json", EVENTS, SUBMISSION)  # one of these makes a folder a run
DEPTH = 5  # of folders in folders
MAX_FOLDERS, MAX_ENTRIES, MAX_RUNS = 20_000, 20_000, 2000  # looked into, of one folder, listed
TAIL, FILE_LIMIT = 2**18, 2**34  # bytes read from the end of a log, and bytes that it may have
ENDINGS = ("finished", "stopped", "failed")
RECENT = 20  # steps, for the speed


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of events.jsonl."""

    time: str
    step: int
    note: str
    status: str = ""  # one of ENDINGS, if it is the end of a training


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the folder of a run says."""

    folder: Path
    name: str  # its path under the folder that was searched
    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted key
    steps: int | None = None  # of the whole run
    step: int | None = None  # the last one logged or saved
    step_s: float | None = None  # seconds per step, of late
    loss: float | None = None
    events: tuple[Event, ...] = ()  # the last ones, the newest last
    stop: str | None = None  # why it would stop again
    submission: Submission | None = None
    written: float | None = None  # when a log was written to, seconds since 1970
    problem: str = ""  # a sentence about what cannot be read

    @property
    def ending(self) -> Event | None:
        """The end of the training, if nothing has been logged since."""
        return self.events[-1] if self.events and self.events[-1].status else None

    @property
    def config(self) -> str:
        """Generator, guidance and corpus in a few words."""
        words = [self.settings.get(key) for key in ("generator.name", "guidance.method")]
        words.append(self.settings.get("prompt") or self.settings.get("corpus"))
        return " · ".join(str(word) for word in words if word)


def find_runs(root: Path) -> list[Path]:
    """The folders of runs in `root`, itself included, sorted; runs in runs, hidden folders and links are not.

    Raises ValueError if `root` is not a folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder: name one that holds runs")
    found: list[Path] = []
    level, looked = [root], 0
    for _ in range(DEPTH):
        below: list[Path] = []
        for folder in level:
            looked += 1
            if looked > MAX_FOLDERS or len(found) >= MAX_RUNS:
                break
            if any(os.path.lexists(folder / name) for name in TRACES) or (
                os.path.lexists(folder / CONFIG) and os.path.lexists(folder / LOCK)
            ):
                found.append(folder)
            else:
                below += _folders(folder)
        level = below
    return sorted(found)


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            some = [entry for _, entry in zip(range(MAX_ENTRIES), entries, strict=False)]
        return [
            Path(entry.path)
            for entry in some
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
        ]
    except OSError:  # removed meanwhile, or not readable
        return []


def read_facts(folder: Path, root: Path) -> Facts:
    """What the folder of a run says; never raises, whatever is in it."""
    values: dict[str, Any] = {}
    problems: list[str] = []

    def attempt(read: Any) -> None:
        try:
            values.update(read(folder))
        except (OSError, ValueError) as error:
            problems.append(str(error))

    for read in (_settings, _progress, _events, _stop, _submission):
        attempt(read)
    saved, logged = _last_checkpoint(folder), values.get("step")
    if saved is not None:
        values["step"] = max(saved, logged or 0)
    name = os.path.relpath(folder, root)
    name = folder.resolve().name if name == "." else name
    return Facts(
        folder=folder, name=name, written=_written(folder), problem="; ".join(problems[:3]), **values
    )


def _settings(folder: Path) -> dict[str, Any]:
    if not os.path.lexists(folder / CONFIG):
        return {}
    settings = flatten(rename_keys(read_yaml_object(inside(folder, CONFIG)), RENAMED_RUN_SETTINGS)[0])
    steps = settings.get("trainer.steps")
    return {"settings": settings, "steps": steps if type(steps) is int and 0 < steps <= 10**9 else None}


def _progress(folder: Path) -> dict[str, Any]:
    """The last step, its loss, and the seconds per step, from the end of log.jsonl."""
    lines = [line for line in tail(folder, LOG) if finite(line.get("loss")) is not None and _step(line)]
    if not lines:
        return {}
    speeds = []
    for before, line in zip(lines[-RECENT - 1 :], lines[-RECENT:], strict=False):
        steps = line["step"] - before["step"]
        prompts = (finite(line.get("prompts_seen")) or 0) - (finite(before.get("prompts_seen")) or 0)
        rate = finite(line.get("speed/prompts_per_second"))
        if steps > 0 and prompts > 0 and rate and rate > 0:
            speeds.append(prompts / steps / rate)
    return {
        "step": lines[-1]["step"],
        "loss": finite(lines[-1]["loss"]),
        "step_s": statistics.median(speeds) if speeds else None,
    }


def _events(folder: Path) -> dict[str, Any]:
    events = []
    for line in tail(folder, EVENTS)[-200:]:
        status = line.get("status")
        events.append(
            Event(
                time=str(line.get("time", ""))[:40],
                step=line["step"] if _step(line) else 0,
                note=str(line.get("note", ""))[:2000],
                status=status if status in ENDINGS else "",
            )
        )
    return {"events": tuple(events)}


def _stop(folder: Path) -> dict[str, Any]:
    if not os.path.lexists(folder / STOP):
        return {}
    return {"stop": " ".join(read_text(inside(folder, STOP), 2**16).split())[:1000]}


def _submission(folder: Path) -> dict[str, Any]:
    return {"submission": load_submission(folder)}


def _step(line: Mapping[str, Any]) -> bool:
    return type(line.get("step")) is int and 0 <= line["step"] <= 10**9


def _last_checkpoint(folder: Path) -> int | None:
    """The step of the newest checkpoint, by the name of its folder."""
    try:
        with os.scandir(folder / "checkpoints") as entries:
            names = [entry.name for _, entry in zip(range(MAX_ENTRIES), entries, strict=False)]
    except (OSError, ValueError):
        return None
    steps = [int(match[1]) for name in names if (match := re.fullmatch("step_([0-9]{6,9})", name))]
    return max(steps, default=None)


def _written(folder: Path) -> float | None:
    times = []
    for name in (LOG, EVENTS, "index.html"):
        try:
            times.append(os.stat(folder / name, follow_symlinks=False).st_mtime)
        except (OSError, ValueError):
            continue
    return max(times, default=None)


def tail(folder: Path, name: str) -> list[dict[str, Any]]:
    """The objects in the last lines of a file of JSON lines; none without the file. Raises ValueError.

    A first line that the reader cut off and a last one that a kill cut off are skipped.
    """
    if not os.path.lexists(folder / name):
        return []
    with open_regular(inside(folder, name), FILE_LIMIT) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - TAIL))
        data = file.read(TAIL)
    lines = data.split(b"\n")[1 if size > TAIL else 0 :]
    return list(_objects(lines))


def _objects(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value
