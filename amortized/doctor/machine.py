"""Checks of the machine: package versions, devices, disk and memory.

Whatever may be missing or broken is imported on use: these checks run even if nothing is installed.
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
SHOWN = ("python", "torch", "diffusers", "transformers", "open_clip_torch", "safetensors")
OPTIONAL = ("deepspeed", "wandb", "trackio")
REINSTALL = "pip install --force-reinstall --constraint requirements.lock torch torchvision"
FIXES = {  # other than pip install NAME
    "python": "make doctor PYTHON=python3.12, once .venv is removed",
    "checkpoints/mvdream": "python -m amortized.priors.convert_mvdream --help",
}


@dataclass(frozen=True)
class Row:
    """One line of the report; state is ok, missing, wrong, or - for something optional that is absent."""

    group: str
    name: str
    state: str
    found: str  # what the check measured
    fix: str = ""  # a command or setting that fixes it

    @property
    def fails(self) -> bool:
        return self.state in ("missing", "wrong")


def checked(group: str, name: str, good: bool, found: str, fix: str = "", bad: str = "-") -> Row:
    """A row with state ok, or `bad` and the fix."""
    return Row(group, name, "ok" if good else bad, found, "" if good else fix)


# ---- packages ---------------------------------------------------------------------------------


def import_torch() -> tuple[Any, str]:
    """The torch module and "", or None and the reason."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # OSError: a CUDA library is missing
        return None, str(error).partition("\n")[0]
    return torch, ""


def requirements() -> dict[str, Any]:
    """The project's requirements by name, extras included; {} if it is not installed."""
    with suppress(ImportError):  # a PackageNotFoundError is one too
        from packaging.requirements import Requirement

        python = metadata.metadata("amortized3d")["Requires-Python"]
        lines = [f"python{python}", *(metadata.requires("amortized3d") or ())]
        return {wanted.name: wanted for wanted in map(Requirement, lines)}
    return {}


def version_of(name: str) -> str | None:
    """The installed version of a package, or of Python."""
    with suppress(metadata.PackageNotFoundError):
        return platform.python_version() if name == "python" else metadata.version(name)


def pip_install(name: str, wanted: Any) -> str:
    """The command that installs a package."""
    extra = re.search(r'extra == "([^"]+)"', str(wanted.marker)) if wanted else None
    package = f"amortized3d[{extra[1]}]" if extra else f"{name}{wanted.specifier if wanted else ''}"
    return FIXES.get(name) or f'pip install "{package}"'


def versions(torch: Any, broken: str) -> Iterator[Row]:
    """The main requirements, and any other that is not met."""
    wanted = requirements()
    version = __version__ if wanted else f"{__version__}, not installed: version bounds are unknown"
    yield checked("versions", "amortized3d", bool(wanted), version, "pip install -e .")
    required = [name for name, w in wanted.items() if not w.marker or w.marker.evaluate({"extra": ""})]
    for name in dict.fromkeys((*SHOWN, *required)):
        version, bounds = version_of(name), wanted[name].specifier if name in wanted else None
        good = version is not None and (not bounds or bounds.contains(version, prereleases=True))
        found = (version or "not installed") + (f" ({bounds})" if bounds else "")
        fix = pip_install(name, wanted.get(name))
        if name == "torch" and good and torch is None:
            good, found, fix = False, f"{found}, cannot be imported: {broken}", REINSTALL
        elif name == "torch" and torch is not None:
            found += f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"
        if name in SHOWN or not good:
            yield checked("versions", name, good, found, fix, "wrong" if version else "missing")


def optional(torch: Any) -> Iterator[Row]:
    """Optional packages and tools. None is imported, as a broken CUDA build may crash."""
    wanted = requirements()
    if torch is not None:
        from amortized.encodings import engines

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        engine = engines.engine_on(device, "auto", engines.GPU_FEATURES[0])
        yield Row("optional", "hash grids", "ok", f"engine {engine} on {device}")
        for name in engines.PACKAGES:
            present = engines.installed(name)
            found = "installed" if present else "not installed"
            yield checked("optional", name, present, found, engines.INSTALL[name])
    for name in OPTIONAL:
        spec = find_spec(name)
        present = spec is not None and spec.origin is not None  # a folder `wandb/` of a run has no origin
        found = (version_of(name) or "installed") if present else "not installed"
        yield checked("optional", name, present, found, pip_install(name, wanted.get(name)))
    folder = Path(sys.executable).parent  # of a virtual environment, which may not be activated
    ninja = f'export PATH="{folder}:$PATH"' if (folder / "ninja").exists() else "pip install ninja"
    for name, fix in (("g++", "apt-get install g++"), ("ninja", ninja)):
        path = shutil.which(name)
        found = path or "not on PATH; deepspeed compiles with it on first use"
        yield checked("optional", name, path is not None, found, fix)


# ---- the machine ------------------------------------------------------------------------------


def devices(torch: Any) -> Iterator[Row]:
    """CPU, GPUs and communication backends."""
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
        yield from (gpu(torch, index) for index in range(torch.cuda.device_count()))
    dist = torch.distributed
    for name in ("gloo", "nccl"):
        present = dist.is_available() and getattr(dist, f"is_{name}_available")()
        yield checked("devices", name, present, "in torch" if present else "not in this torch", REINSTALL)


def gpu(torch: Any, index: int) -> Row:
    """A GPU's name, memory and compute capability."""
    try:
        device = torch.cuda.get_device_properties(index)
    except RuntimeError as error:
        return Row("devices", f"cuda:{index}", "wrong", str(error).partition("\n")[0], "nvidia-smi")
    size = f"{device.total_memory / GIB:.0f} GiB, compute capability {device.major}.{device.minor}"
    bfloat16 = "bfloat16" if device.major >= 8 else "no bfloat16"
    return Row("devices", f"cuda:{index}", "ok", f"{device.name}, {size}, {bfloat16}")


def storage(output: str) -> Iterator[Row]:
    """Free disk space for the run, free memory, and shared memory."""
    target = Path(output).absolute()
    folder = next(path for path in (target, *target.parents) if os.path.exists(path))
    free, writable = shutil.disk_usage(folder).free / GIB, os.access(folder, os.W_OK)
    found = f"{free:.1f} GiB free in {folder}" + ("" if writable else ", which is not writable")
    yield checked(
        "storage", "disk", writable and free >= NEEDED_GIB, found, "output=FOLDER elsewhere", "wrong"
    )
    free, what = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, "in total"
    with suppress(OSError):  # the file exists on Linux only
        if match := re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()):
            free, what = int(match[1]) * 1024 / GIB, "free"
    fix = "run fewer processes, or end others"
    yield checked("storage", "memory", free >= NEEDED_GIB, f"{free:.1f} GiB {what}", fix, "wrong")
    if os.path.exists("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").total / GIB
        # A container has 64 MB by default, too little for NCCL between GPUs.
        yield checked("storage", "/dev/shm", shared >= 1, f"{shared:.2f} GiB", "docker run --shm-size=1g")
