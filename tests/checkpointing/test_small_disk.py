"""A disk that is too small for the next checkpoint: a real tmpfs of every size around that of its files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rooms import ROOT

SWEEP = """
import shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path
from amortized.checkpointing import CheckpointError, list_checkpoints
from tests.checkpointing.saving import META, checkpoints_in, same, saved, state_of

disk = Path(sys.argv[1])

def resize(kib):
    subprocess.run(["mount", "-o", f"remount,size={kib}k", "none", disk], check=True)

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
WIDTH = 3000  # about 120 KiB per checkpoint
failed = succeeded = 0
for kib in range(4, 480, 12):
    folder = disk / f"{kib}/checkpoints"
    resize(65536)
    saved(folder, 4, 5)
    used = -(-(shutil.disk_usage(disk).used) // 1024)
    resize(used + kib)
    checkpoints = checkpoints_in(folder, keep=2)
    try:
        checkpoints.save(state_of(6, WIDTH), replace(META, step=6))
        checkpoints.wait()
        succeeded += 1
    except CheckpointError as error:
        failed += 1
        assert "No space left" in str(error) or "free disk space" in str(error), error
        assert "the last good checkpoint is" in str(error) and "step_000005" in str(error), error
        assert "\\n" not in str(error)
        assert sorted(p.name for p in folder.iterdir()) == ["latest", "step_000004", "step_000005"]
        state = state_of(0)
        assert checkpoints.restore(state, "a prior", print).step == 5 and same(state, state_of(5))
        resize(65536)
        checkpoints.save(state_of(6, WIDTH), replace(META, step=6))
        checkpoints.wait()
    checkpoints.close()
    state = state_of(0, WIDTH)
    assert checkpoints_in(folder).restore(state, "a prior", print).step == 6
    assert same(state, state_of(6, WIDTH))
    shutil.rmtree(folder)
print(failed, succeeded)
"""


def can_mount() -> bool:
    """Whether a user may mount a tmpfs in a new namespace."""
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs unshare and the right to mount a tmpfs")
def test_a_checkpoint_on_a_disk_of_every_size(tmp_path: Path) -> None:
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", SWEEP, str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    failed, succeeded = map(int, done.stdout.split()[-2:])
    assert failed > 5 and succeeded > 5
