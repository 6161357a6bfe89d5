"""A run that is killed thirty times at arbitrary moments ends with the weights of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amortized.checkpointing import list_checkpoints, read_part
from tests.tiny_sd import make_tiny_sd

ROOT = Path(__file__).resolve().parents[2]
STEPS = 400


def start(*command: str) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kill_when(process: subprocess.Popen, condition: Callable[[], bool]) -> bool:
    """Kill a process when `condition` holds; returns whether it was killed before it ended by itself."""
    while process.poll() is None and not condition():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, stderr = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), stderr.decode()[-2000:]
    return process.returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_thirty_kills_change_nothing(tmp_path):
    prior = make_tiny_sd(tmp_path / "prior", prediction_type="v_prediction")
    train = ["train.py", "configs/quickstart.yaml", f"prior={prior}", f"trainer.steps={STEPS}"]
    train += ["trainer.prompts_per_process=2", "trainer.render_size=16", "checkpointing.every=4"]
    train += ["monitoring.preview_every=50", "monitoring.preview_prompts=1"]
    run, rng, kills = tmp_path / "run", random.Random(0), {"step": 0, "checkpoint": 0, "evaluation": 0}
    evaluate = ["evaluate.py", str(run), "--limit", "4", "evaluation.views=2", "evaluation.grid=16"]
    evaluate += ["evaluation.turntable_frames=4", f"evaluation.clip={ROOT / 'checkpoints' / 'shapes-clip'}"]

    def num_logged() -> int:
        log = run / "log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def after(extra: int) -> Callable[[], bool]:
        """A random moment after `extra` more steps."""
        start_line, delay, reached_at = num_logged(), rng.uniform(0.0, 0.2), []

        def now() -> bool:
            if not reached_at and num_logged() >= start_line + extra:
                reached_at.append(time.monotonic())
            return bool(reached_at) and time.monotonic() >= reached_at[0] + delay

        return now

    def writing() -> Callable[[], bool]:
        """A random moment while a checkpoint is written."""
        passed, delay = after(rng.randrange(1, 8)), rng.uniform(0.0, 0.02)

        def now() -> bool:
            if not passed() or not list((run / "checkpoints").glob(".partial_*")):
                return False
            time.sleep(delay)
            return True

        return now

    def after_seconds(seconds: float) -> Callable[[], bool]:
        until = time.monotonic() + seconds
        return lambda: time.monotonic() >= until

    while kills["step"] < 10:
        kills["step"] += kill_when(start(*train, f"output={run}"), after(rng.randrange(1, 8)))
    while kills["checkpoint"] < 10:
        kills["checkpoint"] += kill_when(start(*train, f"output={run}"), writing())
    while kills["evaluation"] < 10:
        kills["evaluation"] += kill_when(start(*evaluate), after_seconds(rng.uniform(4.0, 14.0)))
    assert 20 < num_logged() < STEPS, "the run finished before thirty kills, or never resumed"
    folders = (run, tmp_path / "uninterrupted")
    for folder in folders:
        process = start(*train, f"output={folder}")
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr.decode()[-2000:]
    newest = [list_checkpoints(folder / "checkpoints")[-1] for folder in folders]
    assert [path.name for path in newest] == [f"step_{STEPS:06d}"] * 2
    for part in ("generator", "ema", "optimizer"):
        tensors, expected = (read_part(path, part) for path in newest)
        assert tensors.keys() == expected.keys() and len(tensors) > 0
        assert all(torch.equal(value, expected[name]) for name, value in tensors.items()), part
    print(kills)
