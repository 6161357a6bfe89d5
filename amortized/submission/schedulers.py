"""The schedulers: the command that each starts a job with, and those that report its state and its log.

All commands are lists of arguments, never a line for a shell.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["waiting", "running", "ended"]
TIMEOUT_S = 30.0  # of a command that reports states
LOG = "launch.log"  # in the run's folder, of schedulers that write it there
LOCK = "launch.lock"  # in the run's folder: held by the processes of a local run
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED"}
_WAITING |= {"STARTING", "RECOVERING", "SUBMITTED"}  # SkyPilot's
_RUNNING = {"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "WINDING_DOWN", "CANCELLING"}


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """How to use a scheduler."""

    program: str  # which it is recognized by
    template: str  # in configs/launch
    launch: str  # name of the filled file
    install: str  # how to get the program
    shares_files: bool  # its jobs see this machine's files, under the same paths
    states: Callable[[Sequence[str]], Mapping[str, State]]  # by job; a job that it does not know has ended
    follow: Callable[[str], list[str]] | None = None  # shows a job's log; None: it is in the run's folder
    cancel: Callable[[str], list[str]]

    @property
    def is_installed(self) -> bool:
        return shutil.which(self.program) is not None


def words(state: str) -> State:
    """A state in the words of Slurm, SkyPilot or Ray as one of three."""
    name = state.strip().upper().rstrip("+")
    return "waiting" if name in _WAITING else "running" if name in _RUNNING else "ended"


def output_of(
    arguments: Sequence[str],
    *,
    fails: bool = False,
    cwd: Path | None = None,
    timeout_s: float | None = TIMEOUT_S,
) -> str:
    """What a command prints. Raises ValueError if it fails, unless it `fails` for a job that is gone too."""
    shown = " ".join(arguments[:3])
    try:
        done = subprocess.run(
            list(arguments),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"`{shown}` failed ({getattr(error, 'strerror', None) or 'no answer'})") from error
    text = done.stdout.decode("utf-8", "replace")
    if fails:
        return text + done.stderr.decode("utf-8", "replace")
    if done.returncode != 0:
        reason = " ".join((done.stderr.decode("utf-8", "replace") or text).split())[-300:]
        raise ValueError(f"`{shown}` failed ({reason or f'status {done.returncode}'})")
    return text


def _slurm_states(jobs: Sequence[str]) -> dict[str, State]:
    # All active jobs of the user: with the id of a job that is gone, squeue fails.
    lines = output_of(["squeue", "--me", "--noheader", "--format=%i %T"]).splitlines()
    return {job: words(state) for job, _, state in (line.strip().partition(" ") for line in lines)}


def _kubernetes_states(jobs: Sequence[str]) -> dict[str, State]:
    text = output_of(["kubectl", "get", *jobs, "--ignore-not-found", "--output=json"])
    data: Any = _json(text)
    items = data.get("items", [data]) if isinstance(data, dict) else []
    return {
        f"{one['kind'].lower()}/{one['metadata']['name']}": _kubernetes_state(one.get("status") or {})
        for one in items
        if isinstance(one, dict) and "kind" in one and "metadata" in one
    }


def _kubernetes_state(status: Mapping[str, Any]) -> State:
    conditions = {one.get("type") for one in status.get("conditions") or () if one.get("status") == "True"}
    if conditions & {"Complete", "Failed", "Succeeded"}:
        return "ended"
    return "running" if status.get("ready") or "Running" in conditions else "waiting"


def _skypilot_states(jobs: Sequence[str]) -> dict[str, State]:
    data = _json(output_of(["sky", "jobs", "queue", "--output", "json"]))
    rows = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    # The newest comes first.
    return {str(one.get("job_name")): words(str(one.get("status"))) for one in reversed(rows)}


def _ray_states(jobs: Sequence[str]) -> dict[str, State]:
    states: dict[str, State] = {}
    for job in jobs:
        text = output_of(["ray", "job", "status", job], fails=True)
        match = re.search(r"Status for job '[^']*': (\w+)", text)
        if match is None and not re.search("succeeded|failed|stopped|does not exist", text):
            raise ValueError(f"`ray job status` failed ({' '.join(text.split())[-200:] or 'no answer'})")
        states[job] = words(match[1]) if match else "ended"
    return states


def _json(text: str) -> Any:
    """The JSON value in a command's output, after lines for people."""
    start = re.search(r"^[\[{]", text, re.MULTILINE)
    try:
        return json.loads(text[start.start() :]) if start else None
    except (ValueError, RecursionError):
        return None


def _kubernetes_log(job: str) -> list[str]:
    kind, _, name = job.partition("/")
    return ["kubectl", "logs", "--follow", job if kind == "job" else f"{name}-worker-0"]


SCHEDULERS: dict[str, Scheduler] = {
    "local": Scheduler(
        program="bash",
        template="one-node.sh",
        launch="launch.sh",
        install="install bash",
        shares_files=True,
        states=lambda jobs: {},  # see `queue_states`
        cancel=lambda job: ["kill", job],
    ),
    "slurm": Scheduler(
        program="sbatch",
        template="slurm.sbatch",
        launch="launch.sbatch",
        install="run this on a machine of the cluster",
        shares_files=True,
        states=_slurm_states,
        cancel=lambda job: ["scancel", job],
    ),
    "kubernetes": Scheduler(
        program="kubectl",
        template="kubernetes-indexed-job.yaml",
        launch="launch.yaml",
        install="install it and choose a cluster with `kubectl config use-context`",
        shares_files=False,
        states=_kubernetes_states,
        follow=_kubernetes_log,
        cancel=lambda job: ["kubectl", "delete", job],
    ),
    "skypilot": Scheduler(
        program="sky",
        template="skypilot.yaml",
        launch="launch.yaml",
        install="pip install skypilot",
        shares_files=False,
        states=_skypilot_states,
        follow=lambda job: ["sky", "jobs", "logs", "--name", job],
        cancel=lambda job: ["sky", "jobs", "cancel", "--name", job],
    ),
    "ray": Scheduler(
        program="ray",
        template="ray-job.sh",
        launch="launch.sh",
        install="pip install 'ray[default]'",
        shares_files=True,
        states=_ray_states,
        follow=lambda job: ["ray", "job", "logs", "--follow", job],
        cancel=lambda job: ["ray", "job", "stop", job],
    ),
}


def log_of(run: Path, to: str) -> Path | None:
    """The file with a job's output; None if the scheduler has it."""
    return run / LOG if SCHEDULERS[to].follow is None else None
