"""Checks of the machine: package versions, devices, disk and memory.

Packages are imported on use, so these checks run even if none is installed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amortized import __version__

GIB = 2**30
NEEDED_GIB = 1  # of disk and of memory: the use of a process without its corpus (docs/scaling.md)
ALWAYS_SHOWN = ("python", "torch", "diffusers", "transformers", "open_clip_torch", "safetensors")
OPTIONAL = ("deepspeed", "wandb", "trackio")
REINSTALL = "pip install --force-reinstall --constraint requirements.lock torch torchvision"
FIXES = {  # instead of pip install NAME
    "python": "make doctor PYTHON=python3.12, once .venv is removed",
    "checkpoints/mvdream": "amortized convert-mvdream --help",
}


@dataclass(frozen=True)
class Row:
    """One line of the report. State: ok, missing, wrong, or - if something optional is absent."""

    group: str
    name: str
    state: str
    detail: str  # a version, a size, a path, or the problem
    fix: str = ""  # a command or setting, if there is a problem

    @property
    def fails(self) -> bool:
        return self.state in ("missing", "wrong")


def make_row(group: str, name: str, ok: bool, detail: str, fix: str = "", otherwise: str = "-") -> Row:
    """Return a row: ok without a fix, or the state `otherwise` with the fix."""
    return Row(group, name, "ok" if ok else otherwise, detail, "" if ok else fix)


# ---- packages ---------------------------------------------------------------------------------


def import_torch() -> tuple[Any, str]:
    """Return the torch module and "", or None and the error."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # OSError: a CUDA library is missing
        return None, str(error).partition("\n")[0]
    return torch, ""


def requirements() -> dict[str, Any]:
    """Return the project's requirements by name, extras included; {} if it is not installed."""
    with suppress(ImportError):  # a PackageNotFoundError is one too
        from packaging.requirements import Requirement

        python = metadata.metadata("amortized3d")["Requires-Python"]
        lines = [f"python{python}", *(metadata.requires("amortized3d") or ())]
        return {requirement.name: requirement for requirement in map(Requirement, lines)}
    return {}


def version_of(name: str) -> str | None:
    """Return the installed version of a package or of Python; None if it is missing."""
    with suppress(metadata.PackageNotFoundError):
        return platform.python_version() if name == "python" else metadata.version(name)


def pip_install(name: str, requirement: Any) -> str:
    """Return the command that installs a package within its bounds."""
    extra = re.search(r'extra == "([^"]+)"', str(requirement.marker)) if requirement else None
    package = f"amortized3d[{extra[1]}]" if extra else f"{name}{requirement.specifier if requirement else ''}"
    return FIXES.get(name) or f'pip install "{package}"'


def version_rows(torch: Any, torch_error: str) -> Iterator[Row]:
    """Report the main requirements, and any other that is not met."""
    bounds_of = requirements()
    version = __version__ if bounds_of else f"{__version__}, not installed: version bounds are unknown"
    yield make_row("versions", "amortized3d", bool(bounds_of), version, "pip install -e .")
    required = [
        name
        for name, requirement in bounds_of.items()
        if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    ]
    for name in dict.fromkeys((*ALWAYS_SHOWN, *required)):
        version, bounds = version_of(name), bounds_of[name].specifier if name in bounds_of else None
        ok = version is not None and (not bounds or bounds.contains(version, prereleases=True))
        detail = (version or "not installed") + (f" ({bounds})" if bounds else "")
        fix = pip_install(name, bounds_of.get(name))
        if name == "torch" and ok and torch is None:
            ok, detail, fix = False, f"{detail}, cannot be imported: {torch_error}", REINSTALL
        elif name == "torch" and torch is not None:
            detail += f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"
        if name in ALWAYS_SHOWN or not ok:
            yield make_row("versions", name, ok, detail, fix, "wrong" if version else "missing")


