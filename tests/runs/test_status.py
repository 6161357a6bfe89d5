"""The status of runs, from their folders, locks and queues."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from amortized.locks import FileLock, is_locked
from amortized.monitoring import TrainingStopped
from amortized.runs import read_runs, table
from amortized.runs import status as status_module
from amortized.submission.record import Submission, save_submission
from tests.launch.stubs import StubFolder
from tests.runs.made import make_run
from tests.training.toy import inject_failure, interrupted_at, make_trainer

JOB = {"job": "12", "time": "2026-01-02T03:04:05+00:00"}


def status_of(root: Path) -> dict[str, str]:
    return {run.facts.name: run.status for run in read_runs(root)}


def test_a_training_leaves_its_status(tmp_path):
    """Of real trainings: finished, stopped by a signal and resumed, collapsed, failed."""
    make_trainer(tmp_path / "done", steps=4).train(quiet=True)
    interrupted_at(make_trainer(tmp_path / "stopped", steps=4), 2).train(quiet=True)
    with pytest.raises(TrainingStopped):
        inject_failure(make_trainer(tmp_path / "collapsed", steps=4), 0, 2, "nan").train(quiet=True)
    with pytest.raises(ZeroDivisionError):
        inject_failure(make_trainer(tmp_path / "failed", steps=4), 0, 2, "defect").train(quiet=True)
    assert all(name == status for name, status in status_of(tmp_path).items())
    details = {run.facts.name: run.detail for run in read_runs(tmp_path)}
    assert "not finite" in details["collapsed"] and details["failed"] == "ZeroDivisionError: a defect"
    make_trainer(tmp_path / "stopped", steps=4).train(quiet=True)
    assert status_of(tmp_path)["stopped"] == "done"


def test_a_run_is_running_while_its_lock_is_held_and_lost_without_a_reason(tmp_path):
    folder = make_run(tmp_path / "run")
    assert status_of(tmp_path) == {"run": "lost"}
    lock = FileLock(folder / ".lock")
    (run,) = read_runs(tmp_path)
    assert run.status == "running" and run.facts.step == 30 and run.left_s == pytest.approx(70 * 0.5)
    assert "30/100" in table([run]) and "35 s" in table([run]) and "0.0333" in table([run])
    lock.close()
    assert status_of(tmp_path) == {"run": "lost"}
    # A start after an end counts, not the end.
    again = make_run(tmp_path / "again", ending="stopped")
    assert status_of(tmp_path)["again"] == "stopped"
    with (again / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": "", "step": 30, "note": "started"}) + "\n")
    assert status_of(tmp_path)["again"] == "lost"


def test_the_lock_of_another_machine_is_replaced_by_signs_of_life(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / ".lock").write_text("process 12 on node-7")
    assert status_of(tmp_path) == {"run": "running"}
    old = time.time() - 2 * status_module.QUIET_S
    for name in ("log.jsonl", "events.jsonl"):
        os.utime(folder / name, (old, old))
    assert status_of(tmp_path) == {"run": "lost"}


def test_asking_for_a_lock_does_not_take_it(tmp_path):
    assert is_locked(tmp_path / "none") is False
    lock = FileLock(tmp_path / "lock")
    assert is_locked(tmp_path / "lock") is True
    lock.close()
    assert is_locked(tmp_path / "lock") is False
    FileLock(tmp_path / "lock").close()
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "lock", tmp_path / "link")
    assert is_locked(tmp_path / "pipe") is None and is_locked(tmp_path / "link") is None


SQUEUE = {"waiting": "echo '12 PENDING'", "running": "echo '12 RUNNING'", "lost": "echo '13 PENDING'"}


@pytest.mark.parametrize("expected", SQUEUE)
def test_a_submitted_run_has_the_state_of_its_job(tmp_path, monkeypatch, expected):
    """Unless its folder says more."""
    stubs = StubFolder(tmp_path / "stubs")
    stubs.stub("squeue", SQUEUE[expected])
    stubs.stub("sbatch")
    monkeypatch.setenv("PATH", f"{stubs.folder}/bin:{os.environ['PATH']}")
    runs = tmp_path / "runs"
    for name, ending in (("a", None), ("b", "finished")):
        save_submission(make_run(runs / name, ending=ending), Submission(to="slurm", **JOB))
    assert status_of(runs) == {"a": expected, "b": "done"}
    assert len(stubs.calls("squeue")) == 1  # for all runs
    # Before its first step a run is its submission only; a job that is gone has failed.
    (runs / "c").mkdir()
    save_submission(runs / "c", Submission(to="slurm", **JOB))
    assert status_of(runs)["c"] == {"lost": "failed"}.get(expected, expected)


def test_a_queue_that_does_not_answer_is_a_sentence(tmp_path, monkeypatch):
    stubs = StubFolder(tmp_path / "stubs")
    stubs.stub("squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    stubs.stub("sbatch")
    stubs.stub("kubectl", "echo 'You must be logged in' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{stubs.folder}/bin:/usr/bin:/bin")
    for to in ("slurm", "kubernetes", "ray", "elsewhere"):
        save_submission(make_run(tmp_path / "runs" / to), Submission(to=to, **JOB))
    details = {run.facts.name: run.detail for run in read_runs(tmp_path / "runs")}
    assert "Unable to contact" in details["slurm"] and "be logged in" in details["kubernetes"]
    assert "there is no command ray here" in details["ray"]
    assert "knows no scheduler elsewhere" in details["elsewhere"]


def test_runs_are_found_in_folders_and_not_in_runs(tmp_path):
    for name in ("a", "group/b", "group/deeper/c", ".hidden/d"):
        make_run(tmp_path / name, ending="finished")
    make_run(tmp_path / "a" / "inner", ending="finished")
    (tmp_path / "link").symlink_to(tmp_path / "group")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.yaml").write_text("a: 1")
    assert set(status_of(tmp_path)) == {"a", "group/b", "group/deeper/c"}
    assert status_of(tmp_path / "a") == {"a": "done"}


def hostile(folder: Path) -> None:
    """Folders of runs with one damaged file each."""
    contents = {
        "empty": b"",
        "binary": bytes(random.Random(0).randbytes(4096)),
        "deep": b"[" * 100_000,
        "list": b"[1, 2]\n" * 5,
        "types": b'{"step": "x", "loss": [], "time": {}, "note": 5, "status": [], "trainer": 3}\n' * 3,
        "huge": b'{"step": 1e999, "loss": -1e999, "prompts_seen": NaN, "trainer": {"steps": -1}}\n',
        "digits": b'{"step": ' + b"9" * 5000 + b', "loss": 1}\n',
        "aliases": b"a: &a [1]\nb: *a\n",
        "escape": b'{"step": 1, "note": "\\u001b[2J<script>", "status": "finished"}\n',
    }
    names = ("config.yaml", "log.jsonl", "events.jsonl", "submission.json", "stopped", ".lock", "run.json")
    for kind, data in contents.items():
        for name in names:
            (make_run(folder / f"{kind}-{name}") / name).write_bytes(data)
    for name in names:
        for kind in ("pipe", "folder", "loop", "outside"):
            path = make_run(folder / f"{kind}-{name}") / name
            path.unlink(missing_ok=True)
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()
            else:
                path.symlink_to(path if kind == "loop" else "/etc/passwd")


@pytest.mark.timeout(60)
def test_a_damaged_or_hostile_run_is_one_sentence_and_hides_no_other(tmp_path):
    make_run(tmp_path / "good", ending="finished")
    hostile(tmp_path)
    runs = read_runs(tmp_path)
    assert {run.facts.name for run in runs} == {path.name for path in tmp_path.iterdir()}
    by_name = {run.facts.name: run for run in runs}
    assert by_name["good"].status == "done" and by_name["good"].detail == ""
    for name in ("binary-config.yaml", "pipe-log.jsonl", "outside-events.jsonl", "types-submission.json"):
        assert by_name[name].detail and "\n" not in by_name[name].detail, name
    shown = table(runs)
    assert "\x1b" not in shown and "root:" not in shown
    json.dumps([run.to_json() for run in runs], allow_nan=False)
