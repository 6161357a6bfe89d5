"""Hand a run to a scheduler: its launch file, the scheduler's command, and a record in the run's folder."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from amortized.files import PROJECT, atomic_write_text
from amortized.locks import FileLock, LockedError, is_locked
from amortized.names import slug
from amortized.submission.queue import queue_states
from amortized.submission.record import Submission, load_submission, save_submission
from amortized.submission.schedulers import LOCK, LOG, SCHEDULERS, output_of
from amortized.submission.templates import fill_kubernetes, fill_script, fill_skypilot
from amortized.untrusted import MiB, read_text, short

TEMPLATES = PROJECT / "configs" / "launch"
RUN_LOCK = ".lock"  # of the training itself
# A shell or Slurm would read other characters of a path as something else.
_PLAIN = re.compile(r"[A-Za-z0-9_./+=@:,-]+")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is handed to a scheduler."""

    to: str
    run: Path  # the folder for the launch file, the log and the record
    root: Path  # the folder with train.py, in which the job starts
    name: str  # of the job
    job: str | None  # its id, if the scheduler does not choose it
    launch: str  # the contents of the launch file
    command: tuple[str, ...]

    @property
    def file(self) -> Path:
        """The launch file."""
        return self.run / SCHEDULERS[self.to].launch


def make_plan(
    to: str,
    arguments: Sequence[str],
    run: Path,
    root: Path,
    *,
    template: Path | None = None,
    processes: int | None = None,
    options: Sequence[str] = (),
) -> Plan:
    """The launch file and the command that start `train.py ARGUMENTS` with the scheduler `to`.

    Args:
        run: the run's folder, or one here that stands for it if the job's files are elsewhere.
        root: the folder with train.py.
        template: instead of the one in configs/launch.
        processes: of a machine, for local and ray; None: one for each GPU.
        options: further options of the scheduler's command.

    Raises ValueError for a template that cannot be filled, or a path that the scheduler cannot take.
    """
    scheduler = SCHEDULERS[to]
    run, root = Path(os.path.abspath(run)), Path(os.path.abspath(root))
    name = f"a3d-{slug(run.name, 36)}-{secrets.token_hex(2)}"
    path = template or TEMPLATES / scheduler.template
    text = read_text(path, MiB)
    job, file = name, str(run / scheduler.launch)
    try:
        if to == "kubernetes":
            launch, job = fill_kubernetes(text, arguments, name)
        elif to == "skypilot":
            launch = fill_skypilot(text, arguments, name)
        else:
            launch = fill_script(text, arguments, _preparation(root, processes))
    except ValueError as error:
        raise ValueError(f"the template {short(path)} cannot be filled: {error}") from error
    if to in ("slurm", "ray") and not _PLAIN.fullmatch(file):
        raise ValueError(
            f"{to} cannot take the path {short(file)}: choose an output of letters, digits and -_./"
        )
    match to:
        case "local":
            job, command = None, ["bash", file]
        case "slurm":
            log = f"--output={run / LOG}"
            job, command = None, ["sbatch", "--parsable", f"--job-name={name}", log, *options, file]
        case "kubernetes":
            command = ["kubectl", "apply", *options, "--filename", file]
        case "skypilot":
            command = ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", name, *options, file]
        case _:
            command = [
                "ray",
                "job",
                "submit",
                "--no-wait",
                "--submission-id",
                name,
                *options,
                "--",
                "bash",
                file,
            ]
    head = f"# Written by `amortized submit --to {to}` from {one_line(path)}.\n"
    launch = launch.replace("\n", f"\n{head}", 1) if launch.startswith("#!") else head + launch
    return Plan(to=to, run=run, root=root, name=name, job=job, launch=launch, command=tuple(command))


def _preparation(root: Path, processes: int | None) -> list[str]:
    """Lines of a script for which the working directory and the environment at its start do not matter."""
    programs = Path(sys.executable).parent
    lines = [shlex.join(["cd", "--", str(root)]), f'export PATH={shlex.quote(str(programs))}:"$PATH"']
    return [*lines, *([f"export PROCESSES={processes}"] if processes is not None else [])]


def one_line(path: Path) -> str:
    return " ".join(short(path).split())


def check_ready(plan: Plan) -> None:
    """Raise ValueError if the scheduler's command is absent, or if the run is queued or training already."""
    scheduler = SCHEDULERS[plan.to]
    if not scheduler.is_installed:
        raise ValueError(
            f"there is no command {scheduler.program} here, which --to {plan.to} needs: "
            f"{scheduler.install}, or choose another --to"
        )
    if plan.to != "kubernetes" and not (plan.root / "train.py").is_file():
        raise ValueError(
            f"{short(plan.root)} has no train.py, which the job starts: submit in the project's folder"
        )
    if is_locked(plan.run / RUN_LOCK):
        raise ValueError(f"a process trains {short(plan.run)} already: wait for it to end")
    earlier = load_submission(plan.run)
    if earlier is None:
        return
    state = queue_states({plan.run: earlier})[plan.run]
    if state in ("waiting", "running"):
        cancel = shlex.join(SCHEDULERS[earlier.to].cancel(earlier.job))
        raise ValueError(
            f"{short(plan.run)} is already job {earlier.job} of {earlier.to}, which is {state}: wait for it, "
            f"or cancel it with `{cancel}`"
        )


def launch(plan: Plan) -> Submission:
    """Write the launch file, start the job, and record it in the run's folder.

    Raises ValueError if the scheduler refuses, with its own message.
    """
    plan.run.mkdir(parents=True, exist_ok=True)
    atomic_write_text(plan.file, plan.launch)
    job = _start_here(plan) if plan.to == "local" else _hand_over(plan)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    submission = Submission(to=plan.to, job=job, time=now)
    save_submission(plan.run, submission)
    return submission


def _hand_over(plan: Plan) -> str:
    text = output_of(plan.command, cwd=plan.root, timeout_s=None)
    if plan.job is not None:
        return plan.job
    match = re.match(r"\s*([0-9]+)", text)  # sbatch --parsable: JOB, or JOB;CLUSTER
    if match is None:
        raise ValueError(f"`{plan.command[0]}` printed no job id ({short(text.strip()[:100])})")
    return match[1]


def _start_here(plan: Plan) -> str:
    """Start the launch file in a session of its process, which survives this terminal; returns its id."""
    try:
        lock = FileLock(plan.run / LOCK)
    except LockedError:
        raise ValueError(f"{short(plan.run)} is running here already: wait for it to end") from None
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    log = os.open(plan.run / LOG, flags, 0o644)
    try:
        process = subprocess.Popen(
            list(plan.command),
            cwd=plan.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],  # the lock is held until the last process that has it ends
        )
    finally:
        os.close(log)
        lock.close()
    return str(process.pid)
