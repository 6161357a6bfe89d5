"""The state of submitted jobs: waiting, running or ended, as their schedulers report it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from amortized.locks import is_locked
from amortized.submission.record import Submission
from amortized.submission.schedulers import LOCK, SCHEDULERS, State

MAX_JOBS = 200  # of one scheduler, in one question


def queue_states(submissions: Mapping[Path, Submission]) -> dict[Path, State | str]:
    """The state of the job of each run's folder, or a sentence that says why it is not known.

    Each scheduler gets one question for all of its jobs.
    """
    states: dict[Path, State | str] = {}
    by_scheduler: dict[str, dict[Path, str]] = {}
    for run, one in submissions.items():
        if one.to == "local":
            states[run] = "running" if is_locked(run / LOCK) else "ended"
        elif one.to in SCHEDULERS:
            by_scheduler.setdefault(one.to, {})[run] = one.job
        else:
            states[run] = f"this program knows no scheduler {one.to}"
    for to, jobs in by_scheduler.items():
        scheduler = SCHEDULERS[to]
        asked = dict(list(jobs.items())[:MAX_JOBS])
        try:
            if not scheduler.is_installed:
                raise ValueError(f"there is no command {scheduler.program} here")
            answers = scheduler.states(list(dict.fromkeys(asked.values())))
            states |= {run: answers.get(job, "ended") for run, job in asked.items()}
        except ValueError as error:
            states |= {
                run: f"{to} does not report the state of job {job}: {error}" for run, job in asked.items()
            }
        states |= {run: f"more than {MAX_JOBS} jobs of {to}" for run in jobs if run not in asked}
    return states
