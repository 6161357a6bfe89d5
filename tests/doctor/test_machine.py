"""The doctor reports devices, disk and memory, each problem with a fix."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from amortized.doctor import machine as checks
from amortized.doctor.machine import GIB
from amortized.doctor.needs import needs_of
from tests.doctor.rows import named_row, torch_with


def test_devices() -> None:
    new = SimpleNamespace(name="New", total_memory=80 * GIB, major=9, minor=0)
    old = SimpleNamespace(name="Old", total_memory=16 * GIB, major=7, minor=5)
    rows = list(checks.device_rows(torch_with([new, old, RuntimeError("CUDA error\nmore")])))
    assert named_row(rows, "CPU").detail.endswith("threads: 3, AVX2")
    assert named_row(rows, "cuda:0").detail == "New, 80 GiB, compute capability 9.0, bfloat16"
    assert named_row(rows, "cuda:1").detail == "Old, 16 GiB, compute capability 7.5, no bfloat16"
    broken = named_row(rows, "cuda:2")
    assert (broken.state, broken.detail, broken.fix) == ("wrong", "CUDA error", "nvidia-smi")
    assert named_row(rows, "nccl").state == "ok"


@pytest.mark.parametrize(
    ("cuda", "driver", "fix"),
    [("13.0", True, "nvidia-smi"), (None, True, "torch torchvision"), (None, False, "")],
)
def test_a_machine_without_a_gpu_does_not_fail(cuda, driver, fix, monkeypatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: name if driver else None)
    rows = list(checks.device_rows(torch_with([], cuda=cuda, nccl=False)))
    row = named_row(rows, "CUDA")
    assert row.state == "-" and row.fix.endswith(fix) and bool(row.fix) == bool(fix)
    assert (named_row(rows, "gloo").state, named_row(rows, "nccl").state) == ("ok", "-")


@pytest.mark.parametrize("gpus", [0, 1, 2])
@pytest.mark.parametrize(
    ("setting", "needed"),  # the number of GPUs
    [
        ("device=auto", 0),
        ("device=cpu", 0),
        ("device=cuda", 1),
        ("device=cuda:1", 2),
        ("prior.denoiser_device=cuda:0", 1),
        ("prior.denoiser_device=cuda:7", 8),
        ("prior.denoiser_device=null", 0),
        ("generator.grid.engine=tiny-cuda-nn", 1),
        ("generator.grid.engine=torch", 0),
    ],
)
def test_a_gpu_that_the_settings_need_is_required(setting: str, needed: int, gpus: int) -> None:
    gpu = SimpleNamespace(name="New", total_memory=80 * GIB, major=9, minor=0)
    rows = list(checks.device_rows(torch_with([gpu] * gpus), needs_of([setting])))
    failed = [row for row in rows if row.fails]
    assert bool(failed) == (gpus < needed)
    for row in failed:
        assert row.state == "missing" and setting in row.detail and row.fix.startswith(setting.split("=")[0])


def test_two_devices_of_one_run_are_checked() -> None:
    needs = needs_of(["device=cuda:0", "prior.denoiser_device=cuda:1"])
    gpu = SimpleNamespace(name="New", total_memory=80 * GIB, major=9, minor=0)
    rows = list(checks.device_rows(torch_with([gpu]), needs))
    assert [row.name for row in rows if row.fails] == ["cuda:1"]


def test_disk_is_measured_at_the_nearest_existing_parent_of_output(tmp_path: Path, monkeypatch) -> None:
    measured = []

    def usage(path):
        measured.append(str(path))
        return SimpleNamespace(free=GIB // 2, total=GIB // 16)

    monkeypatch.setattr(checks, "NEEDED_GIB", 1)
    monkeypatch.setattr(checks.shutil, "disk_usage", usage)
    monkeypatch.setattr(checks.os.path, "exists", lambda path: str(path) in (str(tmp_path), "/dev/shm"))
    rows = list(checks.storage_rows(str(tmp_path / "not" / "yet")))
    assert measured == [str(tmp_path), "/dev/shm"]
    disk, shared = named_row(rows, "disk"), named_row(rows, "/dev/shm")
    assert disk.state == "wrong" and disk.detail == f"0.5 GiB free in {tmp_path}" and "output=" in disk.fix
    assert (shared.state, shared.detail) == ("-", "0.06 GiB") and "--shm-size" in shared.fix


def test_a_read_only_output_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checks.os, "access", lambda path, mode: mode != os.W_OK)
    disk = named_row(checks.storage_rows(str(tmp_path)), "disk")
    assert disk.state == "wrong" and "not writable" in disk.detail


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    1572864 kB\n", "1.5 GiB free"),
        ("MemTotal: 9 kB\n", "3.0 GiB in total"),
    ],
)
def test_memory(text: str, detail: str, monkeypatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 3 * GIB // 4096}
    monkeypatch.setattr(checks.os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(checks.Path, "read_text", lambda path, **how: text)
    monkeypatch.setattr(checks, "NEEDED_GIB", 2)
    memory = named_row(checks.storage_rows("outputs"), "memory")
    assert (memory.detail, memory.state) == (detail, "wrong" if "free" in detail else "ok")
