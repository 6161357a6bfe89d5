"""The doctor reports missing and broken packages, devices, disk and memory, each with a fix."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from amortized.doctor import machine as checks
from amortized.doctor.machine import GIB
from amortized.encodings import engines
from tests.doctor.rows import named_row, report


def test_an_old_or_absent_requirement_fails(machine, capsys) -> None:
    machine["torch"] = "2.12.1+cu128"
    machine.pop("numpy")
    status, rows = report(capsys)
    torch, numpy = named_row(rows, "torch"), named_row(rows, "numpy")
    assert status == 1
    assert torch.state == "wrong" and torch.detail.startswith("2.12.1+cu128 (>=2.13)")
    assert torch.fix == 'pip install "torch>=2.13"'
    assert (numpy.state, numpy.detail) == ("missing", "not installed (<3,>=2)")
    assert numpy.fix == 'pip install "numpy<3,>=2"'


@pytest.mark.parametrize("version", ["2.13", "2.13.0+cu130", "3.0rc1"])
def test_versions_within_bounds(machine, version: str) -> None:
    machine["torch"] = version
    rows = list(checks.version_rows(SimpleNamespace(version=SimpleNamespace(cuda="13.0")), ""))
    torch = named_row(rows, "torch")
    assert (torch.state, torch.detail) == ("ok", f"{version} (>=2.13), CUDA 13.0")
    # No rows for other requirements that are met, for extras or for other platforms.
    assert [row.name for row in rows] == ["amortized3d", *checks.ALWAYS_SHOWN]


def test_a_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.platform, "python_version", lambda: "3.8.1")
    python = named_row(checks.version_rows(None, ""), "python")
    assert (python.state, python.detail) == ("wrong", "3.8.1 (>=3.9)") and "PYTHON=" in python.fix


def test_without_an_installed_project_there_are_no_bounds(machine, monkeypatch, capsys) -> None:
    def absent(name: str):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(checks.metadata, "metadata", absent)
    machine["torch"] = "0.1"
    status, rows = report(capsys)
    project = named_row(rows, "amortized3d")
    assert status == 0 and (project.state, project.fix) == ("-", "pip install -e .")
    assert named_row(rows, "torch").state == "ok"


def test_a_broken_torch_is_reported_with_all_other_rows(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    status, rows = report(capsys)
    torch = named_row(rows, "torch")
    assert status == 1 and torch.state == "wrong" and "cannot be imported" in torch.detail
    assert torch.fix == checks.REINSTALL
    assert {"CPU", "deepspeed", "disk", "embedded"} <= {row.name for row in rows}


def test_without_yaml_the_other_rows_are_reported(monkeypatch, capsys) -> None:
    for name in ("yaml", *(name for name in sys.modules if name.startswith("amortized.config"))):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    status, rows = report(capsys)
    assert status == 1 and named_row(rows, "all").fix == "pip install -e ."
    assert named_row(rows, "torch").state == "ok"


def test_absent_optional_packages_do_not_fail(monkeypatch, capsys) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.setattr(engines, "installed", lambda name: False)
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    status, rows = report(capsys)
    fixes = {row.name: row.fix for row in rows if row.group == "optional" and row.state == "-"}
    assert status == 0
    assert set(fixes) == {*checks.OPTIONAL, *engines.PACKAGES, "g++", "ninja"}
    assert fixes["deepspeed"] == 'pip install "amortized3d[distributed]"'
    assert fixes["wandb"] == 'pip install "wandb"'
    assert fixes["tiny-cuda-nn"] == engines.INSTALL["tiny-cuda-nn"]
    assert fixes["g++"] == "apt-get install g++"


def test_a_plain_folder_is_not_an_installed_package(machine, monkeypatch) -> None:
    """Tracked runs leave a folder `wandb`, which Python finds as a namespace package."""
    origins = {
        "wandb": None,
        "trackio": "/site/trackio/__init__.py",
        "deepspeed": "/site/deepspeed/__init__.py",
    }
    monkeypatch.setattr(
        checks,
        "find_spec",
        lambda name: ModuleSpec(name, None, origin=origins[name]) if name in origins else None,
    )
    machine["deepspeed"] = "1.5.3"
    rows = list(checks.optional_rows(None))
    assert [named_row(rows, name).detail for name in origins] == ["not installed", "installed", "1.5.3"]


def test_ninja_of_an_environment_that_is_not_activated(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    monkeypatch.setattr(checks.sys, "executable", str(tmp_path / "python"))
    assert named_row(checks.optional_rows(None), "ninja").fix == "pip install ninja"
    (tmp_path / "ninja").touch()
    assert named_row(checks.optional_rows(None), "ninja").fix == f'export PATH="{tmp_path}:$PATH"'


def torch_with(gpus: list, *, cuda: str | None = "13.0", nccl: bool = True) -> SimpleNamespace:
    def properties(index: int):
        if isinstance(gpus[index], Exception):
            raise gpus[index]
        return gpus[index]

    return SimpleNamespace(
        version=SimpleNamespace(cuda=cuda),
        get_num_threads=lambda: 3,
        backends=SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX2")),
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_properties=properties,
        ),
        distributed=SimpleNamespace(
            is_available=lambda: True, is_gloo_available=lambda: True, is_nccl_available=lambda: nccl
        ),
    )


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
    [("13.0", True, "nvidia-smi"), (None, True, checks.REINSTALL), (None, False, "")],
)
def test_a_machine_without_a_gpu_does_not_fail(cuda, driver, fix, monkeypatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: name if driver else None)
    rows = list(checks.device_rows(torch_with([], cuda=cuda, nccl=False)))
    assert (named_row(rows, "CUDA").state, named_row(rows, "CUDA").fix) == ("-", fix)
    assert (named_row(rows, "gloo").state, named_row(rows, "nccl").state) == ("ok", "-")


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
