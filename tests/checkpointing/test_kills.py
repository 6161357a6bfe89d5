"""A run that is killed thirty times, wherever that strikes, ends with the weights of one that was not."""

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


def started(*command: str) -> subprocess.Popen:
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def killed_when(process: subprocess.Popen, now: Callable[[], bool]) -> bool:
    """Whether the process was killed before it came to its end by itself."""
    while process.poll() is None and not now():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, stderr = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), stderr.decode()[-2000:]
    return process.returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_thirty_kills_change_nothing(tmp_path):
    prior = make_tiny_sd(tmp_path / "prior", prediction_type="v_prediction")
    train = [
        "train.py", "configs/quickstart.yaml", f"prior={prior}", f"trainer.steps={STEPS}",
        "trainer.prompts_per_process=2", "trainer.render_size=16", "checkpointing.every=4",
        "monitoring.preview_every=50", "monitoring.preview_prompts=1",
    ]  # fmt: skip
    run, chance, struck = tmp_path / "run", random.Random(0), {"step": 0, "checkpoint": 0, "evaluation": 0}
    judge = ["evaluate.py", str(run), "--limit", "4", "evaluation.views=2", "evaluation.grid=16"]
    judge += ["evaluation.turntable_frames=4", f"evaluation.clip={ROOT / 'checkpoints' / 'shapes-clip'}"]

    def lines() -> int:
        log = run / "log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def after(extra: int) -> Callable[[], bool]:
        begun, delay, seen = lines(), chance.uniform(0.0, 0.2), []

        def now() -> bool:
            if not seen and lines() >= begun + extra:
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() >= seen[0] + delay

        return now

    def writing() -> Callable[[], bool]:
        passed, delay = after(chance.randrange(1, 8)), chance.uniform(0.0, 0.02)

        def now() -> bool:
            if not passed() or not list((run / "checkpoints").glob(".partial_*")):
                return False
            time.sleep(delay)
            return True

        return now

    def after_seconds(seconds: float) -> Callable[[], bool]:
        until = time.monotonic() + seconds
        return lambda: time.monotonic() >= until

    while struck["step"] < 10:
        struck["step"] += killed_when(started(*train, f"output={run}"), after(chance.randrange(1, 8)))
    while struck["checkpoint"] < 10:
        struck["checkpoint"] += killed_when(started(*train, f"output={run}"), writing())
    while struck["evaluation"] < 10:
        struck["evaluation"] += killed_when(started(*judge), after_seconds(chance.uniform(4.0, 14.0)))
    assert 20 < lines() < STEPS, "the run finished before thirty kills, or never resumed"
    for folder in (run, tmp_path / "whole"):
        done = started(*train, f"output={folder}")
        _, stderr = done.communicate()
        assert done.returncode == 0, stderr.decode()[-2000:]
    newest = [list_checkpoints(folder / "checkpoints")[-1] for folder in (run, tmp_path / "whole")]
    assert [path.name for path in newest] == [f"step_{STEPS:06d}"] * 2
    for part in ("generator", "ema", "optimizer"):
        mine, whole = (read_part(path, part) for path in newest)
        assert mine.keys() == whole.keys() and len(mine) > 0
        assert all(torch.equal(value, whole[name]) for name, value in mine.items()), part
    print(struck)
