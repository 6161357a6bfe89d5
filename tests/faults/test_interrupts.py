"""Ctrl-C in a terminal reaches the launcher and all of its processes at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amortized.checkpointing import list_checkpoints, load_meta
from tests.faults.whole import broken_files
from tests.rooms import ROOT

LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_interrupt_of_two_processes_saves_the_step(tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [*LAUNCH, "train.py", "configs/quickstart.yaml", f"output={output}"]
    process = subprocess.Popen(
        [sys.executable, *command, "trainer.prompts_per_process=2"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group, as of a terminal's job
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "loss=" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert "SIGINT: training stops after this step" in rest, rest
    stopped = re.search(r"stopped at step (\d+); next: run the same command", rest)
    assert stopped, rest
    newest = list_checkpoints(output / "checkpoints")[-1]
    assert load_meta(newest).step == int(stopped[1]) and broken_files(output) == []
