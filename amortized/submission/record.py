"""What was submitted for a run: a small JSON file in the run's folder, untrusted when it is read.

RUN/submission.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amortized.files import atomic_write_text
from amortized.untrusted import inside, read_json_object, short

FILE, FORMAT, LIMIT = "submission.json", 1, 2**20
# A job's id reaches the scheduler's command as an argument: it must not look like an option.
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}(/[A-Za-z0-9][A-Za-z0-9_.\-]{0,99})?")
_TIME = re.compile(r"[0-9T:+-]{19,25}")
_NAME = re.compile(r"[a-z]{1,20}")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The latest job of a run."""

    to: str  # the scheduler
    job: str  # its id there; of a local run, the process
    time: str  # UTC, ISO 8601


def load_submission(run: Path) -> Submission | None:
    """The submission of a run; None if it was started otherwise. Raises ValueError if it is damaged."""
    path = run / FILE
    if not path.exists() and not path.is_symlink():
        return None
    try:
        return _parse(read_json_object(inside(run, FILE), LIMIT))
    except ValueError as error:
        raise ValueError(f"{short(path)} is damaged ({error}): remove it, or submit the run again") from error


def save_submission(run: Path, submission: Submission) -> None:
    """Write the submission into a run's folder."""
    atomic_write_text(run / FILE, json.dumps({"format": FORMAT, **asdict(submission)}, indent=1) + "\n")


def _parse(data: Mapping[str, Any]) -> Submission:
    if data.get("format") != FORMAT:
        raise ValueError("another version of this program wrote it")
    values = {}
    for name, pattern in (("to", _NAME), ("job", _JOB), ("time", _TIME)):
        value = data.get(name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"it has no valid {name}")
        values[name] = value
    return Submission(**values)
