"""Show a submitted job until it ends: its status when it changes, and its log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from amortized.runs import Run, statuses
from amortized.runs.folder import read_facts
from amortized.runs.table import progress
from amortized.submission import SCHEDULERS, Submission, log_of, queue_states

POLL_S = 2.0
PATIENCE = 30  # questions without an answer, in a row
CHUNK = 2**20


def follow(run: Path, submission: Submission) -> int:
    """Show the job of a run's folder; returns 0 if the run is done, else 1. Ctrl-C ends only this display.

    Raises ValueError if the scheduler does not answer for a minute.
    """
    print("following; Ctrl-C ends this display and not the job", file=sys.stderr, flush=True)
    log, scheduler = log_of(run, submission.to), SCHEDULERS[submission.to]
    position, shown, silent, reader = 0, "", 0, None
    try:
        while True:
            state = queue_states({run: submission})[run]
            if state in ("waiting", "running", "ended"):
                silent = 0
            elif (silent := silent + 1) >= PATIENCE:
                raise ValueError(f"{state}: the job may still run")
            if log is not None:
                position = _show_log(log, position)
            elif state != "waiting" and scheduler.follow and (reader is None or reader.poll()):
                reader = subprocess.Popen(scheduler.follow(submission.job), stdin=subprocess.DEVNULL)
            now = statuses([read_facts(run, run)])[0]
            shown = _show_status(now, shown)
            if state == "ended":
                if reader is not None:
                    with suppress(subprocess.TimeoutExpired):
                        reader.wait(10)
                return 0 if now.status == "done" or not scheduler.shares_files else 1
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return 0
    finally:
        if reader is not None and reader.poll() is None:
            reader.terminate()


def _show_log(path: Path, position: int) -> int:
    """Print what was appended to a log since `position`; returns the new one."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < position:  # written from its start again
                position = 0
            file.seek(position)
            while data := file.read(CHUNK):
                position += len(data)
                print(data.decode("utf-8", "replace"), end="", flush=True)
    except OSError:  # not there yet
        pass
    return position


def _show_status(run: Run, shown: str) -> str:
    words = " ".join(part for part in (run.status, f"({run.detail})" if run.detail else "") if part)
    if words != shown:
        print(f"{words}; {progress(run) or 'no'} steps", file=sys.stderr, flush=True)
    return words
