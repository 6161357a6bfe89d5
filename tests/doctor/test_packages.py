"""The doctor reports missing and broken packages, each with a command that installs it."""

from __future__ import annotations

import shlex
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from amortized.doctor import packages as checks
from amortized.doctor.machine import reinstall_torch
from amortized.doctor.needs import needs_of
from amortized.encodings import engines
from tests.doctor.rows import named_row, report, torch_with


def installs(fix: str) -> list[str]:
    """What a command installs into this environment."""
    python, *rest = shlex.split(fix)
    assert rest[:3] == ["-m", "pip", "install"] and Path.cwd() / python == Path(sys.executable), fix
    return rest[3:]


def test_an_old_or_absent_requirement_fails(machine, capsys) -> None:
    machine["torch"] = "2.12.1+cu128"
    machine.pop("numpy")
    status, rows = report(capsys)
    torch, numpy = named_row(rows, "torch"), named_row(rows, "numpy")
    assert status == 1
    assert torch.state == "wrong" and torch.detail.startswith("2.12.1+cu128 (>=2.13)")
    assert installs(torch.fix) == ["torch>=2.13"]
    assert (numpy.state, numpy.detail) == ("missing", "not installed (<3,>=2)")
    assert installs(numpy.fix) == ["numpy<3,>=2"]


@pytest.mark.parametrize("version", ["2.13", "2.13.0+cu130", "3.0rc1"])
def test_versions_within_bounds(machine, version: str) -> None:
    machine["torch"] = version
    rows = list(checks.version_rows(SimpleNamespace(version=SimpleNamespace(cuda="13.0")), ""))
    torch = named_row(rows, "torch")
    assert (torch.state, torch.detail) == ("ok", f"{version} (>=2.13), CUDA 13.0")
    # No rows for other requirements that are met, for extras or for other platforms.
    assert [row.name for row in rows] == ["platform", "amortized3d", *checks.ALWAYS_SHOWN]


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
    assert status == 0 and (project.state, installs(project.fix)) == ("-", ["-e", "."])
    assert named_row(rows, "torch").state == "ok"


def test_a_broken_torch_is_reported_with_all_other_rows(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    status, rows = report(capsys)
    torch = named_row(rows, "torch")
    assert status == 1 and torch.state == "wrong" and "cannot be imported" in torch.detail
    assert torch.fix == reinstall_torch()
    assert {"CPU", "deepspeed", "disk", "embedded"} <= {row.name for row in rows}


def test_without_yaml_the_other_rows_are_reported(monkeypatch, capsys) -> None:
    for name in ("yaml", *(name for name in sys.modules if name.startswith("amortized.config"))):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    status, rows = report(capsys)
    assert status == 1 and installs(named_row(rows, "all").fix) == ["-e", "."]
    assert named_row(rows, "torch").state == "ok"


def without_optional_packages(monkeypatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.setattr(engines, "installed", lambda name: False)
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)


def test_absent_packages_that_no_setting_needs_are_not_recommended(monkeypatch, capsys) -> None:
    without_optional_packages(monkeypatch)
    status, rows = report(capsys)
    absent = {row.name: row for row in rows if row.group == "optional" and row.state != "ok"}
    assert status == 0 and set(absent) == {*checks.OPTIONAL, *engines.PACKAGES, "assets", "g++", "ninja"}
    for row in absent.values():
        assert (row.state, row.fix) == ("-", "") and "used by" in row.detail


def test_the_packages_of_an_extra_are_one_row(machine, capsys) -> None:
    """Those of the dependencies do not count, whatever their markers."""

    def state() -> tuple[str, str]:
        row = named_row(report(capsys)[1], "assets")
        return row.state, row.detail

    assert state() == ("-", "without xatlas, manifold3d; used by " + checks.EXTRAS["assets"])
    machine["xatlas"] = "0.1"
    assert state()[1].startswith("without manifold3d;")
    machine["manifold3d"] = "3.2"
    assert state() == ("ok", "xatlas 0.1, manifold3d 3.2")


def test_a_gpu_uses_the_fastest_hash_grid(monkeypatch) -> None:
    without_optional_packages(monkeypatch)
    fake = torch_with([object()])
    fake.device = torch.device
    rows = list(checks.optional_rows(fake))
    for name in engines.PACKAGES:
        row = named_row(rows, name)
        assert row.state == "-" and row.fix.endswith(engines.INSTALL[name].removeprefix("pip install "))
    assert not named_row(rows, "deepspeed").fix


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("monitoring.tracker=wandb", {"wandb": ["wandb"]}),
        ("monitoring.tracker=trackio", {"trackio": ["trackio"]}),
        ("distributed.strategy=zero1", {"deepspeed": ["deepspeed>=1.5"], "g++": None, "ninja": None}),
        ("distributed.strategy=zero3", {"deepspeed": ["deepspeed>=1.5"], "g++": None, "ninja": None}),
        ("generator.grid.engine=triton", {"triton": ["triton"], "cuda": None}),
        ("monitoring.tracker=null", {}),
        ("distributed.strategy=fsdp2", {}),
        ("generator.grid.engine=auto", {}),
    ],
)
def test_what_a_setting_needs_is_required(setting: str, expected: dict, monkeypatch, capsys) -> None:
    without_optional_packages(monkeypatch)
    status, rows = report(capsys, "configs/quickstart.yaml", setting)
    failed = {row.name: row for row in rows if row.fails}
    assert status == (1 if expected else 0) and set(failed) == set(expected)
    for name, row in failed.items():
        assert row.state == "missing" and setting in row.detail
        if expected[name] is not None:
            assert installs(row.fix) == expected[name]


