"""Commands that are killed a hundred times at arbitrary moments end with the results of undisturbed ones."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amortized.checkpointing import list_checkpoints, read_part
from tests.faults.whole import broken_files
from tests.tiny_sd import make_tiny_sd

ROOT = Path(__file__).resolve().parents[2]
STEPS = 800


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


def after_seconds(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def appears(folder: Path, pattern: str, delay: float) -> Callable[[], bool]:
    """A moment shortly after one more path that matches the pattern is in the folder."""
    before = len(list(folder.glob(pattern)))

    def now() -> bool:
        if len(list(folder.glob(pattern))) <= before:
            return False
        time.sleep(delay)
        return True

    return now


def finish(*command: str) -> None:
    process = start(*command)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr.decode()[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ninety_kills_of_training_and_evaluation_change_nothing(tmp_path):
    prior = make_tiny_sd(tmp_path / "prior", prediction_type="v_prediction")
    train = ["train.py", "configs/quickstart.yaml", f"prior={prior}", f"trainer.steps={STEPS}"]
    train += ["trainer.prompts_per_process=2", "trainer.render_size=16", "checkpointing.every=4"]
    train += ["monitoring.preview_every=50", "monitoring.preview_prompts=1"]
    run, rng, kills = tmp_path / "run", random.Random(0), Counter()
    training = [*train, f"output={run}"]
    evaluate = ["evaluate.py", str(run), "--limit", "4", "evaluation.views=2", "evaluation.grid=16"]
    evaluate += ["evaluation.turntable_frames=4", f"evaluation.clip={ROOT / 'checkpoints' / 'shapes-clip'}"]
    export = ["-m", "amortized.commands.main", "export", str(run)]

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

    def kill(kind: str, times: int, command: list[str], moment: Callable[[], Callable[[], bool]]) -> None:
        while kills[kind] < times:
            shutil.rmtree(tmp_path / "cut", ignore_errors=True)  # an export that a kill came too late for
            killed = kill_when(start(*command), moment())
            assert killed or command is not training, "the run finished before all kills"
            kills[kind] += killed
            assert broken_files(tmp_path) == [], kind

    kill("step", 40, training, lambda: after(rng.randrange(1, 8)))
    kill("checkpoint", 20, training, writing)
    kill("evaluation", 15, evaluate, lambda: after_seconds(rng.uniform(4.0, 14.0)))
    kill(
        "export",
        15,
        [*export, str(tmp_path / "cut")],
        lambda: appears(tmp_path, "*cut*", rng.uniform(0, 0.05)),
    )
    assert num_logged() > 20, "the run never resumed"
    folders = (run, tmp_path / "uninterrupted")
    for folder in folders:
        finish(*train, f"output={folder}")
    newest = [list_checkpoints(folder / "checkpoints")[-1] for folder in folders]
    assert [path.name for path in newest] == [f"step_{STEPS:06d}"] * 2
    for part in ("generator", "ema", "optimizer"):
        tensors, expected = (read_part(path, part) for path in newest)
        assert tensors.keys() == expected.keys() and len(tensors) > 0
        assert all(torch.equal(value, expected[name]) for name, value in tensors.items()), part
    print(kills)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifteen_kills_of_encoding_change_no_byte(tmp_path):
    prior = make_tiny_sd(tmp_path / "prior")
    encode = ["-m", "corpora", "encode", "at2520", "--encoder", str(prior), "--prompts-per-shard", "16"]
    rng, kills, folders = random.Random(1), 0, (tmp_path / "cut", tmp_path / "uninterrupted")
    while kills < 15:
        cut = start(*encode, "--output", str(folders[0]))
        kills += kill_when(cut, appears(folders[0], "shards/*.tar", rng.uniform(0, 0.3)))
        assert broken_files(tmp_path) == []
    for folder in folders:
        finish(*encode, "--output", str(folder))

    def is_result(path: Path) -> bool:
        return path.is_file() and path.name != ".lock"  # which names the process

    contents = [
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if is_result(p)} for f in folders
    ]
    assert contents[0] == contents[1] and len(contents[0]) > 100
