"""The files around the code: pyproject.toml, lock, Makefile, CI script, Dockerfile."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

import amortized
from amortized.doctor.install import SIZES, TORCH_INDEX

INSTALL = "-m amortized.doctor.install"
ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def copy_build_files(folder: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Under `make test`, the outer make would pass its flags and variables to this one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


# ---- the lock ---------------------------------------------------------------------------------


def test_lock_has_plain_exact_versions() -> None:
    form = r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*( ; .+)?"  # no URL, no +local version, no hash, no option
    assert not [line for line in LOCK if not re.fullmatch(form, line)]


def test_lock_has_every_dependency() -> None:
    locked = {canonical(line.partition("==")[0]) for line in LOCK}
    extras = PROJECT["project"]["optional-dependencies"]
    ours, *others = extras["dev"]
    included = re.fullmatch(r"amortized3d\[(.+)\]", ours)
    requirements = PROJECT["project"]["dependencies"] + others
    requirements += [line for name in included[1].split(",") for line in extras[name]]  # type: ignore[index]
    names = {canonical(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in requirements}  # type: ignore[index]
    assert len(names) > 20 and names <= locked
    # `make` installs the project without build isolation, so setuptools must come from the lock.
    assert "setuptools" in locked


def test_locked_torch_and_torchvision_are_a_pair() -> None:
    """A torchvision built for another torch has no operators, which breaks the import of other libraries."""
    locked = dict(line.split(" ")[0].split("==") for line in LOCK)
    for name in ("torch", "torchvision"):
        if (installed := metadata.version(name)).partition("+")[0] != locked[name]:
            pytest.skip(f"{name} {installed} is installed, {locked[name]} is locked")
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [2.0, 2.0, 3.0, 3.0]])
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]


# ---- packaging --------------------------------------------------------------------------------


def test_version_is_that_of_the_package() -> None:
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "amortized.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", amortized.__version__)


def test_extras() -> None:
    assert {"assets", "cuda", "distributed", "serve", "usdz", "dev"} <= set(
        PROJECT["project"]["optional-dependencies"]
    )


@pytest.mark.parametrize("script", PROJECT["project"]["scripts"])
def test_scripts_name_a_function(script: str) -> None:
    module, _, function = PROJECT["project"]["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_scripts() -> None:
    assert {"amortized", "amortized-train", "amortized-evaluate", "amortized-corpora"} <= set(
        PROJECT["project"]["scripts"]
    )


# ---- make -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["quickstart", "doctor", "test", "bench", "lint", "weights", "lock"])
def test_targets_create_the_environment_first(target: str, tmp_path: Path) -> None:
    done = make(copy_build_files(tmp_path), "--dry-run", target)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    install = next(i for i, line in enumerate(lines) if INSTALL in line)
    command = re.compile(r"(OMP_NUM_THREADS=.+ )?\.venv/bin/(?!python -m pip )")
    use = next(i for i, line in enumerate(lines) if command.match(line))
    assert install < use


def test_an_installed_environment_is_reused_until_the_lock_changes(tmp_path: Path) -> None:
    copy_build_files(tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    assert INSTALL not in make(tmp_path, "--dry-run", "test").stdout
    later = (tmp_path / ".venv" / ".installed").stat().st_mtime + 5
    os.utime(tmp_path / "requirements.lock", (later, later))
    assert INSTALL in make(tmp_path, "--dry-run", "test").stdout


def test_install_passes_the_build_of_torch(tmp_path: Path) -> None:
    copy_build_files(tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    words = ["install", "TORCH=cpu", "TORCH_INDEX=file:///mirror", "PYTHON=python3.12"]
    [line] = [line for line in make(tmp_path, "--dry-run", *words).stdout.splitlines() if INSTALL in line]
    assert line == f"python3.12 {INSTALL} .venv --torch cpu --torch-index file:///mirror"
    makefile = (ROOT / "Makefile").read_text()
    assert TORCH_INDEX in makefile and TORCH_INDEX in (ROOT / "Dockerfile").read_text()


def test_pages_state_the_size_of_an_installation() -> None:
    for page in ("README.md", "docs/quickstart.md"):
        text = (ROOT / page).read_text()
        for disk, download in SIZES.values():
            assert f"{disk} GB" in text and f"{download} GB" in text, page


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 2), (3, 2), (4, 4), (12, 4)])
def test_quickstart_splits_its_prompts_among_processes(tmp_path: Path, cores: int, processes: int) -> None:
    copy_build_files(tmp_path)
    commands = make(tmp_path, "--dry-run", "quickstart", f"CORES={cores}").stdout.replace("\\\n", "")
    train = next(line for line in commands.splitlines() if "train.py" in line)
    shown = subprocess.run(["bash", "-c", f"echo {train}"], check=True, capture_output=True, text=True).stdout
    assert f"--nproc-per-node {processes} " in shown
    assert f"trainer.prompts_per_process={16 // processes}" in shown
    assert shown.startswith(f"OMP_NUM_THREADS={cores // processes} ")


def test_an_old_or_missing_python_is_reported_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in (old, "no-such-python"):
        done = make(copy_build_files(tmp_path), "test", f"PYTHON={python}")
        errors = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert done.returncode != 0 and not (tmp_path / ".venv").exists()
        assert len(errors) == 1 and "Python 3.11 or newer is needed" in errors[0] and str(python) in errors[0]


def test_report(tmp_path: Path) -> None:
    copy_build_files(tmp_path)
    missing = make(tmp_path, "report")
    assert missing.returncode != 0 and "make quickstart" in missing.stderr
    page = tmp_path / "outputs" / "quickstart" / "evaluation" / "index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    assert make(tmp_path, "report", "DISPLAY=", "WAYLAND_DISPLAY=").stdout.strip() == page.as_uri()


def test_help_lists_every_target(tmp_path: Path) -> None:
    makefile = (copy_build_files(tmp_path) / "Makefile").read_text()
    [targets] = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    listed = re.findall(r"^  make ([\w-]+)  +\S", make(tmp_path).stdout, re.MULTILINE)
    assert sorted(listed) == sorted(targets.split())
    assert {"quickstart", "test", "lint", "doctor", "help"} <= set(listed)


def test_the_lowest_versions_are_installed_into_a_separate_environment(tmp_path: Path) -> None:
    shown = make(copy_build_files(tmp_path), "--dry-run", "test-lowest").stdout
    install, use = shown.find("--resolution lowest-direct"), shown.find(".venv-lowest/bin/python -m pytest")
    assert 0 < install < use and ".venv/" not in shown
    (tmp_path / ".venv-lowest").mkdir()
    (tmp_path / ".venv-lowest" / ".installed").touch()
    assert "lowest-direct" not in make(tmp_path, "--dry-run", "test-lowest").stdout


def test_pages_state_the_supported_versions_of_torch() -> None:
    lowest = next(line for line in PROJECT["project"]["dependencies"] if line.startswith("torch>="))
    locked = next(line for line in LOCK if line.startswith("torch=="))
    low, high = lowest.removeprefix("torch>="), ".".join(locked.removeprefix("torch==").split(".")[:2])
    for page in ("README.md", "CONTRIBUTING.md"):
        assert f"torch {low} to {high}" in " ".join((ROOT / page).read_text().split()), page


# ---- CI and Docker ----------------------------------------------------------------------------


def test_ci_calls_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines and lines[-1].startswith("make test")


def test_dockerfile() -> None:
    text = (ROOT / "Dockerfile").read_text()
    stages = re.split(r"^FROM .* AS ", text, flags=re.MULTILINE)[1:]
    by_name = {stage.split("\n", 1)[0]: stage for stage in stages}
    for name in ("cpu", "cuda"):
        assert "\nUSER 1000\n" in by_name[name]
        assert '\nENTRYPOINT ["amortized"]\n' in by_name[name]
        assert "--constraint requirements.lock" in by_name[name]
    caches = re.findall(r"\b\w+_DIR=(/\S+)", by_name["cuda"])  # the root may be read-only
    assert len(caches) == 2 and all(cache.startswith("/tmp/") for cache in caches)
    copied = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied >= {
        "amortized",
        "generators",
        "corpora",
        "configs",
        "checkpoints",
        "train.py",
        "evaluate.py",
    }


def test_license_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


# ---- claims -----------------------------------------------------------------------------------


def test_pages_claim_bit_for_bit_equality_of_cpus_only() -> None:
    """On CUDA, atomics sum gradients in no fixed order. All of log.md was measured on CPUs."""
    pages = [ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.name != "log.md")]
    parts = [part for page in pages for part in re.split(r"\n\n|\n(?=- )", page.read_text())]
    claims = [part for part in parts if re.search(r"bit\s+for\s+bit|same\s+bits", part)]
    assert claims and not [part for part in claims if not re.search(r"CPU|cores", part)]


def test_presets_mark_gpu_memory_as_not_measured() -> None:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        head = re.split(r"^(?!#)", path.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
        assert "GB" not in head or "not measured" in " ".join(head.replace("#", " ").split()), path.name
