"""A full disk at any write: one sentence and whole checkpoints; with room, the same command finishes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from amortized.checkpointing import list_checkpoints
from amortized.checkpointing.checkpoint import verify
from tests.commands.runs import Finished, small
from tests.faults.whole import broken_files
from tests.rooms import ROOT

KIB = 1024


class Disk:
    """A small file system in memory, whose size changes while it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        subprocess.run(
            ["mount", "-o", f"remount,size={size}", str(self.folder)], check=True, capture_output=True
        )

    def used(self) -> int:
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_bsize

    def clear(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def check_ended(finished: Finished, what: str) -> None:
    assert finished.returncode in (0, 1, 2), f"{what}: {finished}"
    assert "Traceback" not in finished.stderr, f"{what}: {finished.stderr[-2000:]}"
    if finished.returncode:
        assert sum(": error: " in line for line in finished.stderr.splitlines()) == 1, (
            f"{what}: {finished.stderr}"
        )


def sweep(disk: Disk, run, command: list[str], sizes: int, check) -> None:
    """Run a command with so many sizes of the disk, from nothing to nearly enough, and then with room."""
    disk.resize(64 * 2**20)
    done = run(*command)
    assert done.returncode == 0, done.stderr
    needed = disk.used()
    failed = 0
    for step in range(sizes):
        disk.clear()
        size = max(4 * KIB, needed * step // sizes // (4 * KIB) * 4 * KIB)
        disk.resize(size)
        short_of_space = run(*command)
        check_ended(short_of_space, f"{size:,} of {needed:,} bytes")
        failed += short_of_space.returncode != 0
        assert broken_files(disk.folder) == [], size
        check()
        disk.resize(64 * 2**20)
        completed = run(*command)
        assert completed.returncode == 0, f"after {size:,} bytes: {completed.stderr}"
        check()
    assert failed > sizes // 3


@pytest.mark.parametrize("sizes", [6, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_training(disk: Disk, run, prior, sizes: int) -> None:
    def check() -> None:
        for checkpoint in list_checkpoints(disk.folder / "run/checkpoints"):
            verify(checkpoint)

    sweep(disk, run, small(prior, disk.folder / "run", "device=cpu"), sizes, check)


@pytest.mark.parametrize("sizes", [3, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
@pytest.mark.parametrize("command", ["evaluate", "generate", "export", "encode", "convert"])
def test_other_commands(disk: Disk, run, trained, prior, tmp_path, command: str, sizes: int) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a red cube {i}\n" for i in range(300)))
    out = str(disk.folder / "out")
    quick = [
        "evaluation.views=2",
        "evaluation.turntable_frames=2",
        "evaluation.objects=1",
        "evaluation.grid=8",
        "--limit",
        "2",
    ]
    quick += [f"evaluation.clip={ROOT / 'checkpoints/shapes-clip'}"]
    draw = ["--views", "2", "--size", "16", "--frames", "2", "--device", "cpu"]
    commands = {
        "evaluate": ["evaluate", str(trained), *quick, "--output", out],
        "generate": ["generate", str(trained), "a red cube", *draw, "--output", out],
        "export": ["export", str(trained), out],
        "encode": ["encode", str(prompts), "--encoder", prior, "--device", "cpu", "--output", out],
        "convert": ["corpora", "convert", str(prompts), "--output", f"{out}.parquet"],
    }

    def again(*arguments: str) -> Finished:
        """As a user repeats it: an export that was completed stands, so it is removed first."""
        if command == "export":
            shutil.rmtree(out, ignore_errors=True)
        return run("amortized", *arguments)

    sweep(disk, again, commands[command], sizes, lambda: None)
