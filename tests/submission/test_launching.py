"""Jobs are handed to the scheduler's command, recorded and reported; local ones are real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from amortized.locks import FileLock
from amortized.submission import check_ready, launch, load_submission, make_plan, queue_states
from amortized.submission.record import FILE, Submission, save_submission
from amortized.submission.schedulers import SCHEDULERS, State, words
from tests.launch.stubs import LAUNCH, StubFolder

SETTINGS = ["configs/quickstart.yaml", "prompt=a 'red' $(cube)", "output=/runs/mine"]
TIME = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with a train.py that waits for a file, and a PATH without schedulers."""
    (tmp_path / "train.py").write_text(
        "import json, os, sys, time\n"
        "json.dump(sys.argv[1:], open('argv.json', 'w'))\n"
        "print('training', flush=True)\n"
        # Ends with its folder too: a test that fails leaves no process behind.
        "while os.path.exists('train.py') and not os.path.exists('end'): time.sleep(0.02)\n"
    )
    (tmp_path / "template.sh").write_text('set -euo pipefail\nexec python train.py "$@"\n')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    yield tmp_path
    (tmp_path / "train.py").unlink(missing_ok=True)


def wait_for(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it took more than 10 s")


def local_plan(root: Path):
    return make_plan("local", SETTINGS, root / "a run", root, template=root / "template.sh", processes=1)


def test_a_local_run_outlives_its_session_and_reports_its_end(root):
    plan = local_plan(root)
    check_ready(plan)
    submission = launch(plan)
    assert load_submission(plan.run) == submission and submission.to == "local"
    wait_for((root / "argv.json").exists)
    assert json.loads((root / "argv.json").read_text()) == SETTINGS
    assert os.getsid(int(submission.job)) == int(submission.job) != os.getsid(0)  # no SIGHUP of this terminal
    assert queue_states({plan.run: submission}) == {plan.run: "running"}
    with pytest.raises(ValueError, match=f"already job {submission.job} of local, which is running"):
        check_ready(plan)
    (root / "end").touch()
    wait_for(lambda: queue_states({plan.run: submission}) == {plan.run: "ended"})
    assert (plan.run / "launch.log").read_text() == "training\n"
    os.waitpid(int(submission.job), 0)
    check_ready(plan)
    # Killed, it has ended too; the log is appended to.
    (root / "end").unlink()
    submission = launch(plan)
    wait_for(lambda: (plan.run / "launch.log").read_text() == "training\n" * 2)
    os.kill(int(submission.job), signal.SIGKILL)
    os.waitpid(int(submission.job), 0)
    assert queue_states({plan.run: submission}) == {plan.run: "ended"}


OUTPUTS = {
    "slurm": "41;cluster",
    "kubernetes": "job.batch/x created",
    "skypilot": "Managed Job ID: 3",
    "ray": "ok",
}


@pytest.mark.parametrize("to", OUTPUTS)
def test_the_scheduler_gets_the_launch_file(root, to):
    stubs, scheduler = StubFolder(root), SCHEDULERS[to]
    stubs.stub(scheduler.program, f"echo '{OUTPUTS[to]}'; pwd > where")
    template = root / "template"
    template.write_text((LAUNCH / scheduler.template).read_text().replace("registry.example.com", "here"))
    settings = SETTINGS if to != "kubernetes" else [*SETTINGS, "output=outputs/mine"]
    plan = make_plan(to, settings, root / "run", root, template=template, options=["--an=option $(x)"])
    check_ready(plan)
    submission = launch(plan)
    assert submission.job == ("41" if to == "slurm" else plan.job)
    (arguments,) = stubs.calls(scheduler.program)
    assert arguments == list(plan.command[1:]) and arguments[-1] == str(root / "run" / scheduler.launch)
    assert "--an=option $(x)" in arguments and (root / "where").read_text() == f"{root}\n"
    assert Path(arguments[-1]).read_text() == plan.launch
    assert load_submission(plan.run) == submission


@pytest.mark.parametrize("to", OUTPUTS)
def test_an_absent_or_failing_command_is_one_sentence_and_no_record(root, to):
    plan = make_plan("ray", SETTINGS, root / "run", root)
    stubs = StubFolder(root)
    with pytest.raises(ValueError, match="no command ray here, which --to ray needs: pip install"):
        check_ready(plan)
    assert not (root / "run").exists()
    stubs.stub("ray", "echo 'no cluster' >&2; exit 1")
    with pytest.raises(ValueError, match=r"`ray job submit` failed \(no cluster\)"):
        launch(plan)
    assert load_submission(plan.run) is None


def test_no_job_for_a_run_in_training_or_without_train_py(root):
    plan = local_plan(root)
    plan.run.mkdir()
    lock = FileLock(plan.run / ".lock")
    with pytest.raises(ValueError, match="trains .*a run.* already"):
        check_ready(plan)
    lock.close()
    (root / "train.py").unlink()
    with pytest.raises(ValueError, match="has no train.py"):
        check_ready(plan)


@pytest.mark.parametrize("name", ["a b", "a%j", "a$(x)", "a\\b", "a;b"])
@pytest.mark.parametrize("to", ["slurm", "ray"])
def test_a_path_that_a_scheduler_would_read_otherwise_is_refused(tmp_path, to, name):
    with pytest.raises(ValueError, match="cannot take the path"):
        make_plan(to, SETTINGS, tmp_path / name, tmp_path)


BROKEN = {
    "option": {"job": "--help"},
    "path": {"job": "../../x"},
    "shell": {"job": "1; rm"},
    "list": {"job": ["1"]},
    "none": {"job": None},
    "scheduler": {"to": "Slurm $(x)"},
    "time": {"time": "<script>"},
    "format": {"format": 2},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_hostile_record_is_refused(tmp_path, kind):
    save_submission(tmp_path, Submission(to="slurm", job="12", time=TIME))
    data = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(data | BROKEN[kind]))
    with pytest.raises(ValueError, match="submission.json is damaged"):
        load_submission(tmp_path)


# ---- states, as the programs print them --------------------------------------------------------


def kubernetes(condition: str | None, ready: int = 0, kind: str = "Job") -> str:
    conditions = [{"type": condition, "status": "True"}] if condition else []
    status = {"conditions": conditions, "ready": ready}
    return json.dumps({"kind": kind, "metadata": {"name": "x"}, "status": status})


PRINTED: dict[str, tuple[str, str, str, State]] = {
    "k8s pending": ("kubernetes", "job/x", kubernetes(None), "waiting"),
    "k8s running": ("kubernetes", "job/x", kubernetes(None, 2), "running"),
    "k8s done": ("kubernetes", "job/x", kubernetes("Complete"), "ended"),
    "k8s list": (
        "kubernetes",
        "job/x",
        json.dumps({"kind": "List", "items": [json.loads(kubernetes(None))]}),
        "waiting",
    ),
    "k8s gone": ("kubernetes", "job/x", "", "ended"),
    "operator": ("kubernetes", "pytorchjob/x", kubernetes("Running", kind="PyTorchJob"), "running"),
    "sky": ("skypilot", "x", 'Fetching...\n[{"job_name": "x", "status": "RECOVERING"}]', "waiting"),
    "sky newest": (
        "skypilot",
        "x",
        '[{"job_name": "x", "status": "RUNNING"}, {"job_name": "x", "status": "FAILED"}]',
        "running",
    ),
    "sky table": ("skypilot", "x", "No jobs", "ended"),
    "ray": ("ray", "x", "Status for job 'x': PENDING", "waiting"),
    "ray runs": ("ray", "x", "Status for job 'x': RUNNING\nStatus message: ok", "running"),
    "ray done": ("ray", "x", "Job 'x' succeeded", "ended"),
    "ray gone": (
        "ray",
        "x",
        "RuntimeError: Request failed with status code 404: Job x does not exist",
        "ended",
    ),
    "slurm": ("slurm", "12", "11 RUNNING\n12 PENDING", "waiting"),
    "slurm other": ("slurm", "12", "121 RUNNING", "ended"),
}


@pytest.mark.parametrize("case", PRINTED)
def test_states_are_read_from_what_the_programs_print(root, case):
    to, job, text, expected = PRINTED[case]
    (root / "text").write_text(text)
    for program in (SCHEDULERS[to].program, "squeue"):
        StubFolder(root).stub(program, f"cat '{root}/text'")
    submission = Submission(to=to, job=job, time=TIME)
    assert queue_states({root: submission}) == {root: expected}


def test_states_of_slurm_in_words():
    assert [words(one) for one in ("PENDING", "REQUEUE_HOLD", "RUNNING", "COMPLETING")] == (
        ["waiting", "waiting", "running", "running"]
    )
    assert {words(one) for one in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED+", "NODE_FAIL", "")} == {
        "ended"
    }