def test_the_last_setting_counts_and_presets_are_read(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("device: cuda:1\nmonitoring: {tracker: wandb}\n")
    assert needs_of([str(preset)]).devices == {"cuda:1": "device=cuda:1"}
    assert needs_of([str(preset)]).packages == {"wandb": "monitoring.tracker=wandb"}
    later = needs_of([str(preset), "device=cpu", "monitoring.tracker=null"])
    assert not later.devices and not later.packages


def test_commands_name_packages_of_an_index(machine, monkeypatch) -> None:
    """The project is on no index, so `pip install amortized3d[...]` would fail."""
    machine.clear()
    rows = [
        *checks.version_rows(None, ""),
        *checks.optional_rows(None, needs_of(["distributed.strategy=zero1"])),
    ]
    fixes = [row.fix for row in rows if " install " in row.fix]
    assert len(fixes) > 4 and not [fix for fix in fixes if "amortized3d" in fix]


def test_an_activated_environment_has_pip_on_the_path(monkeypatch) -> None:
    beside = str(Path(sys.executable).with_name("pip"))
    monkeypatch.setattr(checks.shutil, "which", lambda name: beside)
    assert checks.install_package("wandb", None) == "pip install wandb"
    monkeypatch.setattr(checks.shutil, "which", lambda name: "/usr/bin/pip")
    assert installs(checks.install_package("wandb", None)) == ["wandb"]


def test_other_platforms_are_not_tested(machine, monkeypatch) -> None:
    monkeypatch.setattr(checks.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(checks.platform, "machine", lambda: "arm64")
    row = named_row(checks.version_rows(None, ""), "platform")
    assert (row.state, row.fix) == ("-", "") and row.detail.startswith("Darwin arm64; tested on Linux")


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
    assert [named_row(rows, name).detail for name in origins] == [
        "not installed; used by monitoring.tracker=wandb",
        "installed",
        "1.5.3",
    ]


def test_ninja_of_an_environment_that_is_not_activated(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    monkeypatch.setattr(checks.sys, "executable", str(tmp_path / "python"))
    needs = needs_of(["distributed.strategy=zero2"])
    assert installs(named_row(checks.optional_rows(None, needs), "ninja").fix) == ["ninja"]
    (tmp_path / "ninja").touch()
    assert named_row(checks.optional_rows(None, needs), "ninja").fix == f"export PATH={tmp_path}:$PATH"
