"""The status of a run, from its folder, its lock and its place in a queue."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from amortized.locks import is_locked
from amortized.runs.folder import LOCK, Facts, find_runs, read_facts
from amortized.submission.queue import queue_states
from amortized.submission.record import Submission
from amortized.untrusted import inside, read_text

Status = Literal["running", "waiting", "done", "stopped", "collapsed", "failed", "lost", "unknown"]
MEANINGS = {
    "running": "a process trains it",
    "waiting": "its job is in a queue",
    "done": "trained to the last step",
    "stopped": "a signal stopped it after a checkpoint: the same command resumes it",
    "collapsed": "it would stop again with the same settings",
    "failed": "an error ended it",
    "lost": "its process is gone and left no reason",
    "unknown": "its folder cannot be read",
}
QUIET_S = 300.0  # without a sign of life, of a run on a machine whose lock cannot be seen from here
QUIET_STEPS = 10  # or so many steps, if that is longer


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run with its status."""

    facts: Facts
    status: Status
    detail: str = ""  # a sentence about the status, or about what cannot be read

    @property
    def left_s(self) -> float | None:
        """Seconds that a running run still needs, at its latest speed."""
        facts = self.facts
        if self.status != "running" or None in (facts.step, facts.steps, facts.step_s):
            return None
        return max(0, facts.steps - facts.step) * facts.step_s  # type: ignore[operator]

    def to_json(self) -> dict[str, Any]:
        facts = self.facts
        job = facts.submission
        return {
            "name": facts.name,
            "folder": str(facts.folder),
            "status": self.status,
            "detail": self.detail,
            "step": facts.step,
            "steps": facts.steps,
            "seconds_left": None if self.left_s is None else round(self.left_s, 1),
            "loss": facts.loss,
            "config": facts.config,
            "scheduler": job.to if job else None,
            "job": job.job if job else None,
        }


def read_runs(root: Path) -> list[Run]:
    """All runs under a folder, with their status. Raises ValueError if it is not a folder."""
    return statuses([read_facts(folder, root) for folder in find_runs(root)])


def statuses(all_facts: Sequence[Facts]) -> list[Run]:
    """The status of each run; schedulers are questioned only about runs whose folders do not show it."""
    runs = {facts.folder: _status_of_folder(facts) for facts in all_facts}
    submitted = {
        folder: run.facts.submission
        for folder, run in runs.items()
        if run.facts.submission is not None and run.status not in ("running", "done", "collapsed")
    }
    for folder, state in queue_states(submitted).items():
        runs[folder] = _with_queue(runs[folder], submitted[folder], state)
    return list(runs.values())


def _with_queue(run: Run, submission: Submission, state: str) -> Run:
    """A run whose folder does not show its status, with the state of its job."""
    job = (
        f"job {submission.job} of {submission.to}"
        if submission.to != "local"
        else f"process {submission.job}"
    )
    match state:
        case "waiting":
            return replace(run, status="waiting", detail=f"{job} is queued")
        case "running":
            return replace(run, status="running", detail=f"{job} runs")
        case "ended" if run.status == "lost" and run.facts.step is None:
            return replace(run, status="failed", detail=f"{job} ended before the first step: see its log")
        case "ended":
            return run
        case _:
            return replace(run, detail="; ".join(part for part in (run.detail, state) if part))


def _status_of_folder(facts: Facts) -> Run:
    def run(status: Status, detail: str = "") -> Run:
        parts = [part for part in (detail, facts.problem) if part]
        return Run(facts=facts, status=status, detail="; ".join(parts))

    locked = is_locked(facts.folder / LOCK)
    if locked:
        return run("running")
    ending = facts.ending.status if facts.ending else ""
    if facts.stop is not None:
        return run("collapsed", facts.stop)
    if ending == "finished":
        return run("done")
    if ending:
        return (
            run("stopped")
            if ending == "stopped"
            else run("failed", facts.ending.note if facts.ending else "")
        )
    if facts.steps is not None and facts.step is not None and facts.step >= facts.steps:
        return run("done")
    if facts.problem and facts.step is None and not facts.events:
        return run("unknown")
    if (locked is None or _holder_is_elsewhere(facts.folder)) and _is_fresh(facts):
        return run("running", "by its logs: its lock cannot be seen from this machine")
    return run("lost", MEANINGS["lost"] if facts.events or facts.step is not None else "")


def _holder_is_elsewhere(folder: Path) -> bool:
    """Whether the last process that locked the folder ran on another machine, whose locks may not show."""
    try:
        match = re.match(r"process \d+ on (\S+)", read_text(inside(folder, LOCK), 2**12))
    except ValueError:
        return False
    return match is not None and match[1] != socket.gethostname()


def _is_fresh(facts: Facts) -> bool:
    quiet_s = max(QUIET_S, QUIET_STEPS * (facts.step_s or 0))
    return facts.written is not None and time.time() - facts.written < quiet_s
