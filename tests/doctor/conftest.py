"""A simulated machine for the tests of the doctor."""

from __future__ import annotations

import shutil
from email.message import Message
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from amortized import cli, files
from amortized.doctor import machine as checks
from amortized.doctor import models, packages
from amortized.doctor.machine import GIB

ROOT = Path(__file__).resolve().parents[2]
REQUIRES = [
    "torch>=2.13",
    "numpy<3,>=2; python_version > '3'",
    'deepspeed>=1.5; extra == "distributed"',
    'tqdm>=9; python_version < "3"',
    'xatlas>=0.1; extra == "assets"',
    'manifold3d>=3; extra == "assets"',
]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Simulate a machine with all tools; return its installed versions, which tests may change."""
    versions = {name: "9.0" for name in packages.ALWAYS_SHOWN} | {"numpy": "2.4"}
    project = Message()
    project["Requires-Python"] = ">=3.9"

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    installed = SimpleNamespace(
        version=version,
        requires=lambda name: REQUIRES,
        metadata=lambda name: project,
        PackageNotFoundError=PackageNotFoundError,
    )
    monkeypatch.setattr(packages, "metadata", installed)
    monkeypatch.setattr(checks.shutil, "which", lambda name, *_: f"/usr/bin/{name}")
    usage = SimpleNamespace(free=100 * GIB, total=100 * GIB)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(checks, "NEEDED_GIB", 0)
    monkeypatch.chdir(ROOT)
    return versions


@pytest.fixture
def repo_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the presets and models, as in a source archive: without .git."""
    for name in ("configs", "checkpoints"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for module in (files, models):
        monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setattr(cli, "PRESETS", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path
