"""Failures of a run of many processes: reported once, soon, with a checkpoint to resume from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from amortized.checkpointing import list_checkpoints, read_part
from tests.training.toy import log_lines, make_trainer


def launch(folder: Path, processes: int = 2, **changes) -> tuple[int, str, float]:
    """Train the toy under torchrun; returns exit status, stderr and seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "tests.training.toy", str(folder), json.dumps(changes)]
    start, env = time.monotonic(), {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stderr, time.monotonic() - start


def reported(stderr: str) -> list[str]:
    """The one-sentence errors in stderr."""
    return [line for line in stderr.splitlines() if "toy: error:" in line or "train.py: error:" in line]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_loss_that_is_not_finite_on_one_process_stops_all(tmp_path, strategy):
    status, stderr, _ = launch(tmp_path, steps=30, trouble=[1, 13, "nan"], strategy=strategy)
    (sentence,) = reported(stderr)
    assert status != 0 and "step 14: loss" in sentence and "not finite" in sentence
    assert "the last good checkpoint is " in sentence and "step_000010" in sentence
    assert (
        "0]: Traceback" not in stderr and "1]: Traceback" not in stderr
    )  # the launcher prints one without a rank
    assert "step 14: loss" in (tmp_path / "stopped").read_text()
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_000010"]


def test_a_stuck_process_ends_all_and_leaves_their_stacks(tmp_path):
    status, stderr, seconds = launch(tmp_path, steps=30, trouble=[1, 5, "hang"], timeout_s=20.0)
    (sentence,) = reported(stderr)
    assert status != 0 and seconds < 120
    assert "no progress for 20 s (step 6)" in sentence and str(tmp_path / "stacks") in sentence
    stuck, waiting = ((tmp_path / "stacks" / f"process_0000{rank}.txt").read_text() for rank in (1, 0))
    assert "step 6" in stuck and "in fail_here" in stuck and "watchdog.py" in stuck
    assert "in backward" in waiting or "in mean" in waiting or "in step" in waiting


def test_a_dead_process_ends_the_others(tmp_path):
    status, stderr, seconds = launch(tmp_path, steps=10_000, trouble=[1, 60, "die"])
    assert status != 0 and seconds < 90  # most of it is the start
    # The launcher names the process, and may stop the other before that reports the loss.
    assert stderr.count("Root Cause") == 1 and "Signal 9 (SIGKILL)" in stderr
    assert all("another process exited or cannot be reached" in text for text in reported(stderr))
    assert len(reported(stderr)) <= 1 and "0]: Traceback" not in stderr
    # The checkpoint of step 60 may still have been in progress.
    assert "step_000050" in [path.name for path in list_checkpoints(tmp_path / "checkpoints")]


def test_a_bug_is_one_sentence_that_is_printed_once(tmp_path):
    status, stderr, _ = launch(tmp_path, steps=10_000, trouble=[1, 3, "defect"])
    assert status != 0 and "Traceback" not in stderr.partition("torch/distributed")[0]
    (sentence,) = reported(stderr)
    assert "unexpected error (ZeroDivisionError: a defect)" in sentence and "--traceback" in sentence


def test_no_decision_depends_on_a_clock(tmp_path):
    """One clock is a day ahead, and the checkpoints' modification times are in reverse order."""
    changes = {"steps": 20, "checkpointing": {"every": 5}, "prompts_per_process": 2}
    launch(tmp_path / "run", **{**changes, "steps": 10}, clock=86400.0)
    for age, path in enumerate(list_checkpoints(tmp_path / "run/checkpoints")):
        os.utime(path, (2e9 - 1e6 * age,) * 2)
    status, stderr, _ = launch(tmp_path / "run", **changes, clock=-86400.0)
    assert status == 0, stderr
    make_trainer(tmp_path / "one", **{**changes, "prompts_per_process": 4}).train(quiet=True)
    lines, expected = log_lines(tmp_path / "run"), log_lines(tmp_path / "one")
    assert [line["batch_digest"] for line in lines] == [line["batch_digest"] for line in expected]
    names = [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")]
    assert names == ["step_000015", "step_000020"]


def test_two_processes_report_a_damaged_checkpoint_once(tmp_path):
    launch(tmp_path, steps=20)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    (newest / "state.json").write_text("{}")
    status, stderr, _ = launch(tmp_path, steps=30)
    assert status == 0, stderr
    notes = [json.loads(line)["note"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (note,) = [note for note in notes if "damaged" in note]
    assert "step_000020 is damaged" in note and "trying the one before" in note
    assert torch.isfinite(read_part(tmp_path / "checkpoints/step_000030", "generator")["grid.table"]).all()