def optional_rows(torch: Any) -> Iterator[Row]:
    """Report optional packages and tools. None is imported, as a broken CUDA build may crash."""
    bounds_of = requirements()
    if torch is not None:
        from amortized.encodings import engines

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        engine = engines.engine_on(device, "auto", engines.GPU_FEATURES[0])
        yield Row("optional", "hash grids", "ok", f"engine {engine} on {device}")
        for name in engines.PACKAGES:
            present = engines.installed(name)
            detail = "installed" if present else "not installed"
            yield make_row("optional", name, present, detail, engines.INSTALL[name])
    for name in OPTIONAL:
        spec = find_spec(name)
        present = spec is not None and spec.origin is not None  # a folder `wandb/` of a run has no origin
        detail = (version_of(name) or "installed") if present else "not installed"
        yield make_row("optional", name, present, detail, pip_install(name, bounds_of.get(name)))
    folder = Path(sys.executable).parent  # that of a virtual environment, even if it is not activated
    ninja = f'export PATH="{folder}:$PATH"' if (folder / "ninja").exists() else "pip install ninja"
    for name, fix in (("g++", "apt-get install g++"), ("ninja", ninja)):
        path = shutil.which(name)
        detail = path or "not on PATH; deepspeed compiles with it on first use"
        yield make_row("optional", name, path is not None, detail, fix)


# ---- the machine ------------------------------------------------------------------------------


def device_rows(torch: Any) -> Iterator[Row]:
    """Report CPU, GPUs and communication backends."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch is None:
        yield Row("devices", "CPU", "ok", f"usable cores: {cores}")
        return
    kind = torch.backends.cpu.get_cpu_capability()
    yield Row("devices", "CPU", "ok", f"usable cores: {cores}, threads: {torch.get_num_threads()}, {kind}")
    if not torch.cuda.is_available():
        # With a driver, either this torch is built without CUDA, or nvidia-smi reports the problem.
        fix = ("nvidia-smi" if torch.version.cuda else REINSTALL) if shutil.which("nvidia-smi") else ""
        yield Row("devices", "CUDA", "-", "no device that torch can use", fix)
    else:
        yield from (gpu_row(torch, index) for index in range(torch.cuda.device_count()))
    dist = torch.distributed
    for name in ("gloo", "nccl"):
        present = dist.is_available() and getattr(dist, f"is_{name}_available")()
        yield make_row("devices", name, present, "in torch" if present else "not in this torch", REINSTALL)


def gpu_row(torch: Any, index: int) -> Row:
    """Report a GPU's name, memory and compute capability."""
    try:
        device = torch.cuda.get_device_properties(index)
    except RuntimeError as error:
        return Row("devices", f"cuda:{index}", "wrong", str(error).partition("\n")[0], "nvidia-smi")
    size = f"{device.total_memory / GIB:.0f} GiB, compute capability {device.major}.{device.minor}"
    bfloat16 = "bfloat16" if device.major >= 8 else "no bfloat16"
    return Row("devices", f"cuda:{index}", "ok", f"{device.name}, {size}, {bfloat16}")


def storage_rows(output: str) -> Iterator[Row]:
    """Report free disk space at the run's output, free memory and shared memory."""
    target = Path(output).absolute()
    folder = next(path for path in (target, *target.parents) if os.path.exists(path))
    free, writable = shutil.disk_usage(folder).free / GIB, os.access(folder, os.W_OK)
    detail = f"{free:.1f} GiB free in {folder}" + ("" if writable else ", which is not writable")
    yield make_row(
        "storage", "disk", writable and free >= NEEDED_GIB, detail, "output=FOLDER elsewhere", "wrong"
    )
    free, scope = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, "in total"
    with suppress(OSError):  # the file exists on Linux only
        if match := re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8")):
            free, scope = int(match[1]) * 1024 / GIB, "free"
    fix = "run fewer processes, or end others"
    yield make_row("storage", "memory", free >= NEEDED_GIB, f"{free:.1f} GiB {scope}", fix, "wrong")
    if os.path.exists("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").total / GIB
        # A container has 64 MB by default, too little for NCCL between GPUs.
        yield make_row("storage", "/dev/shm", shared >= 1, f"{shared:.2f} GiB", "docker run --shm-size=1g")
